"""Lets a layer add the other branch to its own result, before its activation.

    c: conv2d(x, w, b) -> c                     c: conv2d(x, w, b, r) {act="clip", lo=0.0} -> y
    s: add(c, r) {act="clip", lo=0.0} -> y  =>

Both operands must have the output's shape, the layer must end at its bias, and nothing else may read its
result. If both operands come from such layers, the later one adds: its operand has then just left the cache
of nobody.
"""

from __future__ import annotations

from dataclasses import replace

from ..compiler.ir import Graph, Node
from ..compiler.ops.activations import ACT_ATTRS
from .scan import (
    Scan,
    attr,
    is_plain,
    rewrite,
    slim,
)


def fuse_residuals(graph: Graph) -> Graph:
    order = {node.output: i for i, node in enumerate(graph.nodes)}
    return rewrite(graph, lambda scan, node: _fuse(scan, node, order))


def _fuse(scan: Scan, node: Node, order: dict[str, int]) -> Node:
    if node.op != "add" or attr(node, "out_dtype") != "float32":
        return node
    if any(scan.types[v] != node.type or v in scan.params for v in node.inputs):
        return node
    candidates = [(value, scan.sole_producer(value)) for value in node.inputs]
    layers = [(order[value], layer) for value, layer in candidates if layer is not None and is_plain(layer)]
    if not layers:
        return node
    _, layer = max(layers, key=lambda pair: pair[0])
    residual = node.inputs[0] if node.inputs[1] == layer.output else node.inputs[1]
    inputs = (*(*layer.inputs, "")[:3], residual)
    attrs = {**layer.attrs, **{key: attr(node, key) for key in ACT_ATTRS}}
    scan.drop(layer)
    return replace(layer, inputs=inputs, outputs=node.outputs, types=node.types, attrs=slim(layer.op, attrs))
