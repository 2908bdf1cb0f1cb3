"""Dividing a value by channel inside the node that makes it; what reads it multiplies its weight's columns.

    m: rms_norm(x, gamma) -> m                 m: rms_norm(x, gamma / s) -> m
    q: linear(m, wq) -> q               =>     q: linear(m, wq * s) -> q

Which nodes can is compiler/analysis/smoothing.py's `foldable`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..compiler.analysis.smoothing import foldable, linear_inputs
from ..compiler.errors import InputError
from ..compiler.ir import Graph, Node
from ..compiler.params import Stored, entries
from ..compiler.verify import verify
from .scan import Scan, fresh_name


def divided_producer(scan: Scan, node: Node, inverse: np.ndarray) -> Node:
    """A norm or linear layer that makes its value times `inverse` [channels]."""
    if node.op == "linear":
        return replace(node, inputs=(node.inputs[0], *_divided(scan, node, node.inputs[1:], inverse)))
    gamma = (*node.inputs, "")[1] or scan.add_param(f"{node.output}.ones", np.ones_like(inverse))
    return replace(node, inputs=(node.inputs[0], *_divided(scan, node, (gamma, *node.inputs[2:]), inverse)))


def _divided(scan: Scan, node: Node, params: tuple[str, ...], inverse: np.ndarray) -> tuple[str, ...]:
    """Parameters whose first axis are the channels."""
    result = []
    for name in params:
        array = scan.params.get(name)
        column = inverse.reshape(-1, *(1,) * (array.ndim - 1)) if array is not None else inverse
        result.append(scan.add_param(f"{name}.divided", array * column) if array is not None else "")
    return tuple(result)


def scale_inputs(graph: Graph, factors: Mapping[str, np.ndarray]) -> Graph:
    """The graph with values divided by factors float32 [channels], and the columns of the weights that read
    them multiplied: the same function, but for rounding. Weights are multiplied when they are read.

    Raises InputError where a value cannot be divided by the node that makes it.
    """
    readers = linear_inputs(graph)
    for value, each in factors.items():
        names = [node.name for node in readers.get(value, ())]
        if not names or not foldable(graph, value, names) or each.shape != graph.type_of(value).shape[-1:]:
            raise InputError(
                f"value {value!r} of graph {graph.name!r} cannot be divided by {len(each)} factors"
            )
    scan = Scan(graph)
    for node in graph.nodes:
        if node.op == "linear" and node.inputs[0] in factors:
            node = _multiplied_reader(scan, node, factors[node.inputs[0]])
        if node.output in factors:
            node = divided_producer(scan, node, (1 / factors[node.output]).astype(np.float32))
        scan.emit(node)
    return verify(scan.finish(), "scaling of inputs")


def _multiplied_reader(scan: Scan, node: Node, factors: np.ndarray) -> Node:
    weight = node.inputs[1]
    kind = scan.types[weight]
    entry = entries(scan.params)[weight]
    read = entry.array if isinstance(entry, Stored) else (lambda: entry)
    name = fresh_name(f"{weight}.scaled", scan.types)
    scan.params[name] = Stored(kind.shape, kind.dtype, lambda: read() * factors)
    scan.types[name] = kind
    return replace(node, inputs=(node.inputs[0], name, *node.inputs[2:]))
