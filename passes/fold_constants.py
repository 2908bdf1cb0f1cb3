"""Computes at compile time what depends on no input.

    param a, b                       param s          (s = a * b, by the reference executor)
    m: mul(a, b) -> s           =>
    y: add(x, s) -> y                y: add(x, s) -> y

A node that makes an output of the graph stays: outputs are made by nodes, so that every executor finds them
in one way.
"""

from __future__ import annotations

from ..compiler.ir import Graph, Node
from ..compiler.reference import run_node
from .scan import Scan, rewrite


def fold_constants(graph: Graph) -> Graph:
    return rewrite(graph, _fold)


def _fold(scan: Scan, node: Node) -> Node | None:
    constant = all(not v or v in scan.params for v in node.inputs)
    if not constant or any(value in scan.graph.outputs for value in node.outputs):
        return node
    current = scan.graph.with_nodes((), params=scan.params)
    for value, tensor in zip(node.outputs, run_node(current, node, {}), strict=True):
        scan.params[value] = tensor.numpy()
    return None
