"""Layers whose weight formats are chosen together: those that share a matrix, as an embedding and a head do.

Layers that read one value (q, k and v; gate and up) are units of their own: they differ too much. Of what
coded q, k and v of SmolLM2-135M lose, v with a fifth of the weights has three quarters; with formats of their
own the mix of 3.2 bits loses 0.71 of what uniform bitmod3:64 does by the table, with one for all three 0.81.
As an artifact, and on other chapters of the book that it was coded for, that first plan loses 0.82 of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...compiler.errors import InputError
from ...compiler.formats import Format, bits_per_weight
from ...compiler.ir import Graph
from ...compiler.plan import Plan
from ...passes.layer_coder import matrix_of


@dataclass(frozen=True)
class Unit:
    """A parameter [n, k] and the layers that read it; the unit is called as the first of them."""

    matrix: str
    shape: tuple[int, int]
    layers: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.layers[0]

    @property
    def weights(self) -> int:
        return math.prod(self.shape)

    def bytes(self, format: Format) -> int:
        """Of the codes with all that belongs to them."""
        return math.ceil(self.weights * bits_per_weight(format, self.shape[1]) / 8)


def units_of(graph: Graph) -> tuple[Unit, ...]:
    """In the order of the graph. Raises InputError where it has no matrix to code."""
    readers: dict[str, list[str]] = {}
    for node in graph.nodes:
        matrix = matrix_of(graph, node)
        if matrix is not None:
            readers.setdefault(matrix, []).append(node.name)
    if not readers:
        raise InputError(f"graph {graph.name!r} has no linear layer or table: there is nothing to choose")
    shapes = {matrix: graph.type_of(matrix).shape for matrix in readers}
    return tuple(Unit(m, (shapes[m][0], shapes[m][1]), tuple(layers)) for m, layers in readers.items())


def formats_by_layer(units: Sequence[Unit], choices: Mapping[str, Format]) -> dict[str, Format]:
    """{layer: format} from {unit: format}."""
    return {layer: choices[unit.name] for unit in units for layer in unit.layers}


def plan_of(graph: Graph, units: Sequence[Unit], choices: Mapping[str, Format]) -> Plan:
    """The plan that gives each unit's layers its format."""
    layers = formats_by_layer(units, choices)
    return Plan(graph.name, {layer: str(format) for layer, format in layers.items()})
