"""Lets the node that makes a value also apply the activation behind it.

    c: conv2d(x, w, b) -> c
    r: clip(c) {lo=0.0, hi=6.0} -> y    =>    c: conv2d(x, w, b) {act="clip", lo=0.0, hi=6.0} -> y

Into conv2d, linear and add, where nothing else reads the value in between. Two clips in a row become one.
"""

from __future__ import annotations

from dataclasses import replace

from ..compiler.ir import AttrValue, Graph, Node
from ..compiler.ops import ACTIVATIONS
from .scan import (
    Scan,
    attr,
    rewrite,
    slim,
)

FUSING = ("conv2d", "linear", "add")


def fuse_activations(graph: Graph) -> Graph:
    return rewrite(graph, _fuse)


def _fuse(scan: Scan, node: Node) -> Node:
    if node.op not in ACTIVATIONS:
        return node
    producer = scan.sole_producer(node.inputs[0])
    if producer is None or producer.type.dtype != "float32":
        return node
    if producer.op == "clip" and node.op == "clip":
        attrs: dict[str, AttrValue] = {**_both(producer, node)}
    elif producer.op not in FUSING or attr(producer, "out_dtype") != "float32":
        return node
    elif attr(producer, "act") == "none":
        attrs = {**producer.attrs, "act": node.op, **{k: attr(node, k) for k in ACTIVATIONS[node.op].params}}
    elif attr(producer, "act") == "clip" and node.op == "clip":
        attrs = {**producer.attrs, **_both(producer, node)}
    else:
        return node
    scan.drop(producer)
    return replace(producer, outputs=node.outputs, types=node.types, attrs=slim(producer.op, attrs))


def _both(first: Node, second: Node) -> dict[str, float]:
    """Bounds of one clip that does what `first` and then `second` do."""
    lo, hi = float(attr(second, "lo")), float(attr(second, "hi"))
    return {key: min(max(float(attr(first, key)), lo), hi) for key in ("lo", "hi")}
