"""Nodes for kernels to compute: shapes and attributes at the edges, and random convolutions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.ir import TensorType
from bitsmith.compiler.ops import Sample

Q8: dict[str, Any] = {"out_dtype": "uint8"}
RELU: dict[str, Any] = {"act": "clip", "lo": 0.0}


def small_scale(channels: int, terms: int, base: float = 0.004) -> np.ndarray:
    """Per-channel scales that bring sums of `terms` random products into the range of uint8."""
    return (np.linspace(0.5, 1.5, channels) * base / np.sqrt(terms)).astype(np.float32)


def conv(
    x: tuple[int, ...],
    w: tuple[int, ...],
    *,
    q: bool = False,
    res: str | None = None,
    bias: bool = True,
    base: float = 0.004,
    weights: np.ndarray | None = None,
    **attrs: Any,
) -> Sample:
    """A conv2d, NHWC unless told. `q`: uint8 with int8 weights; `res`: type of the residual."""
    attrs = {"layout": "NHWC", **attrs}
    kinds = ("uint8", "int8", "int32") if q else ("float32",) * 3
    operands = [TensorType(x, kinds[0]), weights if weights is not None else TensorType(w, kinds[1])]
    b = GraphBuilder("shape")
    y = b.add("conv2d", [b.input("x", x), b.input("w", w)], **{**attrs, "out_dtype": "float32"})
    operands.append(TensorType((w[0],), kinds[2]) if bias else None)
    operands.append(TensorType(b.types[y].shape, res) if res else None)
    operands.append(small_scale(w[0], w[1] * w[2] * w[3], base) if q else None)
    return Sample(tuple(operands), attrs)


def linear(x: tuple[int, ...], n: int, *, q: bool = False, bias: bool = True, **attrs: Any) -> Sample:
    kinds = ("uint8", "int8", "int32") if q else ("float32",) * 3
    b = TensorType((n,), kinds[2]) if bias else None
    scale = small_scale(n, x[-1]) if q else None
    return Sample((TensorType(x, kinds[0]), TensorType((n, x[-1]), kinds[1]), b, None, scale), attrs)


def in_bfloat16(sample: Sample) -> Sample:
    """A layer's sample with weights in bfloat16 where they are float32."""
    x, w, *rest = sample.inputs
    if isinstance(w, TensorType) and (x.dtype, w.dtype) == ("float32", "float32"):
        return replace(sample, inputs=(x, TensorType(w.shape, "bfloat16"), *rest))
    return sample


def has_bfloat16(case: tuple[str, Sample]) -> bool:
    w = case[1].inputs[1]
    return isinstance(w, TensorType) and w.dtype == "bfloat16"


def full(shape: tuple[int, ...], value: int) -> np.ndarray:
    return np.full(shape, value, np.int8)


