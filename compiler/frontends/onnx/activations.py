"""Conversion rules: activation functions that ONNX has and the graph spells out."""

from __future__ import annotations

import math

import numpy as np

from .converter import (
    Converter,
    OnnxNode,
    Result,
    Rule,
)


def _with(c: Converter, node: OnnxNode, op: str, x: str, number: float, part: str) -> str:
    """op(x, number) of the value's own element type; the part "" makes the node's output."""
    return c.emit(node, op, [x, c.scalar(node, f"{part or op}.number", number, x)], part)


def _above(c: Converter, node: OnnxNode, x: str) -> str:
    return c.emit(node, "clip", [x], "above", lo=0.0)


def relu(c: Converter, node: OnnxNode) -> Result:
    x = c.value(node)
    if c.type(x).dtype.startswith("float"):
        return c.emit(node, "clip", [x], lo=0.0)
    return _with(c, node, "maximum", x, 0, "")


def _prelu(c: Converter, node: OnnxNode) -> Result:
    x, slope = c.value(node), c.value(node, 1)
    if not c.type(x).dtype.startswith("float"):
        zero = c.scalar(node, "zero", 0, x)
        below = c.emit(node, "minimum", [x, zero], "below")
        return c.emit(
            node,
            "add",
            [c.emit(node, "maximum", [x, zero], "above"), c.emit(node, "mul", [below, slope], "slope")],
        )
    known = c.constant(node, 1)
    if known is None or not np.isfinite(known).all():  # zero times infinity is no number
        negative = c.emit(node, "less", [x, c.scalar(node, "zero", 0, x)], "negative")
        return c.emit(node, "where", [negative, c.emit(node, "mul", [x, slope], "slope"), x])
    below = c.emit(node, "clip", [x], "below", hi=0.0)
    return c.emit(node, "add", [_above(c, node, x), c.emit(node, "mul", [below, slope], "slope")])


def _grown(c: Converter, node: OnnxNode, x: str, alpha: float, inner: float) -> str:
    """alpha * (exp(min(x, 0) / inner) - 1)"""
    below = c.emit(node, "clip", [x], "below", hi=0.0)
    if inner != 1.0:
        below = _with(c, node, "mul", below, 1 / inner, "inner")
    less = _with(c, node, "sub", c.emit(node, "exp", [below], "exp"), 1.0, "less_one")
    return less if alpha == 1.0 else _with(c, node, "mul", less, alpha, "alpha")


def _elu(c: Converter, node: OnnxNode) -> Result:
    x = c.value(node)
    grown = _grown(c, node, x, node.get_float("alpha", 1.0), 1.0)
    return c.emit(node, "add", [_above(c, node, x), grown])


def _celu(c: Converter, node: OnnxNode) -> Result:
    """max(x, 0) + alpha * (exp(min(x, 0) / alpha) - 1)"""
    x, alpha = c.value(node), node.get_float("alpha", 1.0)
    return c.emit(node, "add", [_above(c, node, x), _grown(c, node, x, alpha, alpha)])


def _selu(c: Converter, node: OnnxNode) -> Result:
    """gamma * (max(x, 0) + alpha * (exp(min(x, 0)) - 1))"""
    x = c.value(node)
    alpha, gamma = (
        node.get_float("alpha", 1.6732631921768188),
        node.get_float("gamma", 1.0507010221481323),
    )
    total = c.emit(node, "add", [_above(c, node, x), _grown(c, node, x, alpha, 1.0)], "total")
    return _with(c, node, "mul", total, gamma, "")


def _hard_sigmoid(c: Converter, node: OnnxNode) -> Result:
    alpha, beta = node.get_float("alpha", 0.2), node.get_float("beta", 0.5)
    x = c.value(node)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return c.emit(node, "hard_sigmoid", [x])
    shifted = _with(c, node, "add", _with(c, node, "mul", x, alpha, "scaled"), beta, "shifted")
    return c.emit(node, "clip", [shifted], lo=0.0, hi=1.0)


def _swish(c: Converter, node: OnnxNode) -> Result:
    x, alpha = c.value(node), node.get_float("alpha", 1.0)
    if alpha == 1.0:
        return c.emit(node, "silu", [x])
    scaled = _with(c, node, "mul", x, alpha, "scaled")
    return c.emit(node, "mul", [x, c.emit(node, "sigmoid", [scaled], "gate")])


