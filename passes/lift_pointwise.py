"""Moves arithmetic on pixels in front of depth_to_space, where a convolution can absorb it.

    c: conv2d(x, w) -> c                                  c: conv2d(x, w) -> c
    d: depth_to_space(c) {block=(2, 2)} -> d        =>    n: batch_norm(c, gamma', ...) -> n
    n: batch_norm(d, gamma, ...) -> y                     d: depth_to_space(n) {block=(2, 2)} -> y

Activations and arithmetic with a parameter that varies along the channels only. What belongs to a channel of
y belongs to each of the channels that its pixels come from: gamma' repeats gamma.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..compiler.ir import Graph, Node
from ..compiler.ops import ACTIVATIONS
from .scan import Scan, attr, rewrite

ARITHMETIC = ("add", "sub", "mul", "div")


def lift_pointwise(graph: Graph) -> Graph:
    return rewrite(graph, _lift)


def _lift(scan: Scan, node: Node) -> Node:
    place = _place(scan, node)
    move = scan.sole_producer(node.inputs[place]) if place is not None else None
    if place is None or move is None or move.op != "depth_to_space" or move.type != node.type:
        return node
    channel = 1 if attr(move, "layout") == "NCHW" else 3
    if node.op == "batch_norm" and channel != 1:
        return node
    others = [_repeated(scan, v, move, channel, node.op) for v in node.inputs]
    others[place] = move.inputs[0]
    if not all(others):
        return node
    scan.drop(move)
    inner = scan.new_value(f"{node.output}.blocks")
    scan.emit(scan.make(node.name, node.op, others, inner, node.attrs))
    return replace(move, inputs=(inner,), outputs=node.outputs)


def _place(scan: Scan, node: Node) -> int | None:
    """Which operand holds the pixels; None for operators that are not moved."""
    if node.op in ACTIVATIONS or node.op == "batch_norm":
        return 0
    if node.op in ARITHMETIC and node.type.dtype == "float32":
        data = [i for i, v in enumerate(node.inputs) if v not in scan.params]
        return data[0] if len(data) == 1 else None
    return None


def _repeated(scan: Scan, value: str, move: Node, channel: int, op: str) -> str:
    """A parameter with its channels repeated for each place in a block; "" if it varies along other axes."""
    array = scan.params.get(value)
    if array is None:
        return ""
    if array.size == 1 and op != "batch_norm":
        return value
    rank = 1 if op == "batch_norm" else 4
    axis = 0 if op == "batch_norm" else channel
    full = array.reshape((1,) * (rank - array.ndim) + array.shape)
    if full.size != full.shape[axis] or full.size != move.type.shape[channel]:
        return ""
    times = [1] * rank
    times[axis] = int(np.prod(attr(move, "block")))
    return scan.add_param(f"{value}.repeated", np.tile(full, times))
