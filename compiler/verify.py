"""Checks that a graph keeps the IR's promises. Runs after every pass."""

from __future__ import annotations

from .errors import InternalError
from .ir import WEIGHTS_ONLY, Graph, Node
from .ops import OPS, TypeRuleError


def verify(graph: Graph, after: str = "") -> Graph:
    """Return the graph if names, order, attributes and types are right; raise InternalError otherwise.

    `after` names what made the graph and goes into the message.
    """
    try:
        _check(graph)
    except TypeRuleError as error:
        raise InternalError(
            f"invalid graph {graph.name!r}{f' after {after}' if after else ''}: {error}"
        ) from None
    return graph


def _check(graph: Graph) -> None:
    for node in graph.nodes:
        if not node.outputs or len(node.outputs) != len(node.types):
            raise TypeRuleError(
                f"node {node.name!r} has {len(node.outputs)} outputs and {len(node.types)} types"
            )
    known = {name for name, _ in graph.inputs}
    if len(known) != len(graph.inputs):
        raise TypeRuleError("two graph inputs have one name")
    narrow = [name for name, kind in graph.inputs if kind.dtype in WEIGHTS_ONLY]
    if narrow:
        raise TypeRuleError(f"{', '.join(narrow)}: only parameters can be of {', '.join(WEIGHTS_ONLY)}")
    clash = known & set(graph.params)
    if clash:
        raise TypeRuleError(f"{', '.join(sorted(clash))}: both input and parameter")
    known |= set(graph.params)
    layers: set[str] = set()
    for node in graph.nodes:
        if node.name in layers:
            raise TypeRuleError(f"two nodes are called {node.name!r}")
        layers.add(node.name)
        _check_node(graph, node, known)
        known |= set(node.outputs)
    missing = [value for value in graph.outputs if value not in known]
    if missing:
        raise TypeRuleError(f"graph outputs {', '.join(missing)} are made by no node")
    _check_states(graph)


def _check_states(graph: Graph) -> None:
    inputs = dict(graph.inputs)
    for before, after in graph.states:
        if before not in inputs or after not in graph.outputs:
            raise TypeRuleError(f"state {before!r} -> {after!r} is not a graph input and a graph output")
        if inputs[before] != graph.types[after]:
            raise TypeRuleError(f"state {before!r} is {inputs[before]}, {after!r} is {graph.types[after]}")
    for side in zip(*graph.states, strict=True):
        if len(set(side)) != len(side) or any(side.count(v) < graph.outputs.count(v) for v in side):
            raise TypeRuleError(f"two states, or a state and an output, share one of {', '.join(side)}")


def _check_node(graph: Graph, node: Node, known: set[str]) -> None:
    where = f"node {node.name!r} ({node.op})"
    if node.op not in OPS:
        raise TypeRuleError(f"{where}: no such operator")
    for value in node.inputs:
        if value and value not in known:
            raise TypeRuleError(f"{where} reads {value!r} before it is made")
    again = [value for value in node.outputs if value in known]
    if again:
        raise TypeRuleError(f"{where} makes {', '.join(again)} a second time")
    _check_attrs(node, where)
    op = OPS[node.op]
    try:
        want = op.infer_types([graph.types[v] if v else None for v in node.inputs], op.complete(node.attrs))
    except TypeRuleError as error:
        raise TypeRuleError(f"{where}: {error}") from None
    if want != node.types:
        has, gives = (", ".join(map(str, types)) for types in (node.types, want))
        raise TypeRuleError(f"{where} has types {has}; its operator gives {gives}")


def _check_attrs(node: Node, where: str) -> None:
    """Plain Python values only: numpy scalars would print, hash and compare in their own way."""
    for key, value in node.attrs.items():
        items = value if isinstance(value, tuple) else (value,)
        if any(type(item) not in (int, float, str, bool) for item in items):
            raise TypeRuleError(
                f"{where}: attribute {key} = {value!r} is not a plain number, text or tuple of these"
            )
