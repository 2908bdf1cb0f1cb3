"""Kernels along an axis that is not the last: softmax, sums, means, maxima and minima of columns.

x is float32 [outer, n, inner]. A task is a block of up to four vectors of neighbouring columns, of which all
n values are read once for each statistic.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import emit
from .partial import store_part
from .product import Blocks
from .vectors import load_filled

WIDTH = 4
"""Vectors of a block: additions then do not wait for each other."""


@dataclass(frozen=True)
class ColumnSpec:
    """`kind`: softmax [outer, n, inner]; mean, sum, max, min [outer, inner]."""

    kind: str
    lanes: int
    outer: int
    n: int
    inner: int

    @property
    def blocks(self) -> Blocks:
        return Blocks(self.inner, self.lanes, WIDTH)

    @property
    def tasks(self) -> int:
        return self.outer * self.blocks.count


def column_params(spec: ColumnSpec) -> list[tuple[str, str]]:
    """(name, element type) of the kernel's pointers, in order."""
    return [("x", "float32"), ("y", "float32")]


def emit_columns(spec: ColumnSpec, name: str) -> Any:
    """The PrimFunc."""

    def body(x: Any, y: Any, begin: Any, end: Any) -> None:
        blocks = spec.blocks
        with emit.loop(begin, end) as task:
            outer = task // blocks.count

            def block(index: Any, vectors: int, valid: int) -> None:
                column = index * WIDTH * spec.lanes
                work = _Block(spec, x, y, outer, column, vectors, valid)
                if spec.kind == "softmax":
                    work.softmax()
                else:
                    work.reduce()

            blocks.one(task % blocks.count, block)

    return emit.kernel(name, column_params(spec), body)


class _Block:
    """Emits the work on one block of columns."""

    def __init__(
        self, spec: ColumnSpec, x: Any, y: Any, outer: Any, column: Any, vectors: int, valid: int
    ) -> None:
        self.spec, self.x, self.y = spec, x, y
        self.outer, self.column, self.vectors, self.valid = outer, column, vectors, valid
        self.acc = emit.local(vectors, emit.vector("float32", spec.lanes))

    def reduce(self) -> None:
        s = self.spec
        extremes = {"max": (-math.inf, emit.larger), "min": (math.inf, emit.smaller)}
        start, combine = extremes.get(s.kind, (0.0, operator.add))
        self.start(start)
        self.every(lambda v, value, at, valid: self.put(v, combine(self.get(v), value)))
        to = self.outer * s.inner + self.column
        for v in range(self.vectors):
            value = self.get(v)
            if s.kind == "mean":
                value = value * emit.splat(1.0 / s.n, "float32", s.lanes)
            store_part(self.y, "float32", to + v * s.lanes, value, s.lanes, self.lanes_of(v))

    def softmax(self) -> None:
        s = self.spec
        self.start(-math.inf)
        self.every(lambda v, value, at, valid: self.put(v, emit.vmax(self.get(v), value)))
        top = emit.local(self.vectors, emit.vector("float32", s.lanes))
        for v in range(self.vectors):
            emit.store(top, v, self.get(v))
        self.start(0.0)

        def exponential(v: int, value: Any, at: Any, valid: int) -> None:
            kept = emit.local(1, emit.vector("float32", s.lanes))
            emit.store(kept, 0, emit.exp(value - emit.load(top, v), s.lanes))
            store_part(self.y, "float32", at, emit.load(kept, 0), s.lanes, valid)
            self.put(v, self.get(v) + emit.load(kept, 0))

        self.every(exponential)
        for v in range(self.vectors):  # less than 1: see rows.py
            one, least, none = (emit.splat(number, "float32", s.lanes) for number in (1.0, 0.5, math.nan))
            self.put(v, one / emit.select(self.get(v) < least, none, self.get(v)))

        def scale(v: int, value: Any, at: Any, valid: int) -> None:
            store_part(self.y, "float32", at, value * self.get(v), s.lanes, valid)

        self.every(scale, self.y)

    def lanes_of(self, v: int) -> int:
        return self.valid if v == self.vectors - 1 else self.spec.lanes

    def get(self, v: int) -> Any:
        return emit.load(self.acc, v)

    def put(self, v: int, value: Any) -> None:
        emit.store(self.acc, v, value)

    def start(self, value: float) -> None:
        for v in range(self.vectors):
            self.put(v, emit.splat(value, "float32", self.spec.lanes))

    def every(self, body: Callable[[int, Any, Any, int], None], source: Any = None) -> None:
        """`body(vector of the block, its values, their place, lanes that exist)` along the columns."""
        s = self.spec
        with emit.loop(0, s.n) as i:
            for v in range(self.vectors):
                at = (self.outer * s.n + i) * s.inner + self.column + v * s.lanes
                valid = self.lanes_of(v)
                buffer = self.x if source is None else source
                body(v, load_filled(buffer, at, s.lanes, valid, 0.0), at, valid)
