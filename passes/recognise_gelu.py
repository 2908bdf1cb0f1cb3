"""Recognises the GELU that a model spells out with erf, however it orders the factors.

    a: mul(x, 0.7071)  or  div(x, 1.4142)
    e: erf(a)
    b: add(e, 1)                               =>    y: gelu(x)
    y: x * b * 0.5, in any order

(Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016). The parts stay if something else reads them; dead
code removes them otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..compiler.ir import Graph, Node
from .scan import Scan, rewrite

TOLERANCE = 1e-5
"""Of the constants, relative: models round them to six digits and more."""


def recognise_gelu(graph: Graph) -> Graph:
    return rewrite(graph, _recognise)


def _recognise(scan: Scan, node: Node) -> Node:
    for outer, product in _unscaled(scan, node):
        if product.op != "mul" or any(scan.scalar(v) is not None for v in product.inputs):
            continue
        for x, gate in (product.inputs, product.inputs[::-1]):
            found = _match(scan, x, gate, outer)
            if found and scan.types[found] == node.type:
                return scan.make(node.name, "gelu", (found,), node.output)
    return node


def _match(scan: Scan, x: str, gate: str, number: float) -> str:
    """The argument of the GELU if number * x * gate is one, else ""."""
    sums = [(s, node) for s, value in _peeled(scan, gate) if (node := scan.producer(value)) is not None]
    for gate_scale, add in sums:
        argument = _erf_argument(scan, add)
        inner = {v: s for s, v in _peeled(scan, argument)} if argument else {}
        for scale, value in _peeled(scan, x):
            right = math.isclose(inner.get(value, 0.0), math.sqrt(0.5), rel_tol=TOLERANCE)
            if right and math.isclose(number * scale * gate_scale, 0.5, rel_tol=TOLERANCE):
                return value
    return ""


def _erf_argument(scan: Scan, add: Node) -> str:
    """a of 1 + erf(a), "" of anything else."""
    if add.op != "add" or add.attrs:
        return ""
    for number, value in (add.inputs, add.inputs[::-1]):
        erf = scan.producer(value)
        if scan.scalar(number) == 1.0 and erf is not None and erf.op == "erf":
            return erf.inputs[0]
    return ""


def _unscaled(scan: Scan, node: Node) -> Iterator[tuple[float, Node]]:
    """The node, and the nodes that it is multiples of, each with the number."""
    yield 1.0, node
    step = _step(scan, node)
    if step is None:
        return
    for number, value in _peeled(scan, step[1]):
        producer = scan.producer(value)
        if producer is not None:
            yield number * step[0], producer


def _peeled(scan: Scan, value: str) -> Iterator[tuple[float, str]]:
    """The value and those that it is multiples of: (number, other) with value = number * other."""
    number = 1.0
    while True:
        yield number, value
        producer = scan.producer(value)
        step = _step(scan, producer) if producer is not None else None
        if step is None:
            return
        number, value = number * step[0], step[1]


def _step(scan: Scan, node: Node) -> tuple[float, str] | None:
    """(number, x) of a product or quotient number * x."""
    if node.op not in ("mul", "div") or node.type.dtype != "float32":
        return None
    x, other = node.inputs
    if node.op == "mul" and scan.scalar(x) is not None:
        x, other = other, x
    number = scan.scalar(other)
    if number is None or (node.op == "div" and number == 0.0):
        return None
    return (number if node.op == "mul" else 1.0 / number), x
