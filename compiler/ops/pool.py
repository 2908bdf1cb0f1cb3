"""Pooling windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..ir import TensorType
from .conv import nchw, out_size
from .opdef import (
    Attrs,
    Coupling,
    OpDef,
    Sample,
    Types,
    require,
)

POOL_ATTRS: dict[str, Any] = {
    "kernel": None,
    "strides": (1, 1),
    "pads": (0, 0, 0, 0),  # top, left, bottom, right
    "dilations": (1, 1),
    "layout": "NCHW",
}


def _infer_pool(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = types[0]
    assert x is not None
    require(len(x.shape) == 4, f"x must have 4 dimensions, got {x}")
    require(attrs["layout"] in ("NCHW", "NHWC"), f"layout {attrs['layout']!r} is not NCHW or NHWC")
    n, c, h, w = nchw(x.shape, str(attrs["layout"]))
    (kh, kw), (sh, sw), (dh, dw) = attrs["kernel"], attrs["strides"], attrs["dilations"]
    top, left, bottom, right = attrs["pads"]
    oh, ow = out_size(h, kh, sh, dh, top + bottom), out_size(w, kw, sw, dw, left + right)
    require(oh > 0 and ow > 0, f"a {kh}x{kw} window does not fit the padded input of {x}")
    # A window that lies wholly in the padding has no maximum and no mean.
    require(
        max(top, bottom) < dh * (kh - 1) + 1 and max(left, right) < dw * (kw - 1) + 1,
        f"pads {attrs['pads']} exceed the window",
    )
    return (TensorType((n, c, oh, ow) if attrs["layout"] == "NCHW" else (n, oh, ow, c), x.dtype),)


def _windows(x: Any, attrs: Attrs, fill: float) -> Any:
    """[n, c, oh, ow, kh * kw] view of a padded NCHW tensor."""
    import torch.nn.functional as functional

    top, left, bottom, right = attrs["pads"]
    (kh, kw), (sh, sw), (dh, dw) = attrs["kernel"], attrs["strides"], attrs["dilations"]
    x = functional.pad(x, (left, right, top, bottom), value=fill)
    x = x.unfold(2, dh * (kh - 1) + 1, sh).unfold(3, dw * (kw - 1) + 1, sw)
    return x[..., ::dh, ::dw].flatten(4)


def _reference_pool(inputs: Sequence[Any], attrs: Attrs, kind: str) -> Any:
    import torch

    x = inputs[0]
    wide = x.to(torch.float32)
    wide = wide.permute(0, 3, 1, 2) if attrs["layout"] == "NHWC" else wide
    if kind == "max":
        y = _windows(wide, attrs, -math.inf).amax(-1)
    else:
        inside = _windows(torch.ones_like(wide), attrs, 1.0 if attrs["count_pad"] else 0.0).sum(-1)
        y = _windows(wide, attrs, 0.0).sum(-1) / inside
    y = y.permute(0, 2, 3, 1).contiguous() if attrs["layout"] == "NHWC" else y
    return y if x.dtype == torch.float32 else torch.round(y).clamp(0, 255).to(x.dtype)


def _couple_pool(types: Types, attrs: Attrs) -> tuple[Coupling, ...]:
    channel = 1 if attrs["layout"] == "NCHW" else 3
    return frozenset({("x", 0), ("y", 0)}), frozenset({("x", channel), ("y", channel)})


def _relax_max(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    return relax.op.nn.max_pool2d(
        args[0], attrs["kernel"], attrs["strides"], attrs["pads"], attrs["dilations"], layout=attrs["layout"]
    )


def _relax_avg(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    return relax.op.nn.avg_pool2d(
        args[0],
        attrs["kernel"],
        attrs["strides"],
        attrs["pads"],
        attrs["dilations"],
        count_include_pad=attrs["count_pad"],
        layout=attrs["layout"],
    )


def _pool_op(kind: str) -> OpDef:
    square = {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}
    extra = {"count_pad": False} if kind == "avg" else {}
    samples: tuple[Sample, ...] = (
        Sample((TensorType((1, 5, 9, 8)),), square),
        Sample((TensorType((2, 8, 7, 19)),), {**square, "layout": "NHWC"}),
        Sample((TensorType((1, 6, 6, 3)),), {"kernel": (2, 3), "pads": (0, 1, 1, 1), "layout": "NHWC"}),
    )
    if kind == "max":
        samples += (Sample((TensorType((1, 8, 8, 33), "uint8"),), {**square, "layout": "NHWC"}),)
    return OpDef(
        name=f"{kind}_pool2d",
        inputs=("x",),
        required=1,
        infer=_infer_pool,
        reference=lambda inputs, attrs: _reference_pool(inputs, attrs, kind),
        samples=samples,
        attrs={**POOL_ATTRS, **extra},
        couple=_couple_pool,
        flops=lambda types, outs, attrs: outs[0].size * attrs["kernel"][0] * attrs["kernel"][1],
        relax=_relax_max if kind == "max" else _relax_avg,
    )


POOLS = (_pool_op("max"), _pool_op("avg"))
