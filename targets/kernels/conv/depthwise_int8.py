"""Depthwise convolution of uint8 by int8, NHWC: input rows interleaved once, used by every tap and two rows.

A band of output rows reads a few input rows. Their values are interleaved in scratch, column by column and
padded at the edges, so that one instruction multiplies several rows of a column with several taps and sums
them (mac.RowDot). Tiles then run over the scratch alone: no shuffles, no edges, and the same interleaved rows
serve every tap column and both output rows of the band.

    scratch[vector][column][step][lane][row of the step]        step: as many rows as one instruction sums

Channels go in units of four vectors. Instructions that interleave or pack work within 128 bits, so the
vectors of a unit hold its channels in the order in which unpacking leaves them (epilogue.unit_order);
weights, bias and scale are packed in that order, and packing the results restores the natural one. When the
channels are not whole units, the last unit overlaps the one before it.

Measured on a Zen 3 core: a pair of vpmaddwd and vpaddd takes 0.62 cycles, which makes 3.7 cycles for eight
channels of a 3x3 window and 9.3 for 5x5; interleaving adds about 1.5, the epilogue 2.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from .. import emit
from ..epilogue import UNIT, quantise
from ..partial import load_part, store_part
from .depthwise_parts import each_task, task_rows
from .depthwise_spec import BAND, DepthwiseSpec, depthwise_params


def emit_depthwise_int8(spec: DepthwiseSpec, name: str) -> Any:
    """The PrimFunc."""
    return emit.kernel(name, depthwise_params(spec), lambda *args: _DepthwiseInt8(spec, args).body())


@dataclass(frozen=True)
class _Band:
    """Output rows [row, row + live) of one picture, units of channels from `first` on."""

    image: Any
    row: Any
    live: int
    first: Any


@dataclass(frozen=True)
class _Tile:
    """Unit number `slot` of the group in a band: its first channel, the output pixels of a tile from `pixel`
    on, and the scratch column where their windows begin."""

    band: _Band
    slot: Any
    unit: Any
    channel: Any
    pixel: Any
    pixels: int
    column: Any


class _DepthwiseInt8:
    """Emits one kernel. Holds the buffers that the pieces share."""

    def __init__(self, spec: DepthwiseSpec, args: tuple[Any, ...]) -> None:
        *buffers, self.begin, self.end = args
        self.spec = spec
        self.dot = spec.row_dot
        self.wide = spec.lanes * self.dot.rows
        self.bytes = UNIT * spec.lanes
        self.buffers = dict(zip((n for n, _ in depthwise_params(spec)), buffers, strict=True))

    def body(self) -> None:
        s = self.spec
        taps = s.group * UNIT * len(s.pieces) * s.kernel[1] * self.wide
        self.columns = max(s.columns(tiles * s.tile + narrow) for _, _, tiles, narrow in s.chunks)
        self.taps, self.taps_at = emit.aligned(taps, self.dot.w_dtype)
        self.scratch, self.scratch_at = emit.aligned(
            UNIT * self.columns * s.steps * self.wide, self.dot.x_dtype
        )
        staged = "int32" if s.epilogue.packs(s.lanes) else s.epilogue.out_dtype
        self.stage, self.stage_at = emit.aligned(BAND * s.tile * self.bytes, staged)
        each_task(s, self.begin, self.end, self.task)

    def task(self, image: Any, row: Any, group: Any) -> None:
        """All rows of a task, in bands, for a group of units."""
        s = self.spec
        first = group * s.group
        count = emit.vmin(s.group, s.units - first) if s.units % s.group else s.group
        emit.over(0, count, lambda i: emit.over(0, UNIT, lambda v: self.spread_taps(i, first + i, v)))
        rows = task_rows(s, row)
        bands = rows // BAND
        emit.over(0, bands, lambda at: self.band(_Band(image, row + at * BAND, BAND, first), count))
        if rest := s.oh % BAND:
            last = _Band(image, row + bands * BAND, rest, first)
            with emit.when(rows % BAND != 0) if s.row_tasks > 1 else nullcontext():
                self.band(last, count)

    def spread_taps(self, i: Any, unit: Any, v: Any) -> None:
        """Interleave the weights of a vector of channels as its input rows will be."""
        s = self.spec
        for p, (_, _, taps) in enumerate(s.pieces):
            for kw in range(s.kernel[1]):
                rows = [
                    emit.splat(0, "int8", s.lanes) if k is None else self.weight(unit, v, k, kw) for k in taps
                ]
                lanes = s.lanes
                while len(rows) > 1:  # a b c d -> ac bd -> abcd
                    half = len(rows) // 2
                    rows = [
                        emit.interleave(a, b, lanes) for a, b in zip(rows[:half], rows[half:], strict=True)
                    ]
                    lanes *= 2
                value = emit.cast(rows[0], self.dot.w_dtype, self.wide)
                emit.store(self.taps, self.tap(i, v, p, kw), value, self.wide)

    def weight(self, unit: Any, v: Any, kh: int, kw: int) -> Any:
        s = self.spec
        tap = kh * s.kernel[1] + kw
        return emit.load(self.buffers["w"], unit * s.unit_weights + (tap * UNIT + v) * s.lanes, s.lanes)

    def tap(self, i: Any, v: Any, piece: int, kw: Any) -> Any:
        """Where the interleaved weights of a piece lie."""
        s = self.spec
        return self.taps_at + (((i * UNIT + v) * len(s.pieces) + piece) * s.kernel[1] + kw) * self.wide

    def place(self, v: Any, column: Any, step: int) -> Any:
        """Where in scratch a step of a column lies."""
        return self.scratch_at + ((v * self.columns + column) * self.spec.steps + step) * self.wide

    def band(self, at: _Band, count: Any) -> None:
        """A band from left to right: a chunk of input interleaved, then its tiles."""
        s = self.spec

        def part(i: Any, first: Any, tiles: int, narrow: int) -> None:
            unit = at.first + i
            channel = self.first_channel(unit)
            self.fill(at, channel, first * s.strides[1] - s.pads[1], s.columns(tiles * s.tile + narrow))

            def tile(t: Any, pixels: int) -> None:
                pixel = t * s.tile
                self.tile(_Tile(at, i, unit, channel, first + pixel, pixels, pixel * s.strides[1]))

            emit.over(0, tiles, lambda t: tile(t, s.tile))
            if narrow:
                tile(tiles, narrow)

        for begin, number, tiles, narrow in s.chunks:

            def chunk(c: Any, begin: int = begin, tiles: int = tiles, narrow: int = narrow) -> None:
                first = begin + c * (tiles * s.tile)
                emit.over(0, count, lambda i: part(i, first, tiles, narrow))

            emit.over(0, number, chunk)

    def first_channel(self, unit: Any) -> Any:
        s = self.spec
        if s.c % self.bytes == 0 or s.units == 1:
            return unit * self.bytes
        return emit.vmin(unit * self.bytes, s.c - self.bytes)

    def fill(self, at: _Band, channel: Any, left: Any, columns: int) -> None:
        """Interleave `columns` input columns from `left` on; what lies outside the picture is the zero
        point."""
        s = self.spec
        top = at.row * s.strides[0] - s.pads[0]
        place = ((at.image * s.h + top) * s.w + left) * s.c + channel
        begin: Any = emit.vmin(emit.vmax(0 - left, 0), columns)
        end: Any = emit.vmax(emit.vmin(s.w - left, columns), begin)
        zero = emit.splat(s.x_zero, self.dot.x_dtype, self.wide)

        def outside(j: Any) -> None:
            for v in range(UNIT):
                for step in range(s.steps):
                    emit.store(self.scratch, self.place(v, j, step), zero, self.wide)

        def inside(masked: bool) -> None:
            emit.over(begin, end, lambda j: self.column(top, place, j, masked))

        emit.over(0, begin, outside)
        if s.rows_inside(BAND):
            inside(False)
        else:
            all_there = emit.ib.And(top >= 0, top + s.band_rows[-1] < s.h)
            emit.branch(all_there, lambda: inside(False), lambda: inside(True))
        emit.over(end, columns, outside)

    def column(self, top: Any, place: Any, j: Any, masked: bool) -> None:
        """Interleave one input column."""
        s = self.spec
        for step in range(s.steps):
            rows = emit.local(self.dot.rows, emit.vector("uint8", self.bytes))
            here = s.band_rows[step * self.dot.rows : (step + 1) * self.dot.rows]
            for r in range(self.dot.rows):
                absent = emit.splat(0, "uint8", self.bytes)
                there = r < len(here)
                x = self.input_row(top, here[r], place + j * s.c, masked) if there else absent
                emit.store(rows, r, x)
            for v in range(UNIT):
                value = self.dot.interleaved([emit.load(rows, r) for r in range(self.dot.rows)], s.lanes, v)
                emit.store(self.scratch, self.place(v, j, step), value, self.wide)

    def input_row(self, top: Any, row: int, place: Any, masked: bool) -> Any:
        """A unit of channels at one input row. `masked`: rows outside are read as the zero point."""
        s = self.spec
        line, valid = s.w * s.c, min(s.c, self.bytes)
        if not masked:
            return load_part(self.buffers["x"], s.x_dtype, place + row * line, self.bytes, valid)
        # A row that exists is read in any case; the mask decides whether it counts.
        height = top + row
        nearest = emit.vmin(emit.vmax(height, 0), s.h - 1)
        x = load_part(self.buffers["x"], s.x_dtype, place + (nearest - top) * line, self.bytes, valid)
        counts = emit.ib.And(height >= 0, height < s.h)
        keep = emit.splat(emit.choose(counts, 255, 0, "uint8"), "uint8", self.bytes)
        fill = emit.splat(emit.choose(counts, 0, s.x_zero, "uint8"), "uint8", self.bytes)
        return emit.ib.bitwise_or(emit.ib.bitwise_and(x, keep), fill)

    def tile(self, at: _Tile) -> None:
        """Sums of a tile, a vector of channels at a time; then its stores."""
        s = self.spec
        places = [
            (((at.band.image * s.oh + at.band.row + r) * s.ow) + at.pixel + j) * s.c + at.channel
            for r in range(at.band.live)
            for j in range(at.pixels)
        ]
        emit.over(0, UNIT, lambda v: self.sums(at, v, places))
        for i, place in enumerate(places):
            self.write(i, place)

    def sums(self, at: _Tile, v: Any, places: list[Any]) -> None:
        s, e = self.spec, self.spec.epilogue
        acc = emit.local(len(places), emit.vector("int32", s.lanes))
        start = e.start(self.buffers.get("bias"), (at.unit * UNIT + v) * s.lanes, s.lanes)
        for i in range(len(places)):
            emit.store(acc, i, start)
        # Straight code would hold more columns than there are registers.
        with emit.loop(0, emit.rolled(s.kernel[1], self.begin)) as kw:
            for step in range(s.steps):
                self.tap_column(acc, at, v, step, kw)
        self.stage_tile(acc, at, v, places)

    def tap_column(self, acc: Any, at: _Tile, v: Any, step: int, kw: Any) -> None:
        """One step of rows times one column of taps, into every pixel of the tile."""
        s = self.spec
        for j in range(at.pixels):
            column = at.column + j * s.strides[1] + kw * s.dilations[1]
            x = emit.load(self.scratch, self.place(v, column, step), self.wide)
            for p, (r, at_step, _) in enumerate(s.pieces):
                if at_step == step and r < at.band.live:
                    w = emit.load(self.taps, self.tap(at.slot, v, p, kw), self.wide)
                    total = self.dot.step(s.lanes, emit.load(acc, r * at.pixels + j), x, w)
                    emit.store(acc, r * at.pixels + j, emit.kept(total, s.lanes))

    def stage_tile(self, acc: Any, at: _Tile, v: Any, places: list[Any]) -> None:
        """The epilogue up to what `write` puts in order."""
        s, e = self.spec, self.spec.epilogue
        scale = emit.load(self.buffers["scale"], (at.unit * UNIT + v) * s.lanes, s.lanes) if e.scale else None
        for i, place in enumerate(places):
            residual = self.residual(place, v) if e.residual else None
            f = e.activated(emit.load(acc, i), scale, residual, s.lanes)
            value = e.whole(f, s.lanes) if e.packs(s.lanes) else quantise(f, e, s.lanes)
            emit.store(self.stage, self.stage_at + (i * UNIT + v) * s.lanes, value, s.lanes)

    def residual(self, place: Any, v: Any) -> Any:
        """A vector of the residual, in the order of the unit's vectors."""
        s, kind = self.spec, self.spec.epilogue.residual
        natural = emit.local(self.bytes, kind)
        valid = min(s.c, self.bytes)
        emit.store(
            natural, 0, load_part(self.buffers["residual"], kind, place, self.bytes, valid), self.bytes
        )
        ordered = emit.local(s.lanes, kind)
        for lane, channel in enumerate(s.order[0]):
            emit.store(ordered, lane, emit.load(natural, channel + v * (s.order[1][0] - s.order[0][0])))
        return emit.load(ordered, 0, s.lanes)

    def write(self, i: int, place: Any) -> None:
        """Put a staged pixel's channels in natural order and store them."""
        s, e = self.spec, self.spec.epilogue
        vectors = [
            emit.load(self.stage, self.stage_at + (i * UNIT + v) * s.lanes, s.lanes) for v in range(UNIT)
        ]
        if e.packs(s.lanes):
            value = e.packed(s.lanes, vectors)
        else:
            at = {channel: i for i, channel in enumerate(c for vector in s.order for c in vector)}
            value = emit.gather_lanes(vectors, tuple(at[c] for c in range(self.bytes)))
        store_part(self.buffers["y"], e.out_dtype, place, value, self.bytes, min(s.c, self.bytes))
