"""Conversion rules: reductions, softmax and its like, running sums, orders."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .converter import (
    Converter,
    OnnxNode,
    Result,
    Rule,
)


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


def _emit_hardmax(c: Converter, node: OnnxNode, x: str, axis: int, part: str) -> str:
    """1 at the first of the largest, else 0."""
    shape = c.type(x).shape
    place = c.emit(node, "arg_max", [x], "place", axis=axis)
    count = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    counted = c.param(c.derived(f"{node.output}.count"), count)
    return c.cast(node, c.emit(node, "equal", [place, counted], "chosen"), c.type(x).dtype, part)


def _reduce_axes(c: Converter, node: OnnxNode, rank: int) -> tuple[int, ...]:
    if node.has_input(1):
        axes = tuple(int(a) for a in c.known(node, 1, "axes").reshape(-1))
    else:
        axes = node.get_ints("axes", ())
    if not axes:
        return () if node.get_int("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(a + rank if a < 0 else a for a in axes))


def _of_nothing(
    c: Converter, x: str, axes: tuple[int, ...], keepdims: bool, value: float
) -> np.ndarray | None:
    """What a reduction of no numbers gives, if that is what it is."""
    kind = c.type(x)
    if not any(kind.shape[a] == 0 for a in axes):
        return None
    shape = [1 if i in axes else d for i, d in enumerate(kind.shape) if keepdims or i not in axes]
    if kind.dtype.startswith("float"):
        return np.full(shape, value, kind.dtype)
    bounds = (0, 1) if kind.dtype == "bool" else (np.iinfo(kind.dtype).min, np.iinfo(kind.dtype).max)
    return np.full(shape, min(max(value, bounds[0]), bounds[1]), kind.dtype)


def _reduce(op: str, empty: float, before: str = "", after: str = "") -> Rule:
    """`before` and `after`: an operator on the input ("square" for x * x) and on the result. `empty`: the
    result of reducing no numbers at all."""

    def rule(c: Converter, node: OnnxNode) -> Result:
        x, keepdims = c.value(node), bool(node.get_int("keepdims", 1))
        axes = _reduce_axes(c, node, len(c.type(x).shape))
        nothing = _of_nothing(c, x, axes, keepdims, empty)
        if nothing is not None:
            return nothing
        last = "" if not after else "reduced"
        if before:
            inputs = [x, x] if before == "square" else [x]
            x = c.emit(node, "mul" if before == "square" else before, inputs, before if axes or last else "")
        if axes:
            x = c.emit(node, op, [x], last, axes=axes, keepdims=keepdims)
        return c.emit(node, after, [x]) if after else x

    return rule


def _log_sum_exp(c: Converter, node: OnnxNode) -> Result:
    """max + log(sum(exp(x - max))), with a finite max"""
    x, keepdims = c.value(node), bool(node.get_int("keepdims", 1))
    shape = c.type(x).shape
    axes = _reduce_axes(c, node, len(shape))
    nothing = _of_nothing(c, x, axes, keepdims, -math.inf)
    if nothing is not None:
        return nothing
    if not axes:
        return x
    least, most = (c.scalar(node, name, value, x) for name, value in (("least", -3e38), ("most", 3e38)))
    top = c.emit(node, "maximum", [c.emit(node, "reduce_max", [x], "max", axes=axes), least], "above")
    top = c.emit(node, "minimum", [top, most], "top")
    grown = c.emit(node, "exp", [c.emit(node, "sub", [x, top], "shifted")], "exp")
    total = c.emit(node, "log", [c.emit(node, "reduce_sum", [grown], "total", axes=axes)], "log")
    y = c.emit(node, "add", [top, total], "" if keepdims else "kept")
    return c.reshape(node, y, [d for i, d in enumerate(shape) if i not in axes]) if not keepdims else y


def _arg(op: str) -> Rule:
    """With select_last_index, the search runs from the end."""

    def rule(c: Converter, node: OnnxNode) -> Result:
        x = c.value(node)
        shape = c.type(x).shape
        axis, keepdims = _axis(node, len(shape), 0), bool(node.get_int("keepdims", 1))
        if not node.get_int("select_last_index", 0):
            return _place(c, node, op, x, "", axis=axis, keepdims=keepdims)
        backwards = c.emit(node, "reverse", [x], "backwards", axis=axis)
        found = _place(c, node, op, backwards, "found", axis=axis, keepdims=keepdims)
        return c.emit(node, "sub", [c.scalar(node, "last", shape[axis] - 1, found), found])

    return rule


def _place(c: Converter, node: OnnxNode, op: str, x: str, part: str, **attrs: int) -> str:
    """The operator on numbers as wide as it needs them; its result stays int64."""
    (wide,), _ = c.widened(node, op, [x])
    return c.emit(node, op, [wide], part, **attrs)


def _cumulate(op: str) -> Rule:
    def rule(c: Converter, node: OnnxNode) -> Result:
        x = c.value(node)
        axis, rank = int(c.known(node, 1, "axis").reshape(-1)[0]), len(c.type(x).shape)
        exclusive, reverse = (bool(node.get_int(key, 0)) for key in ("exclusive", "reverse"))
        axis += rank if axis < 0 else 0
        return c.emit(node, op, [x], axis=axis, exclusive=exclusive, reverse=reverse)

    return rule


def _top_k(c: Converter, node: OnnxNode) -> list[Result]:
    x = c.value(node)
    k = int(c.known(node, 1, "k").reshape(-1)[0]) if node.has_input(1) else node.get_int("k", 0)
    dtype, axis = c.type(x).dtype, _axis(node, len(c.type(x).shape), -1)
    (wide,), narrow = c.widened(node, "topk", [x])
    part = "wide" if narrow else ""
    values, indices = c.emit_all(
        node, "topk", [wide], part, axis=axis, k=k, largest=bool(node.get_int("largest", 1))
    )
    return [c.cast(node, values, dtype), indices]


REDUCE_RULES: dict[str, Rule] = {
    "ArgMax": _arg("arg_max"),
    "ArgMin": _arg("arg_min"),
    "CumProd": _cumulate("cumprod"),
    "CumSum": _cumulate("cumsum"),
    "Hardmax": _over_axis(_emit_hardmax),
    "LogSoftmax": _over_axis(_emit_log_softmax),
    "ReduceL1": _reduce("reduce_sum", 0, before="abs"),
    "ReduceL2": _reduce("reduce_sum", 0, before="square", after="sqrt"),
    "ReduceLogSum": _reduce("reduce_sum", -math.inf, after="log"),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _reduce("reduce_max", -math.inf),
    "ReduceMean": _reduce("reduce_mean", math.nan),
    "ReduceMin": _reduce("reduce_min", math.inf),
    "ReduceProd": _reduce("reduce_prod", 1),
    "ReduceSum": _reduce("reduce_sum", 0),
    "ReduceSumSquare": _reduce("reduce_sum", 0, before="square"),
    "Softmax": _over_axis(_emit_softmax),
    "TopK": _top_k,
}
