"""Conversion rules: comparisons, logic, bits, choice and conversion between element types."""

from __future__ import annotations

import numpy as np

from ...ir import DTYPES
from .converter import (
    Converter,
    OnnxNode,
    Result,
    Rule,
    UnsupportedForm,
)


def _compare(op: str, swapped: bool = False, negated: bool = False) -> Rule:
    def rule(c: Converter, node: OnnxNode) -> Result:
        a, b = c.value(node, 0), c.value(node, 1)
        y = c.emit(node, op, [b, a] if swapped else [a, b], "other" if negated else "")
        return c.emit(node, "bit_not", [y]) if negated else y

    return rule


def _bits(op: str) -> Rule:
    """Bits of integers, and logic of bools."""
    return lambda c, node: c.emit(node, op, [c.value(node, i) for i in range(len(node.inputs))])


def _shift(c: Converter, node: OnnxNode) -> Result:
    """A shift by the width or more, or by less than nothing, gives zero, or -1 when negative numbers
    are shifted right.
    """
    x, count = c.value(node, 0), c.value(node, 1)
    dtype, right = c.type(x).dtype, node.get_str("direction", "") == "RIGHT"
    last = c.scalar(node, "last", 8 * np.dtype(dtype).itemsize - 1, x)
    op = "shift_right" if right else "shift_left"
    if dtype.startswith("int"):
        wide = c.scalar(node, "width", 8 * np.dtype(dtype).itemsize, x)
        negative = c.emit(node, "less", [count, c.scalar(node, "zero", 0, x)], "negative")
        count = c.emit(node, "where", [negative, wide, count], "count")
    within = c.emit(node, "minimum", [count, last], "within")
    if right and dtype.startswith("int"):
        return c.emit(node, op, [x, within])
    shifted = c.emit(node, op, [x, within], "shifted")
    beyond = c.emit(node, "less", [last, count], "beyond")
    return c.emit(node, "where", [beyond, c.scalar(node, "zero", 0, x), shifted])


def _where(c: Converter, node: OnnxNode) -> Result:
    condition, a, b = (c.value(node, i) for i in range(3))
    if {c.type(a).dtype, c.type(b).dtype} == {"float32", "float64"}:
        a, b = c.cast(node, a, "float64", "a"), c.cast(node, b, "float64", "b")
    return c.emit(node, "where", [condition, a, b])


def _is_infinite(c: Converter, node: OnnxNode) -> Result:
    x = c.value(node)
    both = [bool(node.get_int(key, 1)) for key in ("detect_positive", "detect_negative")]
    if all(both):
        return c.emit(node, "isinf", [x])
    if not any(both):
        return c.emit(node, "less", [x, x])  # never
    infinity = c.scalar(node, "infinity", float("inf") if both[0] else float("-inf"), x)
    return c.emit(node, "equal", [x, infinity])


def _cast(c: Converter, node: OnnxNode) -> Result:
    from onnx import TensorProto

    name = TensorProto.DataType.Name(node.get_int("to", 1)).lower()
    return cast_to(c, node, {"float": "float32", "double": "float64"}.get(name, name))


def cast_to(c: Converter, node: OnnxNode, to: str) -> str:
    """The input as another type. What is stored in 16 bits is float32 here: casts to that do nothing."""
    x = c.value(node)
    dtype, to = c.type(x).dtype, "float32" if to in ("float16", "bfloat16") else to
    if to not in DTYPES:
        raise UnsupportedForm(f"from {dtype} to {to}; only {', '.join(DTYPES)} are supported")
    if dtype == to:
        return x
    if (dtype, to) == ("uint8", "float32"):  # the form that int8 layers read without a conversion
        return c.emit(node, "dequantize", [x], x_scale=1.0, x_zero=0)
    return c.emit(node, "cast", [x], to=to)


def _bit_cast(c: Converter, node: OnnxNode) -> Result:
    from onnx import TensorProto

    name = TensorProto.DataType.Name(node.get_int("to", 1)).lower()
    to, x = {"float": "float32", "double": "float64"}.get(name, name), c.value(node)
    if to not in DTYPES or to == "float16" or np.dtype(to).itemsize != np.dtype(c.type(x).dtype).itemsize:
        raise UnsupportedForm(f"from {c.type(x).dtype} to {to}")
    return c.emit(node, "bitcast", [x], to=to)


def _cast_like(c: Converter, node: OnnxNode) -> Result:
    known = c.constant(node, 1)
    return cast_to(c, node, c.type(c.value(node, 1)).dtype if known is None else known.dtype.name)


LOGIC_RULES: dict[str, Rule] = {
    "And": _bits("bit_and"),
    "BitCast": _bit_cast,
    "BitShift": _shift,
    "BitwiseAnd": _bits("bit_and"),
    "BitwiseNot": _bits("bit_not"),
    "BitwiseOr": _bits("bit_or"),
    "BitwiseXor": _bits("bit_xor"),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Equal": _compare("equal"),
    "Greater": _compare("less", swapped=True),
    "GreaterOrEqual": _compare("less_equal", swapped=True),
    "IsInf": _is_infinite,
    "IsNaN": lambda c, node: c.emit(node, "isnan", [c.value(node)]),
    "Less": _compare("less"),
    "LessOrEqual": _compare("less_equal"),
    "Not": _bits("bit_not"),
    "Or": _bits("bit_or"),
    "Where": _where,
    "Xor": _bits("bit_xor"),
}
