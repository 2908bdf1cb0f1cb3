"""Attention in one kernel: scores live in a scratch of a few rows, never in memory.

A task is one head (or a part of its queries, where there are few heads):

    for each part of the keys:
        keys <- k transposed into panels;  values <- v into panels
        for each tile of queries:
            scores <- q k^T * scale + mask
            scores <- exp(scores - max of the row);  sum of the row
            y <- scores v / sum

There is one part where the panels of a head fit the second-level cache. With more, a query's maximum and sum
go from part to part, and what y holds is multiplied by what a new maximum is off (Dao et al.,
"FlashAttention", 2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from . import emit
from .matmul_spec import batch_offset
from .partial import load_part, store_part
from .product import (
    Blocks,
    Matrix,
    Parts,
    each_tile,
    pack,
    tile,
    tiling_of_two,
)
from .tiling import Split
from .vectors import across

FEW_HEADS = 8
PANEL_BYTES = 384 * 1024
FLOOR = -3.4028234663852886e38
"""The least maximum of a row: differences to it are numbers even where all keys are hidden by infinities."""
PART_TILES = 32
"""Tiles of queries of a task where heads are few: enough to pay for packing the keys again."""


@dataclass(frozen=True)
class AttentionSpec:
    """y[b, i] = sum over j of softmax(scale * q[b, i] . k[b, :] + mask[b, i, :])[j] * v[b, j]"""

    lanes: int
    registers: int
    batch: tuple[int, ...]
    queries: int
    keys: int
    features: int
    outputs: int
    q: Matrix
    k: Matrix
    v: Matrix
    y: Matrix
    mask: Matrix | None
    scale: float
    guarded: bool = False

    @cached_property
    def key_parts(self) -> tuple[int, int]:
        """(keys of a part, how many parts); the last part may be smaller."""
        most = max(8 * self.lanes, PANEL_BYTES // (4 * (self.features + self.outputs)))
        count = -(-self.keys // most)
        # Equal parts are one piece of code.
        count = next((c for c in range(count, 2 * count) if self.keys % (c * self.lanes) == 0), count)
        size = -(-self.keys // (count * self.lanes)) * self.lanes if count > 1 else self.keys
        return size, -(-self.keys // size)

    @cached_property
    def tiling(self) -> tuple[Split, Blocks, Blocks]:
        """Tiles of queries, blocks of the keys of a part, blocks of outputs."""
        keys = self.key_parts[0]
        columns, depths = (keys, self.outputs), (self.features, keys)
        return tiling_of_two(self.queries, columns, depths, self.lanes, self.registers)

    @property
    def rows(self) -> Split:
        return self.tiling[0]

    @property
    def key_blocks(self) -> Blocks:
        return self.tiling[1]

    @property
    def value_blocks(self) -> Blocks:
        return self.tiling[2]

    @property
    def stack_bytes(self) -> int:
        keys, parts = self.key_parts
        panels = self.key_blocks.columns * self.features + self.value_blocks.columns * keys
        running = 2 * self.queries if parts > 1 else 0
        return 4 * (panels + self.rows.sizes()[0][0] * (self.key_blocks.columns + 2) + running)

    @property
    def parts(self) -> int:
        """Tasks of one head."""
        return 1 if math.prod(self.batch) >= FEW_HEADS else -(-self.rows.count // PART_TILES)

    @property
    def tasks(self) -> int:
        return math.prod(self.batch) * self.parts


def attention_params(spec: AttentionSpec) -> list[tuple[str, str]]:
    """(name, element type) of the kernel's pointers, in order."""
    names = ("q", "k", "v", "mask", "y") if spec.mask else ("q", "k", "v", "y")
    return [(name, "float32") for name in names]


def emit_attention(spec: AttentionSpec, name: str) -> Any:
    """The PrimFunc."""
    return emit.kernel(name, attention_params(spec), lambda *args: _Attention(spec, args).body())


