"""Operators along one axis whose results depend on order: running sums and products, the best k, reversal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir import TensorType
from .numbers import by_numpy
from .opdef import (
    NUMBERS,
    Attrs,
    Coupling,
    OpDef,
    Sample,
    Types,
    given,
    require,
    require_plain,
)


def check_axis(x: TensorType, axis: Any) -> None:
    require(isinstance(axis, int) and 0 <= axis < len(x.shape), f"axis {axis} is not an axis of {x}")


def _couple_others(types: Types, attrs: Attrs) -> tuple[Coupling, ...]:
    """Every axis but the operator's own is the same axis of y."""
    axes = [a for a in range(len(given(types, 0).shape)) if a != attrs["axis"]]
    return tuple(frozenset({("x", a), ("y", a)}) for a in axes)


def _infer_cumulate(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = given(types, 0)
    require_plain(NUMBERS, x)
    check_axis(x, attrs["axis"])
    return (x,)


def _reference_cumulate(inputs: Sequence[Any], attrs: Attrs, name: str) -> Any:
    def run(x: np.ndarray) -> np.ndarray:
        axis = attrs["axis"]
        x = np.flip(x, axis) if attrs["reverse"] else x
        if attrs["exclusive"]:
            first = np.full_like(np.take(x, [0], axis), 1 if name == "cumprod" else 0)
            x = np.concatenate([first, np.take(x, range(x.shape[axis] - 1), axis)], axis)
        y = getattr(np, name)(x, axis, dtype=x.dtype)
        return np.flip(y, axis) if attrs["reverse"] else y

    return by_numpy(run, inputs[0])


def _cumulate_op(name: str) -> OpDef:
    return OpDef(
        name=name,
        inputs=("x",),
        required=1,
        infer=_infer_cumulate,
        reference=lambda inputs, attrs: _reference_cumulate(inputs, attrs, name),
        samples=(
            Sample((TensorType((2, 5, 3)),), {"axis": 1}),
            Sample((TensorType((6,), "int32"),), {"axis": 0, "exclusive": True}),
            Sample((TensorType((2, 4), "float64"),), {"axis": 1, "reverse": True}),
            Sample((TensorType((3, 4)),), {"axis": 0, "reverse": True, "exclusive": True}),
        ),
        attrs={"axis": None, "exclusive": False, "reverse": False},
        couple=_couple_others,
        flops=lambda types, outs, attrs: outs[0].size,
        plain=NUMBERS,
    )


def _infer_topk(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, k, axis = given(types, 0), attrs["k"], attrs["axis"]
    require_plain(NUMBERS, x)
    check_axis(x, axis)
    require(0 < k <= x.shape[axis], f"k is {k}, axis {axis} of {x} is shorter or k is not positive")
    shape = (*x.shape[:axis], k, *x.shape[axis + 1 :])
    return TensorType(shape, x.dtype), TensorType(shape, "int64")


def _reference_topk(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    x, axis = inputs[0].numpy(), attrs["axis"]
    keys = x
    if attrs["largest"]:  # ~x and -x turn the order round without overflow
        keys = -x if x.dtype.kind == "f" else ~x
    order = np.take(np.argsort(keys, axis=axis, kind="stable"), range(attrs["k"]), axis)
    return torch.from_numpy(np.take_along_axis(x, order, axis)), torch.from_numpy(order.astype(np.int64))


TOPK = OpDef(
    name="topk",  # values and places of the k best, the best first; of equal ones the first
    inputs=("x",),
    required=1,
    infer=_infer_topk,
    reference=_reference_topk,
    samples=(
        Sample((TensorType((3, 17)),), {"axis": 1, "k": 5}),
        Sample((TensorType((2, 6, 3), "int64"),), {"axis": 1, "k": 6, "largest": False}),
        Sample((np.array([3, 1, 3, 3, 2, 1], np.uint32),), {"axis": 0, "k": 4}),
    ),
    attrs={"axis": None, "k": None, "largest": True},
    flops=lambda types, outs, attrs: given(types, 0).size,
    plain=NUMBERS,
)


def _infer_reverse(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    check_axis(given(types, 0), attrs["axis"])
    return (given(types, 0),)


def _relax_reverse(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    return relax.op.flip(args[0], attrs["axis"])


REVERSE = OpDef(
    name="reverse",
    inputs=("x",),
    required=1,
    infer=_infer_reverse,
    reference=lambda inputs, attrs: by_numpy(lambda x: np.flip(x, attrs["axis"]), inputs[0]),
    samples=(
        Sample((TensorType((2, 5, 3)),), {"axis": 1}),
        Sample((TensorType((4,), "uint8"),), {"axis": 0}),
    ),
    attrs={"axis": None},
    couple=_couple_others,
    relax=_relax_reverse,
    plain=(),
)


def _infer_expand(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, shape = given(types, 0), tuple(attrs["shape"])
    own = (1,) * (len(shape) - len(x.shape)) + x.shape
    fits = len(own) == len(shape) and all(a in (1, b) for a, b in zip(own, shape, strict=True))
    require(fits, f"{x} does not expand to {shape}")
    return (TensorType(shape, x.dtype),)


def _relax_expand(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    return relax.op.broadcast_to(args[0], attrs["shape"])


EXPAND = OpDef(
    name="expand",
    inputs=("x",),
    required=1,
    infer=_infer_expand,
    reference=lambda inputs, attrs: by_numpy(lambda x: np.broadcast_to(x, attrs["shape"]), inputs[0]),
    samples=(
        Sample((TensorType((3, 1)),), {"shape": (2, 3, 4)}),
        Sample((TensorType((), "int64"),), {"shape": (5,)}),
    ),
    attrs={"shape": None},
    relax=_relax_expand,
    plain=(),
)

ORDER = (_cumulate_op("cumsum"), _cumulate_op("cumprod"), TOPK, REVERSE, EXPAND)
