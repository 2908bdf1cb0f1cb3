"""Removes data movement that moves nothing, and makes one of two in a row.

a: reshape(x) -> a; b: reshape(a) -> y              =>    b: reshape(x) -> y
a: transpose(x) {p} -> a; b: transpose(a) {q} -> y  =>    b: transpose(x) {perm=q after p} -> y
r: reduce_mean(x) {axes, keepdims} -> r
   b: reshape(r) {r without those axes} -> y        =>    r: reduce_mean(x) {axes, keepdims=False} -> y
a: cast(x: float32) {float64} -> a; b: cast(a) {float32} -> y      =>    (gone, where nothing is lost)
reshape to the same shape, transpose that keeps the order, pad by nothing, slice of everything, concat of
one value,
   clip without bounds                              =>    (gone)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..compiler.ir import Graph, Node
from ..compiler.ops.reduce import reduced_shape
from .dead_code import remove_dead_code
from .scan import (
    Scan,
    attr,
    rewrite,
    slim,
)

REDUCTIONS = ("reduce_mean", "reduce_sum", "reduce_max")


def simplify_moves(graph: Graph) -> Graph:
    # What the first step no longer needs must be gone before the second asks who reads a value.
    return rewrite(remove_dead_code(rewrite(graph, _merge)), _remove)


def _merge(scan: Scan, node: Node) -> Node:
    if node.op == "reshape":
        return _after_reshape(scan, node)
    return _after_transpose(scan, node) if node.op == "transpose" else node


def _after_reshape(scan: Scan, node: Node) -> Node:
    before = scan.producer(node.inputs[0])
    if before is None:
        return node
    if before.op == "reshape":
        if scan.sole_producer(node.inputs[0]):
            scan.drop(before)
        return replace(node, inputs=before.inputs)
    if before.op in REDUCTIONS and attr(before, "keepdims") and scan.sole_producer(node.inputs[0]):
        shape = scan.types[before.inputs[0]].shape
        if node.type.shape == reduced_shape(shape, attr(before, "axes"), False):
            scan.drop(before)
            attrs = slim(before.op, {**before.attrs, "keepdims": False})
            return replace(before, outputs=node.outputs, types=node.types, attrs=attrs)
    return node


def _after_transpose(scan: Scan, node: Node) -> Node:
    before = scan.producer(node.inputs[0])
    if before is None or before.op != "transpose":
        return node
    first: Any = before.attrs["perm"]
    perm: Any = node.attrs["perm"]
    return replace(node, inputs=before.inputs, attrs={"perm": tuple(first[p] for p in perm)})


def _comes_back(scan: Scan, node: Node) -> str:
    """The value that a cast gives back as it was before another cast, which lost nothing; else ""."""
    before = scan.producer(node.inputs[0]) if node.op == "cast" else None
    if before is None or before.op != "cast" or before.inputs[0] not in scan.types:
        return ""
    own, between = scan.types[before.inputs[0]].dtype, before.type.dtype
    holds = np.can_cast(own, between, "safe") and not (own.endswith("int64") and between.startswith("float"))
    return before.inputs[0] if own == node.type.dtype and holds else ""


def _moves_nothing(scan: Scan, node: Node) -> bool:
    if not node.inputs or node.inputs[0] not in scan.types:
        return False
    same = scan.types[node.inputs[0]] == node.type
    if node.op in ("reshape", "slice", "cast", "expand"):
        # A slice with steps or with cut ends has fewer elements.
        return same
    if node.op == "transpose":
        perm: Any = node.attrs["perm"]
        return list(perm) == sorted(perm)
    if node.op == "pad":
        return same
    if node.op == "concat":
        return len(node.inputs) == 1
    return node.op == "clip" and attr(node, "lo") == float("-inf") and attr(node, "hi") == float("inf")


def _remove(scan: Scan, node: Node) -> Node | None:
    """Later nodes read the operand. A graph output keeps its name: the operand's producer takes it over,
    if it can.
    """
    source = _comes_back(scan, node) or node.inputs[0]
    if source == node.inputs[0] and not _moves_nothing(scan, node):
        return node
    if node.output not in scan.graph.outputs:
        scan.rename(node.output, source)
        return None
    producer = scan.sole_producer(source) if source == node.inputs[0] else None
    if producer is None:
        return node
    scan.drop(producer)
    return replace(producer, outputs=node.outputs)
