"""Two-dimensional convolution, float and int8 (ARCHITECTURE.md has the formula)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..ir import TensorType
from .activations import activate_relax
from .epilogue import (
    EPILOGUE_ATTRS,
    check_epilogue,
    check_residual,
    finish,
    operands,
)
from .opdef import (
    Attrs,
    Coupling,
    OpDef,
    Sample,
    Types,
    present,
    require,
)

LAYOUTS = ("NCHW", "NHWC", "NCHW:NHWC")


def nchw(shape: tuple[int, ...], layout: str) -> tuple[int, int, int, int]:
    """(n, c, h, w) of a shape in that layout ("NCHW" or "NHWC")."""
    n, a, b, c = shape
    return (n, a, b, c) if layout == "NCHW" else (n, c, a, b)


def in_layout(attrs: Attrs) -> str:
    return str(attrs["layout"]).split(":")[0]


def out_layout(attrs: Attrs) -> str:
    return str(attrs["layout"]).split(":")[-1]


def out_size(size: int, kernel: int, stride: int, dilation: int, pad: int) -> int:
    """Output length along one axis; `pad` counts both ends."""
    return (size + pad - dilation * (kernel - 1) - 1) // stride + 1


def _infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, w = types[0], types[1]
    assert x is not None and w is not None
    require(len(x.shape) == 4, f"x must have 4 dimensions, got {x}")
    require(len(w.shape) == 4, f"w must have 4 dimensions, got {w}")
    require(attrs["layout"] in LAYOUTS, f"layout {attrs['layout']!r} is not one of {', '.join(LAYOUTS)}")
    n, c, h, width = nchw(x.shape, in_layout(attrs))
    groups, out_c = int(attrs["groups"]), w.shape[0]
    require(
        groups > 0 and c % groups == 0 and out_c % groups == 0,
        f"{c} -> {out_c} channels do not split into {groups} groups",
    )
    require(w.shape[1] == c // groups, f"w takes {w.shape[1]} channels per group, x has {c // groups}")
    check_epilogue(x, w, present(types, 2), present(types, 4), out_c, attrs)
    top, left, bottom, right = attrs["pads"]
    (sh, sw), (dh, dw) = attrs["strides"], attrs["dilations"]
    require(min(top, left, bottom, right) >= 0, f"pads {attrs['pads']} must not be negative")
    require(
        min(sh, sw, dh, dw) > 0,
        f"strides {attrs['strides']} and dilations {attrs['dilations']} must be positive",
    )
    oh = out_size(h, w.shape[2], sh, dh, top + bottom)
    ow = out_size(width, w.shape[3], sw, dw, left + right)
    require(oh > 0 and ow > 0, f"a {w.shape[2]}x{w.shape[3]} kernel does not fit the padded input of {x}")
    shape = (n, out_c, oh, ow) if out_layout(attrs) == "NCHW" else (n, oh, ow, out_c)
    check_residual(present(types, 3), shape)
    return (TensorType(shape, str(attrs["out_dtype"])),)


def _reference(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch.nn.functional as functional

    x, w, bias, residual, scale = (*inputs, None, None, None)[:5]
    if in_layout(attrs) == "NHWC":
        x = x.permute(0, 3, 1, 2)
    top, left, bottom, right = attrs["pads"]
    x, w = operands(x, w, attrs)
    x = functional.pad(x, (left, right, top, bottom))  # with true zeros: x has no zero point any more
    acc = functional.conv2d(
        x,
        w,
        None if bias is None else bias.to(w.dtype),
        stride=attrs["strides"],
        dilation=attrs["dilations"],
        groups=attrs["groups"],
    )
    if out_layout(attrs) == "NHWC":
        acc = acc.permute(0, 2, 3, 1)
    elif scale is not None:
        scale = scale.reshape(1, -1, 1, 1)
    return finish(acc, residual, scale, attrs).contiguous()


def _couple(types: Types, attrs: Attrs) -> tuple[Coupling, ...]:
    x, w = types[0], types[1]
    assert x is not None and w is not None
    cin = 1 if in_layout(attrs) == "NCHW" else 3
    cout = 1 if out_layout(attrs) == "NCHW" else 3
    out = {("w", 0), ("y", cout)}
    out |= {(name, 0) for name, i in (("bias", 2), ("scale", 4)) if present(types, i) is not None}
    out |= {("residual", cout)} if present(types, 3) is not None else set()
    if attrs["groups"] == 1:
        return frozenset(out), frozenset({("x", cin), ("w", 1)})
    if attrs["groups"] == w.shape[0] and w.shape[1] == 1:
        return (frozenset(out | {("x", cin)}),)
    return ()


def _flops(types: Types, outs: Sequence[TensorType], attrs: Attrs) -> int:
    w = types[1]
    assert w is not None
    return 2 * outs[0].size * w.shape[1] * w.shape[2] * w.shape[3]


def _relax(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    x, w, bias, residual, scale = (*args, None, None, None)[:5]
    layout, out = in_layout(attrs), out_layout(attrs)
    y = relax.op.nn.conv2d(
        x,
        w,
        strides=list(attrs["strides"]),
        padding=list(attrs["pads"]),
        dilation=list(attrs["dilations"]),
        groups=attrs["groups"],
        data_layout=layout,
        kernel_layout="OIHW",
    )
    if out != layout:  # relax has no lowering of conv2d that writes another layout
        y = relax.op.permute_dims(y, [0, 2, 3, 1])
    for extra, op in ((bias, relax.op.add), (scale, relax.op.multiply)):
        if extra is not None:
            y = op(y, relax.op.reshape(extra, (1, -1, 1, 1) if out == "NCHW" else (1, 1, 1, -1)))
    if residual is not None:
        y = relax.op.add(y, residual)
    return activate_relax(y, attrs)


CONV2D_ATTRS: dict[str, Any] = {
    **EPILOGUE_ATTRS,
    "strides": (1, 1),
    "pads": (0, 0, 0, 0),  # top, left, bottom, right
    "dilations": (1, 1),
    "groups": 1,
    "layout": "NCHW",
}

_SAME = (1, 1, 1, 1)
_HALVE: dict[str, Any] = {"strides": (2, 2), "pads": (0, 0, 1, 1)}
_RELU: dict[str, Any] = {"act": "clip", "lo": 0.0}
_RELU6: dict[str, Any] = {**_RELU, "hi": 6.0}
_NHWC: dict[str, Any] = {"layout": "NHWC"}
_MIXED: dict[str, Any] = {"layout": "NCHW:NHWC"}


def _sample(
    x: tuple[int, ...],
    w: tuple[int, ...],
    res: str | None = None,
    q: bool = False,
    w_dtype: str = "float32",
    **attrs: Any,
) -> Sample:
    """`res`: type of the residual; `q`: quantised, with scales that keep results within uint8."""
    import numpy as np

    out = _infer((TensorType(x), TensorType(w)), {**CONV2D_ATTRS, **attrs, "out_dtype": "float32"})[0].shape
    residual = None if res is None else TensorType(out, res)
    x_dtype, w_dtype, bias_dtype = ("uint8", "int8", "int32") if q else ("float32", w_dtype, "float32")
    operands = (TensorType(x, x_dtype), TensorType(w, w_dtype), TensorType((w[0],), bias_dtype))
    step = np.linspace(0.5, 1.5, w[0], dtype=np.float32) * np.float32(0.004 / (w[1] * w[2] * w[3]) ** 0.5)
    return Sample((*operands, residual, step if q else None), attrs)


def _float_samples() -> tuple[Sample, ...]:
    u: dict[str, Any] = {"out_dtype": "uint8", **_NHWC}
    return (
        _sample((1, 3, 9, 11), (8, 3, 3, 3), **_HALVE, **_RELU6),
        _sample((2, 7, 5, 6), (5, 7, 1, 1)),
        _sample((1, 6, 8, 8), (12, 2, 3, 3), groups=3, pads=_SAME, act="hard_swish"),
        _sample((1, 6, 9, 7), (6, 1, 5, 5), groups=6, pads=(2, 2, 2, 2), strides=(2, 1), **_RELU),
        _sample((1, 10, 9, 8), (16, 8, 3, 3), pads=(2, 2, 2, 2), dilations=(2, 2), **_NHWC),
        _sample((1, 7, 7, 24), (40, 24, 1, 1), res="float32", **_NHWC, **_RELU),
        _sample((1, 14, 13, 40), (40, 1, 3, 3), groups=40, pads=_SAME, act="silu", **_NHWC),
        _sample(
            (1, 12, 12, 33), (33, 1, 5, 5), groups=33, pads=(1, 2, 2, 2), strides=(2, 2), **_RELU6, **_NHWC
        ),
        _sample((2, 6, 6, 16), (32, 8, 3, 3), groups=2, pads=_SAME, **_NHWC),
        _sample((1, 3, 16, 18), (32, 3, 3, 3), **_MIXED, **_HALVE, **_RELU6),
        _sample((1, 3, 17, 15), (24, 3, 7, 7), **_MIXED, strides=(2, 2), pads=(3, 3, 3, 3), **_RELU),
        _sample((1, 6, 5, 24), (32, 24, 1, 1), y_inv=31.0, y_zero=100, **u),
        _sample((1, 8, 8, 16), (16, 1, 3, 3), groups=16, pads=_SAME, y_inv=20.0, y_zero=60, **_RELU6, **u),
    )


def _int8_samples() -> tuple[Sample, ...]:
    q: dict[str, Any] = {"q": True, **_NHWC}
    q8: dict[str, Any] = {"out_dtype": "uint8", **q}
    q8_mixed: dict[str, Any] = {**q8, **_MIXED}
    clip: dict[str, Any] = {"act": "clip", "lo": -7.0, "hi": 200.0}
    return (
        _sample((1, 9, 10, 19), (24, 19, 3, 3), x_zero=131, y_zero=7, pads=_SAME, **q8, **clip),
        _sample((1, 8, 7, 48), (40, 48, 1, 1), res="uint8", r_scale=0.7, r_zero=120, y_zero=128, **q8),
        _sample((1, 8, 7, 20), (17, 20, 1, 1), res="float32", **q),
        _sample((1, 11, 12, 40), (40, 1, 3, 3), groups=40, **_HALVE, y_zero=3, x_zero=9, **q8),
        _sample(
            (1, 9, 9, 24), (24, 1, 5, 5), groups=24, pads=(2, 2, 2, 2), x_zero=128, act="hard_swish", **q
        ),
        _sample((1, 3, 12, 14), (16, 3, 3, 3), **_HALVE, x_zero=114, **q8_mixed),
        _sample((1, 6, 5, 24), (32, 24, 1, 1), act="silu", y_inv=30.0, y_zero=20, **q8),
    )


def _bfloat16_samples() -> tuple[Sample, ...]:
    b: dict[str, Any] = {"w_dtype": "bfloat16", **_NHWC}
    return (
        _sample((1, 9, 10, 19), (24, 19, 3, 3), pads=_SAME, **b, **_RELU6),
        _sample((1, 8, 7, 48), (40, 48, 1, 1), res="float32", **b, **_RELU),
        _sample((2, 6, 6, 16), (34, 8, 3, 3), groups=2, pads=_SAME, strides=(2, 1), act="silu", **b),
        _sample((1, 3, 16, 18), (32, 3, 3, 3), **{**b, **_MIXED, **_HALVE, **_RELU6}),
        _sample((1, 6, 5, 24), (32, 24, 1, 1), y_inv=31.0, y_zero=100, out_dtype="uint8", **b),
        _sample((1, 6, 7, 9), (6, 3, 3, 3), groups=2, w_dtype="bfloat16", dilations=(2, 1)),
    )


CONV2D = OpDef(
    name="conv2d",
    inputs=("x", "w", "bias", "residual", "scale"),
    required=2,
    infer=_infer,
    reference=_reference,
    samples=(*_float_samples(), *_int8_samples(), *_bfloat16_samples()),
    attrs=CONV2D_ATTRS,
    couple=_couple,
    flops=_flops,
    relax=_relax,
    layer=True,
)
