"""Depthwise convolution: its geometry, its cutting into tasks and tiles, the packing of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..epilogue import UNIT, Epilogue, unit_order
from ..mac import ROW_DOTS, RowDot
from .window import Window

FLOAT_TILE = 7
"""Output pixels of a float32 tile at most: with the weights of a tap row this fills 16 registers."""
TASK_BYTES = 128 * 1024
MIN_TASKS = 4
CACHE_LINE = 64
BAND = 2
"""Output rows that an int8 tile computes from the same interleaved input rows."""
CHUNK_BYTES = 6 * 1024
"""Interleaved input of an int8 chunk: a third of a 32 KiB first-level cache, the rest is for what it is made
of."""


@dataclass(frozen=True)
class DepthwiseSpec(Window):
    """An NHWC depthwise conv2d: its window, instruction set and epilogue."""

    lanes: int
    registers: int
    dot: str
    x_dtype: str
    x_zero: int
    epilogue: Epilogue

    @property
    def quantised(self) -> bool:
        return self.x_dtype == "uint8"

    @property
    def unit(self) -> int:
        """Channels that are packed and computed together."""
        return UNIT * self.lanes if self.quantised else self.lanes

    @property
    def units(self) -> int:
        return -(-self.c // self.unit)

    @property
    def unit_weights(self) -> int:
        """Packed weights of a unit."""
        return self.kernel[0] * self.kernel[1] * self.unit

    @property
    def group(self) -> int:
        """Units that share a cache line of the input."""
        return max(1, CACHE_LINE // (self.unit * np.dtype(self.x_dtype).itemsize))

    @property
    def groups(self) -> int:
        return -(-self.units // self.group)

    @property
    def rows(self) -> int:
        """Output rows of a task: input that stays in cache, and four tasks or more for threads to share."""
        fitting = TASK_BYTES // (self.strides[0] * self.w * CACHE_LINE)
        rows = max(1, min(fitting, self.oh // -(-MIN_TASKS // self.groups)))
        rows = -(-self.oh // -(-self.oh // rows))
        return -(-rows // BAND) * BAND if self.quantised else rows

    @property
    def row_tasks(self) -> int:
        return -(-self.oh // self.rows)

    @property
    def tasks(self) -> int:
        return self.n * self.row_tasks * self.groups

    @cached_property
    def tile(self) -> int:
        """Output pixels of a tile: the widest that leaves no narrow rest."""
        most = self.registers // 4 if self.quantised else FLOAT_TILE
        return min(range(1, most + 1), key=lambda t: (-(-self.ow // t), t))

    def inside(self, first: int, pixels: int) -> bool:
        """No window of the output pixels [first, first + pixels) reaches over the left or right edge."""
        start = first * self.strides[1] - self.pads[1]
        return start >= 0 and start + self.columns(pixels) <= self.w

    def columns(self, pixels: int) -> int:
        """Input columns under the windows of so many neighbouring output pixels."""
        return (pixels - 1) * self.strides[1] + (self.kernel[1] - 1) * self.dilations[1] + 1

    def rows_inside(self, band: int) -> bool:
        """No window reaches over the upper or lower edge, output rows taken `band` at a time."""
        last = (-(-self.oh // band) * band - 1) * self.strides[0] - self.pads[0]
        return self.pads[0] == 0 and last + (self.kernel[0] - 1) * self.dilations[0] < self.h

    @cached_property
    def segments(self) -> tuple[tuple[int, int, int], ...]:
        """float32: (first pixel, pixels of a tile, tiles) from left to right; only inner tiles of equal width
        share an entry."""
        starts = [(at, min(self.tile, self.ow - at)) for at in range(0, self.ow, self.tile)]
        merged: list[tuple[int, int, int]] = []
        for at, width in starts:
            last = merged[-1] if merged else None
            if last and last[1] == width and self.inside(*last[:2]) and self.inside(at, width):
                merged[-1] = (last[0], width, last[2] + 1)
            else:
                merged.append((at, width, 1))
        return tuple(merged)

    # What follows is about uint8 inputs: rows interleaved in scratch.

    @property
    def row_dot(self) -> RowDot:
        return ROW_DOTS[self.dot]

    @cached_property
    def band_rows(self) -> tuple[int, ...]:
        """Input rows that a band of output rows needs, counted from its first."""
        (sh, _), (dh, _) = self.strides, self.dilations
        return tuple(sorted({r * sh + k * dh for r in range(BAND) for k in range(self.kernel[0])}))

    @property
    def steps(self) -> int:
        """Groups of interleaved rows in a band."""
        return -(-len(self.band_rows) // self.row_dot.rows)

    @cached_property
    def pieces(self) -> tuple[tuple[int, int, tuple[int | None, ...]], ...]:
        """(output row of the band, step, tap row in each place of the step) wherever there is a tap."""
        found = []
        for r in range(BAND):
            taps = {r * self.strides[0] + k * self.dilations[0]: k for k in range(self.kernel[0])}
            places: list[int | None] = [taps.get(row) for row in self.band_rows]
            places += [None] * (self.steps * self.row_dot.rows - len(places))
            for step in range(self.steps):
                here = tuple(places[step * self.row_dot.rows : (step + 1) * self.row_dot.rows])
                if any(k is not None for k in here):
                    found.append((r, step, here))
        return tuple(found)

    @cached_property
    def chunks(self) -> tuple[tuple[int, int, int, int], ...]:
        """Pieces of a band whose input is interleaved at a time: (first pixel, how many such chunks in a row,
        whole tiles of each, pixels of a last narrower tile)."""
        line = np.dtype(self.row_dot.x_dtype).itemsize * self.row_dot.rows * self.steps * self.unit
        most = max(1, CHUNK_BYTES // (line * self.strides[1] * self.tile))
        tiles, narrow = divmod(self.ow, self.tile)
        full = max(0, -(-tiles // most) - 1)
        last = (full * most * self.tile, 1, tiles - full * most, narrow)
        return ((0, full, most, 0), last) if full else (last,)

    @property
    def order(self) -> tuple[tuple[int, ...], ...]:
        """Channels of each vector of a unit."""
        return unit_order(self.lanes)

    @cached_property
    def channels(self) -> tuple[int, ...]:
        """The channel in each place of packed weights, bias and scale; `c` where there is none."""
        if not self.quantised:
            return tuple(min(i, self.c) for i in range(self.units * self.unit))
        starts = [max(0, min(u * self.unit, self.c - self.unit)) for u in range(self.units)]
        return tuple(min(at + i, self.c) for at in starts for vector in self.order for i in vector)


def depthwise_params(spec: DepthwiseSpec) -> list[tuple[str, str]]:
    """(name, element type) of the kernel's pointers, in order."""
    return [
        ("x", spec.x_dtype),
        ("w", "int8" if spec.quantised else "float32"),
        *spec.epilogue.params,
    ]


def pack_depthwise(spec: DepthwiseSpec, w: np.ndarray) -> np.ndarray:
    """`w` [c, 1, kh, kw] -> [unit][kh][kw][place in the unit], flat."""
    taps = np.pad(w[:, 0], ((0, 1), (0, 0), (0, 0)))[list(spec.channels)]
    return taps.reshape(spec.units, spec.unit, *spec.kernel).transpose(0, 2, 3, 1).ravel()


def pack_per_channel(spec: DepthwiseSpec, values: np.ndarray) -> np.ndarray:
    """One value for each channel -> [unit][place in the unit]; zero where there is none."""
    return np.append(values, np.zeros(1, values.dtype))[list(spec.channels)]
