"""Recognises activations that a model spells out.

    s: sigmoid(x); y: mul(x, s)                =>    y: silu(x)
    s: hard_sigmoid(x); y: mul(x, s)           =>    y: hard_swish(x)
    a: add(x, 3); c: clip(a, 0, 6)
       d: div(c, 6)  or  mul(c, 1/6)           =>    d: hard_sigmoid(x)
    p: mul(x, c); d: div(p, 6), mul(p, 1/6)    =>    d: hard_swish(x)
    y: maximum(x, number)                      =>    y: clip(x) {lo=number}
    y: minimum(x, number)                      =>    y: clip(x) {hi=number}

The parts stay if something else reads them; dead code removes them otherwise.
"""

from __future__ import annotations

from ..compiler.ir import Graph, Node
from .scan import Scan, attr, rewrite

GATED = {"sigmoid": "silu", "hard_sigmoid": "hard_swish"}


def recognise_activations(graph: Graph) -> Graph:
    return rewrite(graph, _recognise)


def _recognise(scan: Scan, node: Node) -> Node:
    if node.op == "mul":
        return _gate(scan, node) or _hard_sigmoid(scan, node) or node
    if node.op == "div":
        return _hard_sigmoid(scan, node) or node
    if node.op in ("maximum", "minimum"):
        return _clip(scan, node) or node
    return node


def _gate(scan: Scan, node: Node) -> Node | None:
    for x, gate in (node.inputs, node.inputs[::-1]):
        producer = scan.producer(gate)
        if producer is not None and producer.op in GATED and producer.inputs == (x,):
            return scan.make(node.name, GATED[producer.op], (x,), node.output)
    return None


def _hard_sigmoid(scan: Scan, node: Node) -> Node | None:
    """A sixth of a value clipped to 0..6, or of its product with what was clipped."""
    value, number = _value_and_number(scan, node)
    if number is None or abs((1 / number if node.op == "div" and number else number) - 1 / 6) > 1e-7:
        return None
    x = _clipped_to_six(scan, value)
    if x is not None and scan.types[x] == node.type:
        return scan.make(node.name, "hard_sigmoid", (x,), node.output)
    product = scan.producer(value)
    if product is None or product.op != "mul":
        return None
    for x, clipped in (product.inputs, product.inputs[::-1]):
        if _clipped_to_six(scan, clipped) == x and scan.types[x] == node.type:
            return scan.make(node.name, "hard_swish", (x,), node.output)
    return None


def _clipped_to_six(scan: Scan, value: str) -> str | None:
    """x where the value is min(max(x + 3, 0), 6)."""
    clip = scan.producer(value)
    if clip is None or clip.op != "clip" or (attr(clip, "lo"), attr(clip, "hi")) != (0, 6):
        return None
    add = scan.producer(clip.inputs[0])
    if add is None or add.op != "add" or add.attrs:
        return None
    x, three = _value_and_number(scan, add)
    return x if three == 3 else None


def _value_and_number(scan: Scan, node: Node) -> tuple[str, float | None]:
    """The operand that is not a number, and the number; only a sum, product or extreme may have it on the
    left.
    """
    a, b = node.inputs
    if node.op != "div" and scan.scalar(a) is not None:
        a, b = b, a
    return a, scan.scalar(b)


def _clip(scan: Scan, node: Node) -> Node | None:
    x, number = _value_and_number(scan, node)
    if number is None or scan.types[x] != node.type or node.type.dtype != "float32":
        return None
    side = "lo" if node.op == "maximum" else "hi"
    return scan.make(node.name, "clip", (x,), node.output, {side: number})
