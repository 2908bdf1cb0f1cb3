"""Divides what int8 linear layers read, channel by channel, and multiplies their weight's columns instead.

    plan: q and k int8, f float32                    m: layer_norm(x, gamma, beta) -> m
    m: layer_norm(x, gamma, beta) -> m               m.smooth: mul(m, 1 / s)
    q: linear(m, wq) -> q                      =>    q: linear(m.smooth, wq * s) -> q
    k: linear(m, wk) -> k                            k: linear(m.smooth, wk * s) -> k
    f: linear(m, wf) -> f                            f: linear(m, wf) -> f

Where only such layers read the value, and the node that makes it can do the division, there is no `mul`:
gamma and beta of a norm, or weight and bias of a linear layer, are divided. The numbers come from calibration
(compiler/analysis/smoothing.py); they are powers of two, so that the graph computes what it did to the last
bit. What changes is what 8 bits keep of it.

Channels that calibration keeps in float32 are multiplied in a small layer of their own, whose result the
int8 layer adds; the weight's columns are 0 there, so that what 8 bits make of these channels is nothing.

    q: linear(m, wq, bq, r) -> q               =>    m.kept: gather(m, (3, 8))
                                                     q.kept: linear(m.kept, wq[:, (3, 8)], , r)
                                                     q: linear(m, wq with zeros, bq, q.kept) -> q
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..compiler.analysis.smoothing import Smoothing, foldable, private
from ..compiler.calibrate import Ranges
from ..compiler.errors import InputError
from ..compiler.ir import Graph, Node
from ..compiler.plan import Plan, free_layers_of
from ..compiler.verify import verify
from .divide import divided_producer
from .scan import Scan


def smooth(graph: Graph, plan: Plan, ranges: Ranges) -> tuple[Graph, Ranges]:
    """The prepared graph with divided values, for the plan, and its ranges; those hold no smoothing any more,
    so that the result may be given again. Raises InputError when the ranges are for another graph.
    """
    wanted = _applied(graph, plan, ranges)
    if not wanted:
        return graph, replace(ranges, smoothing={})
    smoother = _Smoother(graph, wanted, ranges)
    for node in graph.nodes:
        smoother.visit(node)
    return verify(smoother.scan.finish(), "smoothing"), smoother.ranges()


def _applied(graph: Graph, plan: Plan, ranges: Ranges) -> dict[str, Smoothing]:
    """The smoothings that the plan calls for, each with those of its layers that are int8."""
    int8 = {node.name: node.inputs[0] for node in free_layers_of(graph) if plan.choice(node.name) == "int8"}
    found = {}
    for value, each in ranges.smoothing.items():
        layers = tuple(layer for layer in each.layers if int8.get(layer) == value)
        if layers:
            _check_channels(graph, value, each)
            found[value] = replace(each, layers=layers)
    return found


def _check_channels(graph: Graph, value: str, each: Smoothing) -> None:
    channels = graph.type_of(value).shape[-1]
    if len(each.exponents) != channels:
        raise InputError(
            f"calibration divides {len(each.exponents)} channels of value {value!r}, which has {channels}: "
            "it was made for another graph"
        )


class _Smoother:
    """Walks the graph once and emits each node in its new form."""

    def __init__(self, graph: Graph, wanted: Mapping[str, Smoothing], ranges: Ranges) -> None:
        self.graph = graph
        self.scan = Scan(graph)
        self.wanted = wanted
        self.folded = {v for v, s in wanted.items() if s.divides and foldable(graph, v, s.layers)}
        changed = {value: s for value, s in wanted.items() if s.divides or s.kept}
        self.of_layer = {layer: value for value, s in changed.items() for layer in s.layers}
        self.copies: dict[str, str] = {}
        self.gathered: dict[str, str] = {}
        self.in_place: set[str] = set()
        self._values, self._means, self._ranges = dict(ranges.values), dict(ranges.means), ranges
        for value, each in wanted.items():
            if value in self.folded or (not each.divides and private(graph, value, each.layers)):
                self.in_place.add(value)
                self._values[value] = (each.low, each.high)

    def ranges(self) -> Ranges:
        return replace(self._ranges, values=self._values, means=self._means, smoothing={})

    def visit(self, node: Node) -> None:
        if node.name in self.of_layer:
            node = self._reader(node)
        if node.output in self.folded:
            node = divided_producer(self.scan, node, 1 / self.wanted[node.output].factors)
        self.scan.emit(node)

    def _reader(self, node: Node) -> Node:
        value = self.of_layer[node.name]
        each = self.wanted[value]
        weight = self.scan.params[node.inputs[1]] * each.factors
        if node.name in self._means:
            self._means[node.name] = tuple((np.asarray(self._means[node.name]) / each.factors).tolist())
        x = value if value in self.in_place else self._copy(value)
        rest = node.inputs[2:]
        if each.kept:
            rest = self._kept(node, value, weight)
            weight[:, each.kept] = 0
        name = self.scan.add_param(f"{node.inputs[1]}.smooth", weight)
        return replace(node, inputs=(x, name, *rest))

    def _kept(self, node: Node, value: str, weight: np.ndarray) -> tuple[str, str]:
        """Bias and residual of a layer: the residual is the product with the kept channels."""
        each = self.wanted[value]
        if value not in self.gathered:
            axis = len(self.graph.type_of(value).shape) - 1
            places = self.scan.add_param(f"{value}.channels", np.asarray(each.kept, np.int64))
            self.gathered[value] = self.scan.insert(
                "gather", (value, places), f"{value}.kept", {"axis": axis}
            )
        columns = weight[:, each.kept]
        if value not in self.folded:
            columns = columns / each.factors[list(each.kept)]
        bias, residual = (*node.inputs[2:], "", "")[:2]
        part = self.scan.add_param(f"{node.inputs[1]}.kept", columns)
        inputs = (self.gathered[value], part, "", residual) if residual else (self.gathered[value], part)
        return bias, self.scan.insert("linear", inputs, f"{node.name}.kept")

    def _copy(self, value: str) -> str:
        """The value divided by its factors."""
        if value not in self.copies:
            each = self.wanted[value]
            inverse = self.scan.add_param(f"{value}.inverse", 1 / each.factors)
            copy = self.scan.insert("mul", (value, inverse), f"{value}.smooth")
            self.copies[value], self._values[copy] = copy, (each.low, each.high)
        return self.copies[value]
