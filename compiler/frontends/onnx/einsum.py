"""Conversion rule: Einsum as products of matrices, with transposes and reshapes around them.

Operands are joined from the left, two at a time. Of two operands, labels are batch (in both, and needed
later), contracted (in both, not needed), or rows and columns (in one):
[batch, rows, k] x [batch, k, columns]. Where the right operand is constant and there is no batch, the product
is a `linear` layer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .converter import (
    Converter,
    OnnxNode,
    Result,
    Rule,
    UnsupportedForm,
)

Labels = tuple[str, ...]


@dataclass(frozen=True)
class _Term:
    """A value and what its axes are called; `constant` is its ONNX name if it is known at import."""

    value: str
    labels: Labels
    constant: str = ""


def _parse(equation: str, ranks: Sequence[int]) -> tuple[list[Labels], Labels]:
    """Labels of the operands and of the result. Axes of an ellipsis are "-1", "-2", ... from the right."""
    text = "".join(equation.split())
    left, arrow, right = text.partition("->")
    parts = left.split(",")
    if len(parts) != len(ranks):
        raise UnsupportedForm(f"equation {equation!r} for {len(ranks)} operands")
    operands = [_labels(part, rank, equation) for part, rank in zip(parts, ranks, strict=True)]
    widest = max((len([x for x in labels if len(x) > 1]) for labels in operands), default=0)
    hidden = tuple(f"-{i}" for i in range(widest, 0, -1))
    if arrow:
        before, dots, after = right.partition("...")
        return operands, (*before, *(hidden if dots else ()), *after)
    counts = Counter(x for part in parts for x in part.replace("...", ""))
    return operands, (*hidden, *sorted(x for x, n in counts.items() if n == 1))


def _labels(part: str, rank: int, equation: str) -> Labels:
    before, dots, after = part.partition("...")
    hidden = rank - len(before) - len(after)
    if hidden < 0 or (hidden and not dots):
        raise UnsupportedForm(f"equation {equation!r} does not fit an operand of {rank} axes")
    return (*before, *(f"-{i}" for i in range(hidden, 0, -1)), *after)


def _einsum(c: Converter, node: OnnxNode) -> Result:
    count = len(node.inputs)
    values = [c.value(node, i) for i in range(count)]
    operands, wanted = _parse(node.get_str("equation", ""), [len(c.type(v).shape) for v in values])
    terms = []
    for i, (value, labels) in enumerate(zip(values, operands, strict=True)):
        distinct = len(set(labels)) == len(labels)
        constant = node.inputs[i] if distinct and node.inputs[i] in c.constants else ""
        terms.append(_diagonal(c, node, _Term(value, labels, constant), f"diagonal{i}"))
    result, *rest = terms
    for i, term in enumerate(rest):
        later = {*wanted, *(x for other in rest[i + 1 :] for x in other.labels)}
        result = _product(c, node, result, term, later, f"step{i}")
    result = _summed(c, node, result, set(wanted), "total")
    missing = [x for x in wanted if x not in result.labels]
    if missing:
        raise UnsupportedForm(f"the result has labels {', '.join(missing)} that no operand has")
    return _ordered(c, node, result, wanted, "")


def _diagonal(c: Converter, node: OnnxNode, term: _Term, part: str) -> _Term:
    """A label that an operand has twice takes the diagonal: every (n + 1)-th element of the flat square."""
    for label in [x for x, n in Counter(term.labels).items() if n > 1]:
        first, second = (i for i, x in enumerate(term.labels) if x == label)
        shape = c.type(term.value).shape
        others = [i for i in range(len(shape)) if i not in (first, second)]
        moved = c.emit(node, "transpose", [term.value], f"{part}.last", perm=(*others, first, second))
        n, sizes = shape[first], [shape[i] for i in others]
        flat = c.reshape(node, moved, (*sizes, n * n), f"{part}.flat")
        ones, zeros = (1,) * len(sizes), (0,) * len(sizes)
        value = c.emit(
            node,
            "slice",
            [flat],
            part,
            starts=(*zeros, 0),
            stops=(*sizes, n * n),
            steps=(*ones, n + 1),
        )
        term = _Term(value, (*(term.labels[i] for i in others), label))
    return term


def _summed(c: Converter, node: OnnxNode, term: _Term, needed: set[str], part: str) -> _Term:
    """The term without the axes that nobody needs."""
    axes = tuple(i for i, x in enumerate(term.labels) if x not in needed)
    if not axes:
        return term
    value = c.emit(node, "reduce_sum", [term.value], part, axes=axes, keepdims=False)
    return _Term(value, tuple(x for x in term.labels if x in needed))


def _ordered(c: Converter, node: OnnxNode, term: _Term, labels: Labels, part: str) -> str:
    perm = tuple(term.labels.index(x) for x in labels)
    if perm == tuple(range(len(perm))):
        return term.value
    return c.emit(node, "transpose", [term.value], part, perm=perm)


def _product(c: Converter, node: OnnxNode, a: _Term, b: _Term, later: set[str], part: str) -> _Term:
    """Both terms as one, with the labels of `later`."""
    a = _summed(c, node, a, later | set(b.labels), f"{part}.a_sum")
    b = _summed(c, node, b, later | set(a.labels), f"{part}.b_sum")
    both = [x for x in a.labels if x in b.labels]
    batch = tuple(x for x in both if x in later)
    inner = tuple(x for x in both if x not in later)
    rows = tuple(x for x in a.labels if x not in both)
    columns = tuple(x for x in b.labels if x not in both)
    sizes = {**_sizes(c, b), **_sizes(c, a)}
    left = _ordered(c, node, a, (*batch, *rows, *inner), f"{part}.a")
    if inner and b.constant and not batch:
        weight = _matrix(c.constants[b.constant], b.labels, columns, inner)
        flat = c.reshape(node, left, (*(sizes[x] for x in rows), weight.shape[1]), f"{part}.a_rows")
        y = c.emit(node, "linear", [flat, c.param(b.constant, weight, part)], part)
        shape = (*(sizes[x] for x in rows), *(sizes[x] for x in columns))
        return _Term(c.reshape(node, y, shape, f"{part}.shaped"), (*rows, *columns))
    right = _ordered(c, node, b, (*batch, *inner, *columns), f"{part}.b")
    m, k, n = (math.prod(sizes[x] for x in group) for group in (rows, inner, columns))
    ahead = [[d[x] for x in batch] for d in (_sizes(c, a), _sizes(c, b))]
    left = c.reshape(node, left, (*ahead[0], m, k), f"{part}.a_matrix")
    right = c.reshape(node, right, (*ahead[1], k, n), f"{part}.b_matrix")
    y = c.emit(node, "matmul" if inner else "mul", [left, right], part)
    shape = (*c.type(y).shape[: len(batch)], *(sizes[x] for x in (*rows, *columns)))
    return _Term(c.reshape(node, y, shape, f"{part}.shaped"), (*batch, *rows, *columns))


def _sizes(c: Converter, term: _Term) -> dict[str, int]:
    return dict(zip(term.labels, c.type(term.value).shape, strict=True))


def _matrix(array: np.ndarray, labels: Labels, columns: Labels, inner: Labels) -> np.ndarray:
    """A constant operand as weights [columns, inner]."""
    moved = array.transpose([labels.index(x) for x in (*columns, *inner)])
    return moved.reshape(math.prod(moved.shape[: len(columns)]), -1)


EINSUM_RULES: dict[str, Rule] = {"Einsum": _einsum}
