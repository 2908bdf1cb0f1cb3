"""3x3 convolutions with fewer multiplications: Winograd's F(m x m, 3 x 3), when it pays, how it is cut.

An m x m tile of outputs depends on n x n inputs, n = m + 2. With d a tile of inputs and g a filter,

    Y = A^T [ (G g G^T) * (B^T d B) ] A

element by element in the brackets: n * n multiplications and one sum over channels for m * m outputs, instead
of 9 * m * m (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016). Over all tiles and
channels each of the n * n places is a matrix product [tiles, c] x [c, oc].

Filters are transformed as the network runs: stored, they would take 16 / 9 or 4 times the room.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..bfloat16 import bit_patterns
from ..epilogue import Epilogue
from ..tiling import (
    Cost,
    Split,
    best_tile,
    split,
    step_cycles,
)
from .gemm_spec import PARTS
from .window import Window

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Transform:
    """`inputs` B^T [n, n], `filters` G [n, 3], `outputs` A^T [m, n]."""

    inputs: Matrix
    filters: Matrix
    outputs: Matrix


TRANSFORMS = {
    2: Transform(
        inputs=((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
        filters=((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1)),
        outputs=((1, 1, 1, 0), (0, 1, -1, -1)),
    ),
    4: Transform(
        inputs=(
            (4, 0, -5, 0, 1, 0),
            (0, -4, -4, 1, 1, 0),
            (0, 4, -4, -1, 1, 0),
            (0, -2, -1, 2, 1, 0),
            (0, 2, -1, -2, 1, 0),
            (0, 4, 0, -5, 0, 1),
        ),
        filters=(
            (1 / 4, 0, 0),
            (-1 / 6, -1 / 6, -1 / 6),
            (-1 / 6, 1 / 6, -1 / 6),
            (1 / 24, 1 / 12, 1 / 6),
            (1 / 24, -1 / 12, 1 / 6),
            (0, 0, 1),
        ),
        outputs=((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
    ),
}
"""By m, the smallest first. The larger saves more and rounds worse (see tests/test_winograd.py)."""

WORTH = 0.8
"""Of the direct form's cycles, at most: what the model leaves out may cost the rest."""
LEAST_CYCLES = 50_000
"""Of the direct form: what is done sooner is not worth a second call."""
NEARLY = 1.1
"""Times the cycles of the best m, for which a smaller one is taken."""
CACHED_BYTES = 256 * 1024
"""Transformed filters of a task that a second-level cache keeps while it needs them."""
CACHE_RATE = 16
"""Bytes a cycle to and from what lies behind that."""
TILES_AT_ONCE = 24
"""Tiles whose products wait in the first-level cache for their way back."""


