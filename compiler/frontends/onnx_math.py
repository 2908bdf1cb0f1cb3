"""Conversion rules: arithmetic, activations and reductions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..ir import AttrValue
from .converter import Converter, OnnxNode, Result, Rule, UnsupportedForm


def _direct(op: str, **defaults: float) -> Rule:
    """One input, the same operator here; `defaults` are float attributes of the same name."""

    def rule(c: Converter, node: OnnxNode) -> Result:
        attrs: dict[str, AttrValue] = {k: node.get_float(k, v) for k, v in defaults.items()}
        return c.emit(node, op, [c.value(node)], "", **attrs)

    return rule


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
    exponent = _single(c.known(node, 1, "exponent"), "exponent")
    x = c.value(node)
    if exponent == 1.0:
        return x
    if exponent == 2.0:
        return c.emit(node, "mul", [x, x])
    if exponent == 3.0:
        return c.emit(node, "mul", [c.emit(node, "mul", [x, x], "square"), x])
    if exponent in (0.5, -0.5):
        return c.emit(node, "sqrt" if exponent > 0 else "rsqrt", [x])
    if exponent == -1.0:
        return c.emit(node, "div", [c.scalar(node, "one", 1.0), x])
    raise UnsupportedForm(f"exponent {exponent:g}; only -1, -0.5, 0.5, 1, 2 and 3 are supported")


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
    if math.isinf(lo) and math.isinf(hi):
        return x
    return c.emit(node, "clip", [x], lo=lo, hi=hi)


def _clip_computed(c: Converter, node: OnnxNode, x: str) -> Result:
    """Bounds that are computed at run time."""
    if node.has_input(1):
        x = c.emit(node, "maximum", [x, c.value(node, 1)], "lower" if node.has_input(2) else "")
    return c.emit(node, "minimum", [x, c.value(node, 2)]) if node.has_input(2) else x


def _relu(c: Converter, node: OnnxNode) -> Result:
    return c.emit(node, "clip", [c.value(node)], lo=0.0)


def _prelu(c: Converter, node: OnnxNode) -> Result:
    x, slope = c.value(node), c.value(node, 1)
    below = c.emit(node, "clip", [x], "below", hi=0.0)
    above = c.emit(node, "clip", [x], "above", lo=0.0)
    return c.emit(node, "add", [above, c.emit(node, "mul", [below, slope], "slope")])


def _elu(c: Converter, node: OnnxNode) -> Result:
    """max(x, 0) + alpha * (exp(min(x, 0)) - 1)"""
    x = c.value(node)
    above = c.emit(node, "clip", [x], "above", lo=0.0)
    grown = c.emit(node, "exp", [c.emit(node, "clip", [x], "below", hi=0.0)], "exp")
    less = c.emit(node, "sub", [grown, c.scalar(node, "one", 1.0)], "less_one")
    if node.get_float("alpha", 1.0) != 1.0:
        less = c.emit(node, "mul", [less, c.scalar(node, "alpha", node.get_float("alpha", 1.0))], "scaled")
    return c.emit(node, "add", [above, less])


def _hard_sigmoid(c: Converter, node: OnnxNode) -> Result:
    alpha, beta = node.get_float("alpha", 0.2), node.get_float("beta", 0.5)
    x = c.value(node)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return c.emit(node, "hard_sigmoid", [x])
    scaled = c.emit(node, "mul", [x, c.scalar(node, "alpha", alpha)], "scaled")
    shifted = c.emit(node, "add", [scaled, c.scalar(node, "beta", beta)], "shifted")
    return c.emit(node, "clip", [shifted], lo=0.0, hi=1.0)


def _swish(c: Converter, node: OnnxNode) -> Result:
    x, alpha = c.value(node), node.get_float("alpha", 1.0)
    if alpha == 1.0:
        return c.emit(node, "silu", [x])
    scaled = c.emit(node, "mul", [x, c.scalar(node, "alpha", alpha)], "scaled")
    return c.emit(node, "mul", [x, c.emit(node, "sigmoid", [scaled], "gate")])


def _gelu(c: Converter, node: OnnxNode) -> Result:
    x = c.value(node)
    if node.get_str("approximate", "none") == "none":
        return c.emit(node, "gelu", [x])
    # 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
    cube = c.emit(node, "mul", [c.emit(node, "mul", [x, x], "square"), x], "cube")
    bent = c.emit(
        node, "add", [x, c.emit(node, "mul", [cube, c.scalar(node, "bend", 0.044715)], "bent")], "inner"
    )
    scaled = c.emit(node, "mul", [bent, c.scalar(node, "slope", math.sqrt(2 / math.pi))], "scaled")
    gate = c.emit(node, "add", [c.emit(node, "tanh", [scaled], "tanh"), c.scalar(node, "one", 1.0)], "gate")
    return c.emit(node, "mul", [c.emit(node, "mul", [x, c.scalar(node, "half", 0.5)], "half"), gate])


def _reciprocal(c: Converter, node: OnnxNode) -> Result:
    return c.emit(node, "div", [c.scalar(node, "one", 1.0), c.value(node)])


def _axis(node: OnnxNode, rank: int, default: int) -> int:
    axis = node.get_int("axis", default)
    return axis + rank if axis < 0 else axis


def _over_axis(emit: Callable[[Converter, OnnxNode, str, int, str], str]) -> Rule:
    """Softmax and its like: before operator set 13 they run over all axes from `axis` on, flattened."""

    def rule(c: Converter, node: OnnxNode) -> Result:
        x = c.value(node)
        shape = c.type(x).shape
        axis = _axis(node, len(shape), -1 if node.opset >= 13 else 1)
        if node.opset >= 13 or axis == len(shape) - 1:
            return emit(c, node, x, axis, "")
        flat = c.reshape(node, x, (math.prod(shape[:axis]), math.prod(shape[axis:])), "flat")
        return c.reshape(node, emit(c, node, flat, 1, "rows"), shape)

    return rule


def _emit_softmax(c: Converter, node: OnnxNode, x: str, axis: int, part: str) -> str:
    return c.emit(node, "softmax", [x], part, axis=axis)


def _emit_log_softmax(c: Converter, node: OnnxNode, x: str, axis: int, part: str) -> str:
    """(x - max) - log(sum(exp(x - max))): no overflow, no log of zero."""
    shifted = c.emit(node, "sub", [x, c.emit(node, "reduce_max", [x], "max", axes=(axis,))], "shifted")
    total = c.emit(node, "reduce_sum", [c.emit(node, "exp", [shifted], "exp")], "total", axes=(axis,))
    return c.emit(node, "sub", [shifted, c.emit(node, "log", [total], "log")], part)


def _reduce_axes(c: Converter, node: OnnxNode, rank: int) -> tuple[int, ...]:
    if node.has_input(1):
        axes = tuple(int(a) for a in c.known(node, 1, "axes").reshape(-1))
    else:
        axes = node.get_ints("axes", ())
    if not axes:
        return () if node.get_int("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(a + rank if a < 0 else a for a in axes))


def _reduce(op: str, before: str = "", after: str = "") -> Rule:
    """`before` and `after`: an operator on the input ("square" for x * x) and on the result."""

    def rule(c: Converter, node: OnnxNode) -> Result:
        x = c.value(node)
        axes = _reduce_axes(c, node, len(c.type(x).shape))
        if before:
            x = (
                c.emit(node, "mul", [x, x], before)
                if before == "square"
                else c.emit(node, before, [x], before)
            )
        if axes:
            keepdims = bool(node.get_int("keepdims", 1))
            x = c.emit(node, op, [x], "reduced" if after else "", axes=axes, keepdims=keepdims)
        return c.emit(node, after, [x]) if after else x

    return rule


MATH_RULES: dict[str, Rule] = {
    "Abs": _direct("abs"),
    "Add": _binary("add"),
    "Clip": _clip,
    "Div": _binary("div"),
    "Elu": _elu,
    "Erf": _direct("erf"),
    "Exp": _direct("exp"),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _direct("hard_swish"),
    "LeakyRelu": _direct("leaky_relu", alpha=0.01),
    "Log": _direct("log"),
    "LogSoftmax": _over_axis(_emit_log_softmax),
    "Max": _variadic("maximum"),
    "Mean": _mean,
    "Min": _variadic("minimum"),
    "Mul": _binary("mul"),
    "Neg": _direct("neg"),
    "PRelu": _prelu,
    "Pow": _pow,
    "Reciprocal": _reciprocal,
    "ReduceL2": _reduce("reduce_sum", before="square", after="sqrt"),
    "ReduceMax": _reduce("reduce_max"),
    "ReduceMean": _reduce("reduce_mean"),
    "ReduceMin": _reduce("reduce_max", before="neg", after="neg"),
    "ReduceSum": _reduce("reduce_sum"),
    "ReduceSumSquare": _reduce("reduce_sum", before="square"),
    "Relu": _relu,
    "Sigmoid": _direct("sigmoid"),
    "Softmax": _over_axis(_emit_softmax),
    "Sqrt": _direct("sqrt"),
    "Sub": _binary("sub"),
    "Sum": _variadic("add"),
    "Swish": _swish,
    "Tanh": _direct("tanh"),
}
