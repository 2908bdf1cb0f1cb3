"""Selection of kernels for elementwise operators, and which of them are computed together in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..compiler.ir import Graph, Node
from ..compiler.ops import ACTIVATIONS, OPS
from .call import KernelCall
from .isa import Isa
from .kernels.elementwise import CONVERSIONS, OPERATORS, ElementwiseSpec, Term
from .products import view

MOST_TERMS = 12
MOST_INPUTS = 6
"""Beyond, values leave the registers."""


def elementwise(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall | None:
    return chain_call(graph, (node,), isa) if computable(graph, node) else None


def computable(graph: Graph, node: Node) -> bool:
    """Whether a node may be a term: float32 all over, nothing quantised but what enters and what leaves."""
    if node.op in CONVERSIONS:
        return True
    if node.op not in OPERATORS and (node.op not in ACTIVATIONS or node.op == "none"):
        return False
    if not all(kind.dtype == "float32" for kind in (*node.types, *(graph.type_of(v) for v in node.inputs))):
        return False
    attrs = OPS[node.op].complete(node.attrs)
    plain = {"a_scale": 1.0, "b_scale": 1.0, "y_inv": 1.0, "a_zero": 0, "b_zero": 0, "y_zero": 0}
    return all(attrs.get(key, value) == value for key, value in plain.items())


def chains(graph: Graph) -> Mapping[str, tuple[Node, ...]]:
    """Node name -> the nodes computed where that one stands, itself last; () for those computed elsewhere.

    A node joins the one that reads it if nobody else does and both have the same shape. Nodes that stand
    alone are not listed.
    """
    members: dict[str, list[Node]] = {}
    joined: set[str] = set()
    for node in graph.nodes:
        if not node.type.size or not computable(graph, node):
            continue
        members[node.name] = [node]
        for value in dict.fromkeys(node.inputs):
            before = graph.producer(value)
            if before is None or before.name not in members or not _only_reader(graph, before, node):
                continue
            both = [*members[before.name], *members[node.name]]
            if before.type.shape == node.type.shape and _fits(both):
                members[node.name] = both
                joined.add(before.name)
    longer = {name: tuple(nodes) for name, nodes in members.items() if len(nodes) > 1 and name not in joined}
    return {**dict.fromkeys(joined, ()), **longer}


def _only_reader(graph: Graph, before: Node, node: Node) -> bool:
    return before.output not in graph.outputs and [n.name for n in graph.consumers(before.output)] == [
        node.name
    ]


def _fits(nodes: Sequence[Node]) -> bool:
    return len(nodes) <= MOST_TERMS and len(_inputs(nodes)) <= MOST_INPUTS


def _inputs(nodes: Sequence[Node]) -> list[str]:
    made = {node.output for node in nodes}
    return list(dict.fromkeys(v for node in nodes for v in node.inputs if v not in made))


def chain_call(graph: Graph, nodes: Sequence[Node], isa: Isa) -> KernelCall:
    """One call for nodes of one shape, each of which reads inputs and nodes before it."""
    inputs = _inputs(nodes)
    places = {value: i for i, value in enumerate([*inputs, *(node.output for node in nodes)])}
    terms = tuple(_term(node, [places[v] for v in node.inputs]) for node in nodes)
    dims, strides = _broadcast(nodes[-1].type.shape, [graph.type_of(v).shape for v in inputs])
    kinds = tuple(graph.type_of(value).dtype for value in (*inputs, nodes[-1].output))
    spec = ElementwiseSpec(isa.lanes, dims, strides, terms, kinds)
    return KernelCall(spec, (*inputs, nodes[-1].output), spec.tasks)


def _term(node: Node, args: Sequence[int]) -> Term:
    attrs: dict[str, Any] = OPS[node.op].complete(node.attrs)
    if node.op in CONVERSIONS:
        side = "y" if node.op == "quantize" else "x"
        return Term(node.op, tuple(args), scale=attrs[f"{side}_scale"], zero=attrs[f"{side}_zero"])
    op = node.op if node.op in OPERATORS else ""
    act = attrs.get("act", "none") if op else node.op
    kept = {key: attrs[key] for key in ("lo", "hi", "alpha") if key in attrs}
    return Term(op, tuple(args), act, **kept)


def _broadcast(
    shape: tuple[int, ...], operands: Sequence[tuple[int, ...]]
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Dimensions and the operands' strides, neighbours merged where all operands allow."""
    own = []
    for kind in operands:
        sizes, steps = view((1,) * (len(shape) - len(kind)) + kind)
        own.append([0 if size == 1 else step for size, step in zip(sizes, steps, strict=True)])
    dims: list[int] = []
    strides: list[tuple[int, ...]] = []
    for axis, size in enumerate(shape):
        here = tuple(steps[axis] for steps in own)
        if size == 1:
            continue
        if dims and all(before == step * size for before, step in zip(strides[-1], here, strict=True)):
            dims[-1], strides[-1] = dims[-1] * size, here
        else:
            dims.append(size)
            strides.append(here)
    if not dims:
        return (1,), tuple((1,) for _ in operands)
    return tuple(dims), tuple(zip(*strides, strict=True))