@dataclass(frozen=True)
class Tiling(Window):
    """The tiles of a convolution. `narrow`: weights are bfloat16, and inputs are rounded to it."""

    lanes: int
    m: int
    narrow: bool

    @property
    def size(self) -> int:
        """Height and width of a tile of inputs."""
        return self.m + 2

    @property
    def places(self) -> int:
        return self.size**2

    @property
    def down(self) -> int:
        return -(-self.oh // self.m)

    @property
    def across(self) -> int:
        return -(-self.ow // self.m)

    @property
    def tiles(self) -> int:
        return self.n * self.down * self.across

    @property
    def nbytes(self) -> int:
        """Of the transformed tiles."""
        return self.places * self.tiles * self.c * 4


@dataclass(frozen=True)
class WinogradInputSpec(Tiling):
    """x [n, h, w, c] -> the transformed tiles [places, tiles, c], float32. A task is a row of tiles."""

    @property
    def tasks(self) -> int:
        return self.n * self.down

    @property
    def flops(self) -> int:
        """Of the transform; a multiply-add counts 2."""
        return 2 * multiplications(TRANSFORMS[self.m].inputs) * 2 * self.size * self.tiles * self.c


@dataclass(frozen=True)
class WinogradSpec(Tiling):
    """Those tiles and the filters -> y [n, oh, ow, oc]. A task is a block of output channels, or a part of
    the tiles of one where there are few blocks."""

    registers: int
    oc: int
    epilogue: Epilogue

    @property
    def vectors(self) -> int:
        return self.oc // self.lanes

    @cached_property
    def tile(self) -> tuple[int, int]:
        """(tiles, vectors of output channels) that are multiplied in registers."""
        widths = [w for w in (4, 3, 2, 1) if self.vectors % w == 0]
        shapes = [best_tile(self.tiles, self.vectors, self.registers, Cost(), width) for width in widths]

        def cost(shape: tuple[int, int]) -> float:
            loads = sum(shape) / 2  # the filters do not all fit the first-level cache
            return (step_cycles(shape[0], shape[1], Cost()) + loads) / math.prod(shape)

        return min(shapes, key=cost)

    @property
    def width(self) -> int:
        """Output channels of a block."""
        return self.tile[1] * self.lanes

    @property
    def blocks(self) -> int:
        return self.vectors // self.tile[1]

    @cached_property
    def pieces(self) -> Split:
        """The tiles, cut into what is multiplied at once."""
        return split(self.tiles, self.tile[0])

    @property
    def chunk(self) -> int:
        """Pieces whose products are kept until they are transformed back."""
        return max(1, TILES_AT_ONCE // self.tile[0])

    @cached_property
    def part(self) -> int:
        """Pieces of a task."""
        return -(-self.pieces.count // min(self.pieces.count, -(-PARTS // self.blocks)))

    @property
    def parts(self) -> int:
        return -(-self.pieces.count // self.part)

    @property
    def tasks(self) -> int:
        return self.blocks * self.parts

    @property
    def flops(self) -> int:
        """Of the products; a multiply-add counts 2."""
        return 2 * self.places * self.tiles * self.c * self.oc

    @property
    def filter_bytes(self) -> int:
        """Transformed filters of a block."""
        return self.places * self.c * self.width * 4

    @property
    def stack_bytes(self) -> int:
        products = self.places * self.chunk * self.pieces.sizes()[0][0] * self.width * 4
        return self.filter_bytes + products


def multiplications(matrix: Matrix) -> int:
    """Multiply-adds of applying it to a vector."""
    return sum(1 for row in matrix for factor in row if factor)


def direct_cycles(spec: WinogradSpec) -> float:
    """Of the ordinary product, at two vector multiply-adds a cycle."""
    return spec.n * spec.oh * spec.ow * 9 * spec.c * spec.oc / (2 * spec.lanes)


def cycles(spec: WinogradSpec) -> float:
    """Of both kernels, by the same measure: products, transforms with their loads and stores, and filters
    that do not stay in the cache."""
    by, size = TRANSFORMS[spec.m], spec.size
    inputs = multiplications(by.inputs) * 2 * size + 2 * spec.places
    outputs = multiplications(by.outputs) * (size + spec.m) + 2 * spec.places
    filters = multiplications(by.filters) * (3 + size) + spec.places
    moved = spec.tiles * (spec.c * inputs + spec.oc * outputs) + spec.c * spec.oc * filters
    spilled = 2 * spec.filter_bytes * spec.blocks if spec.filter_bytes > CACHED_BYTES else 0
    return (spec.flops / 2 + moved) / (2 * spec.lanes) + spilled * spec.parts / CACHE_RATE


def pays(spec: WinogradSpec) -> bool:
    direct = direct_cycles(spec)
    return direct >= LEAST_CYCLES and cycles(spec) <= WORTH * direct


def pack_filters(spec: WinogradSpec, w: np.ndarray) -> np.ndarray:
    """`w` [oc, c, 3, 3] as [block][c][9][channels of the block]: what a task reads lies together."""
    blocks = bit_patterns(w).reshape(spec.blocks, spec.width, spec.c, 9).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(blocks).ravel()
