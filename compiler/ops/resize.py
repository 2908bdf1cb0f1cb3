"""Resizing an image: nearest neighbour (any element type) and linear, over height and width.

Other modes and axes are brought to these, or to products with constant matrices (frontends/onnx/resize.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..ir import TensorType
from .conv import nchw
from .opdef import (
    Attrs,
    Coupling,
    OpDef,
    Sample,
    Types,
    given,
    require,
)
from .resampling import (
    COORDS,
    ROUNDINGS,
    Sampling,
    linear,
    nearest,
)

MODES = ("nearest", "linear")


def sampling_of(attrs: Attrs) -> Sampling:
    """What a node's attributes say, for compiler/ops/resampling.py."""
    return Sampling(str(attrs["mode"]), str(attrs["coords"]), str(attrs["rounding"]))


def _infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = given(types, 0)
    require(len(x.shape) == 4 and x.size > 0, f"x must be an image of 4 dimensions, got {x}")
    for key, legal in (("mode", MODES), ("coords", COORDS), ("rounding", ROUNDINGS), ("layout", LAYOUTS)):
        require(attrs[key] in legal, f"{key} {attrs[key]!r} is not one of {', '.join(legal)}")
    require(attrs["mode"] == "nearest" or x.dtype == "float32", f"linear takes float32, got {x}")
    (oh, ow), scales = attrs["sizes"], attrs["scales"]
    require(oh > 0 and ow > 0, f"sizes {attrs['sizes']} must be positive")
    require(len(scales) == 2 and min(scales) > 0, f"scales {scales} must be two positive numbers")
    n, c, _, _ = nchw(x.shape, str(attrs["layout"]))
    return (TensorType((n, c, oh, ow) if attrs["layout"] == "NCHW" else (n, oh, ow, c), x.dtype),)


LAYOUTS = ("NCHW", "NHWC")


def _reference(inputs: Sequence[Any], attrs: Attrs) -> Any:
    x, sampling = inputs[0], sampling_of(attrs)
    axis = 2 if attrs["layout"] == "NCHW" else 1
    for i in range(2):
        size, out, scale = x.shape[axis + i], attrs["sizes"][i], attrs["scales"][i]
        x = _along(x, axis + i, size, out, scale, sampling)
    return x


def _along(x: Any, axis: int, size: int, out: int, scale: float, sampling: Sampling) -> Any:
    import torch

    if sampling.mode == "nearest":
        return x.index_select(axis, torch.from_numpy(nearest(size, out, scale, sampling)))
    left, right, share = (torch.from_numpy(a) for a in linear(size, out, scale, sampling))
    share = share.reshape(-1, *(1,) * (x.dim() - 1 - axis))
    return x.index_select(axis, left) * (1 - share) + x.index_select(axis, right) * share


def _couple(types: Types, attrs: Attrs) -> tuple[Coupling, ...]:
    channel = 1 if attrs["layout"] == "NCHW" else 3
    return frozenset({("x", 0), ("y", 0)}), frozenset({("x", channel), ("y", channel)})


def _flops(types: Types, outs: Sequence[TensorType], attrs: Attrs) -> int:
    return 8 * outs[0].size if attrs["mode"] == "linear" else 0


_DOUBLE: dict[str, Any] = {"sizes": (10, 14), "scales": (2.0, 2.0)}
_HALVE: dict[str, Any] = {"sizes": (3, 4), "scales": (0.6, 0.57)}
_NHWC: dict[str, Any] = {"layout": "NHWC"}
_LINEAR: dict[str, Any] = {"mode": "linear"}

RESIZE = OpDef(
    name="resize",
    inputs=("x",),
    required=1,
    infer=_infer,
    reference=_reference,
    samples=(
        Sample((TensorType((2, 3, 5, 7)),), _DOUBLE),
        Sample((TensorType((1, 3, 5, 7)),), {**_LINEAR, **_DOUBLE}),
        Sample(
            (TensorType((2, 5, 7, 19)),), {**_DOUBLE, **_NHWC, "coords": "asymmetric", "rounding": "floor"}
        ),
        Sample((TensorType((1, 5, 7, 33)),), {**_LINEAR, **_DOUBLE, **_NHWC, "coords": "align_corners"}),
        Sample((TensorType((2, 5, 7, 3)),), {**_LINEAR, **_HALVE, **_NHWC}),
        Sample((TensorType((1, 5, 7, 8)),), {**_HALVE, **_NHWC, "coords": "half_pixel_symmetric"}),
        Sample((TensorType((1, 5, 7, 70), "uint8"),), {**_DOUBLE, **_NHWC}),
        Sample((TensorType((1, 2, 5, 7), "int64"),), {**_HALVE, "rounding": "ceil"}),
    ),
    attrs={
        "sizes": None,  # of the result: height, width
        "scales": None,  # by which positions are divided: sizes over the input's, or what the model says
        "mode": "nearest",
        "coords": "half_pixel",
        "rounding": "round_prefer_floor",  # of nearest
        "layout": "NCHW",
    },
    couple=_couple,
    flops=_flops,
    plain=(),
)
