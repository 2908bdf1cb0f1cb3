"""The loop over time of lstm, gru and rnn, vectorised over hidden units.

    for each step:
        for each block of units:
            acc[gate] <- x;  for k: acc[gate] += r[gate, k] * h[k]      (all gates of the units in registers)
            the cell's formula; new state into `next`, result into y
        h <- next

The weights of a block are read in one stream, once for all sequences of the task. States stay on the stack.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from . import emit
from .cell_functions import apply
from .partial import load_part, store_part
from .recurrent_spec import RecurrentSpec

F = "float32"


def nearest(x: Any) -> Any:
    """The integer nearest to a number, ties to even."""
    whole = emit.bits(x + emit.splat(emit.MAGIC, F, 1), "int32", 1)
    return emit.cast(whole - emit.splat(emit.MAGIC_BITS, "int32", 1), F, 1)


def recurrent_params(spec: RecurrentSpec) -> list[tuple[str, str]]:
    """(name, element type) of the kernel's pointers, in order."""
    states = ("h", "c")[: len(spec.starts)]
    given = [(f"{s}0", F) for s, there in zip(states, spec.starts, strict=True) if there]
    extra = [("extra", F)] if spec.extra else []
    lengths = [("lengths", "int32")] if spec.lengths else []
    return [("x", F), ("r", F), *extra, *lengths, *given, ("y", F), *((s, F) for s in states)]


def emit_recurrent(spec: RecurrentSpec, name: str) -> Any:
    """The PrimFunc."""
    return emit.kernel(name, recurrent_params(spec), lambda *args: _Recurrent(spec, args).body())


