"""Conversions between float32 and uint8, and batch normalisation (which only exists until it is folded)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..ir import TensorType
from .elementwise import same_axes
from .epilogue import store
from .opdef import (
    Attrs,
    Coupling,
    OpDef,
    Sample,
    Types,
    require,
)


def _infer_quantize(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = types[0]
    assert x is not None
    require(x.dtype == "float32", f"x must be float32, got {x}")
    return (TensorType(x.shape, "uint8"),)


def _reference_quantize(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    steps = inputs[0] / torch.tensor(attrs["y_scale"], dtype=torch.float32)
    return store(steps, {"y_inv": 1.0, "y_zero": attrs["y_zero"], "out_dtype": "uint8"})


QUANTIZE = OpDef(
    # saturate_u8(rint(x / y_scale) + y_zero): divides, as ONNX does; a reciprocal would move ties
    name="quantize",
    inputs=("x",),
    required=1,
    infer=_infer_quantize,
    reference=_reference_quantize,
    samples=(
        Sample((TensorType((1, 3, 9, 11)),), {"y_scale": 0.017, "y_zero": 128}),
        Sample((TensorType((4, 130)),), {"y_scale": 0.0011, "y_zero": 3}),
    ),
    attrs={"y_scale": None, "y_zero": None},
    couple=same_axes,
    flops=lambda types, outs, attrs: outs[0].size,
)


def _infer_dequantize(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = types[0]
    assert x is not None
    require(x.dtype == "uint8", f"x must be uint8, got {x}")
    return (TensorType(x.shape),)


def _reference_dequantize(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    return (inputs[0].to(torch.float32) - float(attrs["x_zero"])) * torch.tensor(
        attrs["x_scale"], dtype=torch.float32
    )


DEQUANTIZE = OpDef(
    name="dequantize",  # (x - x_zero) * x_scale
    inputs=("x",),
    required=1,
    infer=_infer_dequantize,
    reference=_reference_dequantize,
    samples=(Sample((TensorType((2, 5, 7, 9), "uint8"),), {"x_scale": 0.05, "x_zero": 128}),),
    attrs={"x_scale": None, "x_zero": None},
    couple=same_axes,
    flops=lambda types, outs, attrs: outs[0].size,
    plain=("uint8",),
)


def _infer_batch_norm(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = types[0]
    assert x is not None
    require(len(x.shape) >= 2 and x.dtype == "float32", f"x must be float32 with channels in axis 1, got {x}")
    for kind in types[1:]:
        require(kind == TensorType((x.shape[1],)), f"a statistic is {kind}, must be float32[{x.shape[1]}]")
    return (x,)


def _reference_batch_norm(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    x, gamma, beta, mean, variance = inputs
    return torch.nn.functional.batch_norm(x, mean, variance, gamma, beta, eps=attrs["eps"])


def _couple_batch_norm(types: Types, attrs: Attrs) -> tuple[Coupling, ...]:
    stats = {(name, 0) for name in ("gamma", "beta", "mean", "variance")}
    others = tuple(c for i, c in enumerate(same_axes(types, attrs)) if i != 1)
    return (*others, frozenset({("x", 1), ("y", 1), *stats}))


def _relax_batch_norm(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    return relax.op.nn.batch_norm(*args, axis=1, epsilon=attrs["eps"], training=False)[0]


def _batch_norm_sample() -> Sample:
    import numpy as np

    variance = np.linspace(0.2, 3.0, 6, dtype=np.float32)
    return Sample((TensorType((2, 6, 4, 5)), *[TensorType((6,))] * 3, variance), {"eps": 1e-3})


BATCH_NORM = OpDef(
    name="batch_norm",  # inference form, channels in axis 1
    inputs=("x", "gamma", "beta", "mean", "variance"),
    required=5,
    infer=_infer_batch_norm,
    reference=_reference_batch_norm,
    samples=(_batch_norm_sample(),),
    attrs={"eps": 1e-5},
    couple=_couple_batch_norm,
    flops=lambda types, outs, attrs: 2 * outs[0].size,
    relax=_relax_batch_norm,
)
