"""Attention of one token to a cache: keys and values go by once, in order, whatever shares them.

A task is one head of the caches with all heads of q that share it, and a part of the keys:

    for each block of keys:
        scores <- q . k                              a few keys by all heads in registers
        scores <- exp(scores - largest so far)
        sums   <- sums * what the maximum is off + scores v
    leave the sums, the maximum and the sum of the exponentials

Another kernel puts the parts of a head together (Dao et al., "Flash-Decoding", 2023). Where the caches have
heads enough for the threads there is one part, and it is only divided.
"""

from __future__ import annotations

from typing import Any

from .. import emit
from ..partial import load_part, store_part
from ..vectors import across
from .spec import (
    FLOOR,
    KEYS,
    CombineSpec,
    DecodeSpec,
    capped,
    first_row,
    kept,
    read_floats,
)

F = "float32"
SUMS = 9
"""Sums in registers at most: what is multiplied needs the others."""


def emit_decode(spec: DecodeSpec, name: str) -> Any:
    """The PrimFunc; the last pointer is to `partial` numbers for each task."""
    params = [*spec.operands, ("sums", F)]
    return emit.kernel(name, params, lambda *args: _Decode(spec, args).body())


class _Decode:
    """Emits one kernel."""

    def __init__(self, spec: DecodeSpec, args: tuple[Any, ...]) -> None:
        *buffers, self.begin, self.end = args
        self.spec = spec
        names = [*(n for n, _ in spec.operands), "sums"]
        self.buffers = dict(zip(names, buffers, strict=True))
        self.scores = emit.local(spec.group * KEYS, F)
        self.factors = emit.local(spec.group, F)
        self.at: Any = 0  # of the task's numbers
        self.row: Any = 0  # of the cache: its head's first
        self.query: Any = 0

    def body(self) -> None:
        s = self.spec
        position = kept(first_row(self.buffers["position"], s.index_dtype, s.capacity - 1), "int64")
        end = position + 1
        begin: Any = emit.splat(0, "int64", 1)
        if s.window:
            begin = kept(emit.vmax(end - s.window, begin), "int64")

        def task(number: Any) -> None:
            head, part = number // s.parts, number % s.parts
            self.at, self.row = kept(number * s.partial, "int64"), kept(head * s.capacity, "int64")
            self.query = kept(head * s.group * s.features, "int64")
            self.clear()
            share = (end - begin + (8 * s.parts - 1)) // (8 * s.parts) * 8
            first = kept(begin + part * share, "int64")
            last = kept(emit.vmin(first + share, end), "int64")
            count = kept(emit.vmax(last - first, emit.splat(0, "int64", 1)), "int64")
            with emit.loop(0, (count + KEYS - 1) // KEYS) as block:
                start = kept(first + block * KEYS, "int64")
                self.block(start, kept(emit.vmin(last - start, emit.splat(KEYS, "int64", 1)), "int64"))

        with emit.loop(self.begin, self.end) as number:
            task(number)

    def stat(self, which: int, row: int) -> Any:
        """Where a row's maximum (0) or sum (1) is."""
        return self.at + self.spec.group * (self.spec.padded + which) + row

    def clear(self) -> None:
        s, sums = self.spec, self.buffers["sums"]
        with emit.loop(0, s.group * s.padded // s.lanes) as i:
            emit.store(sums, self.at + i * s.lanes, emit.splat(0.0, F, s.lanes), s.lanes)
        for row in range(s.group):
            emit.store(sums, self.stat(0, row), emit.splat(FLOOR, F, 1))
            emit.store(sums, self.stat(1, row), emit.splat(0.0, F, 1))

    def block(self, start: Any, count: Any) -> None:
        """Keys start ... start + count - 1."""
        together = max(1, min(4, SUMS // self.spec.group))
        with emit.loop(0, count // together) as some:
            self.score(start, some * together, together)
        if together > 1:
            with emit.loop(count // together * together, count) as one:
                self.score(start, one, 1)
        for row in range(self.spec.group):
            self.exponentials(row, start, count)
        self.values(start, count)

    def score(self, start: Any, key: Any, keys: int) -> None:
        """Scores of `keys` keys with all heads."""
        s = self.spec
        whole, rest = divmod(s.features, s.lanes)
        acc = emit.local(keys * s.group, emit.vector(F, s.lanes))
        for i in range(keys * s.group):
            emit.store(acc, i, emit.splat(0.0, F, s.lanes))

        def step(f: Any, valid: int) -> None:
            rows = []
            for j in range(keys):
                place = (self.row + start + key + j) * s.features + f
                rows.append(kept(read_floats(s, self.buffers["k"], place, valid), F, s.lanes))
            for r in range(s.group):
                at = self.query + r * s.features + f
                q = kept(load_part(self.buffers["q"], F, at, s.lanes, valid), F, s.lanes)
                for j in range(keys):
                    emit.store(acc, j * s.group + r, emit.load(acc, j * s.group + r) + rows[j] * q)

        emit.over(0, whole, lambda f: step(f * s.lanes, s.lanes))
        if rest:
            step(whole * s.lanes, rest)
        self.fetch_ahead(start + key, keys)
        for j in range(keys):
            for r in range(s.group):
                total = across(emit.load(acc, j * s.group + r), s.lanes, lambda a, b: a + b)
                if s.dtype == "int8":
                    total = total * emit.load(self.buffers["k_scale"], self.row + start + key + j)
                emit.store(self.scores, r * KEYS + key + j, total)

    def fetch_ahead(self, key: Any, keys: int) -> None:
        """The values of these keys are read next, then the keys of the next block: memory may begin now."""
        s, item = self.spec, self.spec.item_bytes
        ahead = (("v", self.row + key, s.outputs), ("k", self.row + key + KEYS, s.features))
        for name, row, width in ahead:
            for at in range(0, keys * width, emit.CACHE_LINE // item):
                emit.fetch(self.buffers[name], row * width + at)

    def exponentials(self, row: int, start: Any, count: Any) -> None:
        """A row of scores in place, its maximum and its sum."""
        s, lanes, at, sums = self.spec, self.spec.lanes, row * KEYS, self.buffers["sums"]
        vectors = (count + (lanes - 1)) // lanes
        if s.soft_cap or s.scale != 1.0:
            with emit.loop(0, vectors) as v:
                value = capped(s, emit.load(self.scores, at + v * lanes, lanes), lanes)
                emit.store(self.scores, at + v * lanes, value, lanes)
        with emit.loop(count, vectors * lanes) as beyond:
            emit.store(self.scores, at + beyond, emit.splat(FLOOR, F, 1))
        most, total = (emit.local(1, emit.vector(F, lanes)) for _ in range(2))
        emit.store(most, 0, emit.splat(FLOOR, F, lanes))
        emit.store(total, 0, emit.splat(0.0, F, lanes))
        with emit.loop(0, vectors) as v:
            emit.store(most, 0, emit.vmax(emit.load(most, 0), emit.load(self.scores, at + v * lanes, lanes)))
        before = kept(emit.load(sums, self.stat(0, row)), F)
        top = kept(emit.vmax(before, across(emit.load(most, 0), lanes, emit.vmax)), F)
        factor = kept(emit.exp(before - top, 1), F)
        with emit.loop(0, vectors) as v:
            place = at + v * lanes
            shifted = kept(emit.load(self.scores, place, lanes) - emit.splat(top, F, lanes), F, lanes)
            value = kept(emit.exp(shifted, lanes), F, lanes)
            emit.store(total, 0, emit.load(total, 0) + value)
            emit.store(self.scores, place, value, lanes)
        new = across(emit.load(total, 0), lanes, lambda a, b: a + b)
        emit.store(sums, self.stat(1, row), emit.load(sums, self.stat(1, row)) * factor + new)
        emit.store(sums, self.stat(0, row), top)
        emit.store(self.factors, row, factor)
        if s.dtype == "int8":
            self.weigh(at, start, count)

    def weigh(self, at: Any, start: Any, count: Any) -> None:
        """Shares times the scales of the values that they are of."""
        with emit.loop(0, count) as j:
            scale = emit.load(self.buffers["v_scale"], self.row + start + j)
            emit.store(self.scores, at + j, emit.load(self.scores, at + j) * scale)

    def values(self, start: Any, count: Any) -> None:
        s, lanes = self.spec, self.spec.lanes
        width = max(1, SUMS // s.group)
        vectors, rest = s.padded // lanes, s.outputs % lanes
        full = vectors - (rest > 0)
        emit.over(0, full // width, lambda b: self.columns(start, count, b * width, width, lanes))
        if full % width:
            self.columns(start, count, full // width * width, full % width, lanes)
        if rest:
            self.columns(start, count, full, 1, rest)

    def columns(self, start: Any, count: Any, first: Any, vectors: int, valid: int) -> None:
        s, lanes, sums = self.spec, self.spec.lanes, self.buffers["sums"]
        acc = emit.local(vectors * s.group, emit.vector(F, lanes))

        def place(row: int, v: int) -> Any:
            return self.at + row * s.padded + (first + v) * lanes

        for r in range(s.group):
            factor = kept(emit.splat(emit.load(self.factors, r), F, lanes), F, lanes)
            for v in range(vectors):
                emit.store(acc, r * vectors + v, emit.load(sums, place(r, v), lanes) * factor)
        with emit.loop(0, count) as j:
            at = (self.row + start + j) * s.outputs + first * lanes
            row = [
                kept(read_floats(s, self.buffers["v"], at + v * lanes, valid), F, lanes)
                for v in range(vectors)
            ]
            for r in range(s.group):
                share = kept(emit.splat(emit.load(self.scores, r * KEYS + j), F, lanes), F, lanes)
                for v in range(vectors):
                    slot = r * vectors + v
                    emit.store(acc, slot, emit.load(acc, slot) + share * row[v])
        for r in range(s.group):
            for v in range(vectors):
                emit.store(sums, place(r, v), emit.load(acc, r * vectors + v), lanes)


def emit_combine(spec: CombineSpec, name: str) -> Any:
    """The PrimFunc; pointers sums, y."""

    def body(sums: Any, y: Any, begin: Any, end: Any) -> None:
        numbers = spec.group * (spec.padded + 2)
        factors = emit.local(spec.parts, F)
        with emit.loop(begin, end), emit.loop(0, spec.shared) as head:
            with emit.loop(0, spec.group) as row:
                first = head * spec.parts * numbers
                stat = first + spec.group * spec.padded + row
                top = kept(emit.load(sums, stat), F)
                for p in range(1, spec.parts):
                    top = kept(emit.vmax(top, emit.load(sums, stat + p * numbers)), F)
                total: Any = emit.splat(0.0, F, 1)
                for p in range(spec.parts):
                    emit.store(factors, p, emit.exp(emit.load(sums, stat + p * numbers) - top, 1))
                    part = emit.load(sums, stat + p * numbers + spec.group)
                    total = kept(total + part * emit.load(factors, p), F)
                inverse = kept(emit.splat(1.0, F, 1) / total, F)
                to = (head * spec.group + row) * spec.outputs
                _mix(spec, sums, factors, inverse, first + row * spec.padded, y, to)

    return emit.kernel(name, [("sums", F), ("y", F)], body)


def _mix(spec: CombineSpec, sums: Any, factors: Any, inverse: Any, first: Any, y: Any, to: Any) -> None:
    """The parts' sums of a row, each with its factor."""
    lanes, numbers = spec.lanes, spec.group * (spec.padded + 2)

    def vector(v: Any, valid: int) -> None:
        value: Any = emit.splat(0.0, F, lanes)
        for p in range(spec.parts):
            part = emit.load(sums, first + p * numbers + v * lanes, lanes)
            value = value + part * emit.splat(emit.load(factors, p), F, lanes)
        store_part(y, F, to + v * lanes, value * emit.splat(inverse, F, lanes), lanes, valid)

    emit.over(0, spec.outputs // lanes, lambda v: vector(v, lanes))
    if spec.outputs % lanes:
        vector(spec.outputs // lanes, spec.outputs % lanes)
