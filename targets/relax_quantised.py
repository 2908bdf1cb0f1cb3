"""Relax expressions of operators that read or write uint8, from what their OpDef says of float32.

An OpDef's `relax` knows nothing of scales and zero points. Here operands become real numbers before it and
results are stored after it, by the formulas of compiler/ops/epilogue.py; int8 layers are summed in int32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..compiler.ir import TensorType
from ..compiler.ops import OPS
from ..compiler.ops.activations import activate_relax
from ..compiler.ops.conv import out_layout

_SCALED = {"add": ("a", "b"), "reduce_mean": ("x",), "reduce_sum": ("x",), "reduce_max": ("x",)}
"""Operators that read scaled values: the prefixes of the attributes that say how each operand is scaled."""


def relax_expression(
    op: str, types: Sequence[TensorType | None], args: Sequence[Any], attrs: Mapping[str, Any]
) -> Any:
    """The operator on relax expressions; None for an absent input."""
    definition = OPS[op]
    assert definition.relax is not None
    if definition.layer:
        return _layer(op, types, args, attrs)
    if op in _SCALED:
        pairs = [(attrs[f"{which}_scale"], attrs[f"{which}_zero"]) for which in _SCALED[op]]
        reals = [_real(x, t, *pair) for x, t, pair in zip(args, types, pairs, strict=True)]
        return _stored(definition.relax(reals, attrs), attrs)
    return definition.relax(args, attrs)


def _layer(op: str, types: Sequence[TensorType | None], args: Sequence[Any], attrs: Mapping[str, Any]) -> Any:
    """conv2d and linear: the sum, then their epilogue."""
    from tvm import relax

    x, w, bias, residual, scale = (*args, None, None, None)[:5]
    definition, quantised = OPS[op], types[0] is not None and types[0].dtype == "uint8"
    assert definition.relax is not None
    if types[1] is not None and types[1].dtype == "bfloat16":
        x = relax.BlockBuilder.current().call_te(_rounded, x)
        w = relax.op.astype(w, "float32")
    if quantised:
        x = relax.op.subtract(relax.op.astype(x, "int32"), relax.const(attrs["x_zero"], "int32"))
        w = relax.op.astype(w, "int32")
    y = definition.relax([x, w, bias], {**attrs, "act": "none"})
    if quantised:
        y = relax.op.astype(y, "float32")
    if scale is not None:
        planar = op == "conv2d" and out_layout(attrs) == "NCHW"
        y = relax.op.multiply(y, relax.op.reshape(scale, (1, -1, 1, 1)) if planar else scale)
    if residual is not None:
        y = relax.op.add(y, _real(residual, types[3], attrs["r_scale"], attrs["r_zero"]))
    return _stored(activate_relax(y, attrs), attrs)


def _rounded(x: Any) -> Any:
    """A float32 tensor rounded to bfloat16, still as float32: TVM takes casts there and back for nothing."""
    from tvm import te

    from .kernels.bfloat16 import stored

    return te.compute(x.shape, lambda *index: stored(x(*index), "float32", 1))


def _real(x: Any, kind: TensorType | None, scale: float, zero: int) -> Any:
    """(x - zero) * scale in float32."""
    from tvm import relax

    if kind is not None and kind.dtype == "uint8":
        x = relax.op.astype(x, "float32")
    if zero:
        x = relax.op.subtract(x, relax.const(float(zero), "float32"))
    return x if scale == 1.0 else relax.op.multiply(x, relax.const(scale, "float32"))


def _stored(y: Any, attrs: Mapping[str, Any]) -> Any:
    """The result as the node's output type says."""
    from tvm import relax

    if attrs.get("out_dtype", "float32") == "float32":
        return y
    if attrs["y_inv"] != 1.0:
        y = relax.op.multiply(y, relax.const(attrs["y_inv"], "float32"))
    y = relax.op.add(relax.op.round(y), relax.const(float(attrs["y_zero"]), "float32"))
    return relax.op.astype(relax.op.clip(y, 0.0, 255.0), "uint8")
