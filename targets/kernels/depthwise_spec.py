"""Depthwise convolution: its geometry, its cutting into tasks and tiles, the packing of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .epilogue import Epilogue

TILE = 7
"""Output pixels of a register tile at most: with the weights of a tap row this fills 16 registers."""
TASK_BYTES = 128 * 1024
CACHE_LINE = 64


@dataclass(frozen=True)
class DepthwiseSpec:
    """Geometry of an NHWC depthwise conv2d, instruction set and epilogue."""

    lanes: int
    dot: str
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
    def step_rows(self) -> int:
        """Tap rows that are summed in one step."""
        return 2 if self.quantised else 1

    @property
    def steps(self) -> int:
        return -(-self.kernel[0] // self.step_rows)

    @property
    def block_weights(self) -> int:
        """Packed weights of a vector of channels."""
        return self.steps * self.step_rows * self.kernel[1] * self.lanes

    @property
    def blocks(self) -> int:
        """Vectors of channels."""
        return -(-self.c // self.lanes)

    @property
    def rows(self) -> int:
        """Output rows of a task: four tasks or more for threads to share, and input that stays in cache."""
        line = self.strides[0] * self.w * self.c * np.dtype(self.x_dtype).itemsize
        return max(1, min(-(-self.oh // 4), TASK_BYTES // line))

    @property
    def group(self) -> int:
        """Vectors of channels that lie in one cache line of the input."""
        return CACHE_LINE // (self.lanes * np.dtype(self.x_dtype).itemsize)

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

    @property
    def rows_inside(self) -> bool:
        """No window reaches over the upper or lower edge."""
        reach = (self.kernel[0] - 1) * self.dilations[0]
        return self.pads[0] == 0 and (self.oh - 1) * self.strides[0] + reach < self.h

    def inside(self, first: int, pixels: int) -> bool:
        """No window of the output pixels [first, first + pixels) reaches over the left or right edge."""
        start = first * self.strides[1] - self.pads[1]
        end = (first + pixels - 1) * self.strides[1] - self.pads[1] + (self.kernel[1] - 1) * self.dilations[1]
        return start >= 0 and end < self.w

    @cached_property
    def segments(self) -> tuple[tuple[int, int, int], ...]:
        """(first pixel, pixels of a tile, tiles) from left to right; only inner tiles of equal width
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
    """`w` [c, 1, kh, kw] -> [vector][step][kw][lanes][row of the step], flat."""
    rows = spec.steps * spec.step_rows
    channels = spec.blocks * spec.lanes
    taps = np.pad(w[:, 0], ((0, channels - spec.c), (0, rows - spec.kernel[0]), (0, 0)))
    split_up = taps.reshape(spec.blocks, spec.lanes, spec.steps, spec.step_rows, spec.kernel[1])
    return split_up.transpose(0, 2, 4, 1, 3).ravel()


def pad_channels(spec: DepthwiseSpec, values: np.ndarray) -> np.ndarray:
    """One value per channel, padded to whole vectors."""
    return np.pad(values, (0, spec.blocks * spec.lanes - spec.c))
