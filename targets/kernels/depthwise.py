"""Depthwise convolution, NHWC: one vector of channels at a time, a tile of output pixels of a row in registers.

For each tap row, every input vector of the tile is loaded once and multiplied into all the outputs whose window holds it; the weights of the tap
row stay in registers. uint8 inputs and int8 weights are summed in float32, which is exact: |sum| <= 255 * 127 * taps stays below 2**24 for
up to 518 taps, and a float multiply-add is the fastest multiply of AVX2 at this shape (measured against vpmaddwd).

Weights are packed [channel block][kh][kw][lanes]; int8 ones are widened once per task and block into a scratch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from . import emit
from .epilogue import Epilogue, quantise
from .partial import load_part, store_part

TILE = 7
"""Output pixels of a register tile at most: with the weights of a tap row this fills 16 registers."""
MAX_TAPS = 518


@dataclass(frozen=True)
class DepthwiseSpec:
    """Geometry of an NHWC depthwise conv2d, instruction set and epilogue."""

    lanes: int
    x_dtype: str
    n: int
    h: int
    w: int
    c: int
    oh: int
    ow: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int]  # top, left
    x_zero: int
    epilogue: Epilogue

    @property
    def quantised(self) -> bool:
        return self.x_dtype == "uint8"

    @property
    def blocks(self) -> int:
        """Vectors of channels."""
        return -(-self.c // self.lanes)

    @property
    def rows(self) -> int:
        """Output rows of a task: enough tasks for some threads, few enough to reuse the widened weights."""
        return max(1, min(8, -(-self.oh // 8)))

    @property
    def row_tasks(self) -> int:
        return -(-self.oh // self.rows)

    @property
    def tasks(self) -> int:
        return self.n * self.row_tasks

    @cached_property
    def tile(self) -> int:
        """Output pixels of a tile: the widest that leaves no narrow rest."""
        return min(range(1, TILE + 1), key=lambda t: (-(-self.ow // t), t))

    def inside(self, first: int, pixels: int) -> bool:
        """No window of the output pixels [first, first + pixels) reaches over the left or right edge."""
        start = first * self.strides[1] - self.pads[1]
        end = (first + pixels - 1) * self.strides[1] - self.pads[1] + (self.kernel[1] - 1) * self.dilations[1]
        return start >= 0 and end < self.w

    @cached_property
    def segments(self) -> tuple[tuple[int, int, int], ...]:
        """(first pixel, pixels of a tile, tiles) from left to right; only inner tiles of equal width share an entry."""
        starts = [(at, min(self.tile, self.ow - at)) for at in range(0, self.ow, self.tile)]
        merged: list[tuple[int, int, int]] = []
        for at, width in starts:
            last = merged[-1] if merged else None
            if last and last[1] == width and self.inside(*last[:2]) and self.inside(at, width):
                merged[-1] = (last[0], width, last[2] + 1)
            else:
                merged.append((at, width, 1))
        return tuple(merged)


def depthwise_params(spec: DepthwiseSpec) -> list[tuple[str, str]]:
    """(name, element type) of the kernel's pointers, in order."""
    e = spec.epilogue
    optional = (
        ("bias", e.acc_dtype, e.bias),
        ("scale", "float32", e.scale),
        ("residual", e.residual, bool(e.residual)),
    )
    return [
        ("x", spec.x_dtype),
        ("w", "int8" if spec.quantised else "float32"),
        *((name, dtype) for name, dtype, there in optional if there),
        ("y", e.out_dtype),
    ]


def pack_depthwise(spec: DepthwiseSpec, w: np.ndarray) -> np.ndarray:
    """`w` [c, 1, kh, kw] -> [block][kh][kw][lanes], flat."""
    taps = np.moveaxis(w[:, 0], 0, -1)
    taps = np.pad(taps, ((0, 0), (0, 0), (0, spec.blocks * spec.lanes - spec.c)))
    return np.moveaxis(taps.reshape(*spec.kernel, spec.blocks, spec.lanes), 2, 0).ravel()


def pad_channels(spec: DepthwiseSpec, values: np.ndarray) -> np.ndarray:
    """One value per channel, padded to whole vectors."""
    return np.pad(values, (0, spec.blocks * spec.lanes - spec.c))


def emit_depthwise(spec: DepthwiseSpec, name: str) -> Any:
    """The PrimFunc."""
    return emit.kernel(name, depthwise_params(spec), lambda *args: _Depthwise(spec, args).body())


