"""Products of two matrices, each read where and as it lies: matmul, and linear layers whose sums are long.

A task is a chunk of rows and a group of column blocks of one product of the batch:

    for each block of k:
        for each block of columns:
            panel <- the block of B        (unless it is packed already, or read once just as it lies)
            for each tile of rows:
                acc <- 0, or the sums so far in y;  for k: acc += a * b;  y <- acc, at the end with epilogue

A panel stays in the first-level cache while the tiles of the chunk pass over it, the chunk of A in the second
(Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008). Strides of any kind: a
transposed operand costs its packing (B) or nothing (A).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from . import emit
from .bfloat16 import AHEAD, stored
from .matmul_spec import MatmulSpec, batch_offset, matmul_params
from .partial import load_part, store_part
from .product import (
    Parts,
    each_tile,
    pack,
    tile,
)


def emit_matmul(spec: MatmulSpec, name: str) -> Any:
    """The PrimFunc."""
    return emit.kernel(
        name, matmul_params(spec), lambda *args: _Matmul(spec, args).body(), wrapped=spec.mac.wrapped
    )


class _Matmul:
    """Emits one kernel. `at` holds the offset of the task's matrix in every operand."""

    def __init__(self, spec: MatmulSpec, args: tuple[Any, ...]) -> None:
        *buffers, self.begin, self.end = args
        self.spec = spec
        self.buffers = dict(zip((n for n, _ in matmul_params(spec)), buffers, strict=True))
        self.panel = emit.local(spec.stack_bytes // 4, "float32") if spec.packs else None
        self.source = emit.local(spec.rounded, spec.mac.a_dtype) if spec.rounded else self.buffers["a"]
        self.at: dict[str, Any] = {}

    def body(self) -> None:
        s = self.spec
        blocks = s.tiling[1]

        def one(task: Any) -> None:
            group = task % s.groups if s.groups > 1 else 0
            rest = task // s.groups
            chunk = rest % s.chunks if s.chunks > 1 else 0
            index = rest // s.chunks
            self.at = {
                n: batch_offset(index, s.batch, m.batch) for n, m in zip("aby", (s.a, s.b, s.y), strict=True)
            }
            first: Any = 0
            last: Any = blocks.count
            if s.groups > 1:
                first = group * s.group
                last = emit.vmin(first + s.group, blocks.count)

            def block(kb: Any) -> None:
                if s.rounded:
                    self.round(chunk, kb)
                self.columns(chunk, first, last, kb)

            emit.over(0, s.depths, block)

        emit.over(self.begin, self.end, one)

    def tiles(self, chunk: Any) -> tuple[Any, Any]:
        """First and end of the tiles of rows of a task."""
        s, count = self.spec, self.spec.tiling[0].count
        if s.chunks == 1:
            return 0, count
        return chunk * s.chunk, emit.vmin(chunk * s.chunk + s.chunk, count)

    def first_row(self, tile: Any) -> Any:
        rows = self.spec.tiling[0]
        return tile * rows.size + (emit.vmin(tile, rows.larger) if rows.larger else 0)

    def depth(self, kb: Any) -> Any:
        s = self.spec
        return emit.vmin(s.depth, s.k - kb * s.depth) if s.k % s.depth else s.depth

    def round(self, chunk: Any, kb: Any) -> None:
        """The task's rows of A for one block of k, rounded into scratch [row][s.depth], zero beyond k."""
        s, a, lanes, dtype = self.spec, self.buffers["a"], self.spec.lanes, self.spec.mac.a_dtype
        first, last = (self.first_row(tile) for tile in self.tiles(chunk))
        depth = self.depth(kb)

        def put(row: Any, k: Any, width: int) -> None:
            at = self.at["a"] + (first + row) * s.a.row + kb * s.depth + k
            emit.store(self.source, row * s.depth + k, stored(emit.load(a, at, width), dtype, width), width)

        def line(row: Any) -> None:
            if s.k % s.mac.group:
                last = emit.vmin(depth, s.depth - 1)  # in blocks of whole steps this place is written below
                emit.store(self.source, row * s.depth + last, emit.splat(0, dtype, 1))
            emit.over(0, depth // lanes, lambda i: put(row, i * lanes, lanes))
            emit.over(depth // lanes * lanes, depth, lambda k: put(row, k, 1))

        emit.over(0, last - first, line)

    def columns(self, chunk: Any, first: Any, last: Any, kb: Any) -> None:
        """All blocks [first, last) of columns for one block of k."""
        blocks = self.spec.tiling[1]
        whole = emit.vmin(last, blocks.whole) if self.spec.groups > 1 and blocks.rest else last
        if self.spec.groups == 1:
            whole = blocks.whole
        emit.over(first, whole, lambda block: self.block(chunk, block, kb, blocks.width, blocks.lanes))
        if not blocks.rest:
            return
        if self.spec.groups == 1:
            self.block(chunk, blocks.whole, kb, blocks.rest, blocks.valid)
            return
        with emit.when(last == blocks.count):
            self.block(chunk, blocks.whole, kb, blocks.rest, blocks.valid)

    def block(self, chunk: Any, block: Any, kb: Any, vectors: int, valid: int) -> None:
        s = self.spec
        lanes, blocks = s.lanes, s.tiling[1]
        column = block * blocks.width * lanes
        depth, step = self.depth(kb), s.mac.group
        first = self.at["b"] + column * s.b.col + kb * s.depth * s.b.row
        if s.packs:
            pack(self.panel, 0, self.buffers["b"], first, s.b, depth, vectors, valid, lanes)
        steps = (depth + step - 1) // step
        packed = self.at["b"] + kb * s.depth * blocks.columns + column * steps * step

        def load_b(count: int, v: int, t: Any) -> Any:
            if s.packs:
                return emit.load(self.panel, (t * vectors + v) * lanes, lanes)
            if s.packed:
                at = packed + (t * vectors + v) * lanes * step
                if v == 0 and s.streams(count, vectors):
                    emit.fetch(self.buffers["b"], at + AHEAD)
                return s.mac.load_b(self.buffers["b"], at)
            here = valid if v == vectors - 1 else lanes
            return load_part(self.buffers["b"], "float32", first + t * s.b.row + v * lanes, lanes, here)

        def rows(row: Any, count: int) -> None:
            base = self.at["a"] + row * s.a.row + kb * s.depth * s.a.col
            if s.rounded:
                base = (row - self.first_row(start)) * s.depth
            self.tile(row, column, kb, count, vectors, valid, steps, base, partial(load_b, count))

        start, end = self.tiles(chunk)
        each_tile(s.tiling[0], start, end, rows)
        if s.heavy and s.depths > 1:
            with emit.when(kb == s.depths - 1):
                self.finish(start, end, column, vectors, valid)
        elif s.heavy:
            self.finish(start, end, column, vectors, valid)

    def finish(self, start: Any, end: Any, column: Any, vectors: int, valid: int) -> None:
        """Epilogue of the rows of tiles [start, end) that are in y as sums."""
        s, y, lanes = self.spec, self.buffers["y"], self.spec.lanes
        first, last = self.first_row(start), self.first_row(end)
        with emit.loop(first, last) as row:
            to = self.at["y"] + row * s.y.row + column
            for v in range(vectors):
                here = valid if v == vectors - 1 else lanes
                at = to + v * lanes
                self.put(load_part(y, "float32", at, lanes, here), at, column + v * lanes, here)

    def put(self, value: Any, at: Any, column: Any, valid: int) -> None:
        value = self.finished(value, at, column, valid)
        store_part(self.buffers["y"], "float32", at, value, self.spec.lanes, valid)

    def tile(
        self,
        row: Any,
        column: Any,
        kb: Any,
        count: int,
        vectors: int,
        valid: int,
        steps: Any,
        base: Any,
        load_b: Any,
    ) -> None:
        s, y, lanes = self.spec, self.buffers["y"], self.spec.lanes
        to = self.at["y"] + row * s.y.row + column

        def place(i: int, v: int) -> tuple[Any, int]:
            return to + i * s.y.row + v * lanes, valid if v == vectors - 1 else lanes

        def so_far(i: int, v: int) -> Any:
            at, here = place(i, v)
            return load_part(y, "float32", at, lanes, here)

        def keep(i: int, v: int, value: Any) -> None:
            at, here = place(i, v)
            store_part(y, "float32", at, value, lanes, here)

        def done(i: int, v: int, value: Any) -> None:
            at, here = place(i, v)
            self.put(value, at, column + v * lanes, here)

        def load_a(i: int, t: Any) -> Any:
            if s.rounded:
                return s.mac.load_a(self.source, base + i * s.depth + t * s.mac.group)
            return emit.load(self.buffers["a"], base + i * s.a.row + t * s.a.col)

        tile(
            count, vectors, lanes, steps, load_a, load_b, keep if s.heavy else done,
            Parts(kb, s.depths, so_far, keep), s.mac if s.rounded else None, s.chains(count, vectors),
        )  # fmt: skip

    def finished(self, value: Any, at: Any, column: Any, valid: int) -> Any:
        """The result's vector: scaled, or as the epilogue says. Packed operands hold whole vectors."""
        s, e, lanes = self.spec, self.spec.epilogue, self.spec.lanes
        if s.scale != 1.0:
            value = value * emit.splat(s.scale, "float32", lanes)
        if e.bias:
            value = value + emit.load(self.buffers["bias"], column, lanes)
        scale = emit.load(self.buffers["scale"], column, lanes) if e.scale else None
        residual = load_part(self.buffers["residual"], e.residual, at, lanes, valid) if e.residual else None
        return e.activated(value, scale, residual, lanes)
