"""Padding: with a constant, or with the data itself (its edge, its mirror image, its other end)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir import TensorType
from .opdef import (
    Attrs,
    OpDef,
    Sample,
    Types,
    given,
    require,
)

MODES = ("constant", "edge", "reflect", "wrap")
"""numpy.pad's names. All but the first pad one axis, or two neighbouring ones, per node."""


def border(size: int, before: int, after: int, mode: str) -> np.ndarray:
    """Which of the `size` elements of an axis each element of the padded axis copies; not for "constant"."""
    index: np.ndarray = np.pad(np.arange(size), (before, after), mode=mode)  # type: ignore[call-overload]
    return index


def padded_axes(attrs: Attrs) -> list[int]:
    """The axes that get longer."""
    pairs = enumerate(zip(attrs["before"], attrs["after"], strict=True))
    return [axis for axis, pair in pairs if any(pair)]


def _infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, before, after, mode = given(types, 0), attrs["before"], attrs["after"], attrs["mode"]
    require(len(before) == len(after) == len(x.shape), f"pad {before}, {after} does not fit the axes of {x}")
    require(min((*before, *after), default=0) >= 0, f"pad {before}, {after} must not be negative")
    require(mode in MODES, f"mode {mode!r} is not one of {', '.join(MODES)}")
    if mode != "constant":
        axes = padded_axes(attrs)
        require(len(axes) < 2 or axes == [axes[0], axes[0] + 1], f"{mode} pads axes {axes} of {x} at once")
        require(all(x.shape[a] > 0 for a in axes), f"{x} has nothing to pad with")
    shape = tuple(d + b + a for d, b, a in zip(x.shape, before, after, strict=True))
    return (TensorType(shape, x.dtype),)


def _reference(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    (x,) = inputs
    if attrs["mode"] == "constant":
        pairs = zip(reversed(attrs["before"]), reversed(attrs["after"]), strict=True)
        return torch.nn.functional.pad(x, [n for pair in pairs for n in pair], value=attrs["value"])
    for axis in padded_axes(attrs):
        index = border(x.shape[axis], attrs["before"][axis], attrs["after"][axis], attrs["mode"])
        x = x.index_select(axis, torch.from_numpy(index))
    return x


def _relax(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    (x,) = args
    if attrs["mode"] == "constant":
        pairs = zip(attrs["before"], attrs["after"], strict=True)
        return relax.op.nn.pad(x, [n for pair in pairs for n in pair], pad_value=attrs["value"])
    sizes = [int(d) for d in x.ty.shape]
    for axis in padded_axes(attrs):
        index = border(sizes[axis], attrs["before"][axis], attrs["after"][axis], attrs["mode"])
        x = relax.op.take(x, relax.const(index, "int64"), axis=axis)
    return x


_NHWC: dict[str, Any] = {"before": (0, 2, 1, 0), "after": (0, 1, 3, 0)}

PAD = OpDef(
    name="pad",
    inputs=("x",),
    required=1,
    infer=_infer,
    reference=_reference,
    samples=(
        Sample((TensorType((1, 3, 5, 6)),), {"before": (0, 0, 1, 2), "after": (0, 1, 2, 0), "value": 0.5}),
        Sample((TensorType((3, 4), "int64"),), {"before": (1, 0), "after": (0, 2), "value": -7.0}),
        Sample((TensorType((2, 5, 6, 19)),), {**_NHWC, "mode": "reflect"}),
        Sample((TensorType((2, 3, 7)),), {"before": (0, 0, 9), "after": (0, 0, 8), "mode": "reflect"}),
        Sample((TensorType((1, 5, 6, 33), "uint8"),), {**_NHWC, "mode": "edge"}),
        Sample((TensorType((4, 5), "int64"),), {"before": (2, 0), "after": (1, 0), "mode": "wrap"}),
    ),
    attrs={"before": None, "after": None, "value": 0.0, "mode": "constant"},
    relax=_relax,
    plain=(),
)
