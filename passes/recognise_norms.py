"""Recognises layer norm and RMS norm that a model spells out.

    m: reduce_mean(x) {axes=(last,)}; d: sub(x, m); q: mul(d, d); v: reduce_mean(q) {axes=(last,)}
    e: add(v, eps); s: sqrt(e); n: div(d, s)                                  =>    n: layer_norm(x) {eps}
    q: mul(x, x); v: reduce_mean(q) {axes=(last,)}; e: add(v, eps); s: sqrt(e)
    n: div(x, s)                                                              =>    n: rms_norm(x) {eps}
    n: layer_norm(x); g: mul(n, gamma); y: add(g, beta)          =>    n: layer_norm(x, gamma, beta) -> y

`mul` with `rsqrt(e)` or with `div(1, sqrt(e))` is the same. gamma and beta are parameters that vary along the
last axis only. Parts that something else reads stay; dead code removes the others.
"""

from __future__ import annotations

import numpy as np

from ..compiler.ir import AttrValue, Graph, Node
from .scan import Scan, attr, rewrite


def recognise_norms(graph: Graph) -> Graph:
    return rewrite(graph, _recognise)


def _recognise(scan: Scan, node: Node) -> Node:
    if node.attrs:
        return node
    if node.op == "div":
        return _norm(scan, node, node.inputs[0], node.inputs[1], "sqrt") or node
    if node.op == "mul":
        a, b = node.inputs
        norm = _norm(scan, node, a, b, "rsqrt") or _norm(scan, node, b, a, "rsqrt")
        return norm or _with_operand(scan, node) or node
    return (_with_operand(scan, node) or node) if node.op == "add" else node


def _norm(scan: Scan, node: Node, value: str, divisor: str, root: str) -> Node | None:
    """The norm that `value / divisor` (or `value * divisor`, with root "rsqrt") is."""
    variance = _under_root(scan, divisor, root)
    mean, eps = _with_eps(scan, variance)
    if eps < 0 or value != _squared(scan, _averaged(scan, mean)):
        return None
    attrs: dict[str, AttrValue] = {"eps": eps}
    centred = _made_by(scan, value, "sub")
    if centred is not None and _averaged(scan, centred.inputs[1]) == centred.inputs[0]:
        return scan.make(node.name, "layer_norm", centred.inputs[:1], node.output, attrs)
    return scan.make(node.name, "rms_norm", (value,), node.output, attrs)


def _with_eps(scan: Scan, variance: str) -> tuple[str, float]:
    """The mean and the number added to it; 0 where none is: optimizers drop an eps of 1e-12."""
    shifted = _made_by(scan, variance, "add")
    if shifted is not None and not shifted.attrs:
        for mean, constant in (shifted.inputs, shifted.inputs[::-1]):
            if (eps := scan.scalar(constant)) is not None:
                return mean, eps
    return variance, 0.0


def _made_by(scan: Scan, value: str, op: str) -> Node | None:
    producer = scan.producer(value)
    return producer if producer is not None and producer.op == op else None


def _under_root(scan: Scan, value: str, root: str) -> str:
    """v where the value is sqrt(v) (root "sqrt") or 1 / sqrt(v) (root "rsqrt"), else ""."""
    made = _made_by(scan, value, root)
    if made is None and root == "rsqrt":
        inverse = _made_by(scan, value, "div")
        if inverse is not None and scan.scalar(inverse.inputs[0]) == 1.0:
            made = _made_by(scan, inverse.inputs[1], "sqrt")
    return made.inputs[0] if made is not None else ""


def _averaged(scan: Scan, value: str) -> str:
    """x where the value is the mean of x over its last axis, kept with length 1, else ""."""
    made = _made_by(scan, value, "reduce_mean")
    if made is None or not attr(made, "keepdims"):
        return ""
    x = scan.types[made.inputs[0]]
    last = len(x.shape) - 1
    return made.inputs[0] if x.dtype == "float32" and attr(made, "axes") == (last,) else ""


def _squared(scan: Scan, value: str) -> str:
    """x where the value is x * x, else ""."""
    made = _made_by(scan, value, "mul")
    return made.inputs[0] if made is not None and made.inputs[0] == made.inputs[1] else ""


def _with_operand(scan: Scan, node: Node) -> Node | None:
    """A norm without gamma (or beta) takes the factor (or the addend) behind it."""
    for value, constant in (node.inputs, node.inputs[::-1]):
        norm = scan.sole_producer(value)
        if norm is None or not _takes(norm, node.op) or norm.type != node.type:
            continue
        row = _row(scan, constant, node.type.shape[-1])
        if row is None:
            continue
        inputs = (*norm.inputs, row)
        if node.op == "add" and len(norm.inputs) == 1:
            ones = scan.add_param(f"{node.name}.gamma", np.ones(node.type.shape[-1], np.float32))
            inputs = (*norm.inputs, ones, row)
        scan.drop(norm)
        return scan.make(norm.name, norm.op, inputs, node.output, norm.attrs)
    return None


def _takes(norm: Node, op: str) -> bool:
    if op == "mul":
        return norm.op in ("layer_norm", "rms_norm") and len(norm.inputs) == 1
    return norm.op == "layer_norm" and len(norm.inputs) <= 2


def _row(scan: Scan, constant: str, length: int) -> str | None:
    """The parameter with one number per element of the last axis; None if it varies along others."""
    array = scan.params.get(constant)
    if array is None or array.dtype != np.float32 or array.size not in (1, length):
        return None
    if array.shape == (length,):
        return constant
    if array.size == length and array.shape[-1:] != (length,):
        return None
    return scan.add_param(f"{constant}.row", np.broadcast_to(array.reshape(-1), (length,)))
