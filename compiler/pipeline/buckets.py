"""One model for several shapes: its graphs, checked against each other, on the same parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from ..ir import Graph
from ..plan import layers_of


def one_or_more(graph: Graph | Sequence[Graph]) -> tuple[Graph, ...]:
    """As a tuple. Raises InputError for none."""
    graphs = (graph,) if isinstance(graph, Graph) else tuple(graph)
    if not graphs:
        raise InputError("no graph to compile: give one, or one for each shape")
    return graphs


def one_graph(graph: object, verb: str) -> Graph:
    """The same. Raises InputError for anything but a graph, as several."""
    if isinstance(graph, Graph):
        return graph
    raise InputError(
        f"{verb} takes one graph, not a {type(graph).__name__}: give it what `load` returns for one shape; "
        "`compile` takes several, also with the plan that a search for one of them found"
    )


def share_params(graphs: Iterable[Graph]) -> tuple[Graph, ...]:
    """The graphs with equal parameters of equal names held once; at most two graphs' are there at a time."""
    shared: list[Graph] = []
    for graph in graphs:
        first = shared[0] if shared else graph
        same = {name for name in graph.params if _equal(first, graph, name)}
        params = {name: (first if name in same else graph).stored[name] for name in graph.params}
        shared.append(graph.with_nodes(graph.nodes, params=params))
    return tuple(shared)


def _equal(first: Graph, graph: Graph, name: str) -> bool:
    if name not in first.params:
        return False
    known, array = first.params[name], graph.params[name]
    return known is array or (known.dtype == array.dtype and np.array_equal(known, array))


def check_alike(graphs: Sequence[Graph]) -> None:
    """Raises InputError unless they are one network for different shapes: prepared graphs with the same
    layers on weights of the same shapes, inputs and outputs of the same names and types.
    """
    first = graphs[0]
    for k, other in enumerate(graphs[1:], 1):
        if difference := _difference(first, other):
            raise InputError(
                f"shapes 0 and {k} give different networks: {difference}. Only one network for several "
                "shapes goes into one artifact: compile them apart"
            )
    seen: dict[tuple[tuple[int, ...], ...], int] = {}
    for k, graph in enumerate(graphs):
        shapes = tuple(kind.shape for _, kind in graph.fed)
        if (before := seen.setdefault(shapes, k)) != k:
            raise InputError(
                f"shapes {before} and {k} give the inputs the same shapes, "
                f"{', '.join(f'{name}: {kind}' for name, kind in graph.fed)}: leave one out"
            )


def _difference(first: Graph, other: Graph) -> str:
    for what, mine, theirs in zip(
        ("names", "inputs", "outputs", "states", "layers"), _outline(first), _outline(other), strict=True
    ):
        if mine != theirs:
            only = [x for x in mine if x not in theirs] or [x for x in theirs if x not in mine] or mine
            return f"their {what} differ, as in {only[0]}"
    return ""


def _outline(graph: Graph) -> tuple[list[Any], ...]:
    return (
        [graph.name],
        [(name, kind.dtype) for name, kind in graph.inputs],
        [(name, graph.type_of(name).dtype) for name in graph.outputs],
        [(before, after, str(graph.type_of(before))) for before, after in graph.states],
        sorted((n.name, n.op, graph.type_of(n.inputs[1]).shape) for n in layers_of(graph)),
    )
