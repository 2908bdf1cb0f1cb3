"""Decides which values of a planned graph are stored in uint8, and with which scale and zero point.

A value is stored in uint8 if a layer that the plan makes int8 reads it as x, everyone else who reads it can
read uint8 (a layer's residual operand, add, reduce_mean), and its producer can write uint8 (any layer,
add). Operators that only move numbers or pick one of them (max_pool2d, slice, concat and others) tie
their operands and result together: all are stored alike, or none. Everything else stays float32, as do the
graph's inputs and outputs; int8 layers then read a converted copy.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..compiler.calibrate import Ranges
from ..compiler.ir import Graph, Node, TensorType
from ..compiler.plan import FREE_OPS, Plan, free_layers_of
from .quantise import QParams, qparams
from .scan import attr

MOVING = ("max_pool2d", "reshape", "transpose", "slice", "concat", "resize", "pad", "depth_to_space")
WRITERS = (*FREE_OPS, "add")
PIXELS = (1, 2)
"""The axes of an image whose mean is taken from uint8."""


def moves(node: Node) -> bool:
    """Whether the node's results are numbers that it read: not interpolated, not constants."""
    if node.op == "resize":
        return bool(attr(node, "mode") == "nearest")
    return node.op in MOVING and (node.op != "pad" or attr(node, "mode") != "constant")


def alike(node: Node, types: Mapping[str, TensorType]) -> bool:
    """Whether all operands have the result's shape: of sums, only such are computed on uint8. One that
    broadcasts, as of a scale and shift, is a term of a chain that may end in rounding
    (targets/elementwise.py)."""
    return all(types[value].shape == node.type.shape for value in node.inputs)


def choose_storage(graph: Graph, plan: Plan, ranges: Ranges) -> Mapping[str, QParams]:
    """The values stored in uint8, with their parameters. Raises InputError when a range is missing."""
    int8 = {node.name for node in free_layers_of(graph) if plan.choice(node.name) == "int8"}
    stored: dict[str, QParams] = {}
    for group in _groups(graph):
        wanted = any(n.name in int8 and n.inputs[0] == v for v in group for n in graph.consumers(v))
        if wanted and all(_can_store(graph, value, int8) for value in group):
            stored.update(dict.fromkeys(group, _shared(graph, group, ranges)))
    return stored


def _groups(graph: Graph) -> list[list[str]]:
    """The float32 values that nodes make, those tied together in one list; all in order."""
    leader: dict[str, str] = {}

    def find(value: str) -> str:
        while leader.setdefault(value, value) != value:
            value = leader[value]
        return value

    for node in graph.nodes:
        if moves(node):
            for value in node.inputs:
                leader[find(value)] = find(node.output)
    groups: dict[str, list[str]] = {}
    for value in (*dict(graph.inputs), *graph.params, *(v for node in graph.nodes for v in node.outputs)):
        groups.setdefault(find(value), []).append(value)
    return list(groups.values())


def _can_store(graph: Graph, value: str, int8: set[str]) -> bool:
    producer = graph.producer(value)
    if producer is None or value in graph.outputs or not (producer.op in WRITERS or moves(producer)):
        return False
    if producer.op == "add" and not alike(producer, graph.types):
        return False
    if graph.type_of(value).dtype != "float32":
        return False
    return all(_can_read(graph, node, value, int8) for node in graph.consumers(value))


def _can_read(graph: Graph, node: Node, value: str, int8: set[str]) -> bool:
    """Whether every operand of the node that is this value may be uint8."""
    if node.op == "add":
        return alike(node, graph.types)
    if node.op == "reduce_mean":
        return len(graph.type_of(value).shape) == 4 and tuple(sorted(attr(node, "axes"))) == PIXELS
    if node.op not in FREE_OPS:
        return moves(node)
    operands = [i for i, v in enumerate(node.inputs) if v == value]
    return all(i == 3 or (i == 0 and node.name in int8) for i in operands)


def _shared(graph: Graph, group: list[str], ranges: Ranges) -> QParams:
    """Parameters that hold everything the group's computed values hold (the moved ones hold no more)."""
    producers = [(value, graph.producer(value)) for value in group]
    pairs = [ranges[value] for value, node in producers if node is not None and not moves(node)]
    return qparams(min(low for low, _ in pairs), max(high for _, high in pairs))
