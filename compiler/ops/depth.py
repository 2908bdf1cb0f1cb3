"""depth_to_space: channels become pixels. What a transposed convolution, and sub-pixel upsampling, end with.

y[n, c, h * bh + i, w * bw + j] = x[n, (i * bw + j) * C + c, h, w]    then `crop` is cut off
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


def _infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, (bh, bw) = given(types, 0), attrs["block"]
    require(len(x.shape) == 4, f"x must have 4 dimensions, got {x}")
    require(attrs["layout"] in ("NCHW", "NHWC"), f"layout {attrs['layout']!r} is not NCHW or NHWC")
    n, c, h, w = nchw(x.shape, str(attrs["layout"]))
    require(bh > 0 and bw > 0 and c % (bh * bw) == 0, f"{c} channels do not split into {bh}x{bw} blocks")
    top, left, bottom, right = attrs["crop"]
    require(min(attrs["crop"]) >= 0, f"crop {attrs['crop']} must not be negative")
    h, w, c = h * bh - top - bottom, w * bw - left - right, c // (bh * bw)
    require(h > 0 and w > 0, f"crop {attrs['crop']} leaves nothing of {x}")
    return (TensorType((n, c, h, w) if attrs["layout"] == "NCHW" else (n, h, w, c), x.dtype),)


def _split(shape: Sequence[int], attrs: Attrs) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(shape with the blocks apart, order that puts them beside the pixels, shape before cropping)."""
    (bh, bw), planar = attrs["block"], attrs["layout"] == "NCHW"
    n, c, h, w = nchw((shape[0], shape[1], shape[2], shape[3]), str(attrs["layout"]))
    c //= bh * bw
    if planar:
        return (n, bh, bw, c, h, w), (0, 3, 4, 1, 5, 2), (n, c, h * bh, w * bw)
    return (n, h, w, bh, bw, c), (0, 1, 3, 2, 4, 5), (n, h * bh, w * bw, c)


def _kept(shape: Sequence[int], attrs: Attrs) -> list[tuple[int, int]]:
    """First and last + 1 of each axis that cropping leaves."""
    top, left, bottom, right = attrs["crop"]
    first = 2 if attrs["layout"] == "NCHW" else 1
    kept = [(0, d) for d in shape]
    kept[first : first + 2] = [(top, shape[first] - bottom), (left, shape[first + 1] - right)]
    return kept


def _reference(inputs: Sequence[Any], attrs: Attrs) -> Any:
    apart, order, shape = _split(inputs[0].shape, attrs)
    y = inputs[0].reshape(apart).permute(order).reshape(shape)
    return y[tuple(slice(*ends) for ends in _kept(shape, attrs))].contiguous()


def _relax(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    apart, order, shape = _split([int(d) for d in args[0].ty.shape], attrs)
    y = relax.op.permute_dims(relax.op.reshape(args[0], apart), list(order))
    starts, stops = zip(*_kept(shape, attrs), strict=True)
    axes = list(range(4))
    y = relax.op.reshape(y, shape)
    return relax.op.strided_slice(y, axes, list(starts), list(stops), assume_inbound=True)


def _couple(types: Types, attrs: Attrs) -> tuple[Coupling, ...]:
    return (frozenset({("x", 0), ("y", 0)}),)


DEPTH_TO_SPACE = OpDef(
    name="depth_to_space",
    inputs=("x",),
    required=1,
    infer=_infer,
    reference=_reference,
    samples=(
        Sample((TensorType((2, 12, 3, 4)),), {"block": (2, 2)}),
        Sample((TensorType((1, 6, 3, 4)),), {"block": (1, 3), "crop": (1, 2, 0, 1)}),
        Sample((TensorType((2, 3, 4, 76)),), {"block": (2, 2), "layout": "NHWC"}),
        Sample((TensorType((1, 5, 4, 8)),), {"block": (4, 2), "crop": (3, 0, 2, 1), "layout": "NHWC"}),
        Sample((TensorType((1, 5, 4, 40), "uint8"),), {"block": (2, 2), "layout": "NHWC"}),
    ),
    attrs={"block": None, "crop": (0, 0, 0, 0), "layout": "NCHW"},  # crop: top, left, bottom, right
    couple=_couple,
    relax=_relax,
    plain=(),
)
