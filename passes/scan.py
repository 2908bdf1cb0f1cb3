"""The tool that most passes are written with: one walk over the nodes, with a rule that may replace each.

    def _fuse(scan: Scan, node: Node) -> Node | None: ...

    rewrite(graph, _fuse)

The rule returns the node itself to keep it, another node to put in its place (and to be shown next), or None
to leave it out, after telling scan.rename what to read instead.

A fused node stands where the last of its parts stood: whatever it reads has been made by then, and whoever
reads its output comes later. So the order stays valid without sorting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from ..compiler.ir import (
    AttrValue,
    Graph,
    Node,
    TensorType,
)
from ..compiler.ops import OPS
from ..compiler.params import Entry, OpenParams


class Scan:
    """A graph being rewritten: what has been emitted so far, and the parameters."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.params = OpenParams(graph.stored)
        self.types: dict[str, TensorType] = dict(graph.types)
        self._emitted: dict[str, Node] = {}
        self._producers: dict[str, str] = {}
        self._renamed: dict[str, str] = {}
        self._node_names = {node.name for node in graph.nodes}
        # How often a value is read by what has been emitted and what the rule has yet to see.
        self._reads = Counter(value for node in graph.nodes for value in node.inputs)

    def producer(self, value: str) -> Node | None:
        """The emitted node that makes `value`; None for a graph input or a parameter."""
        name = self._producers.get(value)
        return None if name is None else self._emitted[name]

    def sole_producer(self, value: str) -> Node | None:
        """The emitted node that makes `value`, if only the node that the rule looks at reads it.

        It must do so once, and the value must be no output of the graph, and the node's only output.
        """
        if self._reads[value] != 1 or value in self.graph.outputs:
            return None
        producer = self.producer(value)
        return producer if producer is not None and len(producer.outputs) == 1 else None

    def scalar(self, value: str) -> float | None:
        """The number that a parameter of one element holds; None when `value` is anything else."""
        if value not in self.params or self.types[value].size != 1:
            return None
        return float(self.params[value].reshape(()))

    def emit(self, node: Node) -> str:
        """Append a node; gives the name of its output."""
        self._emitted[node.name] = node
        self._reads.update(node.inputs)
        self._node_names.add(node.name)
        for value, kind in zip(node.outputs, node.types, strict=True):
            self._producers[value] = node.name
            self.types[value] = kind
        return node.output

    def drop(self, node: Node) -> None:
        """Take back an emitted node, whose work another node now does."""
        del self._emitted[node.name]
        self._reads.subtract(node.inputs)
        for value in node.outputs:
            del self._producers[value]

    def replace_pending(self, node: Node, result: Node | None) -> None:
        """Count what the result reads in place of the node; a result that is the node is emitted next."""
        self._reads.subtract(node.inputs)
        if result is not None and result is not node:
            self._reads.update(result.inputs)

    def rename(self, old: str, new: str) -> None:
        """Later nodes that read `old` read `new` instead. `old` must be no output of the graph."""
        self._renamed[old] = new
        self._reads[new] += self._reads.pop(old, 0)

    def resolve(self, node: Node) -> Node:
        """The node with renamed inputs."""
        if not any(v in self._renamed for v in node.inputs):
            return node
        inputs = tuple(self._renamed.get(v, v) for v in node.inputs)
        return Node(node.name, node.op, inputs, node.outputs, node.types, node.attrs)

    def add_param(self, wanted: str, array: Entry) -> str:
        """A new parameter called `wanted`, or with a number behind it if that name is taken."""
        name = fresh_name(wanted, self.types)
        self.params[name] = np.ascontiguousarray(array) if isinstance(array, np.ndarray) else array
        self.types[name] = TensorType(tuple(array.shape), array.dtype.name)
        return name

    def new_value(self, wanted: str) -> str:
        """A name that neither a value nor a node has; it may serve as both."""
        return fresh_name(wanted, self._node_names, self.types)

    def new_node(self, wanted: str) -> str:
        """A name that no node has."""
        return fresh_name(wanted, self._node_names)

    def make(
        self,
        name: str,
        op: str,
        inputs: Sequence[str],
        output: str,
        attrs: Mapping[str, AttrValue] | None = None,
    ) -> Node:
        """A node with inferred types, not yet emitted."""
        kinds = [self.types[v] if v else None for v in inputs]
        definition = OPS[op]
        types = definition.infer_types(kinds, definition.complete(attrs or {}))
        return Node(name, op, tuple(inputs), (output,), types, slim(op, attrs or {}))

    def insert(
        self, op: str, inputs: Sequence[str], wanted: str, attrs: Mapping[str, AttrValue] | None = None
    ) -> str:
        """Emit a new node, called like its output: `wanted`, numbered if taken. Gives the output's name."""
        output = self.new_value(wanted)
        return self.emit(self.make(output, op, inputs, output, attrs))

    def finish(self) -> Graph:
        return self.graph.with_nodes(tuple(self._emitted.values()), params=self.params)


Rule = Callable[[Scan, Node], Node | None]


def rewrite(graph: Graph, rule: Rule) -> Graph:
    """Apply the rule to every node in order, and to its own result until it returns what it was given.

    Parameters that nothing reads any more stay until dead code is removed.
    """
    scan = Scan(graph)
    for node in graph.nodes:
        current: Node | None = scan.resolve(node)
        while current is not None:
            result = rule(scan, current)
            scan.replace_pending(current, result)
            if result is current:
                scan.emit(current)
                break
            current = result
    return scan.finish()


def fresh_name(wanted: str, *taken: Collection[str]) -> str:
    """`wanted`, or with the first free number behind it."""
    name, count = wanted, 1
    while any(name in names for names in taken):
        name, count = f"{wanted}_{count}", count + 1
    return name


def slim(op: str, attrs: Mapping[str, AttrValue]) -> dict[str, AttrValue]:
    """The attributes that differ from their defaults: the form in which graphs hold them."""
    defaults = OPS[op].attrs
    return {k: v for k, v in attrs.items() if v != defaults[k]}


def attr(node: Node, key: str) -> Any:
    """An attribute of a node, its default when not set."""
    return node.attrs.get(key, OPS[node.op].attrs[key])


def is_plain(node: Node) -> bool:
    """A conv2d or linear in float32 that ends at its bias: no activation, residual or scale behind it."""
    rest = (*node.inputs, "", "", "")[3:5]
    return (
        node.op in ("conv2d", "linear")
        and attr(node, "act") == "none"
        and rest == ("", "")
        and _is_float(node)
    )


def _is_float(node: Node) -> bool:
    return node.type.dtype == "float32" and attr(node, "y_inv") == 1.0
