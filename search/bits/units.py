"""Layers whose weight formats are chosen together: those that read one value (q, k and v; gate and up), and
those that share a matrix (an embedding and a head).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...compiler.errors import InputError
from ...compiler.formats import Format, bits_per_weight
from ...compiler.ir import Graph, Node
from ...compiler.plan import Plan
from ...passes.layer_coder import matrix_of


@dataclass(frozen=True)
class Matrix:
    """A parameter [n, k]; `layers` that read it, and whether its codes can follow a layer's inputs."""

    name: str
    shape: tuple[int, int]
    layers: tuple[str, ...]

    @property
    def tied(self) -> bool:
        return len(self.layers) > 1


@dataclass(frozen=True)
class Unit:
    """Matrices of one format; the unit is called as its first layer."""

    name: str
    matrices: tuple[Matrix, ...]

    @property
    def weights(self) -> int:
        return sum(math.prod(matrix.shape) for matrix in self.matrices)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(layer for matrix in self.matrices for layer in matrix.layers)

    def bytes(self, format: Format) -> int:
        """Of the codes with all that belongs to them."""
        bits = (math.prod(m.shape) * bits_per_weight(format, m.shape[1]) for m in self.matrices)
        return sum(math.ceil(each / 8) for each in bits)


def units_of(graph: Graph) -> tuple[Unit, ...]:
    """In the order of the graph. Raises InputError where it has no matrix to code."""
    nodes = [(node, matrix) for node in graph.nodes if (matrix := matrix_of(graph, node)) is not None]
    groups: list[list[tuple[Node, str]]] = []
    for node, matrix in nodes:
        joined = [g for g in groups if any(_tied(node, matrix, *other) for other in g)]
        groups = [g for g in groups if g not in joined]
        groups.append([*(pair for g in joined for pair in g), (node, matrix)])
    if not groups:
        raise InputError(f"graph {graph.name!r} has no linear layer or table: there is nothing to choose")
    order = {node.name: i for i, node in enumerate(graph.nodes)}
    groups.sort(key=lambda g: order[g[0][0].name])
    return tuple(_unit(graph, group) for group in groups)


def _tied(node: Node, matrix: str, other: Node, other_matrix: str) -> bool:
    if matrix == other_matrix:
        return True
    return node.op == other.op == "linear" and node.inputs[0] == other.inputs[0]


def _unit(graph: Graph, group: Sequence[tuple[Node, str]]) -> Unit:
    readers: dict[str, list[str]] = {}
    for node, matrix in group:
        readers.setdefault(matrix, []).append(node.name)
    matrices = []
    for matrix, layers in readers.items():
        n, k = graph.type_of(matrix).shape
        matrices.append(Matrix(matrix, (n, k), tuple(layers)))
    return Unit(group[0][0].name, tuple(matrices))


def formats_by_layer(units: Sequence[Unit], choices: Mapping[str, Format]) -> dict[str, Format]:
    """{layer: format} from {unit: format}."""
    return {layer: choices[unit.name] for unit in units for layer in unit.layers}


def plan_of(graph: Graph, units: Sequence[Unit], choices: Mapping[str, Format]) -> Plan:
    """The plan that gives each unit's layers its format."""
    layers = formats_by_layer(units, choices)
    return Plan(graph.name, {layer: str(format) for layer, format in layers.items()})