class _Depthwise:
    def __init__(self, spec: DepthwiseSpec, args: tuple[Any, ...]) -> None:
        *buffers, self.begin, self.end = args
        self.spec = spec
        self.buffers = dict(zip((n for n, _ in depthwise_params(spec)), buffers, strict=True))
        self.block_taps = spec.kernel[0] * spec.kernel[1] * spec.lanes
        self.wide = emit.local(self.block_taps, "float32") if spec.quantised else self.buffers["w"]

    def body(self) -> None:
        s = self.spec
        full, rest = divmod(s.c, s.lanes)
        with emit.loop(self.begin, self.end) as task:
            image = task // s.row_tasks if s.n > 1 else 0
            row = (task % s.row_tasks if s.n > 1 else task) * s.rows
            emit.over(0, full, lambda block: self.block(image, row, block, s.lanes))
            if rest:
                self.block(image, row, full, rest)

    def block(self, image: Any, row: Any, block: Any, valid: int) -> None:
        s = self.spec
        if s.quantised:
            for tap in range(s.kernel[0] * s.kernel[1]):
                narrow = emit.load(self.buffers["w"], block * self.block_taps + tap * s.lanes, s.lanes)
                value = emit.cast(emit.cast(narrow, "int32", s.lanes), "float32", s.lanes)
                emit.store(self.wide, tap * s.lanes, value, s.lanes)
        end = emit.vmin(s.oh - row, s.rows) if s.oh % s.rows else s.rows

        def line(r: Any) -> None:
            for first, pixels, tiles in s.segments:
                checked = not s.inside(first, pixels)
                emit.over(
                    0,
                    tiles,
                    lambda t, f=first, p=pixels, c=checked: self.tile(
                        image, row + r, f + t * p, f, p, c, block, valid
                    ),  # type: ignore[misc]
                )

        emit.over(0, end, line)

    def tile(
        self, image: Any, row: Any, pixel: Any, first: int, pixels: int, checked: bool, block: Any, valid: int
    ) -> None:
        """Output pixels [pixel, pixel + pixels) of one row; `first` is the Python value of `pixel` where edges must be checked."""
        s = self.spec
        acc = emit.local(pixels, emit.vector("float32", s.lanes))
        start = emit.splat(0.0, "float32", s.lanes)
        if not s.quantised:
            start = s.epilogue.start(self.buffers.get("bias"), block * s.lanes, s.lanes)
        for i in range(pixels):
            emit.store(acc, i, start)
        top = row * s.strides[0] - s.pads[0]
        left = pixel * s.strides[1] - s.pads[1]

        def tap_row(kh: Any) -> None:
            base = 0 if s.quantised else block * self.block_taps
            w = [
                emit.load(self.wide, base + (kh * s.kernel[1] + kw) * s.lanes, s.lanes)
                for kw in range(s.kernel[1])
            ]
            line = ((image * s.h + top + kh * s.dilations[0]) * s.w + left) * s.c + block * s.lanes
            for j in range((pixels - 1) * s.strides[1] + (s.kernel[1] - 1) * s.dilations[1] + 1):
                users = [
                    (i, (j - i * s.strides[1]) // s.dilations[1])
                    for i in range(pixels)
                    if (j - i * s.strides[1]) % s.dilations[1] == 0
                    and 0 <= (j - i * s.strides[1]) // s.dilations[1] < s.kernel[1]
                ]
                edge = first * s.strides[1] - s.pads[1] + j
                if not users or (checked and not 0 <= edge < s.w):
                    continue
                x = self.value(line + j * s.c, valid)
                for i, kw in users:
                    emit.store(acc, i, emit.load(acc, i) + x * w[kw])

        self.tap_rows(top, tap_row)
        self.finish(acc, ((image * s.oh + row) * s.ow + pixel) * s.c + block * s.lanes, block, pixels, valid)

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

    def finish(self, acc: Any, out: Any, block: Any, pixels: int, valid: int) -> None:
        s, e = self.spec, self.spec.epilogue
        scale = emit.load(self.buffers["scale"], block * s.lanes, s.lanes) if e.scale else None

        def ready(i: int) -> Any:
            value = emit.load(acc, i)
            if s.quantised:
                # Back to int32 for the bias: the sum with it may exceed what float32 holds exactly.
                value = emit.cast(value, "int32", s.lanes)
                value = value + emit.load(self.buffers["bias"], block * s.lanes, s.lanes) if e.bias else value
            at = out + i * s.c
            residual = (
                load_part(self.buffers["residual"], e.residual, at, s.lanes, valid) if e.residual else None
            )
            return e.activated(value, scale, residual, s.lanes)

        together = e.pairs(s.lanes) and valid == s.lanes
        for i in range(0, pixels, 2 if together else 1):
            if together and i + 1 < pixels:
                both = emit.bits(e.quantise_pair(ready(i), ready(i + 1)), "int64", 2)
                for j in range(2):
                    half = emit.bits(emit.shuffle(both, (j,)), "uint8", 8)
                    emit.store(self.buffers["y"], out + (i + j) * s.c, half, s.lanes)
            else:
                value = quantise(ready(i), e, s.lanes)
                store_part(self.buffers["y"], e.out_dtype, out + i * s.c, value, s.lanes, valid)
