"""Depthwise convolution, NHWC: a vector of channels at a time, a tile of output pixels in registers.

For each step of tap rows, every input vector of the tile is loaded once and multiplied into all the outputs
whose window holds it; the weights of the step stay in registers.

    float32         one tap row a step, multiply-add
    uint8 x int8    two tap rows a step, interleaved; int32 sums of pairs (mac.pair_step), exact for any bias

Channels are walked in groups that share cache lines, all rows of the task within a group, so that a line
fetched for one vector is still there for the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import emit
from .depthwise_spec import DepthwiseSpec, depthwise_params
from .epilogue import quantise
from .mac import pair_step
from .partial import load_part, store_part


def emit_depthwise(spec: DepthwiseSpec, name: str) -> Any:
    """The PrimFunc."""
    return emit.kernel(name, depthwise_params(spec), lambda *args: _Depthwise(spec, args).body())


@dataclass(frozen=True)
class _Tile:
    """Where a tile lies: picture, output row, vector of channels; the output column `first`
    (for tiles in a loop, that of the first of them), how many pixels, whether windows reach over an edge
    (`checked`), and the valid lanes."""

    image: Any
    row: Any
    block: Any
    first: int
    pixels: int
    checked: bool
    valid: int


class _Depthwise:
    """Emits one kernel. Holds the buffers that the pieces share."""

    def __init__(self, spec: DepthwiseSpec, args: tuple[Any, ...]) -> None:
        *buffers, self.begin, self.end = args
        self.spec = spec
        self.buffers = dict(zip((n for n, _ in depthwise_params(spec)), buffers, strict=True))

    def body(self) -> None:
        s = self.spec
        full, rest = divmod(s.c, s.lanes)
        with emit.loop(self.begin, self.end) as task:
            image = task // s.row_tasks if s.n > 1 else 0
            row = (task % s.row_tasks if s.n > 1 else task) * s.rows
            groups = -(-full // s.group)
            emit.over(0, groups, lambda g: self.channels(image, row, g * s.group, full, s.lanes))
            if rest:
                self.channels(image, row, full, full + 1, rest)

    def channels(self, image: Any, row: Any, first: Any, stop: int, valid: int) -> None:
        """All rows of a task for the vectors [first, first + group) before `stop`."""
        s = self.spec
        count = min(s.group, stop - first) if isinstance(first, int) else emit.vmin(s.group, stop - first)
        end = emit.vmin(s.oh - row, s.rows) if s.oh % s.rows else s.rows

        def line(r: Any, i: Any) -> None:
            for begin, pixels, tiles in s.segments:
                over_edge = not s.inside(begin, pixels)
                at = _Tile(image, row + r, first + i, begin, pixels, over_edge, valid)
                emit.over(0, tiles, lambda t, at=at: self.tile(at, at.first + t * at.pixels))  # type: ignore[misc]

        emit.over(0, end, lambda r: emit.over(0, count, lambda i: line(r, i)))

    def tile(self, at: _Tile, pixel: Any) -> None:
        """Output pixels [pixel, pixel + at.pixels) of one row."""
        s, e = self.spec, self.spec.epilogue
        acc = emit.local(at.pixels, emit.vector(e.acc_dtype, s.lanes))
        start = e.start(self.buffers.get("bias"), at.block * s.lanes, s.lanes)
        for i in range(at.pixels):
            emit.store(acc, i, start)
        top = at.row * s.strides[0] - s.pads[0]
        left = ((at.image * s.h + top) * s.w + pixel * s.strides[1] - s.pads[1]) * s.c + at.block * s.lanes
        if s.quantised:
            self.pair_rows(acc, at, top, left)
        else:
            self.tap_rows(acc, at, top, left)
        out = ((at.image * s.oh + at.row) * s.ow + pixel) * s.c + at.block * s.lanes
        self.finish(acc, out, at)

    def tap_rows(self, acc: Any, at: _Tile, top: Any, left: Any) -> None:
        """float32: the tap rows that lie inside the picture, one after the other."""
        s, d = self.spec, self.spec.dilations[0]

        def one(kh: Any) -> None:
            taps = at.block * s.block_weights + kh * (s.kernel[1] * s.lanes)
            w = [emit.load(self.buffers["w"], taps + kw * s.lanes, s.lanes) for kw in range(s.kernel[1])]
            for j, users in self.columns(at):
                place = left + kh * (d * s.w * s.c) + j * s.c
                x = load_part(self.buffers["x"], s.x_dtype, place, s.lanes, at.valid)
                for i, kw in users:
                    emit.store(acc, i, emit.load(acc, i) + x * w[kw])

        if s.rows_inside:
            emit.over(0, s.kernel[0], one)
        else:
            first = emit.vmax(0, (0 - top + d - 1) // d)
            last = emit.vmin(s.kernel[0], (s.h - top + d - 1) // d)
            emit.over(first, last, one)

    def pair_rows(self, acc: Any, at: _Tile, top: Any, left: Any) -> None:
        """uint8: tap rows in pairs. Near the upper and lower edge, rows outside are read as the zero
        point."""
        s = self.spec
        reach = (s.kernel[0] - 1) * s.dilations[0]

        def all_of(masked: bool) -> None:
            for step in range(s.steps):
                self.pair(acc, at, top, left, step, masked)

        if s.rows_inside:
            all_of(False)
        else:
            inside = emit.ib.And(top >= 0, top + reach < s.h)
            emit.branch(inside, lambda: all_of(False), lambda: all_of(True))

    def pair(self, acc: Any, at: _Tile, top: Any, left: Any, step: int, masked: bool) -> None:
        s = self.spec
        taps = at.block * s.block_weights + step * 2 * s.kernel[1] * s.lanes
        w = [emit.load(self.buffers["w"], taps + kw * 2 * s.lanes, 2 * s.lanes) for kw in range(s.kernel[1])]
        upper = self.input_row(top, left, 2 * step, masked, at.valid)
        lower = None
        if 2 * step + 1 < s.kernel[0]:  # the second row of an odd last pair has zero weights
            lower = self.input_row(top, left, 2 * step + 1, masked, at.valid)
        for j, users in self.columns(at):
            x = upper(j)
            x = emit.interleave(x, lower(j), s.lanes) if lower else emit.spread(x, s.lanes)
            for i, kw in users:
                emit.store(acc, i, pair_step(s.dot, s.lanes, emit.load(acc, i), x, w[kw], s.x_zero))

    def input_row(self, top: Any, left: Any, kh: int, masked: bool, valid: int) -> Callable[[int], Any]:
        """A function from input column to the vector there, for one tap row."""
        s, d = self.spec, self.spec.dilations[0]
        line, height = left + kh * (d * s.w * s.c), top + kh * d
        if not masked:
            return lambda j: load_part(self.buffers["x"], s.x_dtype, line + j * s.c, s.lanes, valid)
        # A row that exists is read in any case; the mask decides whether it counts.
        nearest = emit.vmin(emit.vmax(height, 0), s.h - 1)
        line = line + (nearest - height) * (s.w * s.c)
        counts = emit.ib.And(height >= 0, height < s.h)
        keep = emit.splat(emit.choose(counts, 255, 0, "uint8"), "uint8", s.lanes)
        fill = emit.splat(emit.choose(counts, 0, s.x_zero, "uint8"), "uint8", s.lanes)

        def read(j: int) -> Any:
            x = load_part(self.buffers["x"], s.x_dtype, line + j * s.c, s.lanes, valid)
            return emit.ib.bitwise_or(emit.ib.bitwise_and(x, keep), fill)

        return read

    def columns(self, at: _Tile) -> list[tuple[int, list[tuple[int, int]]]]:
        """Input columns of a tile inside the picture, counted from its left edge: (column, [(output,
        tap), ...])."""
        s = self.spec
        found = []
        for j in range((at.pixels - 1) * s.strides[1] + (s.kernel[1] - 1) * s.dilations[1] + 1):
            taps = [(i, divmod(j - i * s.strides[1], s.dilations[1])) for i in range(at.pixels)]
            users = [(i, kw) for i, (kw, rest) in taps if rest == 0 and 0 <= kw < s.kernel[1]]
            edge = at.first * s.strides[1] - s.pads[1] + j
            if users and (not at.checked or 0 <= edge < s.w):
                found.append((j, users))
        return found

    def finish(self, acc: Any, out: Any, at: _Tile) -> None:
        s, e = self.spec, self.spec.epilogue
        scale = emit.load(self.buffers["scale"], at.block * s.lanes, s.lanes) if e.scale else None

        def ready(i: int) -> Any:
            residual = None
            if e.residual:
                residual = load_part(self.buffers["residual"], e.residual, out + i * s.c, s.lanes, at.valid)
            return e.activated(emit.load(acc, i), scale, residual, s.lanes)

        done = 0
        if e.packs(s.lanes) and at.valid == s.lanes:
            done = at.pixels // 4 * 4
            for first in range(0, done, 4):
                self.store_four([ready(first + i) for i in range(4)], out + first * s.c)
        for i in range(done, at.pixels):
            value = e.pack(ready(i)) if e.packs(s.lanes) else quantise(ready(i), e, s.lanes)
            store_part(self.buffers["y"], e.out_dtype, out + i * s.c, value, s.lanes, at.valid)

    def store_four(self, pixels: list[Any], out: Any) -> None:
        """uint8 of four neighbouring pixels, packed together and stored one by one."""
        # Through memory that LLVM keeps in a register: an expression used four times would be packed
        # four times.
        packed = emit.local(4, "int64")
        emit.store(packed, 0, emit.bits(self.spec.epilogue.pack(*pixels), "int64", 4), 4)
        for i in range(4):
            value = emit.bits(emit.load(packed, i), "uint8", 8)
            emit.store(self.buffers["y"], out + i * self.spec.c, value, 8)
