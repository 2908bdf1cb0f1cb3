"""Convolution and linear layers as an implicit matrix product.

Rows are output pixels, columns output channels, k the window. The output of a row of pixels is made tile by
tile in registers. Where the window needs padding, or A must be widened for the multiply instruction, a task
first copies the input that it needs into a scratch on the stack; otherwise A is read where it lies. B is
packed as [group][block of columns][k / mac.group][columns of the block][mac.group], zero-padded.

A task is a range of output rows and column tiles, or of column blocks when there are few rows:

    scratch <- input rows
    for each block of columns:
        for each row, tile:
            acc <- bias;  for k: acc += a * b;  epilogue

The panel of B that a block uses stays in the first-level cache while the tiles of the task pass over it
(Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import emit
from ..bfloat16 import AHEAD, stored
from ..epilogue import UNIT, quantise
from ..partial import load_part, store_part
from ..tiling import CACHE_LINE
from .gemm_spec import UNROLL_STEPS, GemmSpec, gemm_params


def emit_gemm(spec: GemmSpec, name: str) -> Any:
    """The PrimFunc."""
    return emit.kernel(
        name, gemm_params(spec), lambda *args: _Gemm(spec, args).body(), wrapped=spec.mac.wrapped
    )


class _Gemm:
    """Emits one kernel. Holds the buffers and the addresses that the pieces share."""

    def __init__(self, spec: GemmSpec, args: tuple[Any, ...]) -> None:
        *buffers, self.begin, self.end = args
        self.spec = spec
        self.buffers = dict(zip((n for n, _ in gemm_params(spec)), buffers, strict=True))
        self.source = self.buffers["x"]
        if spec.scratch:
            self.source = emit.local(spec.scratch_size(*spec.chunk), spec.mac.a_dtype)

    def body(self) -> None:
        s = self.spec
        if s.by_blocks:
            self.fill(0, 0, 0)
            emit.over(self.begin, self.end, lambda block: self.block_or_rest(0, 0, 0, 0, block))
            return
        with emit.loop(self.begin, self.end) as task:
            image = task // (s.row_chunks * s.col_chunks) if s.n > 1 else 0
            row = (task // s.col_chunks % s.row_chunks) * s.chunk[0] if s.row_chunks > 1 else 0
            tile = (task % s.col_chunks) * s.chunk[1] if s.col_chunks > 1 else 0
            self.fill(image, row, tile)
            emit.over(0, s.groups, lambda group: self.columns(image, row, tile, group))

    def columns(self, image: Any, row: Any, tile: Any, group: Any) -> None:
        full, rest = divmod(self.spec.vectors, self.spec.tile[1])
        emit.over(0, full, lambda block: self.rows(image, row, tile, group, block, self.spec.tile[1]))
        if rest:
            self.rows(image, row, tile, group, full, rest)

    def block_or_rest(self, image: Any, row: Any, tile: Any, group: Any, block: Any) -> None:
        full, rest = divmod(self.spec.vectors, self.spec.tile[1])
        whole = lambda: self.rows(image, row, tile, group, block, self.spec.tile[1])  # noqa: E731
        if rest:
            emit.branch(block < full, whole, lambda: self.rows(image, row, tile, group, full, rest))
        else:
            whole()

    def rows(self, image: Any, row: Any, tile: Any, group: Any, block: Any, vectors: int) -> None:
        s = self.spec
        rows, tiles = s.chunk
        row_end = emit.vmin(s.oh - row, rows) if s.oh % rows else rows
        tile_end = emit.vmin(tile + tiles, s.columns.count) if s.columns.count % tiles else tile + tiles

        def one(r: Any, t: Any) -> None:
            (large, count), *others = s.columns.sizes()
            if not others:
                return self.tile(image, row, r, tile, t * large, group, block, large, vectors)
            small = others[0][0]
            emit.branch(
                t < count,
                lambda: self.tile(image, row, r, tile, t * large, group, block, large, vectors),
                lambda: self.tile(image, row, r, tile, t * small + count, group, block, small, vectors),
            )

        emit.over(0, row_end, lambda r: emit.over(tile, tile_end, lambda t: one(r, t)))

    def first_pixel(self, tile: Any) -> Any:
        """The output column at which a tile begins."""
        columns = self.spec.columns
        return tile * columns.size + (emit.vmin(tile, columns.larger) if columns.larger else 0)

    def fill(self, image: Any, row: Any, tile: Any) -> None:
        """Copy the task's input into the scratch: [rows][cols][c], or [c][rows][cols] from an NCHW input."""
        s = self.spec
        if not s.scratch:
            return
        rows, cols = s.scratch_rows(s.chunk[0]), s.scratch_cols(s.chunk[1])
        top = row * s.strides[0] - s.pads[0]
        left = self.first_pixel(tile) * s.strides[1] - s.pads[1]
        planes, pixel = (s.c, 1) if s.nchw_in else (1, s.c)
        lanes = 16 if s.mac.a_dtype != "float32" else s.lanes
        start, stop = emit.vmax(0, 0 - left), emit.vmin(cols, s.w - left)

        def line(plane: Any, r: Any) -> None:
            to = (plane * rows + r) * cols * pixel
            height = top + r
            origin = ((image * planes + plane) * s.h + height) * s.w * pixel + left * pixel
            inside = [(height >= 0) if s.padded else None, (height < s.h)]

            def copy() -> None:
                self.pad(to, start * pixel, lanes)
                self.move(to + start * pixel, origin + start * pixel, (stop - start) * pixel, lanes)
                self.pad(to + stop * pixel, (cols - stop) * pixel, lanes)

            if s.padded:
                emit.branch(emit.ib.And(*inside), copy, lambda: self.pad(to, cols * pixel, lanes))
            else:
                # The last chunk may be short: rows beyond the input are not read, so they are not copied.
                with emit.when(inside[1]):
                    self.move(to, origin, stop * pixel, lanes)

        emit.over(0, planes, lambda plane: emit.over(0, rows, lambda r: line(plane, r)))

    def move(self, to: Any, origin: Any, count: Any, lanes: int) -> None:
        x, dtype = self.buffers["x"], self.spec.mac.a_dtype

        def put(at: Any, width: int) -> None:
            value = emit.load(x, origin + at, width)
            if self.spec.mac.rounds:
                value = stored(value, dtype, width)
            elif dtype != self.spec.x_dtype:
                value = emit.cast(value, dtype, width)
            emit.store(self.source, to + at, value, width)

        count = emit.once(count)
        with emit.loop(0, count // lanes) as i:
            put(i * lanes, lanes)
        with emit.loop(count // lanes * lanes, count) as i:
            put(i, 1)

    def pad(self, to: Any, count: Any, lanes: int) -> None:
        dtype = self.spec.mac.a_dtype
        value = float(self.spec.x_zero) if dtype == "float32" else self.spec.x_zero
        count = emit.once(count)
        with emit.loop(0, count // lanes) as i:
            emit.store(self.source, to + i * lanes, emit.splat(value, dtype, lanes), lanes)
        with emit.loop(count // lanes * lanes, count) as i:
            emit.store(self.source, to + i, emit.splat(value, dtype, 1))

    def tile(
        self,
        image: Any,
        row: Any,
        r: Any,
        tile: Any,
        pixel: Any,
        group: Any,
        block: Any,
        rows: int,
        vectors: int,
    ) -> None:
        """Output pixels [pixel, pixel + rows) of output row `row + r`, all columns of a block."""
        s, mac = self.spec, self.spec.mac
        chains, size = s.chains(rows, vectors), rows * vectors
        acc = emit.local(chains * size, emit.vector(mac.acc_dtype, mac.lanes))
        channel = group * s.vectors * s.lanes + block * s.tile[1] * s.lanes
        for v in range(vectors):
            start = s.epilogue.start(self.buffers.get("bias"), channel + v * s.lanes, s.lanes)
            for i in range(rows):
                emit.store(acc, i * vectors + v, start)
        for i in range(size, chains * size):
            emit.store(acc, i, mac.zero())
        width = s.segments * s.run_steps * mac.group * s.lanes
        panel = (group * s.vectors + block * s.tile[1]) * width
        base, step = self.origin(image, row, r, tile, pixel, group)

        def k_step(segment: Any, t: Any, chain: int = 0, count: int = 0) -> None:
            from_b = panel + (segment * s.run_steps + t) * vectors * s.lanes * mac.group
            if mac.rounds and chains > 1:
                emit.fetch(self.buffers["b"], from_b + AHEAD)
            b = [mac.load_b(self.buffers["b"], from_b + v * s.lanes * mac.group) for v in range(vectors)]
            for i in range(rows):
                a = mac.load_a(self.source, base + self.segment(segment) + t * mac.group + i * step, count)
                for v in range(vectors):
                    at = chain * size + i * vectors + v
                    emit.store(acc, at, self.kept(mac.step(emit.load(acc, at), a, b[v])))

        if s.fetches:
            per_line = CACHE_LINE // s.a_bytes
            with emit.loop(0, -(-rows * s.c // per_line)) as line:
                emit.fetch(self.source, base + rows * step + line * per_line)
        if chains > 1:
            self.by_chains(chains, k_step)
            for i in range(size, chains * size):
                emit.store(acc, i % size, emit.load(acc, i % size) + emit.load(acc, i))
        else:
            self.by_segments(k_step)
        out = (
            ((image * s.oh + row + r) * s.ow + pixel) * s.oc
            + group * s.group_oc
            + block * s.tile[1] * s.lanes
        )
        self.finish(acc, out, channel, block, rows, vectors)

    def by_segments(self, step: Callable[..., None]) -> None:
        """All steps in order; few of them are straight code."""
        s = self.spec
        few = s.segments * s.run_steps <= UNROLL_STEPS

        def one(segment: Any) -> None:
            if few:
                for t in range(s.whole_steps):
                    step(segment, t)
            else:
                emit.over(0, s.whole_steps, lambda t: step(segment, t))
            if s.whole_steps < s.run_steps:
                step(segment, s.whole_steps, count=s.run % s.mac.group)

        if few:
            for segment in range(s.segments):
                one(segment)
        else:
            emit.over(0, s.segments, one)

    def by_chains(self, chains: int, step: Callable[..., None]) -> None:
        """All steps of the one segment, every chain in its turn."""
        s = self.spec
        rounds, rest = divmod(s.whole_steps, chains)
        with emit.loop(0, rounds) as t:
            for chain in range(chains):
                step(0, t * chains + chain, chain)
        for chain in range(rest):
            step(0, rounds * chains + chain, chain)
        if s.whole_steps < s.run_steps:
            step(0, s.whole_steps, rest, s.run % s.mac.group)

    def kept(self, total: Any) -> Any:
        return emit.kept(total, self.spec.lanes) if self.spec.mac.acc_dtype == "int32" else total

    def origin(self, image: Any, row: Any, r: Any, tile: Any, pixel: Any, group: Any) -> tuple[Any, int]:
        """Index in the source of the window's first value for an output pixel, and the distance to the
        next pixel's."""
        s = self.spec
        if not s.scratch:
            at = (image * s.h + (row + r) * s.strides[0]) * s.w + pixel * s.strides[1]
            return at * s.c + group * s.group_c, s.strides[1] * s.c
        cols = s.scratch_cols(s.chunk[1])
        at = r * s.strides[0] * cols + (pixel - self.first_pixel(tile)) * s.strides[1]
        if s.nchw_in:
            return at, s.strides[1]
        return at * s.c + group * s.group_c, s.strides[1] * s.c

    def segment(self, index: Any) -> Any:
        """Distance of a segment of k from the window's first value."""
        s = self.spec
        line = (s.scratch_cols(s.chunk[1]) if s.scratch else s.w) * (1 if s.nchw_in else s.c)
        if s.nchw_in:
            per_row = s.kernel[1] // s.run
            plane, rest = index // (s.kernel[0] * per_row), index % (s.kernel[0] * per_row)
            at = plane * s.scratch_rows(s.chunk[0]) * line + rest // per_row * s.dilations[0] * line
            return at + rest % per_row * s.dilations[1]
        per_row = s.kernel[1] * s.group_c // s.run
        return index // per_row * s.dilations[0] * line + index % per_row * s.dilations[1] * s.c

    def finish(self, acc: Any, out: Any, channel: Any, block: Any, rows: int, vectors: int) -> None:
        if self.spec.in_units and vectors == UNIT:
            for i in range(rows):
                self.finish_unit(acc, i, out + i * self.spec.oc, channel)
        else:
            self.finish_vectors(acc, out, channel, block, rows, vectors)

    def finish_unit(self, acc: Any, i: int, out: Any, channel: Any) -> None:
        """Pack and store row `i` of a tile."""
        s, e = self.spec, self.spec.epilogue

        def total(v: int) -> Any:
            scale = emit.load(self.buffers["scale"], channel + v * s.lanes, s.lanes) if e.scale else None
            residual = e.unit_residual(self.buffers["residual"], out, v, s.lanes) if e.residual else None
            return e.total(emit.load(acc, i * UNIT + v), scale, residual, s.lanes)

        values = e.activated_all([total(v) for v in range(UNIT)], s.lanes)
        packed = e.packed(s.lanes, [e.whole(f, s.lanes) for f in values])
        emit.store(self.buffers["y"], out, packed, UNIT * s.lanes)

    def finish_vectors(self, acc: Any, out: Any, channel: Any, block: Any, rows: int, vectors: int) -> None:
        s, e = self.spec, self.spec.epilogue
        # Only the last block is narrower than a tile or holds a partial vector.
        last = vectors == s.vectors - (s.vectors - 1) // s.tile[1] * s.tile[1] and s.group_oc % s.lanes
        partial = s.group_oc % s.lanes if last else 0

        def ready(i: int, v: int, valid: int) -> Any:
            at = out + i * s.oc + v * s.lanes
            scale = emit.load(self.buffers["scale"], channel + v * s.lanes, s.lanes) if e.scale else None
            residual = (
                load_part(self.buffers["residual"], e.residual, at, s.lanes, valid) if e.residual else None
            )
            return e.activated(emit.load(acc, i * vectors + v), scale, residual, s.lanes)

        def all_of(valid: int) -> None:
            whole = vectors if valid == s.lanes else vectors - 1
            for i in range(rows):
                for v in range(0, vectors, 2 if e.packs(s.lanes) else 1):
                    at = out + i * s.oc + v * s.lanes
                    if e.packs(s.lanes) and v + 1 < whole:
                        both = e.pack(s.lanes, ready(i, v, s.lanes), ready(i, v + 1, s.lanes))
                        emit.store(self.buffers["y"], at, both, 2 * s.lanes)
                        continue
                    for w in range(v, min(v + (2 if e.packs(s.lanes) else 1), vectors)):
                        here = valid if w == vectors - 1 else s.lanes
                        f = ready(i, w, here)
                        value = e.pack(s.lanes, f) if e.packs(s.lanes) else quantise(f, e, s.lanes)
                        to = at + (w - v) * s.lanes
                        store_part(self.buffers["y"], e.out_dtype, to, value, s.lanes, here)

        final = (s.vectors - 1) // s.tile[1]
        if not partial:
            all_of(s.lanes)
        elif isinstance(block, int):
            all_of(partial if block == final else s.lanes)
        else:
            emit.branch(block == final, lambda: all_of(partial), lambda: all_of(s.lanes))