def _gelu(c: Converter, node: OnnxNode) -> Result:
    x = c.value(node)
    if node.get_str("approximate", "none") == "none":
        return c.emit(node, "gelu", [x])
    # 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
    cube = c.emit(node, "mul", [c.emit(node, "mul", [x, x], "square"), x], "cube")
    bent = c.emit(node, "add", [x, _with(c, node, "mul", cube, 0.044715, "bent")], "inner")
    scaled = _with(c, node, "mul", bent, math.sqrt(2 / math.pi), "scaled")
    gate = _with(c, node, "add", c.emit(node, "tanh", [scaled], "tanh"), 1.0, "gate")
    return c.emit(node, "mul", [_with(c, node, "mul", x, 0.5, "half"), gate])


def _softplus_of(c: Converter, node: OnnxNode, x: str, part: str) -> str:
    """max(x, 0) + log(1 + exp(-|x|)): no overflow"""
    size = c.emit(node, "neg", [c.emit(node, "abs", [x], "size")], "minus_size")
    inner = _with(c, node, "add", c.emit(node, "exp", [size], "exp"), 1.0, "plus_one")
    return c.emit(node, "add", [_above(c, node, x), c.emit(node, "log", [inner], "log")], part)


def _softplus(c: Converter, node: OnnxNode) -> Result:
    return _softplus_of(c, node, c.value(node), "")


def _mish(c: Converter, node: OnnxNode) -> Result:
    """x tanh(softplus(x))"""
    x = c.value(node)
    gate = c.emit(node, "tanh", [_softplus_of(c, node, x, "softplus")], "gate")
    return c.emit(node, "mul", [x, gate])


def _softsign(c: Converter, node: OnnxNode) -> Result:
    x = c.value(node)
    return c.emit(node, "div", [x, _with(c, node, "add", c.emit(node, "abs", [x], "size"), 1.0, "plus_one")])


def _thresholded(c: Converter, node: OnnxNode) -> Result:
    x = c.value(node)
    bound, zero = c.scalar(node, "alpha", node.get_float("alpha", 1.0), x), c.scalar(node, "zero", 0.0, x)
    return c.emit(node, "where", [c.emit(node, "less", [bound, x], "passes"), x, zero])


def _shrink(c: Converter, node: OnnxNode) -> Result:
    """x + bias below -lambd, x - bias above lambd, 0 between"""
    x, bias, bound = c.value(node), node.get_float("bias", 0.0), node.get_float("lambd", 0.5)
    dtype = c.type(x).dtype
    wide = x if dtype.startswith("float") else c.cast(node, x, "float64", "wide")

    def number(part: str, value: float) -> str:
        return c.scalar(node, part, value, wide)

    below = c.emit(node, "less", [wide, number("low", -bound)], "below")
    above = c.emit(node, "less", [number("high", bound), wide], "above")
    raised = c.emit(node, "add", [wide, number("bias", bias)], "raised")
    lowered = c.emit(node, "sub", [wide, number("bias", bias)], "lowered")
    inner = c.emit(node, "where", [above, lowered, number("zero", 0.0)], "inner")
    y = c.emit(node, "where", [below, raised, inner], "" if wide == x else "result")
    return c.cast(node, y, dtype)


def _direct(op: str, **defaults: float) -> Rule:
    """One input, the same operator here; `defaults` are float attributes of the same name."""
    return lambda c, node: c.emit(
        node, op, [c.value(node)], "", **{k: node.get_float(k, v) for k, v in defaults.items()}
    )


ACTIVATION_RULES: dict[str, Rule] = {
    "Celu": _celu,
    "Elu": _elu,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _direct("hard_swish"),
    "LeakyRelu": _direct("leaky_relu", alpha=0.01),
    "Mish": _mish,
    "PRelu": _prelu,
    "Relu": relu,
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": _direct("sigmoid"),
    "Softplus": _softplus,
    "Softsign": _softsign,
    "Swish": _swish,
    "Tanh": _direct("tanh"),
    "ThresholdedRelu": _thresholded,
}
