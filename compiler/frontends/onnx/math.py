"""Conversion rules: arithmetic and functions of one number."""

from __future__ import annotations

import math

import numpy as np

from .converter import (
    Converter,
    OnnxNode,
    Result,
    Rule,
    UnsupportedForm,
)


def _direct(op: str) -> Rule:
    """One input, the same operator here."""
    return lambda c, node: c.emit(node, op, [c.value(node)])


def _binary(op: str) -> Rule:
    def rule(c: Converter, node: OnnxNode) -> Result:
        return c.emit(node, op, [c.value(node, 0), c.value(node, 1)])

    return rule


def _chain(c: Converter, node: OnnxNode, op: str, last: str = "") -> str:
    """op over all inputs, two at a time from the left."""
    total = c.value(node, 0)
    for i in range(1, len(node.inputs)):
        part = last if i == len(node.inputs) - 1 else f"{op}{i}"
        total = c.emit(node, op, [total, c.value(node, i)], part)
    return total


def _variadic(op: str) -> Rule:
    return lambda c, node: _chain(c, node, op)


def _mean(c: Converter, node: OnnxNode) -> Result:
    if len(node.inputs) == 1:
        return c.value(node)
    total = _chain(c, node, "add", "total")
    return c.emit(node, "mul", [total, c.scalar(node, "share", 1 / len(node.inputs))])


def _single(array: np.ndarray, what: str) -> float:
    if array.size != 1:
        raise UnsupportedForm(f"its {what} is not a single number")
    return float(array.reshape(-1)[0])


def _pow(c: Converter, node: OnnxNode) -> Result:
    x, y = c.value(node), c.value(node, 1)
    known, dtype = c.constant(node, 1), c.type(x).dtype
    if not dtype.startswith("float"):
        wide = [c.cast(node, v, "float64", part) for v, part in ((x, "base"), (y, "exponent"))]
        return c.cast(node, c.emit(node, "pow", wide, "wide"), dtype)
    if known is not None and known.size == 1 and known.ndim <= len(c.type(x).shape):
        simple = _simple_power(c, node, x, float(known.reshape(-1)[0]))
        if simple:
            return simple
    return c.emit(node, "pow", [x, c.cast(node, y, dtype, "exponent")])


def _simple_power(c: Converter, node: OnnxNode, x: str, exponent: float) -> str:
    """Exponents that other operators do; "" for the rest."""
    if exponent == 1.0:
        return x
    if exponent == 2.0:
        return c.emit(node, "mul", [x, x])
    if exponent == 3.0:
        return c.emit(node, "mul", [c.emit(node, "mul", [x, x], "square"), x])
    if exponent in (0.5, -0.5):
        return c.emit(node, "sqrt" if exponent > 0 else "rsqrt", [x])
    return c.emit(node, "div", [c.scalar(node, "one", 1.0, x), x]) if exponent == -1.0 else ""


def _mod(c: Converter, node: OnnxNode) -> Result:
    """With fmod the remainder has the dividend's sign, else the divisor's."""
    return c.emit(node, "fmod" if node.get_int("fmod", 0) else "floor_mod", [c.value(node), c.value(node, 1)])


def _abs(c: Converter, node: OnnxNode) -> Result:
    x = c.value(node)
    return x if c.type(x).dtype.startswith("uint") else c.emit(node, "abs", [x])


def _clip(c: Converter, node: OnnxNode) -> Result:
    x = c.value(node)
    if node.opset < 11:
        return _clip_between(c, node, x, node.get_float("min", -math.inf), node.get_float("max", math.inf))
    bounds = []
    for i, open_bound in ((1, -math.inf), (2, math.inf)):
        array = c.constant(node, i)
        if array is None and node.has_input(i):
            return _clip_computed(c, node, x)
        bounds.append(open_bound if array is None else _single(array, "bound"))
    return _clip_between(c, node, x, *bounds)


def _clip_between(c: Converter, node: OnnxNode, x: str, lo: float, hi: float) -> Result:
    if (lo, hi) == (-math.inf, math.inf):
        return x
    bounded = lo < math.inf and hi > -math.inf
    if bounded and c.type(x).dtype.startswith("float"):
        return c.emit(node, "clip", [x], lo=lo, hi=hi)
    bounds = [
        (op, np.array(bound, c.type(x).dtype))
        for op, bound, free in (("maximum", lo, -math.inf), ("minimum", hi, math.inf))
        if bound != free
    ]
    for i, (op, bound) in enumerate(bounds):
        x = c.emit(
            node,
            op,
            [x, c.param(c.derived(f"{node.output}.{op}"), bound)],
            "" if i == len(bounds) - 1 else op,
        )
    return x


def _clip_computed(c: Converter, node: OnnxNode, x: str) -> Result:
    """Bounds that are computed at run time."""
    if node.has_input(1):
        x = c.emit(node, "maximum", [x, c.value(node, 1)], "lower" if node.has_input(2) else "")
    return c.emit(node, "minimum", [x, c.value(node, 2)]) if node.has_input(2) else x


def _reciprocal(c: Converter, node: OnnxNode) -> Result:
    x = c.value(node)
    return c.emit(node, "div", [c.scalar(node, "one", 1.0, x), x])


MATH_RULES: dict[str, Rule] = {
    "Abs": _abs,
    "Acos": _direct("acos"),
    "Acosh": _direct("acosh"),
    "Add": _binary("add"),
    "Asin": _direct("asin"),
    "Asinh": _direct("asinh"),
    "Atan": _direct("atan"),
    "Atanh": _direct("atanh"),
    "Ceil": _direct("ceil"),
    "Clip": _clip,
    "Cos": _direct("cos"),
    "Cosh": _direct("cosh"),
    "Div": _binary("div"),
    "Erf": _direct("erf"),
    "Exp": _direct("exp"),
    "Floor": _direct("floor"),
    "Log": _direct("log"),
    "Max": _variadic("maximum"),
    "Mean": _mean,
    "Min": _variadic("minimum"),
    "Mod": _mod,
    "Mul": _binary("mul"),
    "Neg": _direct("neg"),
    "Pow": _pow,
    "Reciprocal": _reciprocal,
    "Round": _direct("round"),
    "Sign": _direct("sign"),
    "Sin": _direct("sin"),
    "Sinh": _direct("sinh"),
    "Sqrt": _direct("sqrt"),
    "Sub": _binary("sub"),
    "Sum": _variadic("add"),
    "Tan": _direct("tan"),
}
