"""Values that have no memory of their own: other shapes of a value, slices, parts of what a concat joins.

A slice that is one piece of its input is read where it lies, and a part that is one piece of the result, as
along the first axis, is written where that lies: neither needs a kernel. Only the arena has such places: the
caller's arrays, parameters and states are as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..compiler.ir import Graph, Node
from ..compiler.ops import OPS
from .states import in_place

ALIASES = ("reshape", "bitcast")
"""Operators that only give the same bytes another shape or type: no kernel runs."""


@dataclass(frozen=True)
class View:
    """Where in a value another one begins, in bytes."""

    whole: str
    offset: int = 0


class Views:
    """Which values of a graph lie within others."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._within = {value: View(state) for value, state in in_place(graph).items()}
        self._within |= {node.output: View(node.inputs[0]) for node in graph.nodes if node.op in ALIASES}
        self._cut: set[str] = set()  # slices that are read where their input lies
        self._bound = {self.of(value).whole for value in graph.outputs}
        for node in graph.nodes:
            if node.op == "slice":
                self._slice(node)
            elif node.op == "concat":
                self._concat(node)

    def of(self, value: str) -> View:
        """The value with memory of its own that this one lies in; itself at 0 if it has its own."""
        offset = 0
        while value in self._within:
            view = self._within[value]
            value, offset = view.whole, offset + view.offset
        return View(value, offset)

    def needs_no_kernel(self, node: Node) -> bool:
        """Its result is there already."""
        return node.op in ALIASES or node.output in self._cut

    def _free(self, value: str) -> bool:
        """Nobody but the arena says where it lies."""
        root = self.of(value).whole
        return self.graph.producer(root) is not None and root not in self._bound

    def _slice(self, node: Node) -> None:
        shape = self.graph.type_of(node.inputs[0]).shape
        attrs: dict[str, Any] = OPS[node.op].complete(node.attrs)
        piece = node.type.size and set(attrs["steps"]) <= {1} and one_piece(node.type.shape, shape)
        if piece and node.output not in self._bound and self._free(node.inputs[0]):
            start = np.ravel_multi_index(attrs["starts"], shape)
            self._within[node.output] = View(node.inputs[0], int(start) * np.dtype(node.type.dtype).itemsize)
            self._cut.add(node.output)

    def _concat(self, node: Node) -> None:
        at = 0
        for value in node.inputs:
            kind, root = self.graph.type_of(value), self.of(value)
            # All of something, which lies nowhere else yet.
            alone = root.whole != node.output and self.graph.type_of(root.whole).nbytes == kind.nbytes
            piece = kind.size and alone and one_piece(kind.shape, node.type.shape)
            if piece and self._free(value) and self._free(node.output):
                self._within[root.whole] = View(node.output, at)
            at += kind.nbytes


def one_piece(part: Sequence[int], whole: Sequence[int]) -> bool:
    """Elements of a block of that shape lie together in the whole: before the last axis that it does not fill
    it has but one of each."""
    cut = [axis for axis, (a, b) in enumerate(zip(part, whole, strict=True)) if a != b]
    return not cut or math.prod(part[: cut[-1]]) == 1
