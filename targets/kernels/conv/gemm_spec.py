"""Implicit matrix product: its geometry, its cutting into tasks and tiles, the packing of its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..bfloat16 import bit_patterns
from ..epilogue import UNIT, Epilogue, unit_order
from ..mac import Mac, mac_for
from ..tiling import (
    LATENCY,
    MANY_ROWS,
    Cost,
    Split,
    Tile,
    best_tile,
    likely_tiles,
    split,
    vectors_of_line,
)
from .window import Window

SCRATCH_BYTES = 192 * 1024
CHUNK_BYTES = 96 * 1024
FEW_ROWS = 64
PARTS = 8
"""Tasks at least, where the output is large enough: for threads to share evenly."""
FETCHED_ROW = 256
FETCHED_BYTES = 512 * 1024
"""Of a row of A and of all of it, from which on it is fetched ahead."""
UNROLL_STEPS = 36
CHAINS = 2 * LATENCY
"""Independent sums that keep two multipliers busy."""


@dataclass(frozen=True)
class GemmSpec(Window):
    """A conv2d (a linear layer is a 1x1 convolution over its rows): window, instruction set and epilogue.

    `nchw_in`: the input is [n, c, h, w]; otherwise, and for the output always, [n, h, w, c].
    `tiled`: the register tile that measuring found; by default the model's (kernels/tiling.py).
    """

    lanes: int
    registers: int
    dot: str
    x_dtype: str
    oc: int
    groups: int
    nchw_in: bool
    x_zero: int
    epilogue: Epilogue
    tiled: Tile | None = None

    @cached_property
    def mac(self) -> Mac:
        return mac_for(self.x_dtype, self.dot, self.lanes)

    @property
    def group_c(self) -> int:
        return self.c // self.groups

    @property
    def group_oc(self) -> int:
        return self.oc // self.groups

    @property
    def padded(self) -> bool:
        """Some window reaches beyond the input."""
        bottom = (self.oh - 1) * self.strides[0] - self.pads[0] + (self.kernel[0] - 1) * self.dilations[
            0
        ] >= self.h
        right = (self.ow - 1) * self.strides[1] - self.pads[1] + (self.kernel[1] - 1) * self.dilations[
            1
        ] >= self.w
        return any(self.pads) or bottom or right

    @property
    def scratch(self) -> bool:
        return self.padded or self.mac.a_dtype != self.x_dtype or self.mac.rounds or self.nchw_in

    @property
    def segments(self) -> int:
        """k is `segments` runs of `run` neighbouring values of A."""
        return math.prod(self.kernel) * (self.c if self.nchw_in else self.group_c) // self.run

    @property
    def run(self) -> int:
        dense = self.dilations[1] == 1
        if self.nchw_in:
            return self.kernel[1] if dense else 1
        return self.kernel[1] * self.c if dense and self.groups == 1 else self.group_c

    @property
    def run_steps(self) -> int:
        """k steps of a run, the last one filled up with zero weights."""
        return -(-self.run // self.mac.group)

    @property
    def whole_steps(self) -> int:
        """Steps without one that reads beyond its run where that must not be: zero weights hide any integer,
        but no float that is infinite."""
        return self.run // self.mac.group if self.mac.acc_dtype == "float32" else self.run_steps

    @property
    def vectors(self) -> int:
        return -(-self.group_oc // self.lanes)

    @cached_property
    def tile(self) -> Tile:
        return self.tiled or best_tile(*self._tiling)

    @property
    def likely_tiles(self) -> tuple[Tile, ...]:
        """The model's tile and others that may measure faster; each packs weights for all that share them."""
        return likely_tiles(*self._tiling)

    @property
    def _tiling(self) -> tuple[int, int, int, Cost, int | None, int]:
        return self.ow, self.vectors, self.registers, self.mac.cost, self._width, self._line

    @property
    def _line(self) -> int:
        """Vectors of results in a cache line. Integer products have other worries: registers."""
        return vectors_of_line(self.lanes) if self.epilogue.acc_dtype == "float32" else 1

    @property
    def _width(self) -> int | None:
        if self.shared:  # the width that many rows want
            return best_tile(MANY_ROWS, self.vectors, self.registers, self.mac.cost, None, self._line)[1]
        return UNIT if self.in_units else None

    @property
    def shared(self) -> bool:
        """Weights are packed as for any other number of rows: entries of a language model for one token and
        for many then read one copy."""
        return self.x_dtype == "float32" and self.kernel == (1, 1) and self.h == self.n == self.groups == 1

    def chains(self, rows: int, vectors: int) -> int:
        """Partial sums of each result: a few results alone would wait for their own additions."""
        if not self.shared or self.run_steps <= UNROLL_STEPS:
            return 1
        return max(1, CHAINS // (rows * vectors))

    @property
    def in_units(self) -> bool:
        """uint8 results are packed from whole units of vectors, whose channels lie in the order in which
        packing restores them (Epilogue.packed)."""
        return (
            self.epilogue.packs(self.lanes)
            and self.group_oc % self.lanes == 0
            and self.vectors >= UNIT
            and self.ow > 1
        )

    @cached_property
    def places(self) -> tuple[int, ...]:
        """The channel of its group in each place of packed weights, bias and scale, group by group;
        `group_oc` where there is none."""
        natural = [min(i, self.group_oc) for i in range(self.vectors * self.lanes)]
        if self.in_units:
            unit = [c for vector in unit_order(self.lanes) for c in vector]
            for at in range(0, self.group_oc // len(unit) * len(unit), len(unit)):
                natural[at : at + len(unit)] = [at + c for c in unit]
        return tuple(natural)

    @cached_property
    def columns(self) -> Split:
        """Tiles of output pixels of a row."""
        return split(self.ow, self.tile[0])

    @property
    def a_bytes(self) -> int:
        return np.dtype(self.mac.a_dtype).itemsize

    @cached_property
    def by_blocks(self) -> bool:
        """Tasks are blocks of output channels, not of pixels: few rows, so that threads share the
        weights instead."""
        rows = self.n * self.oh * self.ow
        blocks = -(-self.vectors // self.tile[1])
        return (
            rows <= FEW_ROWS
            and self.n == 1
            and self.groups == 1
            and blocks > 1
            and self._fits(self.oh, self.columns.count)
        )

    @property
    def fetches(self) -> bool:
        """Rows of A come from beyond the second-level cache, once: each tile asks for the next one's, several
        short streams that the core does not foresee (144 channels to 24 at 56²: 0.8 of the time)."""
        return (
            not self.scratch
            and self.kernel == (1, 1)
            and self.vectors <= self.tile[1]
            and self.c * self.a_bytes >= FETCHED_ROW
            and self.n * self.h * self.w * self.c * self.a_bytes >= FETCHED_BYTES
        )

    def _fits(self, rows: int, tiles: int) -> bool:
        return not self.scratch or self.scratch_size(rows, tiles) * self.a_bytes <= SCRATCH_BYTES

    @cached_property
    def chunk(self) -> tuple[int, int]:
        """(output rows, column tiles) of one task."""
        if self.by_blocks:
            return self.oh, self.columns.count
        pixel = max(1, self.strides[1] * self.c * self.a_bytes * (self.kernel[0] if self.oh > 1 else 1))
        share = -(-self.columns.count // -(-PARTS // self.oh))
        tiles = max(4, min(CHUNK_BYTES // (pixel * self.tile[0]), share))
        tiles = split(self.columns.count, min(tiles, self.columns.count)).sizes()[0][0]
        while tiles > 1 and not self._fits(1, tiles):
            tiles = -(-tiles // 2)
        rows = 1
        if tiles == self.columns.count:
            fitting = min(CHUNK_BYTES // (pixel * self.ow), -(-self.oh // PARTS))
            wanted = min(self.oh, max(1, fitting, -(-24 // self.ow)))
            rows = next(r for r in range(wanted, 0, -1) if r == 1 or self._fits(r, tiles))
        return rows, tiles

    def scratch_size(self, rows: int, tiles: int) -> int:
        """Elements of A that a task of so many rows and column tiles keeps, with room for the last step
        to read past the end."""
        return self.scratch_rows(rows) * self.scratch_cols(tiles) * self.c + 8

    @property
    def stack_bytes(self) -> int:
        """What a thread's stack holds of A."""
        return self.scratch_size(*self.chunk) * self.a_bytes if self.scratch else 0

    def scratch_rows(self, rows: int) -> int:
        return (rows - 1) * self.strides[0] + (self.kernel[0] - 1) * self.dilations[0] + 1

    def scratch_cols(self, tiles: int) -> int:
        pixels = min(self.ow, tiles * self.columns.sizes()[0][0])
        return (pixels - 1) * self.strides[1] + (self.kernel[1] - 1) * self.dilations[1] + 1

    @cached_property
    def row_chunks(self) -> int:
        return -(-self.oh // self.chunk[0])

    @cached_property
    def col_chunks(self) -> int:
        return -(-self.columns.count // self.chunk[1])

    @property
    def tasks(self) -> int:
        if self.by_blocks:
            return -(-self.vectors // self.tile[1])
        return self.n * self.row_chunks * self.col_chunks


def gemm_params(spec: GemmSpec) -> list[tuple[str, str]]:
    """(name, element type) of the kernel's pointers, in order."""
    return [
        ("x", spec.x_dtype),
        ("b", spec.mac.b_dtype),
        *spec.epilogue.params,
    ]


def pack_weights(spec: GemmSpec, w: np.ndarray) -> np.ndarray:
    """`w` [oc, c/groups, kh, kw] as B: flat, of the multiply's element type."""
    g, step = spec.groups, spec.mac.group
    k = np.pad(_runs(spec, bit_patterns(w)), ((0, 0), (0, 0), (0, spec.run_steps * step - spec.run), (0, 1)))
    k = k[..., list(spec.places)]
    k = k.reshape(g, spec.segments * spec.run_steps, step, spec.vectors * spec.lanes)
    width = spec.tile[1] * spec.lanes
    blocks = [
        k[group, :, :, at : at + width].transpose(0, 2, 1).ravel()
        for group in range(g)
        for at in range(0, spec.vectors * spec.lanes, width)
    ]
    return np.concatenate(blocks).astype(spec.mac.b_dtype)


def _runs(spec: GemmSpec, w: np.ndarray) -> np.ndarray:
    """`w` as [group, segment, place in the run, output channel]: the order in which k is walked."""
    order = (0, 2, 3, 4, 1) if spec.nchw_in else (0, 3, 4, 2, 1)
    split_up = w.reshape(spec.groups, spec.group_oc, *w.shape[1:]).transpose(order)
    return split_up.reshape(spec.groups, spec.segments, spec.run, spec.group_oc)


def pairs_bounded(spec: GemmSpec, w: np.ndarray) -> bool:
    """No two int8 weights that a `ubs` step adds up in 16 bits can overflow them: 255 * (w0 + w1) fits,
    negative ones too."""
    k = _runs(spec, w).astype(np.int32)
    pairs = np.pad(k, ((0, 0), (0, 0), (0, spec.run % 2), (0, 0))).reshape(
        spec.groups, spec.segments, -1, 2, spec.group_oc
    )
    positive, negative = np.maximum(pairs, 0).sum(3), np.maximum(-pairs, 0).sum(3)
    return bool(max(positive.max(initial=0), negative.max(initial=0)) * 255 <= 32767)


def pack_channels(spec: GemmSpec, values: np.ndarray) -> np.ndarray:
    """One value per output channel, each group padded to whole vectors."""
    grouped = np.pad(values.reshape(spec.groups, spec.group_oc), ((0, 0), (0, 1)))
    return grouped[:, list(spec.places)].ravel()


def fold_zero_point(w: np.ndarray, x_zero: int, bias: np.ndarray) -> np.ndarray:
    """Bias for the sum over x instead of x - x_zero (scratch pads with x_zero, so every window has all
    its terms)."""
    total = w.astype(np.int64).sum(axis=(1, 2, 3)) * x_zero
    return (bias.astype(np.int64) - total).astype(np.int32)
