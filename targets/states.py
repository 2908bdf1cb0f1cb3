"""Where states lie, what writes into them in place, and which inputs must stay within them."""

from __future__ import annotations

from dataclasses import dataclass

from ..compiler.ir import Graph, Node
from .arena import ALIGN, SLACK
from .program import Limit

WRITERS = {"cache_write": ((0, 0), (3, 1))}
"""Operators that replace a part of an input: pairs of that input and the output that it becomes."""


@dataclass(frozen=True)
class StateLayout:
    """`offsets`: input value of a state -> where it begins in the memory that an instance keeps."""

    offsets: dict[str, int]
    nbytes: int


def state_layout(graph: Graph) -> StateLayout:
    """States one after the other, in the graph's order: the same for every entry of an artifact."""
    offsets, end = {}, 0
    for before, _ in graph.states:
        offsets[before] = end
        end += -(-(graph.type_of(before).nbytes + SLACK) // ALIGN) * ALIGN
    return StateLayout(offsets, end)


def in_place(graph: Graph) -> dict[str, str]:
    """Output of a writer -> the state whose memory it is written in.

    That is right where nobody else reads what was there before: the writer is the only one to read its input,
    which is a state or was itself written in place.
    """
    owners = {before: before for before, _ in graph.states}
    made: dict[str, str] = {}
    for node in graph.nodes:
        if node.op in WRITERS:
            pairs = written_pairs(node)
            if all(v in owners and graph.consumers(v) == (node,) and _once(graph, node, v) for v, _ in pairs):
                made |= {after: owners[before] for before, after in pairs}
                owners |= made
    return made


def written_pairs(node: Node) -> list[tuple[str, str]]:
    """(input, output) of what a writer replaces a part of."""
    return [(node.inputs[i], node.outputs[o]) for i, o in WRITERS[node.op] if i < len(node.inputs)]


def _once(graph: Graph, node: Node, value: str) -> bool:
    return value not in graph.outputs and node.inputs.count(value) == 1


def limits(graph: Graph) -> tuple[Limit, ...]:
    """What the positions that a caller gives must stay within, so that no state is written beyond its end."""
    numbers = {name: i for i, (name, _) in enumerate(graph.fed)}
    most: dict[int, int] = {}
    written = in_place(graph)
    for node in graph.nodes:
        if node.op == "cache_write" and node.output in written and node.inputs[2] in numbers:
            capacity, tokens = node.type.shape[1], graph.type_of(node.inputs[1]).shape[0]
            index = numbers[node.inputs[2]]
            most[index] = min(capacity - tokens, most.get(index, capacity))
    return tuple(Limit(index, value) for index, value in sorted(most.items()))
