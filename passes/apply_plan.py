"""Rewrites a prepared graph as a Plan says.

    plan: a and b int8, c float32                   x.q8: quantize(x)                        uint8
                                                    a: conv2d(x.q8, wa int8, ...) -> a       uint8
    a: conv2d(x, wa, ba) -> a                  =>   b: conv2d(a, wb int8, ..., a) -> b       float32, for c
    b: conv2d(a, wb, bb, a) -> b                    c: conv2d(b, wc, bc) -> y
    c: conv2d(b, wc, bc) -> y

An int8 layer reads uint8, sums in int32 and writes what its readers want; the formula is in
ARCHITECTURE.md. passes/storage.py says which values are stored in uint8; where an int8 layer reads a value
that is not, one `quantize` makes a copy for all such layers. Names of layers and values stay; a copy of v
is called `v.q8`. What linear layers read may be divided by channel first (passes/smooth.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..compiler.calibrate import Ranges
from ..compiler.errors import PlanError
from ..compiler.formats import Coded
from ..compiler.ir import AttrValue, Graph, Node
from ..compiler.plan import (
    FREE_OPS,
    Plan,
    free_layers_of,
    layers_of,
    tables_of,
)
from ..compiler.verify import verify
from .code_layers import code_layers, round_layers
from .dead_code import remove_dead_code
from .quantise import (
    Memo,
    QParams,
    QWeights,
    qparams,
    quantise_weights,
)
from .scan import Scan, attr
from .smooth import smooth
from .storage import choose_storage, moves
from .to_bfloat16 import to_bfloat16


def apply_plan(
    graph: Graph,
    plan: Plan,
    ranges: Ranges | None,
    *,
    pair_bound: bool = False,
    memo: Memo | None = None,
    coded: Mapping[str, Coded] | None = None,
) -> Graph:
    """The graph with int8 layers, and weights as codes or bfloat16, where the plan says so. Where all stay
    float32 it is the graph itself.
    Layers that came with int8 weights keep them, whatever the plan says of them.

    `ranges` (of the same graph) may be None when no layer is int8. `pair_bound`: the target multiplies
    faster where
    int8 weights keep the bound of passes/pair_bound.py (Target.pair_bound says so). `memo` keeps
    quantised weights
    between calls for one graph, ranges and bound: a search applies many plans. `coded`: the codes of the
    layers that the plan gives a weight format; without, their weights are rounded.
    Raises PlanError when the plan does not fit the graph or ranges are needed and missing, InputError when
    the ranges are for another graph, ModelError for weights that are not finite.
    """
    plan.validate(graph)
    wanted = plan.coded
    numbers = (*free_layers_of(graph), *tables_of(graph))
    narrow = {node.name for node in numbers if plan.choice(node.name) == "bfloat16"}
    if narrow:
        plan = replace(plan, layers={k: v for k, v in plan.layers.items() if k not in narrow})
    if wanted:
        chosen = round_layers(graph, plan) if coded is None else coded
        graph = code_layers(graph, chosen, {layer: reads for layer, (_, reads) in wanted.items()})
        plan = replace(plan, layers={k: v for k, v in plan.layers.items() if k not in wanted})
    if all(plan.choice(node.name) == "float32" for node in free_layers_of(graph)):
        return to_bfloat16(graph, narrow)
    if ranges is None:
        raise PlanError("the plan has int8 layers: calibration samples are needed to choose their ranges")
    graph, ranges = smooth(graph, plan, ranges)
    planner = _Planner(graph, plan, ranges, pair_bound, {} if memo is None else memo)
    for node in graph.nodes:
        planner.visit(node)
    return to_bfloat16(verify(remove_dead_code(planner.scan.finish()), "applying the plan"), narrow)


def conversions(graph: Graph) -> dict[str, int]:
    """How many conversions feed each layer of a planned graph; one that feeds several counts for the first.

    A conversion is a `quantize` or `dequantize` node. Layers that need none are listed with 0.
    """
    counts = {node.name: 0 for node in layers_of(graph)}
    for node in graph.nodes:
        if node.op in ("quantize", "dequantize"):
            reader = next((n for n in graph.consumers(node.output) if n.name in counts), None)
            if reader is not None:
                counts[reader.name] += 1
    return counts


class _Planner:
    """Walks the graph once and emits each node in its new form."""

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        ranges: Ranges,
        pair_bound: bool,
        memo: Memo,
    ) -> None:
        self.pair_bound = pair_bound
        self.memo = memo
        self.ranges = ranges
        self.scan = Scan(graph)
        self.stored = choose_storage(graph, plan, ranges)
        self.int8 = {node.name for node in free_layers_of(graph) if plan.choice(node.name) == "int8"}
        self.copies: dict[str, str] = {}

    def visit(self, node: Node) -> None:
        inputs, attrs = node.inputs, dict(node.attrs)
        if node.name in self.int8:
            inputs, attrs = self._int8_layer(node)
        elif node.op in FREE_OPS:
            attrs |= self._residual(node, 1.0) | self._written(node, folded=False)
        elif node.op == "add":
            attrs |= self._add(node)
        elif node.op == "reduce_mean" and inputs[0] in self.stored:
            x = self.stored[inputs[0]]
            attrs |= {"x_scale": _f32(x.scale), "x_zero": x.zero}
        elif not moves(node):
            self.scan.emit(node)
            return
        self.scan.emit(self.scan.make(node.name, node.op, inputs, node.output, attrs))

    def _int8_layer(self, node: Node) -> tuple[tuple[str, ...], dict[str, AttrValue]]:
        value, _, _, residual = (*node.inputs, "", "")[:4]
        x = self._read(value)
        w = self._weights(node, x[1].scale)
        folded = node.output in self.stored and attr(node, "act") in ("none", "clip")
        factor = self.stored[node.output].inverse if folded else 1.0
        scale = (w.scale * (x[1].scale * factor)).astype(np.float32)
        inputs = (
            x[0],
            self.scan.add_param(f"{node.name}.weight.int8", w.w),
            "" if w.bias is None else self.scan.add_param(f"{node.name}.bias.int32", w.bias),
            residual,
            self.scan.add_param(f"{node.name}.scale", scale),
        )
        attrs = {"x_zero": x[1].zero} | self._residual(node, factor) | self._written(node, folded)
        return inputs, {**node.attrs, **attrs}

    def _weights(self, node: Node, x_scale: float) -> QWeights:
        key = (node.name, node.inputs[1], x_scale)
        if key not in self.memo:
            params = self.scan.params
            weight, bias = (*node.inputs, "")[1:3]
            real_bias = params[bias] if bias else None
            means = self.ranges.means.get(node.name)
            axis = self._pair_axis(node)
            self.memo[key] = quantise_weights(node.name, params[weight], real_bias, x_scale, means, axis)
        return self.memo[key]

    def _pair_axis(self, node: Node) -> int | None:
        """The weight's axis along which pairs are bounded; None where the target or the layer has no use
        for it."""
        shape = self.scan.params[node.inputs[1]].shape
        planar = str(attr(node, "layout")).startswith("NCHW") if node.op == "conv2d" else False
        axis = 3 if planar else 1
        if axis == 1 and shape[1] % 2 and math.prod(shape[3:]) > 1 and attr(node, "groups") == 1:
            return None  # an odd number of channels: pairs would straddle pixels, and no kernel profits
        return axis if self.pair_bound and shape[axis] > 1 else None

    def _read(self, value: str) -> tuple[str, QParams]:
        """The uint8 form of a value and its parameters; made here if nobody stores it so."""
        if value in self.stored:
            return value, self.stored[value]
        params = qparams(*self.ranges[value])
        if value not in self.copies:
            attrs: Mapping[str, AttrValue] = {"y_scale": _f32(params.scale), "y_zero": params.zero}
            self.copies[value] = self.scan.insert("quantize", (value,), f"{value}.q8", attrs)
        return self.copies[value], params

    def _residual(self, node: Node, factor: float) -> dict[str, AttrValue]:
        """Attributes that read a layer's residual operand, times `factor`."""
        residual = (*node.inputs, "", "")[3]
        if not residual:
            return {}
        params = self.stored.get(residual, QParams(1.0, 0))
        return {"r_scale": _f32(params.scale * factor), "r_zero": params.zero}

    def _add(self, node: Node) -> dict[str, AttrValue]:
        folded = node.output in self.stored and attr(node, "act") in ("none", "clip")
        factor = self.stored[node.output].inverse if folded else 1.0
        attrs: dict[str, AttrValue] = {}
        for which, value in zip("ab", node.inputs, strict=True):
            params = self.stored.get(value, QParams(1.0, 0))
            attrs |= {f"{which}_scale": _f32(params.scale * factor), f"{which}_zero": params.zero}
        return attrs | self._written(node, folded)

    def _written(self, node: Node, folded: bool) -> dict[str, AttrValue]:
        """Attributes that store a node's result. `folded`: what is activated is in units of y's scale."""
        if node.output not in self.stored:
            return {}
        y = self.stored[node.output]
        attrs: dict[str, AttrValue] = {
            "out_dtype": "uint8",
            "y_zero": y.zero,
            "y_inv": 1.0 if folded else _f32(y.inverse),
        }
        if attr(node, "act") == "clip":
            attrs |= _clip(node, y, folded)
        return attrs


def _clip(node: Node, y: QParams, folded: bool) -> dict[str, AttrValue]:
    """The clip in the units it works in.

    A bound at or beyond which uint8 ends anyway is left out: rounding keeps order, so the result is the same.
    """
    inverse = np.float32(y.inverse)
    bounds = {}
    for key, beyond, end in (("lo", -math.inf, 0), ("hi", math.inf, 255)):
        bound = float(attr(node, key))
        unit = np.float32(bound * y.inverse) if folded else np.float32(bound) * inverse
        step = np.rint(unit) + y.zero
        redundant = step <= end if key == "lo" else step >= end
        bounds[key] = beyond if redundant else float(unit) if folded else bound
    return {"act": "none" if bounds == {"lo": -math.inf, "hi": math.inf} else "clip", **bounds}


def _f32(number: float) -> float:
    """The nearest float32 number: what kernels compute with and what the text form shows."""
    return float(np.float32(number))
