"""Folds batch normalisation into the weights of the layer before it.

    c: conv2d(x, w, b) -> c                             c: conv2d(x, w', b') -> y
    n: batch_norm(c, gamma, beta, mean, var) -> y   =>      w' = w * s,  b' = (b - mean) * s + beta
                                                            s = gamma / sqrt(var + eps), per output channel

Behind anything else (or where the layer's own result is needed too) it becomes one multiplication and one
addition:

    n: batch_norm(x, ...) -> y    =>    n.scale: mul(x, s) -> n.scale;  n: add(n.scale, beta - mean * s) -> y

Ioffe and Szegedy, "Batch Normalization", 2015. Computed in float64.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..compiler.ir import Graph, Node
from ..compiler.ops.conv import out_layout
from ..compiler.params import Stored
from .scan import (
    Scan,
    attr,
    is_plain,
    rewrite,
)


def fold_batch_norms(graph: Graph) -> Graph:
    return rewrite(graph, _fold)


def _fold(scan: Scan, node: Node) -> Node | None:
    if node.op != "batch_norm" or any(v not in scan.params for v in node.inputs[1:]):
        return node
    gamma, beta, mean, variance = (scan.params[v].astype(np.float64) for v in node.inputs[1:])
    scale = gamma / np.sqrt(variance + attr(node, "eps"))
    shift = beta - mean * scale
    layer = scan.sole_producer(node.inputs[0])
    if layer is not None and takes_scale_and_shift(scan, layer) and channel_axis(layer) == 1:
        return fold_into(scan, layer, scale, shift, node)
    return _spell_out(scan, node, scale, shift)


def channel_axis(layer: Node) -> int:
    """The axis of a layer's result that holds its output channels."""
    first = layer.op == "conv2d" and out_layout({"layout": attr(layer, "layout")}) == "NCHW"
    return 1 if first else len(layer.type.shape) - 1


def takes_scale_and_shift(scan: Scan, layer: Node) -> bool:
    """Whether a factor and a summand per output channel can move into the layer's weights and bias.

    Weights that are read from a file as they are needed stay as they are there: changed ones would stay in
    memory.
    """
    if not is_plain(layer) or attr(layer, "out_dtype") != "float32":
        return False
    known = all(not v or v in scan.params for v in (*layer.inputs, "")[1:3])
    return known and not isinstance(scan.params.entries[layer.inputs[1]], Stored)


def fold_into(scan: Scan, layer: Node, scale: np.ndarray, shift: np.ndarray, last: Node) -> Node:
    """The layer with `scale * (...) + shift` (float64, per output channel) in its weights, in place of
    the node `last`.
    """
    w = scan.params[layer.inputs[1]]
    bias_name = (*layer.inputs, "")[2]
    bias = scan.params[bias_name].astype(np.float64) if bias_name else np.zeros(len(w))
    inputs = list((*layer.inputs, "")[:3])
    if np.any(scale != 1):
        scaled = w * scale.reshape(-1, *[1] * (w.ndim - 1))
        inputs[1] = scan.add_param(f"{layer.inputs[1]}.folded", scaled.astype(np.float32))
    inputs[2] = scan.add_param(
        f"{bias_name or layer.name + '.bias'}.folded", (bias * scale + shift).astype(np.float32)
    )
    scan.drop(layer)
    return replace(layer, inputs=tuple(inputs), outputs=last.outputs, types=last.types)


def _spell_out(scan: Scan, node: Node, scale: np.ndarray, shift: np.ndarray) -> Node:
    shape = (-1, *[1] * (len(node.type.shape) - 2))
    factor = scan.add_param(f"{node.name}.factor", scale.astype(np.float32).reshape(shape))
    summand = scan.add_param(f"{node.name}.summand", shift.astype(np.float32).reshape(shape))
    scaled = scan.insert("mul", (node.inputs[0], factor), f"{node.name}.scale")
    return scan.make(node.name, "add", (scaled, summand), node.output)