class _Attention:
    """Emits one kernel. `at` holds the offset of the task's head in every operand."""

    def __init__(self, spec: AttentionSpec, args: tuple[Any, ...]) -> None:
        *buffers, self.begin, self.end = args
        self.spec = spec
        self.buffers = dict(zip((n for n, _ in attention_params(spec)), buffers, strict=True))
        self.width = spec.key_blocks.columns
        tallest = spec.rows.sizes()[0][0]
        self.keys = emit.local(self.width * spec.features, "float32")
        self.values = emit.local(spec.value_blocks.columns * spec.key_parts[0], "float32")
        self.scores = emit.local(tallest * self.width, "float32")
        self.sums = emit.local(tallest, "float32")
        if spec.key_parts[1] > 1:
            self.factors = emit.local(tallest, "float32")
            self.running = emit.local(2 * spec.queries, "float32")  # maxima, then sums
        self.at: dict[str, Any] = {}
        self.part: Any = 0
        self.first_key: Any = 0
        self.key_blocks = spec.key_blocks

    def body(self) -> None:
        s = self.spec
        operands = {"q": s.q, "k": s.k, "v": s.v, "y": s.y, **({"mask": s.mask} if s.mask else {})}

        def one(task: Any) -> None:
            head = task // s.parts if s.parts > 1 else task
            self.at = {n: batch_offset(head, s.batch, m.batch) for n, m in operands.items()}
            first: Any = 0
            end: Any = s.rows.count
            if s.parts > 1:
                first = task % s.parts * PART_TILES
                end = emit.vmin(first + PART_TILES, s.rows.count)
            self.all_parts(first, end)

        emit.over(self.begin, self.end, one)

    def all_parts(self, first: Any, end: Any) -> None:
        """Tiles of queries [first, end) against all keys."""
        s = self.spec
        size, count = s.key_parts
        if count == 1:
            self.one_part(0, size, first, end)
            return
        with emit.loop(0, s.queries) as row:
            emit.store(self.running, row, emit.splat(FLOOR, "float32", 1))
            emit.store(self.running, s.queries + row, emit.splat(0.0, "float32", 1))
        rest = s.keys - (count - 1) * size
        with emit.loop(0, count) as part:
            if rest == size:
                self.one_part(part, size, first, end)
            else:
                emit.branch(
                    part < count - 1,
                    lambda: self.one_part(part, size, first, end),
                    lambda: self.one_part(part, rest, first, end),
                )

    def one_part(self, part: Any, keys: int, first: Any, end: Any) -> None:
        s = self.spec
        self.part, self.first_key = part, part * s.key_parts[0]
        self.key_blocks = Blocks(keys, s.lanes, s.key_blocks.width)
        transposed = Matrix((), s.k.col, s.k.row)
        self.pack("k", self.keys, transposed, s.features, self.key_blocks, self.first_key * s.k.row)
        self.pack("v", self.values, s.v, keys, s.value_blocks, self.first_key * s.v.row)
        each_tile(s.rows, first, end, self.tile)

    def pack(self, name: str, panels: Any, matrix: Matrix, depth: int, blocks: Blocks, start: Any) -> None:
        def block(index: Any, vectors: int, valid: int) -> None:
            to = index * blocks.width * blocks.lanes
            first = self.at[name] + start + to * matrix.col
            pack(panels, to * depth, self.buffers[name], first, matrix, depth, vectors, valid, blocks.lanes)

        blocks.each(block)

    def tile(self, row: Any, rows: int) -> None:
        self.score(row, rows)
        with emit.loop(0, rows) as i:
            self.exponentials(i, row + i)
        self.combine(row, rows)

    def score(self, row: Any, rows: int) -> None:
        s, lanes = self.spec, self.spec.lanes
        base = self.at["q"] + row * s.q.row

        def block(index: Any, vectors: int, valid: int) -> None:
            column = index * self.key_blocks.width * lanes

            def put(i: int, v: int, value: Any) -> None:
                here = valid if v == vectors - 1 else lanes
                value = self.masked(value, row + i, self.first_key + column + v * lanes, here)
                emit.store(self.scores, i * self.width + column + v * lanes, value, lanes)
                for lane in range(here, lanes):  # keys that do not exist
                    beyond = emit.splat(-math.inf, "float32", 1)
                    emit.store(self.scores, i * self.width + column + v * lanes + lane, beyond)

            tile(
                rows, vectors, lanes, s.features,
                lambda i, t: emit.load(self.buffers["q"], base + i * s.q.row + t * s.q.col),
                lambda v, t: emit.load(self.keys, column * s.features + (t * vectors + v) * lanes, lanes),
                put,
            )  # fmt: skip

        self.key_blocks.each(block)

    def masked(self, value: Any, row: Any, column: Any, valid: int) -> Any:
        s, lanes = self.spec, self.spec.lanes
        value = value if s.scale == 1.0 else value * emit.splat(s.scale, "float32", lanes)
        if not s.mask:
            return value
        at = self.at["mask"] + row * s.mask.row + column * s.mask.col
        if s.mask.col == 1:
            return value + load_part(self.buffers["mask"], "float32", at, lanes, valid)
        return value + emit.splat(emit.load(self.buffers["mask"], at), "float32", lanes)

    def exponentials(self, i: Any, query: Any) -> None:
        """Row i of the scores in place, and its sum."""
        lanes, at, vectors = self.spec.lanes, i * self.width, self.key_blocks.columns // self.spec.lanes
        several = self.spec.key_parts[1] > 1
        most = emit.local(1, emit.vector("float32", lanes))
        emit.store(most, 0, emit.load(self.scores, at, lanes))
        with emit.loop(1, vectors) as j:
            emit.store(most, 0, emit.vmax(emit.load(most, 0), emit.load(self.scores, at + j * lanes, lanes)))
        top, total = emit.local(1, "float32"), emit.local(1, emit.vector("float32", lanes))
        emit.store(top, 0, across(emit.load(most, 0), lanes, emit.vmax))
        seen = emit.load(top, 0)
        if several:
            emit.store(top, 0, emit.vmax(seen, emit.load(self.running, query)))
        elif self.spec.guarded:
            seen = emit.vmax(seen, emit.splat(FLOOR, "float32", 1))
        emit.store(total, 0, emit.splat(0.0, "float32", lanes))
        with emit.loop(0, vectors) as j:
            shifted = emit.load(self.scores, at + j * lanes, lanes) - emit.splat(seen, "float32", lanes)
            emit.store(self.scores, at + j * lanes, emit.exp(shifted, lanes), lanes)
            done = emit.load(self.scores, at + j * lanes, lanes)
            emit.store(total, 0, emit.load(total, 0) + done)
        sums = across(emit.load(total, 0), lanes, lambda a, b: a + b)
        if several:
            self.carry(i, query, seen, sums)
            return
        emit.store(self.sums, i, sums)
        emit.store(self.sums, i, self.divisor(emit.load(self.sums, i)))

    def divisor(self, total: Any) -> Any:
        """What a row is divided by. The largest score adds 1 to the sum: where that is less, all keys are
        hidden by infinities, and the row is not a number, or zeros where the network guards against that."""
        nothing = emit.splat(math.inf if self.spec.guarded else math.nan, "float32", 1)
        return emit.select(total < emit.splat(0.5, "float32", 1), nothing, total)

    def carry(self, i: Any, query: Any, top: Any, sums: Any) -> None:
        """Take the part's maximum and sum of a row into those of the parts before."""
        maximum, total = query, self.spec.queries + query
        factor = emit.exp(emit.load(self.running, maximum) - top, 1)
        emit.store(self.factors, i, factor)
        kept = emit.load(self.running, total) * emit.load(self.factors, i)
        emit.store(self.running, total, kept + sums)
        emit.store(self.running, maximum, top)
        emit.store(self.sums, i, self.divisor(emit.load(self.running, total)))

    def combine(self, row: Any, rows: int) -> None:
        s, lanes = self.spec, self.spec.lanes
        to = self.at["y"] + row * s.y.row
        keys = self.key_blocks.n

        def block(index: Any, vectors: int, valid: int) -> None:
            column = index * s.value_blocks.width * lanes

            def place(i: int, v: int) -> tuple[Any, int]:
                return to + i * s.y.row + column + v * lanes, valid if v == vectors - 1 else lanes

            def so_far(i: int, v: int) -> Any:
                at, here = place(i, v)
                before = load_part(self.buffers["y"], "float32", at, lanes, here)
                return before * emit.splat(emit.load(self.factors, i), "float32", lanes)

            def keep(i: int, v: int, value: Any) -> None:
                at, here = place(i, v)
                store_part(self.buffers["y"], "float32", at, value, lanes, here)

            def put(i: int, v: int, value: Any) -> None:
                inverse = emit.splat(1.0, "float32", 1) / emit.load(self.sums, i)
                keep(i, v, value * emit.splat(inverse, "float32", lanes))

            tile(
                rows, vectors, lanes, keys,
                lambda i, t: emit.load(self.scores, i * self.width + t),
                lambda v, t: emit.load(self.values, column * keys + (t * vectors + v) * lanes, lanes),
                put,
                Parts(self.part, s.key_parts[1], so_far, keep),
            )  # fmt: skip

        s.value_blocks.each(block)