class _Recurrent:
    """Emits one kernel. `states` are h (and c of an lstm), `[row][unit]`; `next` is the h of the next step,
    `gate` what a gru's second pass needs of the first: r * h and z; `read` the h of products."""

    def __init__(self, spec: RecurrentSpec, args: tuple[Any, ...]) -> None:
        *buffers, self.begin, self.end = args
        self.spec = spec
        self.buffers = dict(zip((n for n, _ in recurrent_params(spec)), buffers, strict=True))
        size = spec.rows * spec.padded
        self.states = [emit.local(size, F) for _ in spec.starts]
        self.next = emit.local(size, F)
        self.gate = [emit.local(size, F) for _ in range(2 * (len(spec.products) - 1))]
        self.read = emit.local(size, F) if spec.rounded else self.states[0]

    def body(self) -> None:
        with emit.loop(self.begin, self.end) as task:
            first = task * self.spec.rows
            if self.spec.batch % self.spec.rows:
                first = emit.vmin(first, self.spec.batch - self.spec.rows)
            self.load_states(first)
            count: Any = self.spec.steps
            if self.spec.lengths:
                count = self.length(first)
            with emit.loop(0, count) as turn:
                self.step((count - 1 - turn if self.spec.reverse else turn), first)
            if self.spec.lengths:
                with emit.loop(count, self.spec.steps) as step:
                    self.each_vector(lambda v, valid: self.put_y(step, first, 0, v, valid, self.zero()))
            self.store_states(first)

    def length(self, row: Any) -> Any:
        """Steps of a sequence, no more than there are."""
        place, given = emit.local(1, "int64"), emit.load(self.buffers["lengths"], row)
        least, most = (emit.splat(number, "int64", 1) for number in (0, self.spec.steps))
        emit.store(place, 0, emit.vmin(emit.vmax(emit.cast(given, "int64", 1), least), most))
        return emit.load(place, 0)

    # Vectors of units, outside of the products

    def zero(self) -> Any:
        return emit.splat(0.0, F, self.spec.lanes)

    def each_vector(self, do: Callable[[Any, int], None]) -> None:
        """`do(vector, valid lanes)` for all units."""
        lanes = self.spec.lanes
        full, rest = divmod(self.spec.hidden, lanes)
        emit.over(0, full, lambda v: do(v, lanes))
        if rest:
            do(full, rest)

    def load_states(self, first: Any) -> None:
        names = ("h0", "c0")
        for state, name, given in zip(self.states, names, self.spec.starts, strict=False):
            for row in range(self.spec.rows):

                def one(v: Any, valid: int, row: int = row, name: str = name, given: bool = given) -> None:
                    at = (first + row) * self.spec.hidden + v * self.spec.lanes
                    lanes = self.spec.lanes
                    value = load_part(self.buffers[name], F, at, lanes, valid) if given else self.zero()
                    emit.store(state, self.unit(row, v), value, lanes)  # noqa: B023

                self.each_vector(one)

    def store_states(self, first: Any) -> None:
        for state, name in zip(self.states, ("h", "c"), strict=False):
            for row in range(self.spec.rows):

                def one(v: Any, valid: int, row: int = row, state: Any = state, name: str = name) -> None:
                    at = (first + row) * self.spec.hidden + v * self.spec.lanes
                    value = emit.load(state, self.unit(row, v), self.spec.lanes)
                    store_part(self.buffers[name], F, at, value, self.spec.lanes, valid)

                self.each_vector(one)

    def unit(self, row: Any, vector: Any) -> Any:
        return row * self.spec.padded + vector * self.spec.lanes

    def put_y(self, step: Any, first: Any, row: Any, vector: Any, valid: int, value: Any) -> None:
        at = ((step * self.spec.batch + first + row) * self.spec.hidden) + vector * self.spec.lanes
        store_part(self.buffers["y"], F, at, value, self.spec.lanes, valid)

    # One step

    def step(self, time: Any, first: Any) -> None:
        if self.spec.rounded:
            self.round_state()
        base = 0
        for index, gates in enumerate(self.spec.products):
            self.products(index, gates, base, time, first)
            base += self.spec.padded * len(gates) * self.spec.hidden
        for row in range(self.spec.rows):
            with emit.loop(0, self.spec.padded // self.spec.lanes) as v:
                value = emit.load(self.next, self.unit(row, v), self.spec.lanes)
                emit.store(self.states[0], self.unit(row, v), value, self.spec.lanes)

    def round_state(self) -> None:
        """h on 256 levels, as compiler/ops/recurrent.py says."""
        units = self.spec.hidden
        numbers = emit.local(4, F)  # least, largest, scale, zero
        h = self.states[0]
        for slot in range(2):
            emit.store(numbers, slot, tirx.const(0.0, F))
        with emit.loop(0, units) as k:
            emit.store(numbers, 0, emit.vmin(emit.load(numbers, 0), emit.load(h, k)))
            emit.store(numbers, 1, emit.vmax(emit.load(numbers, 1), emit.load(h, k)))
        low, high, scale, zero = (emit.load(numbers, i) for i in range(4))
        emit.store(numbers, 2, tirx.Select(high > low, (high - low) / 255.0, tirx.const(1.0, F)))
        emit.store(numbers, 3, nearest(emit.vmin((tirx.const(0.0, F) - low) / scale, tirx.const(255.0, F))))
        with emit.loop(0, units) as k:
            level = nearest(emit.load(h, k) / scale) + zero
            level = emit.vmin(emit.vmax(level, tirx.const(0.0, F)), tirx.const(255.0, F))
            emit.store(self.read, k, (level - zero) * scale)

    def products(self, index: int, gates: tuple[int, ...], base: int, time: Any, first: Any) -> None:
        """One pass over all units."""
        s = self.spec
        width = s.width(len(gates))
        whole, rest, valid = s.blocks(len(gates))

        def block(b: Any, vectors: int, valid: int) -> None:
            weights = base + b * (width * s.lanes * len(gates) * s.hidden)
            _Block(self, index, gates, time, first, b * width, vectors, valid).emit(weights)

        emit.over(0, whole, lambda b: block(b, width, s.lanes))
        if rest:
            block(whole, rest, valid)


class _Block:
    """The sums of some vectors of units, and what the cell makes of them."""

    def __init__(
        self,
        owner: _Recurrent,
        index: int,
        gates: tuple[int, ...],
        time: Any,
        first: Any,
        start: Any,
        vectors: int,
        valid: int,
    ) -> None:
        self.owner, self.spec, self.index = owner, owner.spec, index
        self.gates, self.time, self.first = gates, time, first
        self.start, self.vectors, self.valid = start, vectors, valid
        self.acc = emit.local(self.spec.rows * len(gates) * vectors, emit.vector(F, self.spec.lanes))

    def emit(self, weights: Any) -> None:
        s = self.spec
        for row in range(s.rows):
            for g in range(len(self.gates)):
                for v in range(self.vectors):
                    emit.store(self.acc, self.slot(row, g, v), self.begin(row, g, v))
        state = self.owner.gate[0] if self.index else self.owner.read
        count = len(self.gates) * self.vectors
        with emit.loop(0, s.hidden) as k:
            for i in range(count):
                at = weights + (k * count + i) * s.lanes
                w = emit.load(self.owner.buffers["r"], at, s.lanes)
                for row in range(s.rows):
                    h = emit.splat(emit.load(state, row * s.padded + k), F, s.lanes)
                    slot = row * count + i
                    emit.store(self.acc, slot, emit.load(self.acc, slot) + w * h)
        for row in range(s.rows):
            for v in range(self.vectors):
                getattr(self, f"_{s.cell}")(row, v)

    def slot(self, row: int, gate: int, v: int) -> int:
        return (row * len(self.gates) + gate) * self.vectors + v

    def lanes_of(self, v: int) -> int:
        """Valid lanes of a vector: only the last one may not be full."""
        return self.valid if v == self.vectors - 1 else self.spec.lanes

    def begin(self, row: int, g: int, v: int) -> Any:
        """What a sum begins with: the input's part; of a gru's inner product, which a gate multiplies, its
        bias."""
        s = self.spec
        if s.cell == "gru" and s.after and self.gates[g] == 2:
            return self.extra(0, v) if s.extra else self.owner.zero()
        return self.input(row, self.gates[g], v)

    def input(self, row: int, gate: int, v: int) -> Any:
        s = self.spec
        at = (self.time * s.batch + self.first + row) * (s.gates * s.hidden) + gate * s.hidden
        return load_part(
            self.owner.buffers["x"], F, at + (self.start + v) * s.lanes, s.lanes, self.lanes_of(v)
        )

    def extra(self, which: int, v: int) -> Any:
        at = which * self.spec.padded + (self.start + v) * self.spec.lanes
        return emit.load(self.owner.buffers["extra"], at, self.spec.lanes)

    def state(self, buffer: Any, row: int, v: int) -> Any:
        return emit.load(buffer, self.owner.unit(row, self.start + v), self.spec.lanes)

    def put(self, buffer: Any, row: int, v: int, value: Any) -> None:
        emit.store(buffer, self.owner.unit(row, self.start + v), value, self.spec.lanes)

    def result(self, row: int, v: int, value: Any) -> None:
        """The new h."""
        self.put(self.owner.next, row, v, value)
        kept = self.state(self.owner.next, row, v)
        self.owner.put_y(self.time, self.first, row, self.start + v, self.lanes_of(v), kept)

    def sum(self, row: int, gate: int, v: int) -> Any:
        return emit.load(self.acc, self.slot(row, gate, v))

    def gated(self, function: int, value: Any) -> Any:
        """f or g of a sum, clipped before; kept, because what reads it may read it twice."""
        s = self.spec
        if s.clip != float("inf"):
            limit = emit.splat(s.clip, F, s.lanes)
            value = emit.vmin(emit.vmax(value, self.owner.zero() - limit), limit)
        return self.kept(apply(s.functions[function], self.kept(value), s.lanes))

    def kept(self, value: Any) -> Any:
        """The value in a register: an expression that is used twice would be computed twice."""
        place = emit.local(1, emit.vector(F, self.spec.lanes))
        emit.store(place, 0, value)
        return emit.load(place, 0)

    # The cells

    def _lstm(self, row: int, v: int) -> None:
        s, one = self.spec, emit.splat(1.0, F, self.spec.lanes)
        cell = self.owner.states[1]
        old = self.kept(self.state(cell, row, v))
        i, o, f, g = (self.sum(row, gate, v) for gate in range(4))
        i = self.gated(0, i + self.extra(0, v) * old if s.extra else i)
        f = one - i if s.coupled else self.gated(0, f + self.extra(2, v) * old if s.extra else f)
        self.put(cell, row, v, f * old + i * self.gated(1, g))
        new = self.kept(self.state(cell, row, v))
        o = self.gated(0, o + self.extra(1, v) * new if s.extra else o)
        self.result(row, v, o * apply(s.functions[2], new, s.lanes))

    def _gru(self, row: int, v: int) -> None:
        h = self.owner.states[0]
        if len(self.spec.products) == 1:
            z, reset = (self.gated(0, self.sum(row, gate, v)) for gate in range(2))
            self._mix(row, v, z, self.gated(1, self.input(row, 2, v) + reset * self.sum(row, 2, v)))
        elif self.index == 0:
            z, reset = (self.gated(0, self.sum(row, gate, v)) for gate in range(2))
            self.put(self.owner.gate[0], row, v, reset * self.state(h, row, v))
            self.put(self.owner.gate[1], row, v, z)
        else:
            self._mix(row, v, self.state(self.owner.gate[1], row, v), self.gated(1, self.sum(row, 0, v)))

    def _mix(self, row: int, v: int, z: Any, new: Any) -> None:
        one = emit.splat(1.0, F, self.spec.lanes)
        self.result(row, v, (one - z) * new + z * self.state(self.owner.states[0], row, v))

    def _rnn(self, row: int, v: int) -> None:
        self.result(row, v, self.gated(0, self.sum(row, 0, v)))
