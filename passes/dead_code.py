"""Removes nodes whose results reach no output of the graph, and parameters that no node reads.

a: relu(x) -> a            b: neg(x) -> y
b: neg(x) -> y       =>
return y                   return y
"""

from __future__ import annotations

from ..compiler.ir import Graph, Node


def remove_dead_code(graph: Graph) -> Graph:
    needed = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    params = {name: entry for name, entry in graph.stored.items() if name in needed}
    return graph.with_nodes(tuple(reversed(kept)), params=params)
