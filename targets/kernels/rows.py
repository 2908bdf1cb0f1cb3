"""Kernels over rows of neighbouring float32 values: softmax, norms, sums, means, maxima and minima.

A row is read once for each statistic and once to be written; it stays in the first-level cache between. Sums
are kept in four vectors, so that additions do not wait for each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import emit
from .partial import store_part
from .vectors import across, load_filled

TASK = 8192
"""Elements of a task."""
CHAINS = 4


@dataclass(frozen=True)
class RowSpec:
    """`kind`: softmax, layer_norm, rms_norm (a row for a row), mean, sum, max, min (a number for a row)."""

    kind: str
    lanes: int
    rows: int
    n: int
    gamma: bool = False
    beta: bool = False
    eps: float = 0.0

    @property
    def chunk(self) -> int:
        """Rows of a task."""
        return max(1, TASK // self.n)

    @property
    def tasks(self) -> int:
        return -(-self.rows // self.chunk)


def row_params(spec: RowSpec) -> list[tuple[str, str]]:
    """(name, element type) of the kernel's pointers, in order."""
    names = ["x", *(["gamma"] if spec.gamma else []), *(["beta"] if spec.beta else []), "y"]
    return [(name, "float32") for name in names]


def emit_rows(spec: RowSpec, name: str) -> Any:
    """The PrimFunc."""

    def body(*args: Any) -> None:
        *buffers, begin, end = args
        row = _Row(spec, dict(zip((n for n, _ in row_params(spec)), buffers, strict=True)))
        last = emit.vmin(end * spec.chunk, spec.rows)
        with emit.loop(begin * spec.chunk, last) as index:
            row.at = index * spec.n
            getattr(row, spec.kind)(index)

    return emit.kernel(name, row_params(spec), body)


class _Row:
    """Emits the work on one row, which begins at `at`. One method for each kind."""

    def __init__(self, spec: RowSpec, buffers: dict[str, Any]) -> None:
        self.spec, self.buffers = spec, buffers
        self.at: Any = 0

    # The kinds

    def softmax(self, index: Any) -> None:
        lanes = self.spec.lanes
        top = self.number(self.over(lambda v: v, -math.inf, emit.vmax))
        self.write(lambda v, at, valid: emit.exp(v - emit.splat(top(), "float32", lanes), lanes))
        total = self.number(self.over(lambda v: v, 0.0, _add, source="y"))
        # The largest adds 1: less is a row of infinities only, of which no softmax exists.
        sums = emit.select(
            total() < emit.splat(0.5, "float32", 1), emit.splat(math.nan, "float32", 1), total()
        )
        inverse = self.number(emit.splat(1.0, "float32", 1) / sums)
        self.write(lambda v, at, valid: v * emit.splat(inverse(), "float32", lanes), source="y")

    def layer_norm(self, index: Any) -> None:
        lanes = self.spec.lanes
        mean = self.number(self.over(lambda v: v, 0.0, _add) * (1.0 / self.spec.n))

        def centred(v: Any) -> Any:
            return v - emit.splat(mean(), "float32", lanes)

        self.normalise(self.over(lambda v: centred(v) * centred(v), mean, _add), centred)

    def rms_norm(self, index: Any) -> None:
        self.normalise(self.over(lambda v: v * v, 0.0, _add), lambda v: v)

    def normalise(self, squares: Any, centred: Callable[[Any], Any]) -> None:
        s = self.spec
        variance = squares * emit.splat(1.0 / s.n, "float32", 1) + emit.splat(s.eps, "float32", 1)
        factor = self.number(emit.splat(1.0, "float32", 1) / emit.intrinsic("llvm.sqrt", "float32", variance))

        def result(v: Any, at: Any, valid: int) -> Any:
            y = centred(v) * emit.splat(factor(), "float32", s.lanes)
            if s.gamma:
                y = y * load_filled(self.buffers["gamma"], at, s.lanes, valid, 0.0)
            return y + load_filled(self.buffers["beta"], at, s.lanes, valid, 0.0) if s.beta else y

        self.write(result)

    def sum(self, index: Any) -> None:
        emit.store(self.buffers["y"], index, self.over(lambda v: v, 0.0, _add))

    def mean(self, index: Any) -> None:
        total = self.over(lambda v: v, 0.0, _add) * emit.splat(1.0 / self.spec.n, "float32", 1)
        emit.store(self.buffers["y"], index, total)

    def max(self, index: Any) -> None:
        emit.store(self.buffers["y"], index, self.over(lambda v: v, -math.inf, emit.larger))

    def min(self, index: Any) -> None:
        emit.store(self.buffers["y"], index, self.over(lambda v: v, math.inf, emit.smaller))

    # What they are made of

    def number(self, value: Any) -> Callable[[], Any]:
        """The value kept, to be used any number of times."""
        place = emit.local(1, "float32")
        emit.store(place, 0, value)
        return lambda: emit.load(place, 0)

    def over(
        self,
        term: Callable[[Any], Any],
        filler: float | Callable[[], Any],
        combine: Callable[[Any, Any], Any],
        source: str = "x",
    ) -> Any:
        """One number from the terms of all vectors of the row; lanes beyond its end hold `filler`, whose term
        changes nothing."""
        lanes, whole, rest = self.spec.lanes, self.spec.n // self.spec.lanes, self.spec.n % self.spec.lanes
        chains = min(CHAINS, max(1, whole))
        acc = emit.local(chains, emit.vector("float32", lanes))
        start = 0.0 if combine is _add else math.inf if combine is emit.smaller else -math.inf
        for c in range(chains):
            emit.store(acc, c, emit.splat(start, "float32", lanes))

        def step(c: int, at: Any, valid: int) -> None:
            value = load_filled(self.buffers[source], self.at + at, lanes, valid, filler)
            emit.store(acc, c, combine(emit.load(acc, c), term(value)))

        with emit.loop(0, whole // chains) as j:
            for c in range(chains):
                step(c, (j * chains + c) * lanes, lanes)
        for c in range(whole % chains):
            step(c, (whole // chains * chains + c) * lanes, lanes)
        if rest:
            step(chains - 1, whole * lanes, rest)
        total = emit.load(acc, 0)
        for c in range(1, chains):
            total = combine(total, emit.load(acc, c))
        return across(total, lanes, combine)

    def write(self, result: Callable[[Any, Any, int], Any], source: str = "x") -> None:
        """y <- result(vector of the row, its place in the row, lanes that exist)."""
        s = self.spec

        def put(at: Any, valid: int) -> None:
            value = load_filled(self.buffers[source], self.at + at, s.lanes, valid, 0.0)
            store_part(self.buffers["y"], "float32", self.at + at, result(value, at, valid), s.lanes, valid)

        with emit.loop(0, s.n // s.lanes) as j:
            put(j * s.lanes, s.lanes)
        if s.n % s.lanes:
            put(s.n // s.lanes * s.lanes, s.n % s.lanes)


def _add(a: Any, b: Any) -> Any:
    return a + b
