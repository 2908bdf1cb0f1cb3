"""Moves constant arithmetic behind a layer into its weights, and products with known weights into `linear`.

    m: matmul(x, W) -> m                   m: linear(x, W^T, b) -> y
    a: add(m, b) -> y                 =>

    c: conv2d(x, w, b) -> c                c: conv2d(x, w * s, b * s) -> y
    s: mul(c, [C, 1, 1] or number)    =>

Also sub and div by a constant. The constant may vary along the channels only.
"""

from __future__ import annotations

import numpy as np

from ..compiler.ir import Graph, Node
from .fold_batch_norm import channel_axis, fold_into, takes_scale_and_shift
from .scan import Scan, rewrite


def fold_scale_and_shift(graph: Graph) -> Graph:
    return rewrite(graph, _rule)


def _rule(scan: Scan, node: Node) -> Node | None:
    if node.op == "matmul":
        return _to_linear(scan, node)
    if node.op in ("add", "mul", "sub", "div") and not node.attrs:
        return _into_layer(scan, node)
    return node


def _to_linear(scan: Scan, node: Node) -> Node:
    x, w = node.inputs
    if x in scan.params or w not in scan.params or len(scan.types[w].shape) != 2:
        return node
    weight = scan.add_param(f"{w}.transposed", scan.params[w].T)
    return scan.make(node.name, "linear", (x, weight), node.output)


def _into_layer(scan: Scan, node: Node) -> Node:
    value, constant = node.inputs
    if value in scan.params and node.op in ("add", "mul"):
        value, constant = constant, value
    layer = scan.sole_producer(value)
    if (
        layer is None
        or constant not in scan.params
        or layer.type != node.type
        or not takes_scale_and_shift(scan, layer)
    ):
        return node
    numbers = _per_channel(layer, scan.params[constant])
    if numbers is None or (node.op == "div" and not np.all(numbers)):
        return node
    one, zero = np.ones_like(numbers), np.zeros_like(numbers)
    if node.op in ("add", "sub"):
        return fold_into(scan, layer, one, numbers if node.op == "add" else -numbers, node)
    return fold_into(scan, layer, numbers if node.op == "mul" else one / numbers, zero, node)


def _per_channel(layer: Node, constant: np.ndarray) -> np.ndarray | None:
    """The constant as one float64 number per output channel; None when it varies along another axis."""
    rank = len(layer.type.shape)
    axis = channel_axis(layer)
    channels = layer.type.shape[axis]
    shape = (1,) * (rank - constant.ndim) + constant.shape
    if any(d != 1 for i, d in enumerate(shape) if i != axis) or shape[axis] not in (1, channels):
        return None
    return np.broadcast_to(constant.astype(np.float64).reshape(-1), (channels,))
