"""Text form of a graph, for people and golden tests. `parse_graph(print_graph(g))` gives g back.

    graph mlp(x: float32[1, 4]) -> y {
      param w: float32[3, 4]
      fc: linear(x, w) {act="clip", lo=0.0} -> y: float32[1, 3]
    }

A pair of `states` is a line `state before -> after` above the parameters.

Parameters are declared without their values; pass them to `parse_graph` to get a runnable graph. An absent
input prints as `_`. Names are Python string literals where they are not plain identifiers.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from .errors import InputError
from .ir import (
    DTYPES,
    WEIGHTS_ONLY,
    AttrValue,
    Graph,
    Node,
    TensorType,
    element_type,
)

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*\Z")
_TOKEN = re.compile(
    r"""\s*("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|->|-inf\b|[A-Za-z_][A-Za-z0-9_.]*|-?\d[\w.+-]*|[(){}\[\],:=])"""
)
_RESERVED = ("_", "param", "state")


def _name(text: str) -> str:
    return text if _PLAIN.match(text) and text not in _RESERVED else repr(text)


def _names(values: tuple[str, ...]) -> str:
    return ", ".join(_name(v) if v else "_" for v in values)


def _typed(name: str, kind: TensorType) -> str:
    return f"{_name(name)}: {kind}"


def _attr(value: AttrValue) -> str:
    if isinstance(value, tuple):
        return "(" + "".join(f"{_attr(v)}, " for v in value).rstrip() + ")"
    return repr(value)


def print_node(node: Node) -> str:
    """One line, without indentation."""
    attrs = ", ".join(f"{k}={_attr(v)}" for k, v in node.attrs.items())
    outs = ", ".join(_typed(o, t) for o, t in zip(node.outputs, node.types, strict=True))
    call = f"{_name(node.name)}: {_name(node.op)}({_names(node.inputs)})"
    return f"{call}{f' {{{attrs}}}' if attrs else ''} -> {outs}"


def print_graph(graph: Graph) -> str:
    """The whole graph; parameters in order of first use, unused ones left out."""
    inputs = ", ".join(_typed(n, t) for n, t in graph.inputs)
    lines = [f"graph {_name(graph.name)}({inputs}) -> {_names(graph.outputs)} {{"]
    lines += [f"  state {_name(before)} -> {_name(after)}" for before, after in graph.states]
    lines += [f"  param {_typed(p, graph.type_of(p))}" for p in graph.used_params()]
    lines += [f"  {print_node(node)}" for node in graph.nodes]
    return "\n".join([*lines, "}", ""])


class _Reader:
    """A cursor over the tokens of a graph's text."""

    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, int]] = []
        for number, line in enumerate(text.split("\n"), 1):
            line, position = line.rstrip(), 0
            while position < len(line):
                match = _TOKEN.match(line, position)
                if match is None:
                    start = line[position : position + 20].strip()
                    raise InputError(f"graph text, line {number}: cannot read {start!r}")
                self.tokens.append((match[1], number))
                position = match.end()
        self.index = 0

    def peek(self) -> str:
        return self.tokens[self.index][0] if self.index < len(self.tokens) else ""

    def fail(self, wanted: str) -> InputError:
        line = self.tokens[min(self.index, len(self.tokens) - 1)][1] if self.tokens else 1
        return InputError(f"graph text, line {line}: expected {wanted}, found {self.peek()!r}")

    def take(self, wanted: str | None = None) -> str:
        token = self.peek()
        if not token or (wanted is not None and token != wanted):
            raise self.fail(repr(wanted) if wanted else "more text")
        self.index += 1
        return token

    def accept(self, token: str) -> bool:
        if self.peek() == token:
            self.index += 1
            return True
        return False

    def name(self) -> str:
        if self.peek()[:1] in ("'", '"'):
            return str(self.literal("a name"))
        if not _PLAIN.match(self.peek()):
            raise self.fail("a name")
        token = self.take()
        return "" if token == "_" else token

    def literal(self, wanted: str) -> Any:
        try:
            value = ast.literal_eval(self.peek())
        except (ValueError, SyntaxError):
            raise self.fail(wanted) from None
        self.index += 1
        return value

    def value(self) -> AttrValue:
        if not self.accept("("):
            return self.item()
        items = []
        while not self.accept(")"):
            items.append(self.item())
            self.accept(",")
        return tuple(items)

    def item(self) -> Any:
        if self.peek() in ("inf", "-inf", "nan"):
            return float(self.take())
        return self.literal("a value")

    def listed(self, end: str) -> list[str]:
        names: list[str] = []
        while not self.accept(end):
            names.append(self.name())
            self.accept(",")
        return names

    def typed(self, dtypes: tuple[str, ...] = DTYPES) -> tuple[str, TensorType]:
        name = self.name()
        self.take(":")
        if self.peek() not in dtypes:
            raise self.fail(f"one of {', '.join(dtypes)}")
        dtype = self.take()
        self.take("[")
        dims = []
        while not self.accept("]"):
            if not self.peek().isdecimal():
                raise self.fail("a size")
            dims.append(int(self.take()))
            self.accept(",")
        return name, TensorType(tuple(dims), dtype)


def _node(reader: _Reader) -> Node:
    name = reader.name()
    reader.take(":")
    op = reader.name()
    reader.take("(")
    inputs = reader.listed(")")
    attrs: dict[str, AttrValue] = {}
    if reader.accept("{"):
        while not reader.accept("}"):
            key = reader.take()
            reader.take("=")
            attrs[key] = reader.value()
            reader.accept(",")
    reader.take("->")
    outs = [reader.typed()]
    while reader.accept(","):
        outs.append(reader.typed())
    return Node(name, op, tuple(inputs), tuple(o for o, _ in outs), tuple(t for _, t in outs), attrs)


def _values(name: str, kind: TensorType, given: np.ndarray | None) -> np.ndarray:
    if given is None:
        return np.zeros(kind.shape, element_type(kind.dtype))
    array = np.asarray(given, element_type(kind.dtype))
    if array.shape != kind.shape:
        raise InputError(f"parameter {name!r} is declared {kind}, but given with shape {array.shape}")
    return array


def parse_graph(text: str, params: Mapping[str, np.ndarray] | None = None) -> Graph:
    """Read a graph's text. Parameters not given are zeros. Raises InputError with the line."""
    reader = _Reader(text)
    reader.take("graph")
    name = reader.name()
    reader.take("(")
    inputs = []
    while not reader.accept(")"):
        inputs.append(reader.typed())
        reader.accept(",")
    reader.take("->")
    outputs = reader.listed("{")
    states = []
    while reader.accept("state"):
        before = reader.name()
        reader.take("->")
        states.append((before, reader.name()))
    table: dict[str, np.ndarray] = {}
    while reader.accept("param"):
        param, kind = reader.typed((*DTYPES, *WEIGHTS_ONLY))
        table[param] = _values(param, kind, (params or {}).get(param))
    nodes = []
    while not reader.accept("}"):
        nodes.append(_node(reader))
    if reader.peek():
        raise reader.fail("the end")
    return Graph(name, tuple(inputs), tuple(outputs), tuple(nodes), table, tuple(states))
