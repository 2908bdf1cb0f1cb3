"""Rewrites linear layers and tables into ones whose weights are codes.

    a: linear(x, w, bias) -> y            =>    a: coded_linear(x, w.codes, w.scale, ..., bias) -> y
    e: gather(w, tokens, axis=0) -> h     =>    e: coded_gather(tokens, w.codes, w.scale, ...) -> h

Layers that share a weight and get the same codes (a tied embedding and head) go on sharing them. Names of
layers and values stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..compiler.errors import PlanError
from ..compiler.formats import Coded, encode
from ..compiler.ir import AttrValue, Graph, Node
from ..compiler.ops.coded import coded_operands
from ..compiler.ops.linear import LINEAR
from ..compiler.plan import CODED_ACTIVATIONS, Plan, layers_of, tables_of
from ..compiler.verify import verify
from .dead_code import remove_dead_code
from .scan import Scan, attr

OPERANDS = ("codes", "scale", "row_scale", "side")
ACTIVATIONS = {"int8:token": "int8", "int8:group": "int8:group", "float32": "float32"}
"""What a plan says -> what the operator says."""
EPILOGUE = ("act", "lo", "hi", "alpha")


def round_layers(graph: Graph, plan: Plan) -> dict[str, Coded]:
    """The weights that the plan gives a format, each rounded to the nearest levels; equal ones once.

    Raises FormatError for a weight that a format cannot hold.
    """
    made: dict[tuple[str, str], Coded] = {}
    found: dict[str, Coded] = {}
    wanted = plan.coded
    for node in (*layers_of(graph), *tables_of(graph)):
        if node.name in wanted:
            format, weight = wanted[node.name][0], _weight(node)
            key = weight, str(format)
            if key not in made:
                made[key] = encode(graph.params[weight], format)
            found[node.name] = made[key]
    return found


def code_layers(
    graph: Graph, coded: Mapping[str, Coded], activations: Mapping[str, str] | None = None
) -> Graph:
    """The graph with these layers' and tables' weights as codes; `activations` (layer -> what a plan says)
    where they are not int8 with a scale for each group. Raises PlanError for a layer that cannot be, or is
    not there.
    """
    missing = sorted(set(coded) - {node.name for node in graph.nodes})
    if missing:
        raise PlanError(f"graph {graph.name!r} has no layer {', '.join(missing[:10])} to make codes of")
    coder = _Coder(graph, coded, activations or {})
    for node in graph.nodes:
        coder.visit(node)
    return verify(remove_dead_code(coder.scan.finish()), "coding layers")


class _Coder:
    def __init__(self, graph: Graph, coded: Mapping[str, Coded], activations: Mapping[str, str]) -> None:
        self.scan = Scan(graph)
        self.coded, self.activations = coded, activations
        self.stored: dict[tuple[str, int], tuple[str, ...]] = {}

    def visit(self, node: Node) -> None:
        if node.name not in self.coded:
            self.scan.emit(node)
            return
        makers: dict[str, Callable[[Node], Node]] = {"linear": self._linear, "gather": self._gather}
        if node.op not in makers:
            raise PlanError(
                f"layer {node.name!r} is {node.op}: weight formats are for linear layers and tables"
            )
        self.scan.emit(makers[node.op](node))

    def _linear(self, node: Node) -> Node:
        coded = self._checked(node)
        x, _, bias, residual, scale = (*node.inputs, "", "", "")[:5]
        plain = all(attr(node, key) == LINEAR.attrs[key] for key in LINEAR.attrs if key not in EPILOGUE)
        if scale or not plain:
            raise PlanError(f"layer {node.name!r} is quantised already: leave it as it is")
        attrs: dict[str, AttrValue] = {key: attr(node, key) for key in EPILOGUE}
        wanted = self.activations.get(node.name, CODED_ACTIVATIONS[0])
        attrs |= {"activations": ACTIVATIONS[wanted], "format": str(coded.format), "k": coded.shape[1]}
        inputs = _trimmed((x, *self._operands(node, coded), bias, residual))
        return self.scan.make(node.name, "coded_linear", inputs, node.output, attrs)

    def _gather(self, node: Node) -> Node:
        coded = self._checked(node)
        if attr(node, "axis") != 0:
            raise PlanError(f"{node.name!r} gathers along axis {attr(node, 'axis')}: only rows can be codes")
        attrs: dict[str, AttrValue] = {"format": str(coded.format), "k": coded.shape[1]}
        inputs = _trimmed((node.inputs[1], *self._operands(node, coded)))
        return self.scan.make(node.name, "coded_gather", inputs, node.output, attrs)

    def _checked(self, node: Node) -> Coded:
        coded, weight = self.coded[node.name], _weight(node)
        if weight not in self.scan.params:
            raise PlanError(f"{node.name!r} computes its weight: only a stored one can be codes")
        shape = self.scan.types[weight].shape
        if shape != coded.shape:
            raise PlanError(
                f"codes of shape {list(coded.shape)} for the weight {list(shape)} of {node.name!r}"
            )
        return coded

    def _operands(self, node: Node, coded: Coded) -> tuple[str, ...]:
        key = _weight(node), id(coded)
        if key not in self.stored:
            arrays: list[np.ndarray | None] = list(coded_operands(coded))
            self.stored[key] = tuple(
                "" if array is None else self.scan.add_param(f"{key[0]}.{name}", array)
                for name, array in zip(OPERANDS, arrays, strict=True)
            )
        return self.stored[key]


def _weight(node: Node) -> str:
    return node.inputs[1] if node.op == "linear" else node.inputs[0]


def _trimmed(inputs: tuple[str, ...]) -> tuple[str, ...]:
    """Without absent operands at the end."""
    while inputs and not inputs[-1]:
        inputs = inputs[:-1]
    return inputs
