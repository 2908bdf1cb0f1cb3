"""Attention of many tokens to a cache: scores live in a scratch of a few rows, never in memory.

A task is one head of the caches and some tokens, with all heads of q that share it:

    for each block of keys up to the last token's:
        keys <- k transposed into panels;  values <- v into panels, both as float32 with their scales
        for each head of q that shares them, each tile of tokens:
            scores <- q k^T, hidden where the key is ahead of the token or behind its window
            scores <- exp(scores - largest so far)
            sums   <- sums * what the maximum is off + scores v
    y <- sums / sum of the exponentials

(Dao et al., "FlashAttention", 2022.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import emit
from ..partial import store_part
from ..product import each_tile, tile
from ..vectors import across, transposed
from .spec import (
    FLOOR,
    KEYS,
    PrefillSpec,
    capped,
    first_row,
    kept,
    read_floats,
)

F = "float32"
HIDDEN = -3.4e38
"""The score of a key that a token does not see: below FLOOR."""


def emit_prefill(spec: PrefillSpec, name: str) -> Any:
    """The PrimFunc."""
    params = [*spec.operands, ("y", F)]
    return emit.kernel(name, params, lambda *args: _Prefill(spec, args).body())


class _Prefill:
    """Emits one kernel. Rows of `sums`, `tops` and `totals` are (head of the group, token of the task)."""

    def __init__(self, spec: PrefillSpec, args: tuple[Any, ...]) -> None:
        *buffers, self.begin, self.end = args
        self.spec = spec
        names = [*(n for n, _ in spec.operands), "y"]
        self.buffers = dict(zip(names, buffers, strict=True))
        self.key_blocks, self.value_blocks = spec.tiling[1:]
        rows = spec.group * spec.block_rows
        self.keys = emit.local(KEYS * spec.features, F)
        self.values = emit.local(KEYS * spec.padded, F)
        self.scores = emit.local(spec.tallest * KEYS, F)
        self.factors = emit.local(spec.tallest, F)
        self.sums = emit.local(rows * spec.padded, F)
        self.tops, self.totals = emit.local(rows, F), emit.local(rows, F)
        self.position: Any = 0
        self.head: Any = 0
        self.first_token: Any = 0

    def body(self) -> None:
        s = self.spec
        first = first_row(self.buffers["position"], s.index_dtype, s.capacity - s.tokens)
        self.position = kept(first, "int64")
        with emit.loop(0, KEYS * s.features // s.lanes) as i:  # columns of keys that do not exist are read
            emit.store(self.keys, i * s.lanes, emit.splat(0.0, F, s.lanes), s.lanes)
        with emit.loop(self.begin, self.end) as task:
            self.head = kept(task // s.blocks, "int64")
            begin = task % s.blocks * s.tiles
            end = emit.vmin(begin + s.tiles, emit.splat(s.rows.count, "int64", 1))
            self.task(kept(begin, "int64"), kept(end, "int64"))

    def start_of(self, number: Any) -> Any:
        """The first token of a tile."""
        rows = self.spec.rows
        return number * rows.size + (
            emit.vmin(number, emit.splat(rows.larger, "int64", 1)) if rows.larger else 0
        )

    def task(self, begin: Any, end: Any) -> None:
        """Tiles begin...end - 1."""
        s = self.spec
        self.first_token = kept(self.start_of(begin), "int64")
        self.clear()
        stop = kept(self.position + self.start_of(end), "int64")
        first: Any = emit.splat(0, "int64", 1)
        if s.window:
            first = kept(emit.vmax(self.position + self.first_token + 1 - s.window, first), "int64")
        with emit.loop(0, (stop - first + (KEYS - 1)) // KEYS) as block:
            start = kept(first + block * KEYS, "int64")
            count = kept(emit.vmin(stop - start, emit.splat(KEYS, "int64", 1)), "int64")
            self.pack_keys(start, count)
            self.pack_values(start, count)
            with emit.loop(0, s.group) as member:
                each_tile(
                    s.rows, begin, end, lambda token, rows: self.tile(member, token, rows, start, count)
                )
        with emit.loop(0, s.group) as member:
            each_tile(s.rows, begin, end, lambda token, rows: self.finish(member, token, rows))

    def clear(self) -> None:
        s = self.spec
        with emit.loop(0, s.group * s.block_rows * s.padded // s.lanes) as i:
            emit.store(self.sums, i * s.lanes, emit.splat(0.0, F, s.lanes), s.lanes)
        with emit.loop(0, s.group * s.block_rows) as row:
            emit.store(self.tops, row, emit.splat(FLOOR, F, 1))
            emit.store(self.totals, row, emit.splat(0.0, F, 1))

    def read(self, name: str, key: Any, width: int, at: Any, valid: int) -> Any:
        """Numbers at...at + valid - 1 of a row of a cache, with the row's scale."""
        row = self.head * self.spec.capacity + key
        value = read_floats(self.spec, self.buffers[name], row * width + at, valid)
        if self.spec.dtype != "int8":
            return value
        return value * emit.splat(emit.load(self.buffers[f"{name}_scale"], row), F, self.spec.lanes)

    def pack_keys(self, start: Any, count: Any) -> None:
        """Panels as key_blocks has them: [feature][key of a block]."""
        s, lanes = self.spec, self.spec.lanes
        width = self.key_blocks.width * lanes
        whole, rest = divmod(s.features, lanes)

        def place(feature: Any, key: Any) -> Any:
            wide = key // width  # the last block may be narrower
            vectors = emit.vmin(KEYS - wide * width, width)
            return wide * width * s.features + feature * vectors + key % width

        def square(group: Any, f: Any, valid: int) -> None:
            rows = [
                kept(self.read("k", start + group * lanes + i, s.features, f, valid), F, lanes)
                for i in range(lanes)
            ]
            for i, column in enumerate(transposed(rows, lanes)[:valid]):
                emit.store(self.keys, place(f + i, group * lanes), column, lanes)

        def single(key: Any, f: Any, valid: int) -> None:
            row = emit.local(lanes, F)
            emit.store(row, 0, self.read("k", start + key, s.features, f, valid), lanes)
            for i in range(valid):
                emit.store(self.keys, place(f + i, key), emit.load(row, i))

        def row(do: Callable[[Any, Any, int], None], key: Any) -> None:
            emit.over(0, whole, lambda f: do(key, f * lanes, lanes))
            if rest:
                do(key, whole * lanes, rest)

        with emit.loop(0, count // lanes) as group:
            row(square, group)
        with emit.loop(count // lanes * lanes, count) as key:
            row(single, key)

    def pack_values(self, start: Any, count: Any) -> None:
        """Panels as value_blocks has them: [key][output of a block]; KEYS rows each."""
        s, lanes = self.spec, self.spec.lanes

        def block(index: Any, vectors: int, valid: int) -> None:
            first = index * self.value_blocks.width * lanes
            with emit.loop(0, count) as key:
                for v in range(vectors):
                    here = valid if v == vectors - 1 else lanes
                    value = self.read("v", start + key, s.outputs, first + v * lanes, here)
                    emit.store(self.values, first * KEYS + (key * vectors + v) * lanes, value, lanes)

        self.value_blocks.each(block)

    def tile(self, member: Any, token: Any, rows: int, start: Any, count: Any) -> None:
        self.score(member, token, rows, start)
        local = kept(member * self.spec.block_rows + token - self.first_token, "int64")
        with emit.loop(0, rows) as i:
            self.exponentials(i, local + i)
        self.combine(local, rows, count)

    def score(self, member: Any, token: Any, rows: int, start: Any) -> None:
        s, lanes = self.spec, self.spec.lanes
        apart = s.heads * s.features
        base = token * apart + (self.head * s.group + member) * s.features
        # Where in the block the first row has its own key; the others have theirs one further each.
        own = kept(emit.cast(self.position + token - start, "int32", 1), "int32")

        def block(index: Any, vectors: int, valid: int) -> None:
            column = index * self.key_blocks.width * lanes

            def put(i: int, v: int, value: Any) -> None:
                key = emit.cast(column + v * lanes, "int32", 1)
                ahead = emit.tirx.Ramp(key - own - i, 1, lanes)
                value = capped(s, kept(value, F, lanes), lanes)
                low = emit.splat(HIDDEN, F, lanes)
                value = emit.select(ahead > emit.splat(0, "int32", lanes), low, value)
                if s.window:
                    value = emit.select(ahead <= emit.splat(-s.window, "int32", lanes), low, value)
                emit.store(self.scores, i * KEYS + column + v * lanes, value, lanes)

            tile(
                rows, vectors, lanes, s.features,
                lambda i, t: emit.load(self.buffers["q"], base + i * apart + t),
                lambda v, t: emit.load(self.keys, column * s.features + (t * vectors + v) * lanes, lanes),
                put,
            )  # fmt: skip

        self.key_blocks.each(block)

    def exponentials(self, i: Any, row: Any) -> None:
        """Row i of the scores in place; the row's maximum, sum, and what its sums are multiplied by."""
        lanes, at, vectors = self.spec.lanes, i * KEYS, KEYS // self.spec.lanes
        most, total = (emit.local(1, emit.vector(F, lanes)) for _ in range(2))
        emit.store(most, 0, emit.load(self.scores, at, lanes))
        emit.store(total, 0, emit.splat(0.0, F, lanes))
        with emit.loop(1, vectors) as v:
            emit.store(most, 0, emit.vmax(emit.load(most, 0), emit.load(self.scores, at + v * lanes, lanes)))
        before = kept(emit.load(self.tops, row), F)
        top = kept(emit.vmax(before, across(emit.load(most, 0), lanes, emit.vmax)), F)
        with emit.loop(0, vectors) as v:
            score = kept(emit.load(self.scores, at + v * lanes, lanes), F, lanes)
            value = emit.exp(kept(score - emit.splat(top, F, lanes), F, lanes), lanes)
            seen = score > emit.splat(FLOOR, F, lanes)
            value = kept(emit.select(seen, value, emit.splat(0.0, F, lanes)), F, lanes)
            emit.store(self.scores, at + v * lanes, value, lanes)
            emit.store(total, 0, emit.load(total, 0) + value)
        factor = kept(emit.exp(before - top, 1), F)
        new = across(emit.load(total, 0), lanes, lambda a, b: a + b)
        emit.store(self.totals, row, emit.load(self.totals, row) * factor + new)
        emit.store(self.tops, row, top)
        emit.store(self.factors, i, factor)

    def combine(self, local: Any, rows: int, count: Any) -> None:
        s, lanes = self.spec, self.spec.lanes

        def block(index: Any, vectors: int, valid: int) -> None:
            column = index * self.value_blocks.width * lanes

            def put(i: int, v: int, value: Any) -> None:
                at = (local + i) * s.padded + column + v * lanes
                before = emit.load(self.sums, at, lanes) * emit.splat(emit.load(self.factors, i), F, lanes)
                emit.store(self.sums, at, before + value, lanes)

            tile(
                rows, vectors, lanes, count,
                lambda i, t: emit.load(self.scores, i * KEYS + t),
                lambda v, t: emit.load(self.values, column * KEYS + (t * vectors + v) * lanes, lanes),
                put,
            )  # fmt: skip

        self.value_blocks.each(block)

    def finish(self, member: Any, token: Any, rows: int) -> None:
        s, lanes = self.spec, self.spec.lanes
        with emit.loop(0, rows) as i:
            row = kept(member * s.block_rows + token - self.first_token + i, "int64")
            inverse = kept(emit.splat(1.0, F, 1) / emit.load(self.totals, row), F)
            to = ((token + i) * s.heads + self.head * s.group + member) * s.outputs

            def vector(v: Any, valid: int) -> None:
                value = emit.load(self.sums, row * s.padded + v * lanes, lanes)
                store_part(
                    self.buffers["y"], F, to + v * lanes, value * emit.splat(inverse, F, lanes), lanes, valid
                )

            emit.over(0, s.outputs // lanes, lambda v: vector(v, lanes))
            if s.outputs % lanes:
                vector(s.outputs // lanes, s.outputs % lanes)
