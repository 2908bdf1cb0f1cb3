"""Depthwise convolution, NHWC: one vector of channels at a time, a tile of output pixels of a row in registers.

For each tap row, every input vector of the tile is loaded once and multiplied into all the outputs whose
window holds it; the weights of the tap row stay in registers. uint8 inputs and int8 weights are summed in
float32, which is exact while the sums stay below 2**24 (any window of up to 518 taps): at this shape a float
multiply-add measured as fast as AVX2's integer ones.

Channels are walked in groups that share cache lines, all rows of the task within a group, so that a line
fetched for one vector is still there for the next. Weights are packed [vector][kh][kw][lanes]; int8 ones are
widened once per task and group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import emit
from .depthwise_spec import DepthwiseSpec, depthwise_params
from .epilogue import quantise
from .partial import load_part, store_part


def emit_depthwise(spec: DepthwiseSpec, name: str) -> Any:
    """The PrimFunc."""
    return emit.kernel(name, depthwise_params(spec), lambda *args: _Depthwise(spec, args).body())


@dataclass(frozen=True)
class _Tile:
    """Where a tile lies: picture, output row, vector of channels and its weights; the output column `first`
    (for tiles in a loop, that of the first of them), how many pixels, whether windows reach over an edge
    (`checked`), and the valid lanes."""

    image: Any
    row: Any
    block: Any
    weights: Any
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
        self.block_taps = spec.kernel[0] * spec.kernel[1] * spec.lanes
        self.wide = self.buffers["w"]
        if spec.quantised:
            self.wide = emit.local(self.block_taps * spec.group, "float32")

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
        if s.quantised:
            emit.over(0, count, lambda i: self.widen(first + i, i))
        end = emit.vmin(s.oh - row, s.rows) if s.oh % s.rows else s.rows

        def line(r: Any, i: Any) -> None:
            weights = (i if s.quantised else first + i) * self.block_taps
            for begin, pixels, tiles in s.segments:
                over_edge = not s.inside(begin, pixels)
                at = _Tile(image, row + r, first + i, weights, begin, pixels, over_edge, valid)
                emit.over(0, tiles, lambda t, at=at: self.tile(at, at.first + t * at.pixels))  # type: ignore[misc]

        emit.over(0, end, lambda r: emit.over(0, count, lambda i: line(r, i)))

    def widen(self, block: Any, place: Any) -> None:
        """int8 weights of a vector of channels as float32."""
        s = self.spec
        for tap in range(s.kernel[0] * s.kernel[1]):
            narrow = emit.load(self.buffers["w"], block * self.block_taps + tap * s.lanes, s.lanes)
            value = emit.cast(emit.cast(narrow, "int32", s.lanes), "float32", s.lanes)
            emit.store(self.wide, place * self.block_taps + tap * s.lanes, value, s.lanes)

    def tile(self, at: _Tile, pixel: Any) -> None:
        """Output pixels [pixel, pixel + at.pixels) of one row."""
        s = self.spec
        acc = emit.local(at.pixels, emit.vector("float32", s.lanes))
        for i in range(at.pixels):
            emit.store(acc, i, self.start(at.block))
        top = at.row * s.strides[0] - s.pads[0]
        left = pixel * s.strides[1] - s.pads[1]

        def tap_row(kh: Any) -> None:
            taps = at.weights + kh * (s.kernel[1] * s.lanes)
            w = [emit.load(self.wide, taps + kw * s.lanes, s.lanes) for kw in range(s.kernel[1])]
            line = ((at.image * s.h + top + kh * s.dilations[0]) * s.w + left) * s.c + at.block * s.lanes
            for j, users in self.columns(at):
                x = self.value(line + j * s.c, at.valid)
                for i, kw in users:
                    emit.store(acc, i, emit.load(acc, i) + x * w[kw])

        self.tap_rows(top, tap_row)
        out = ((at.image * s.oh + at.row) * s.ow + pixel) * s.c + at.block * s.lanes
        self.finish(acc, out, at)

    def start(self, block: Any) -> Any:
        """What the sums begin with."""
        s, bias = self.spec, self.buffers.get("bias")
        if s.epilogue.bias and (not s.quantised or s.float_bias):
            value = emit.load(bias, block * s.lanes, s.lanes)
            return emit.cast(value, "float32", s.lanes) if s.quantised else value
        return emit.splat(0.0, "float32", s.lanes)

    def columns(self, at: _Tile) -> list[tuple[int, list[tuple[int, int]]]]:
        """Input columns of a tile inside the picture, counted from its left edge: (column, [(output, tap), ...])."""
        s = self.spec
        found = []
        for j in range((at.pixels - 1) * s.strides[1] + (s.kernel[1] - 1) * s.dilations[1] + 1):
            taps = [(i, divmod(j - i * s.strides[1], s.dilations[1])) for i in range(at.pixels)]
            users = [(i, kw) for i, (kw, rest) in taps if rest == 0 and 0 <= kw < s.kernel[1]]
            edge = at.first * s.strides[1] - s.pads[1] + j
            if users and (not at.checked or 0 <= edge < s.w):
                found.append((j, users))
        return found

    def tap_rows(self, top: Any, tap_row: Any) -> None:
        """The tap rows that lie inside the picture."""
        s = self.spec
        reach = (s.kernel[0] - 1) * s.dilations[0]
        if s.pads[0] == 0 and (s.oh - 1) * s.strides[0] + reach < s.h:
            emit.over(0, s.kernel[0], tap_row)
        else:
            d = s.dilations[0]
            first = emit.vmax(0, (0 - top + d - 1) // d)
            last = emit.vmin(s.kernel[0], (s.h - top + d - 1) // d)
            with emit.loop(first, last) as kh:
                tap_row(kh)

    def value(self, at: Any, valid: int) -> Any:
        """A vector of inputs as float32, less the zero point."""
        s = self.spec
        x = load_part(self.buffers["x"], s.x_dtype, at, s.lanes, valid)
        if not s.quantised:
            return x
        x = emit.cast(emit.cast(x, "int32", s.lanes), "float32", s.lanes)
        return x - emit.splat(float(s.x_zero), "float32", s.lanes) if s.x_zero else x

    def finish(self, acc: Any, out: Any, at: _Tile) -> None:
        s, e = self.spec, self.spec.epilogue
        scale = emit.load(self.buffers["scale"], at.block * s.lanes, s.lanes) if e.scale else None

        def ready(i: int) -> Any:
            value = emit.load(acc, i)
            if s.quantised and e.bias and not s.float_bias:
                # Back to int32 for the bias: the sum with it may exceed what float32 holds exactly.
                value = emit.cast(value, "int32", s.lanes)
                value = value + emit.load(self.buffers["bias"], at.block * s.lanes, s.lanes)
                value = emit.cast(value, "float32", s.lanes)
            residual = None
            if e.residual:
                residual = load_part(self.buffers["residual"], e.residual, out + i * s.c, s.lanes, at.valid)
            return e.activated(value, scale, residual, s.lanes, summed="float32")

        for i in range(at.pixels):
            packed = e.packs(s.lanes)
            value = e.pack(ready(i)) if packed else quantise(ready(i), e, s.lanes)
            store_part(self.buffers["y"], e.out_dtype, out + i * s.c, value, s.lanes, at.valid)
