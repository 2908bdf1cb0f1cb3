"""Computes once what is computed twice.

    a: sigmoid(x) -> a                    a: sigmoid(x) -> a
    b: sigmoid(x) -> b           =>       y: add(a, a) -> y
    y: add(a, b) -> y

Layers stay apart even when they are equal: plans and ledgers name them one by one. Nodes that make an
output of the graph stay.
"""

from __future__ import annotations

from ..compiler.ir import Graph, Node
from ..compiler.ops import OPS
from .scan import Scan, rewrite


def merge_common_subexpressions(graph: Graph) -> Graph:
    seen: dict[object, str] = {}

    def merge(scan: Scan, node: Node) -> Node | None:
        if OPS[node.op].layer or len(node.outputs) != 1:
            return node
        first = seen.setdefault((node.op, node.inputs, tuple(node.attrs.items())), node.output)
        if first == node.output or node.output in scan.graph.outputs:
            return node
        scan.rename(node.output, first)
        return None

    return rewrite(graph, merge)