def alternating(shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
    return np.resize(np.array([low, high], np.int8), shape)


LAYERS: dict[str, tuple[str, Sample]] = {
    "batch of three": ("conv2d", conv((3, 5, 6, 7), (9, 7, 3, 3), pads=(1, 1, 1, 1))),
    "batch of three int8": (
        "conv2d",
        conv((3, 5, 6, 7), (9, 7, 3, 3), q=True, pads=(1, 1, 1, 1), x_zero=90, y_zero=128, **Q8),
    ),
    "batch depthwise": ("conv2d", conv((2, 6, 7, 21), (21, 1, 3, 3), groups=21, pads=(1, 1, 1, 1), **RELU)),
    "batch depthwise int8": (
        "conv2d",
        conv((2, 6, 7, 21), (21, 1, 3, 3), q=True, groups=21, pads=(1, 1, 1, 1), x_zero=77, y_zero=100, **Q8),
    ),
    "depth multiplier": ("conv2d", conv((1, 6, 6, 5), (10, 1, 3, 3), groups=5, pads=(1, 1, 1, 1))),
    "depth multiplier int8": (
        "conv2d",
        conv((1, 6, 6, 5), (10, 1, 3, 3), q=True, groups=5, pads=(1, 1, 1, 1), x_zero=3, y_zero=9, **Q8),
    ),
    "groups int8": (
        "conv2d",
        conv((1, 5, 5, 18), (27, 6, 3, 3), q=True, groups=3, x_zero=255, y_zero=60, **Q8),
    ),
    "kernel larger than the input": ("conv2d", conv((1, 2, 3, 4), (6, 4, 5, 5), pads=(2, 2, 2, 2))),
    "kernel larger than the input int8": (
        "conv2d",
        conv((1, 2, 3, 4), (6, 4, 5, 5), q=True, pads=(2, 2, 2, 2), x_zero=200, y_zero=128, **Q8),
    ),
    "depthwise kernel larger than the input": (
        "conv2d",
        conv((1, 2, 3, 11), (11, 1, 5, 5), q=True, groups=11, pads=(2, 2, 2, 2), x_zero=200, y_zero=99, **Q8),
    ),
    "windows that lie in the padding": ("conv2d", conv((1, 3, 3, 5), (7, 5, 2, 2), pads=(3, 2, 4, 3))),
    "windows that lie in the padding int8": (
        "conv2d",
        conv((1, 3, 3, 5), (7, 5, 2, 2), q=True, pads=(3, 2, 4, 3), x_zero=31, y_zero=128, **Q8),
    ),
    "depthwise windows that lie in the padding": (
        "conv2d",
        conv((1, 3, 3, 9), (9, 1, 2, 2), groups=9, pads=(3, 2, 4, 3), act="hard_swish"),
    ),
    "depthwise windows that lie in the padding int8": (
        "conv2d",
        conv((1, 3, 3, 9), (9, 1, 2, 2), q=True, groups=9, pads=(3, 2, 4, 3), x_zero=4, y_zero=128, **Q8),
    ),
    "stride beyond the kernel": ("conv2d", conv((1, 11, 13, 6), (8, 6, 2, 2), strides=(3, 4))),
    "stride beyond the kernel int8": (
        "conv2d",
        conv((1, 11, 13, 6), (8, 6, 2, 2), q=True, strides=(3, 4), x_zero=1, y_zero=128, **Q8),
    ),
    "depthwise stride beyond the kernel": (
        "conv2d",
        conv((1, 11, 13, 17), (17, 1, 2, 2), q=True, groups=17, strides=(3, 4), x_zero=8, y_zero=128, **Q8),
    ),
    "one by one with pads": ("conv2d", conv((1, 4, 5, 6), (7, 6, 1, 1), pads=(1, 0, 2, 1))),
    "one by one with strides int8": (
        "conv2d",
        conv((2, 7, 7, 12), (20, 12, 1, 1), q=True, strides=(2, 3), x_zero=128, y_zero=120, **Q8),
    ),
    "four channels in several chunks": ("conv2d", conv((1, 2, 40, 4), (16, 4, 1, 3), pads=(0, 1, 0, 1))),
    "one column": ("conv2d", conv((1, 9, 1, 3), (5, 3, 3, 1), pads=(1, 0, 1, 0), dilations=(2, 1))),
    "one channel": ("conv2d", conv((1, 6, 6, 1), (1, 1, 3, 3), **RELU)),
    "one channel int8": ("conv2d", conv((1, 6, 6, 1), (1, 1, 3, 3), q=True, x_zero=5, y_zero=40, **Q8)),
    "one channel to many": (
        "conv2d",
        conv((1, 6, 6, 1), (20, 1, 3, 3), q=True, bias=False, x_zero=5, y_zero=128, **Q8),
    ),
    "depthwise dilated int8": (
        "conv2d",
        conv((1, 9, 9, 16), (16, 1, 3, 3), q=True, groups=16, pads=(2, 2, 2, 2), dilations=(2, 2), x_zero=50),
    ),
    "depthwise one by one": ("conv2d", conv((1, 3, 4, 19), (19, 1, 1, 1), groups=19, bias=False)),
    "depthwise with a residual": (
        "conv2d",
        conv(
            (1, 5, 6, 20),
            (20, 1, 3, 3),
            q=True,
            res="uint8",
            groups=20,
            pads=(1, 1, 1, 1),
            r_scale=0.6,
            r_zero=130,
            x_zero=9,
            y_zero=100,
            **Q8,
        ),
    ),
    "float residual, uint8 result": (
        "conv2d",
        conv((1, 6, 5, 16), (24, 16, 1, 1), q=True, res="float32", r_scale=30.0, y_zero=127, **Q8),
    ),
    "float residual beyond int32, uint8 result": (
        "conv2d",
        replace(
            conv((1, 6, 5, 16), (64, 16, 1, 1), q=True, res="float32", r_scale=1e12, y_zero=127, **Q8),
            low=-1.0,
        ),
    ),
    "GELU, uint8 result": (
        "conv2d",
        conv((1, 6, 5, 16), (64, 16, 1, 1), q=True, act="gelu", y_inv=40.0, y_zero=9, x_zero=90, **Q8),
    ),
    "leaky and steep, uint8 result": (
        "conv2d",
        conv((1, 6, 5, 16), (32, 16, 1, 1), q=True, act="leaky_relu", alpha=3.0, y_inv=5.0, y_zero=200, **Q8),
    ),
    "scales beyond a half": (
        "conv2d",
        conv((1, 4, 4, 8), (16, 8, 1, 1), q=True, base=400.0, y_zero=128, **Q8),
    ),
    "clip within uint8": (
        "conv2d",
        conv((1, 4, 4, 8), (16, 8, 1, 1), q=True, y_zero=50, act="clip", lo=-20.0, hi=33.0, **Q8),
    ),
    "clip beyond uint8": (
        "conv2d",
        conv((1, 4, 4, 8), (16, 8, 1, 1), q=True, y_zero=50, act="clip", lo=-90.0, hi=900.0, **Q8),
    ),
    "planar batch int8": (
        "conv2d",
        conv(
            (2, 3, 9, 8),
            (10, 3, 3, 3),
            q=True,
            layout="NCHW:NHWC",
            strides=(2, 2),
            pads=(0, 1, 1, 1),
            x_zero=255,
            y_zero=128,
            **Q8,
        ),
    ),
    "planar dilated": (
        "conv2d",
        conv((1, 2, 9, 9), (12, 2, 3, 3), layout="NCHW:NHWC", dilations=(2, 2), pads=(2, 2, 2, 2)),
    ),
    "planar groups": ("conv2d", conv((1, 6, 7, 8), (6, 1, 3, 3), groups=6, layout="NCHW:NHWC", **RELU)),
    "planar groups int8": (
        "conv2d",
        conv(
            (1, 6, 7, 8),
            (6, 1, 3, 3),
            q=True,
            groups=6,
            layout="NCHW:NHWC",
            pads=(1, 1, 1, 1),
            x_zero=7,
            y_zero=100,
            **Q8,
        ),
    ),
    "planar to planar int8": (
        "conv2d",
        conv(
            (2, 6, 7, 8),
            (8, 3, 3, 2),
            q=True,
            res="uint8",
            groups=2,
            layout="NCHW",
            x_zero=200,
            y_zero=100,
            r_scale=0.5,
            r_zero=9,
            act="silu",
            y_inv=3.0,
            **Q8,
        ),
    ),
    "planar to planar, uint8 result": (
        "conv2d",
        conv((1, 6, 7, 8), (6, 6, 3, 3), layout="NCHW", y_inv=20.0, y_zero=60, **Q8),
    ),
    "largest sums of one sign": (
        "conv2d",
        conv((1, 4, 4, 10), (9, 10, 1, 1), q=True, weights=full((9, 10, 1, 1), -128), y_zero=255, **Q8),
    ),
    "linear on one vector": ("linear", linear((23,), 19, act="gelu")),
    "linear on one vector int8": ("linear", linear((23,), 19, q=True, x_zero=100, y_zero=128, **Q8)),
    "linear to one value": ("linear", linear((3, 50), 1, bias=False)),
    "linear from one value int8": ("linear", linear((6, 1), 34, q=True, x_zero=255)),
    "linear on many rows": ("linear", linear((2, 45, 13), 37, q=True, x_zero=60, y_zero=128, **Q8)),
}
"""By name: (operator, sample) of layers at the edges of what kernels are cut for."""

_UINT8 = "uint8"

OTHERS: dict[str, tuple[str, Sample]] = {
    "add that broadcasts, uint8": (
        "add",
        Sample(
            (TensorType((1, 4, 5, 8), _UINT8), TensorType((1, 1, 1, 8), _UINT8)),
            {"a_scale": 0.7137, "a_zero": 3, "b_scale": 1.2911, "b_zero": 128, "y_zero": 10, **Q8},
        ),
    ),
    "add that broadcasts, uint8 result": (
        "add",
        Sample(
            (TensorType((1, 4, 5, 8)), TensorType((8,))),
            {"a_scale": 40.0, "b_scale": 30.0, "y_zero": 100, "act": "clip", "lo": -80.0, **Q8},
        ),
    ),
    "add of a value to itself": ("add", Sample((TensorType((1, 7)), TensorType((1, 7))), {"act": "tanh"})),
    "mean of channels, uint8": (
        "reduce_mean",
        Sample((TensorType((2, 6, 7, 8), _UINT8),), {"axes": (3,), "x_scale": 0.3, "x_zero": 7}),
    ),
    "mean over a picture, batch": ("reduce_mean", Sample((TensorType((3, 4, 5, 19)),), {"axes": (2, 1)})),
    "mean over nothing": ("reduce_mean", Sample((TensorType((2, 6)),), {"axes": ()})),
    "maximum, uint8": (
        "reduce_max",
        Sample((TensorType((2, 6, 7), _UINT8),), {"axes": (1,), "x_scale": 0.3, "x_zero": 7}),
    ),
    "sum, uint8": (
        "reduce_sum",
        Sample((TensorType((2, 6), _UINT8),), {"axes": (0,), "x_scale": 0.3, "x_zero": 7}),
    ),
    "transpose of nothing": ("transpose", Sample((TensorType((2, 6), _UINT8),), {"perm": (0, 1)})),
    "concat of one": ("concat", Sample((TensorType((2, 6), _UINT8),), {"axis": 1})),
    "pad by nothing": ("pad", Sample((TensorType((2, 6)),), {"before": (0, 0), "after": (0, 0)})),
    "planar pool, uint8": (
        "max_pool2d",
        Sample((TensorType((1, 6, 8, 8), _UINT8),), {"kernel": (3, 3), "pads": (1, 1, 1, 1)}),
    ),
    "pool larger than the input": (
        "max_pool2d",
        Sample(
            (TensorType((2, 2, 3, 5)),), {"kernel": (5, 4), "pads": (3, 1, 1, 3), "layout": "NHWC"}, -9, -1
        ),
    ),
    "dilated pool, uint8": (
        "max_pool2d",
        Sample(
            (TensorType((1, 9, 9, 17), _UINT8),),
            {
                "kernel": (3, 3),
                "dilations": (2, 2),
                "pads": (1, 2, 2, 1),
                "strides": (2, 3),
                "layout": "NHWC",
            },
        ),
    ),
    **{
        f"mean pool, {layout}, {'with' if counted else 'without'} padding": (
            "avg_pool2d",
            Sample(
                (TensorType((2, 7, 8, 9)),),
                {
                    "kernel": (3, 3),
                    "pads": (1, 0, 2, 1),
                    "strides": (2, 2),
                    "count_pad": counted,
                    "layout": layout,
                },
            ),
        )
        for layout in ("NCHW", "NHWC")
        for counted in (False, True)
    },
    "quantize of wild values": (
        "quantize",
        Sample((TensorType((3, 67)),), {"y_scale": 1e-6, "y_zero": 3}, -1e6, 1e6),
    ),
}
"""The same for the other operators."""


def random_conv(rng: np.random.Generator) -> Sample:
    """A convolution of random geometry and type; quantised ones have scales as the plan's rewriting makes."""
    groups = int(rng.choice([1, 1, 1, 2, 0]))
    c, oc = int(rng.integers(1, 40)), int(rng.integers(1, 50))
    if groups == 2:
        c, oc = 2 * c, 2 * oc
    if groups == 0:
        groups = oc = c
    kernel = int(rng.choice([1, 1, 2, 3, 5])), int(rng.choice([1, 1, 2, 3, 5]))
    if rng.random() < 0.3:
        kernel = (1, 1)
    layout = "NCHW:NHWC" if groups == 1 and c <= 4 else "NHWC"
    dilations = int(rng.integers(1, 3)), int(rng.integers(1, 3))
    size = tuple(int(rng.integers(1, 15)) + (k - 1) * d for k, d in zip(kernel, dilations, strict=True))
    n = int(rng.integers(1, 3))
    shape = (n, c, *size) if layout.startswith("NCHW") else (n, *size, c)
    quantised = bool(rng.random() < 0.5)
    attrs: dict[str, Any] = {
        "strides": (int(rng.integers(1, 3)), int(rng.integers(1, 3))),
        "pads": tuple(int(p) for p in rng.integers(0, 3, 4)),
        "dilations": dilations,
        "groups": groups,
        "layout": layout,
        **RELU,
    }
    if quantised:
        attrs |= {"x_zero": int(rng.integers(0, 256)), "y_zero": int(rng.integers(0, 100)), **Q8}
    return conv(shape, (oc, c // groups, *kernel), q=quantised, **attrs)
