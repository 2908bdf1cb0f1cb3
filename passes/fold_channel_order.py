"""Lets a layer make its channels in the order that a gather behind it puts them in.

    c: conv2d(x, w, b) -> c                            c: conv2d(x, w[order], b[order]) -> y
    y: gather(c, order: int64[C]) {axis=1}     =>

As in PixelShuffle, whose blocks depth_to_space reads in another order. The order may leave channels out or
repeat them. Activations in the layer work on each channel alone; a residual would have to be reordered too.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..compiler.ir import Graph, Node
from .fold_batch_norm import channel_axis
from .scan import Scan, attr, rewrite

LAYERS = ("conv2d", "linear")


def fold_channel_order(graph: Graph) -> Graph:
    return rewrite(graph, _fold)


def _fold(scan: Scan, node: Node) -> Node:
    if node.op != "gather" or node.inputs[1] not in scan.params:
        return node
    layer, order = scan.sole_producer(node.inputs[0]), scan.params[node.inputs[1]]
    if layer is None or layer.op not in LAYERS or order.ndim != 1:
        return node
    w, bias, residual, scale = (*layer.inputs, "", "", "")[1:5]
    grouped = layer.op == "conv2d" and attr(layer, "groups") != 1
    known = all(not v or v in scan.params for v in (w, bias, scale))
    if grouped or residual or not known or node.attrs["axis"] != channel_axis(layer):
        return node
    rows = np.where(order < 0, order + len(scan.params[w]), order)
    inputs = (
        layer.inputs[0],
        *(v and scan.add_param(f"{v}.ordered", scan.params[v][rows]) for v in (w, bias)),
    )
    inputs = (*inputs, "", scan.add_param(f"{scale}.ordered", scan.params[scale][rows])) if scale else inputs
    scan.drop(layer)
    kept = inputs if scale or bias else inputs[:2]
    return replace(layer, inputs=kept, outputs=node.outputs, types=node.types)
