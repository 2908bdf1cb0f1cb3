"""Conversion rules: operators that read and write at computed places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .converter import (
    Converter,
    OnnxNode,
    Result,
    Rule,
    UnsupportedForm,
)


def _positive(axis: int, rank: int) -> int:
    return axis + rank if axis < 0 else axis


def _axis(c: Converter, node: OnnxNode) -> int:
    return _positive(node.get_int("axis", 0), len(c.type(c.value(node)).shape))


def _check_known(c: Converter, node: OnnxNode, sizes: Sequence[int]) -> None:
    """Raise ValueError when indices that are known now lie outside; `sizes` broadcasts against them."""
    index = c.constant(node, 1)
    if index is not None and index.size and not np.all((index >= -np.array(sizes)) & (index < sizes)):
        raise ValueError(f"an index is outside of {', '.join(map(str, sizes))}")


def _gather(c: Converter, node: OnnxNode) -> Result:
    """One known index is a slice whose axis is dropped: a move, which other moves absorb."""
    x, axis, index = c.value(node), _axis(c, node), c.constant(node, 1)
    shape = list(c.type(x).shape)
    _check_known(c, node, (shape[axis],))
    if index is None or index.ndim > 0:
        return c.emit(node, "gather", [x, c.value(node, 1)], axis=axis)
    at = _positive(int(index), shape[axis])
    starts, stops = [0] * len(shape), list(shape)
    starts[axis], stops[axis] = at, at + 1
    if stops != shape or any(starts):
        steps = (1,) * len(shape)
        x = c.emit(node, "slice", [x], "chosen", starts=tuple(starts), stops=tuple(stops), steps=steps)
    return c.reshape(node, x, shape[:axis] + shape[axis + 1 :])


def _gather_elements(c: Converter, node: OnnxNode) -> Result:
    x, axis = c.value(node), _axis(c, node)
    _check_known(c, node, (c.type(x).shape[axis],))
    return c.emit(node, "gather_elements", [x, c.value(node, 1)], axis=axis)


def _gather_nd(c: Converter, node: OnnxNode) -> Result:
    return c.emit(node, "gather_nd", [c.value(node), c.value(node, 1)], batch=node.get_int("batch_dims", 0))


def _operands(c: Converter, node: OnnxNode) -> list[str]:
    return [c.value(node, i) for i in range(3)]


def _reduction(node: OnnxNode) -> str:
    return node.get_str("reduction", "none")


def _scatter_elements(c: Converter, node: OnnxNode) -> Result:
    axis = _axis(c, node)
    _check_known(c, node, (c.type(c.value(node)).shape[axis],))
    return _scatter(c, node, "scatter_elements", axis=axis)


def _scatter_nd(c: Converter, node: OnnxNode) -> Result:
    return _scatter(c, node, "scatter_nd")


def _scatter(c: Converter, node: OnnxNode, op: str, **attrs: int) -> Result:
    """bool and narrow integers are combined in int32."""
    x, indices, updates = _operands(c, node)
    dtype, reduction = c.type(x).dtype, _reduction(node)
    if reduction not in ("none", "add", "mul", "max", "min"):
        raise UnsupportedForm(f"reduction {reduction!r}")
    narrow = dtype in ("bool", "int8", "uint8", "int16", "uint16") and reduction != "none"
    if narrow:
        x, updates = c.cast(node, x, "int32", "wide"), c.cast(node, updates, "int32", "wide_updates")
    part = "narrow" if narrow else ""
    y = c.emit(node, op, [x, indices, updates], part, reduction=reduction, **attrs)
    return c.cast(node, y, dtype)


INDEX_RULES: dict[str, Rule] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
}
