"""Activations as the kernels on coded weights read them: quantised, groups at whole atoms, zeros behind.

q      [row][atom][16]    int8, or float32 where activations stay float
sums   [row][group]       int32, factor * the sum of a group's q; not for float
scale  [row] or [row][group]   float32; not for float
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .. import emit
from ..partial import load_part
from ..vectors import across
from .spec import ATOM

STEPS = 127.0


@dataclass(frozen=True)
class CodedInputSpec:
    """x float32 [m, k]; `width`: weights of a group, in `group_atoms` atoms. `factor`: see `sums` above."""

    m: int
    k: int
    width: int
    group_atoms: int
    atoms: int
    activations: str
    factor: int

    @property
    def groups(self) -> int:
        return -(-self.k // self.width)

    @property
    def by_group(self) -> bool:
        return self.activations == "int8:group"

    @property
    def quantised(self) -> bool:
        return self.activations != "float32"

    @property
    def q_bytes(self) -> int:
        return self.m * self.atoms * ATOM * (1 if self.quantised else 4)

    @property
    def tasks(self) -> int:
        return self.m


def coded_input_params(spec: CodedInputSpec) -> list[tuple[str, str]]:
    if not spec.quantised:
        return [("x", "float32"), ("q", "float32")]
    return [("x", "float32"), ("q", "int8"), ("sums", "int32"), ("scale", "float32")]


def emit_coded_input(spec: CodedInputSpec, name: str) -> Any:
    """The PrimFunc. A task is a row."""
    return emit.kernel(name, coded_input_params(spec), lambda *args: _Input(spec, args).body())


class _Input:
    def __init__(self, spec: CodedInputSpec, args: tuple[Any, ...]) -> None:
        *buffers, self.begin, self.end = args
        self.s = spec
        self.buffers = dict(zip((n for n, _ in coded_input_params(spec)), buffers, strict=True))
        self.largest = emit.local(1, emit.vector("float32", ATOM))
        self.sum = emit.local(1, emit.vector("int32", ATOM))
        self.inverse = emit.local(1, "float32")

    def body(self) -> None:
        with emit.loop(self.begin, self.end) as row:
            if self.s.quantised and not self.s.by_group:
                self.measure(row * self.s.k, self.s.k, row)
            self.each_group(lambda group, width: self.group(row, group, width))

    def each_group(self, body: Callable[[Any, int], None]) -> None:
        """`body(group, weights)`; only the last group may be shorter."""
        last = self.s.k - (self.s.groups - 1) * self.s.width
        full = self.s.groups if last == self.s.width else self.s.groups - 1
        emit.over(0, full, lambda group: body(group, self.s.width))
        if full < self.s.groups:
            body(full, last)

    def each_atom(self, count: int, body: Callable[[Any, int], None]) -> None:
        emit.over(0, count // ATOM, lambda atom: body(atom, ATOM))
        if count % ATOM:
            body(count // ATOM, count % ATOM)

    def measure(self, at: Any, count: int, to: Any) -> None:
        """Find the scale of `count` numbers, store it at `to`, keep its inverse."""
        zero = emit.splat(0.0, "float32", ATOM)
        emit.store(self.largest, 0, zero)

        def more(atom: Any, valid: int) -> None:
            value = emit.local(1, emit.vector("float32", ATOM))
            emit.store(value, 0, load_part(self.buffers["x"], "float32", at + atom * ATOM, ATOM, valid))
            size = emit.vmax(emit.load(value, 0), zero - emit.load(value, 0))
            emit.store(self.largest, 0, emit.vmax(emit.load(self.largest, 0), size))

        self.each_atom(count, more)
        most, inverse = emit.local(1, "float32"), emit.local(1, "float32")
        emit.store(most, 0, across(emit.load(self.largest, 0), ATOM, emit.vmax))
        steps = emit.splat(STEPS, "float32", 1)
        emit.store(inverse, 0, steps / emit.load(most, 0))
        # Zeros and subnormal numbers have no finite inverse.
        finite = emit.load(inverse, 0) <= emit.splat(3.4028234e38, "float32", 1)
        emit.store(self.inverse, 0, emit.select(finite, emit.load(inverse, 0), emit.splat(0.0, "float32", 1)))
        emit.store(self.buffers["scale"], to, emit.load(most, 0) / steps)

    def group(self, row: Any, group: Any, width: int) -> None:
        s = self.s
        at, to = row * s.k + group * s.width, (row * s.atoms + group * s.group_atoms) * ATOM
        if s.by_group:
            self.measure(at, width, row * s.groups + group)
        if s.quantised:
            emit.store(self.sum, 0, emit.splat(0, "int32", ATOM))

        def one(atom: Any, valid: int) -> None:
            value = load_part(self.buffers["x"], "float32", at + atom * ATOM, ATOM, valid)
            if not s.quantised:
                emit.store(self.buffers["q"], to + atom * ATOM, value, ATOM)
                return
            whole = emit.local(1, emit.vector("int32", ATOM))
            scaled = value * emit.splat(emit.load(self.inverse, 0), "float32", ATOM)
            # The fence keeps the product from being fused with the addition: it is rounded on its own.
            scaled = emit.intrinsic("llvm.arithmetic.fence", emit.vector("float32", ATOM), scaled)
            shifted = scaled + emit.splat(emit.MAGIC, "float32", ATOM)
            rounded = emit.bits(shifted, "int32", ATOM) - emit.splat(emit.MAGIC_BITS, "int32", ATOM)
            emit.store(whole, 0, rounded)
            emit.store(self.sum, 0, emit.load(self.sum, 0) + emit.load(whole, 0))
            emit.store(
                self.buffers["q"], to + atom * ATOM, emit.cast(emit.load(whole, 0), "int8", ATOM), ATOM
            )

        self.each_atom(width, one)
        if s.quantised:
            total = emit.intrinsic("llvm.vector.reduce.add", "int32", emit.load(self.sum, 0))
            emit.store(self.buffers["sums"], row * s.groups + group, total * emit.splat(s.factor, "int32", 1))
