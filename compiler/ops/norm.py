"""Normalisation over the last axis: layer norm and RMS norm.

layer_norm: y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * gamma + beta  (Ba et al., 2016)
rms_norm:   y = x / sqrt(mean(x^2) + eps) * gamma                                 (Zhang and Sennrich, 2019)

gamma and beta have one number for each element of the last axis; absent ones are 1 and 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..ir import TensorType
from .elementwise import same_axes
from .opdef import (
    Attrs,
    Coupling,
    OpDef,
    Sample,
    Types,
    given,
    present,
    require,
)


def _infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = given(types, 0)
    require(x.dtype == "float32", f"x must be float32, got {x}")
    require(len(x.shape) > 0 and x.shape[-1] > 0, f"x is {x}: there is nothing to normalise over")
    require(attrs["eps"] >= 0.0, f"eps {attrs['eps']} must not be negative")
    for index, name in ((1, "gamma"), (2, "beta")):
        kind = present(types, index)
        want = TensorType(x.shape[-1:])
        require(kind is None or kind == want, f"{name} is {kind}, must be {want}")
    return (x,)


def _reference_layer_norm(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    x, gamma, beta = (*inputs, None, None)[:3]
    return torch.nn.functional.layer_norm(x, x.shape[-1:], gamma, beta, eps=attrs["eps"])


def _reference_rms_norm(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    x, gamma = (*inputs, None)[:2]
    return torch.nn.functional.rms_norm(x, x.shape[-1:], gamma, eps=attrs["eps"])


def _couple(types: Types, attrs: Attrs) -> tuple[Coupling, ...]:
    """All axes but the last, whose elements share their mean."""
    return same_axes(types, attrs)[:-1]


def _relax_scaled(x: Any, eps: float) -> Any:
    """x / sqrt(mean(x^2) + eps) in relax, whose own operators insist on a gamma."""
    from tvm import relax

    op = relax.op
    square = op.mean(op.multiply(x, x), axis=-1, keepdims=True)
    return op.multiply(x, op.rsqrt(op.add(square, relax.const(eps, "float32"))))


def _relax_layer_norm(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    x, gamma, beta = (*args, None, None)[:3]
    y = _relax_scaled(relax.op.subtract(x, relax.op.mean(x, axis=-1, keepdims=True)), attrs["eps"])
    y = y if gamma is None else relax.op.multiply(y, gamma)
    return y if beta is None else relax.op.add(y, beta)


def _relax_rms_norm(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    x, gamma = (*args, None)[:2]
    y = _relax_scaled(x, attrs["eps"])
    return y if gamma is None else relax.op.multiply(y, gamma)


LAYER_NORM = OpDef(
    name="layer_norm",
    inputs=("x", "gamma", "beta"),
    required=1,
    infer=_infer,
    reference=_reference_layer_norm,
    samples=(
        Sample((TensorType((2, 5, 37)), TensorType((37,)), TensorType((37,)))),
        Sample((TensorType((3, 384)), TensorType((384,))), {"eps": 1e-12}),
        Sample((TensorType((1, 4, 3, 8)),), {"eps": 1e-3}),
        Sample((TensorType((7, 19)),), {}, 90.0, 110.0),
    ),
    attrs={"eps": 1e-5},
    couple=_couple,
    flops=lambda types, outs, attrs: 7 * outs[0].size,
    relax=_relax_layer_norm,
)

RMS_NORM = OpDef(
    name="rms_norm",
    inputs=("x", "gamma"),
    required=1,
    infer=_infer,
    reference=_reference_rms_norm,
    samples=(
        Sample((TensorType((2, 5, 37)), TensorType((37,)))),
        Sample((TensorType((3, 384)),), {"eps": 1e-6}),
    ),
    attrs={"eps": 1e-5},
    couple=_couple,
    flops=lambda types, outs, attrs: 4 * outs[0].size,
    relax=_relax_rms_norm,
)

NORMS = (LAYER_NORM, RMS_NORM)
