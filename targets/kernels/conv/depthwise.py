"""Depthwise convolution of float32, NHWC: a vector of channels, a tile of output pixels in registers.

For each tap row, every input vector of the tile is loaded once and multiplied into all the outputs whose
window holds it; the weights of the row stay in registers. (uint8: depthwise_int8.py.)
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from .. import emit
from ..epilogue import quantise
from ..partial import load_part, store_part
from .depthwise_int8 import emit_depthwise_int8
from .depthwise_parts import each_task, task_rows
from .depthwise_spec import DepthwiseSpec, depthwise_params


def emit_depthwise(spec: DepthwiseSpec, name: str) -> Any:
    """The PrimFunc."""
    if spec.quantised:
        return emit_depthwise_int8(spec, name)
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
        each_task(self.spec, self.begin, self.end, self.task)

    def task(self, image: Any, row: Any, group: Any) -> None:
        """Whole vectors of channels, and in the last group a partial one."""
        s = self.spec
        full, rest = divmod(s.c, s.lanes)
        short = full % s.group
        count = emit.vmax(emit.vmin(s.group, full - group * s.group), 0) if short or rest else s.group
        self.channels(image, row, group * s.group, count, s.lanes)
        if rest:
            with emit.when(group == s.groups - 1) if s.groups > 1 else nullcontext():
                self.channels(image, row, full, 1, rest)

    def channels(self, image: Any, row: Any, first: Any, count: Any, valid: int) -> None:
        """All rows of a task for some vectors of channels."""
        s = self.spec

        def line(r: Any, i: Any) -> None:
            for begin, pixels, tiles in s.segments:
                over_edge = not s.inside(begin, pixels)
                at = _Tile(image, row + r, first + i, begin, pixels, over_edge, valid)
                emit.over(0, tiles, lambda t, at=at: self.tile(at, at.first + t * at.pixels))  # type: ignore[misc]

        emit.over(0, task_rows(s, row), lambda r: emit.over(0, count, lambda i: line(r, i)))

    def tile(self, at: _Tile, pixel: Any) -> None:
        """Output pixels [pixel, pixel + at.pixels) of one row."""
        s, e = self.spec, self.spec.epilogue
        acc = emit.local(at.pixels, emit.vector(e.acc_dtype, s.lanes))
        start = e.start(self.buffers.get("bias"), at.block * s.lanes, s.lanes)
        for i in range(at.pixels):
            emit.store(acc, i, start)
        self.tap_rows(acc, at, pixel)
        out = ((at.image * s.oh + at.row) * s.ow + pixel) * s.c + at.block * s.lanes
        scale = emit.load(self.buffers["scale"], at.block * s.lanes, s.lanes) if e.scale else None
        for i in range(at.pixels):
            residual = None
            if e.residual:
                residual = load_part(self.buffers["residual"], e.residual, out + i * s.c, s.lanes, at.valid)
            value = quantise(e.activated(emit.load(acc, i), scale, residual, s.lanes), e, s.lanes)
            store_part(self.buffers["y"], e.out_dtype, out + i * s.c, value, s.lanes, at.valid)

    def tap_rows(self, acc: Any, at: _Tile, pixel: Any) -> None:
        """The tap rows that lie inside the picture, one after the other."""
        s, d = self.spec, self.spec.dilations[0]
        top = at.row * s.strides[0] - s.pads[0]
        left = ((at.image * s.h + top) * s.w + pixel * s.strides[1] - s.pads[1]) * s.c + at.block * s.lanes

        def one(kh: Any) -> None:
            taps = at.block * s.unit_weights + kh * (s.kernel[1] * s.lanes)
            w = [emit.load(self.buffers["w"], taps + kw * s.lanes, s.lanes) for kw in range(s.kernel[1])]
            for j, users in self.columns(at):
                place = left + kh * (d * s.w * s.c) + j * s.c
                x = load_part(self.buffers["x"], s.x_dtype, place, s.lanes, at.valid)
                for i, kw in users:
                    emit.store(acc, i, emit.load(acc, i) + x * w[kw])

        if s.rows_inside(1):
            emit.over(0, s.kernel[0], one)
        else:
            first = emit.vmax(0, (0 - top + d - 1) // d)
            last = emit.vmin(s.kernel[0], (s.h - top + d - 1) // d)
            emit.over(first, last, one)

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
