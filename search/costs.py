"""The table of kernel times that the exact allocation needs, from times of whole plans.

Uniform plans give each layer's time in either type. Conversions between types hide in several places:
nodes of their own, and kernels that read or write another type. They are read off plans that alternate: by
the lowest bit of the layer's index, the second, the third, until every edge was seen in both directions or
no pattern is left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from ..compiler.ir import Graph
from ..compiler.plan import large_tables_of, layers_of
from .allocation import Edge
from .evaluator import CostTable

Times = Mapping[str, float]
"""Microseconds by node name."""
Measured = tuple[Graph, Times]
PATTERN_BITS = 3


def cost_table(graph: Graph, measure: Callable[[frozenset[str]], Measured]) -> CostTable:
    """`measure(int8 layers)` gives the planned graph and its kernel times; `graph` is the prepared one.
    Tables are layers here, which no conversion is beside."""
    names = [node.name for node in (*large_tables_of(graph), *layers_of(graph))]
    pairs = layer_edges(graph)
    floats, quantised = measure(frozenset()), measure(frozenset(names))
    alone = Alone(
        {n: floats[1].get(n, 0.0) for n in names},
        _with_followers(graph, names, floats[1], quantised),
        {n: quantised[1].get(n, 0.0) for n in names},
    )
    seen = Conversions()
    for int8 in _patterns(names):
        if any(_crossing(pair, int8) and not seen.has(pair, int8) for pair in pairs):
            seen.observe(measure(int8), int8, pairs, alone)
    edges = tuple(Edge(u, v, seen.leave.get((u, v), 0.0), seen.enter.get((u, v), 0.0)) for u, v in pairs)
    return CostTable(alone.float_us, alone.int8_us, edges)


@dataclass(frozen=True)
class Alone:
    """Layers in uniform plans. `int8_us` has what other nodes save, `int8_kernel_us` is the kernel alone."""

    float_us: Times
    int8_us: Times
    int8_kernel_us: Times


Pair = tuple[str, str]


@dataclass
class Conversions:
    """What leaving and entering int8 was seen to cost, by edge."""

    leave: dict[Pair, float] = field(default_factory=dict)
    enter: dict[Pair, float] = field(default_factory=dict)

    def has(self, pair: Pair, int8: frozenset[str]) -> bool:
        return pair in (self.leave if pair[0] in int8 else self.enter)

    def observe(self, measured: Measured, int8: frozenset[str], pairs: list[Pair], alone: Alone) -> None:
        """Shares out what layers take more than in the uniform plan of their type, and conversion nodes."""
        graph, times = measured
        crossing = [pair for pair in pairs if _crossing(pair, int8)]
        cost = dict.fromkeys(crossing, 0.0)
        for layer in {name for pair in crossing for name in pair}:
            usual = (alone.int8_kernel_us if layer in int8 else alone.float_us)[layer]
            _share(cost, [p for p in crossing if layer in p], max(0.0, times.get(layer, 0.0) - usual))
        for node in graph.nodes:
            if node.op in ("quantize", "dequantize"):
                readers = set(_layers_after(graph, node.output))
                sources = set(_layers_before(graph, node.inputs[0]))
                _share(
                    cost,
                    [p for p in crossing if p[0] in sources and p[1] in readers],
                    times.get(node.name, 0.0),
                )
        for pair, us in cost.items():
            table = self.leave if pair[0] in int8 else self.enter
            table.setdefault(pair, us)


def _share(cost: dict[Pair, float], pairs: list[Pair], us: float) -> None:
    for pair in pairs:
        cost[pair] += us / len(pairs)


def _crossing(pair: Pair, int8: frozenset[str]) -> bool:
    return (pair[0] in int8) != (pair[1] in int8)


def _patterns(names: list[str]) -> Iterator[frozenset[str]]:
    for bit in range(PATTERN_BITS):
        for value in (0, 1):
            yield frozenset(n for i, n in enumerate(names) if (i >> bit) & 1 == value)


def layer_edges(graph: Graph) -> list[Pair]:
    """Pairs of layers of which the second reads what the first made, other nodes in between left out."""
    pairs: dict[Pair, None] = {}
    for node in layers_of(graph):
        for value in node.inputs:
            if value and value not in graph.params:
                pairs.update(dict.fromkeys((source, node.name) for source in _layers_before(graph, value)))
    return list(pairs)


def _layers_before(graph: Graph, value: str) -> list[str]:
    """The layers whose results reach the value without passing another layer."""
    layers, found, todo, seen = {n.name for n in layers_of(graph)}, [], [value], set()
    while todo:
        node = graph.producer(todo.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if node.name in layers:
            found.append(node.name)
        else:
            todo.extend(v for v in node.inputs if v)
    return found


def _layers_after(graph: Graph, value: str, names: Collection[str] | None = None) -> list[str]:
    """The layers (of those names) that the value reaches without passing another."""
    layers = {n.name for n in layers_of(graph)} if names is None else names
    found, todo, seen = [], [value], {value}
    while todo:
        for node in graph.consumers(todo.pop()):
            if node.name in layers:
                found.append(node.name)
            elif node.output not in seen:
                seen.add(node.output)
                todo.append(node.output)
    return found


def _with_followers(graph: Graph, names: list[str], floats: Times, measured: Measured) -> dict[str, float]:
    """int8 times of the layers, with what pools, adds and the like save by reading uint8 from them, and with
    the nodes that prepare a layer's input, but for conversions.
    """
    planned, quantised = measured
    result = {n: quantised.get(n, 0.0) for n in names}
    for node in graph.nodes:
        if node.name in result or node.name not in floats or node.name not in quantised:
            continue
        sources = [s for v in node.inputs if v for s in _layers_before(graph, v)]
        for source in sources:
            result[source] += (quantised[node.name] - floats[node.name]) / len(sources)
    for node in planned.nodes:
        if node.name not in floats and node.name in quantised and node.op not in ("quantize", "dequantize"):
            readers = _layers_after(planned, node.output, result)
            for reader in readers:
                result[reader] += quantised[node.name] / len(readers)
    return {n: max(0.0, us) for n, us in result.items()}
