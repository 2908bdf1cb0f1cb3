"""3x3 convolutions with fewer multiplications: Winograd's F(m x m, 3 x 3), when it pays, how it is cut.

An m x m tile of outputs depends on n x n inputs, n = m + 2. With d a tile of inputs and g a filter,

    Y = A^T [ (G g G^T) * (B^T d B) ] A

element by element in the brackets: n * n multiplications and one sum over channels for m * m outputs, instead
of 9 * m * m (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016). Over all tiles and
channels each of the n * n places is a matrix product [tiles, c] x [c, oc].

Filters are transformed as the network runs: stored, they would take 16 / 9 or 4 times the room.

uint8 by int8 is exact, with m = 2: 2 G has whole entries, transformed tiles (at most 4 * 255) and filters (at
most 9 * 128) fit int16, and int32 sums of their products come out four times too large, without a remainder.
4 products of 16 bits then stand for 9 of 8 bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..bfloat16 import bit_patterns
from ..epilogue import UNIT, Epilogue, unit_order
from ..mac import Mac, mac_named
from ..tiling import (
    CACHE_LINE,
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

WHOLE = replace(TRANSFORMS[2], filters=((2, 0, 0), (1, 1, 1), (1, -1, 1), (0, 0, 2)))
"""In whole numbers, the outputs four times too large."""
WHOLE_SHIFT = 2
MOST_CHANNELS = (2**31 - 1) // (4 * 255 * 128 * 9)
"""Of uint8, that int32 can sum four times over."""

WORTH = 0.8
"""Of the direct form's cycles, at most: what the model leaves out may cost the rest."""
LEAST_CYCLES = 50_000
"""Of the direct form: what is done sooner is not worth a second call."""
NEARLY = 1.1
"""Times the cycles of the best m, for which a smaller one is taken."""
CACHED_BYTES = 288 * 1024
"""Transformed filters of a task that a second-level cache keeps while it needs them."""
CACHE_RATE = 16
"""Bytes a cycle to and from what lies behind that."""
TILES_AT_ONCE = 24
"""Tiles whose products wait in the first-level cache for their way back."""


def apart(elements: int, item: int) -> int:
    """At least so many elements of `item` bytes: an odd number of cache lines. Places that are powers of two
    apart would share few sets of the first-level cache (a filter's transform took three times as long)."""
    return (-(-elements * item // CACHE_LINE) | 1) * CACHE_LINE // item


@dataclass(frozen=True)
class Tiling(Window):
    """The tiles of a convolution. `narrow`: weights are bfloat16, and inputs are rounded to it. `x_zero` lies
    around an input of `x_dtype` uint8."""

    lanes: int
    m: int
    narrow: bool
    x_dtype: str
    x_zero: int

    @property
    def quantised(self) -> bool:
        return self.x_dtype == "uint8"

    @property
    def transform(self) -> Transform:
        return WHOLE if self.quantised else TRANSFORMS[self.m]

    @property
    def mac(self) -> Mac:
        """What multiplies transformed tiles with transformed filters."""
        return mac_named(f"words{32 * self.lanes}" if self.quantised else "float32", self.lanes)

    @property
    def item(self) -> int:
        """Bytes of a number of a transformed tile or filter."""
        return np.dtype(self.mac.a_dtype).itemsize

    @property
    def wide(self) -> int:
        """Lanes of a vector of such numbers."""
        return self.lanes * self.mac.group

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
    def place(self) -> int:
        """Elements from one place of the transformed tiles to the next."""
        return apart(self.tiles * self.c, self.item)

    @property
    def nbytes(self) -> int:
        """Of the transformed tiles."""
        return self.places * self.place * self.item


@dataclass(frozen=True)
class WinogradInputSpec(Tiling):
    """x [n, h, w, c] -> the transformed tiles [places][tiles, c]. A task is a row of tiles."""

    @property
    def tasks(self) -> int:
        return self.n * self.down

    @property
    def flops(self) -> int:
        """Of the transform; a multiply-add counts 2."""
        return 2 * multiplications(self.transform.inputs) * 2 * self.size * self.tiles * self.c


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
        widths = [UNIT] if self.in_units else [w for w in (4, 3, 2, 1) if self.vectors % w == 0]
        by = self.mac.cost
        shapes = [best_tile(self.tiles, self.vectors, self.registers, by, width) for width in widths]

        def cost(shape: tuple[int, int]) -> float:
            loads = sum(shape) / 2  # the filters do not all fit the first-level cache
            return (step_cycles(shape[0], shape[1], by) + loads) / math.prod(shape)

        return min(shapes, key=cost)

    @property
    def in_units(self) -> bool:
        """uint8 results are packed from units of vectors (Epilogue.packed)."""
        return self.epilogue.packs(self.lanes)

    @property
    def channels(self) -> np.ndarray:
        """The output channel in each place of packed filters, bias and scale."""
        natural = np.arange(self.oc)
        if not self.in_units:
            return natural
        return natural.reshape(-1, UNIT * self.lanes)[:, np.ravel(unit_order(self.lanes))].ravel()

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
    def filter_place(self) -> int:
        """Elements from one place of a block's transformed filters to the next."""
        return apart(self.c * self.width, self.item)

    @property
    def sum_place(self) -> int:
        """Elements from one place of the sums of some tiles to the next."""
        return apart(self.chunk * self.pieces.sizes()[0][0] * self.width, 4)

    @property
    def filter_bytes(self) -> int:
        """Transformed filters of a block."""
        return self.places * self.filter_place * self.item

    @property
    def stack_bytes(self) -> int:
        return self.filter_bytes + self.places * self.sum_place * 4


def multiplications(matrix: Matrix) -> int:
    """Multiply-adds of applying it to a vector."""
    return sum(1 for row in matrix for factor in row if factor)


def product_cycles(products: int, mac: Mac) -> float:
    """Of so many multiply-adds in tiles of several rows."""
    return products / (mac.lanes * mac.group) * mac.cost.arithmetic(2, 1) / 2


def direct_cycles(spec: WinogradSpec, mac: Mac) -> float:
    """Of the ordinary product, with that row of kernels/mac.py."""
    return product_cycles(spec.n * spec.oh * spec.ow * 9 * spec.c * spec.oc, mac)


def cycles(spec: WinogradSpec) -> float:
    """Of both kernels, by the same measure: products, transforms with their loads and stores (two a cycle),
    and filters that do not stay in the cache."""
    by, size = spec.transform, spec.size
    inputs = multiplications(by.inputs) * 2 * size + 2 * spec.places
    outputs = multiplications(by.outputs) * (size + spec.m) + 2 * spec.places
    filters = multiplications(by.filters) * (3 + size) + spec.places
    moved = (spec.tiles * spec.c * inputs + spec.c * spec.oc * filters) / spec.wide
    moved += spec.tiles * spec.oc * outputs / spec.lanes
    spilled = 2 * spec.filter_bytes * spec.blocks if spec.filter_bytes > CACHED_BYTES else 0
    return product_cycles(spec.flops // 2, spec.mac) + moved / 2 + spilled * spec.parts / CACHE_RATE


def pays(spec: WinogradSpec, direct: Mac) -> bool:
    most = direct_cycles(spec, direct)
    return most >= LEAST_CYCLES and cycles(spec) <= WORTH * most


def pack_filters(spec: WinogradSpec, w: np.ndarray) -> np.ndarray:
    """`w` [oc, c, 3, 3] as [block][c / group][9][channels of the block][group]: what a task reads lies
    together."""
    group = spec.mac.group
    blocks = bit_patterns(w)[spec.channels].reshape(spec.blocks, spec.width, spec.c // group, group, 9)
    return np.ascontiguousarray(blocks.transpose(0, 2, 4, 1, 3)).ravel()
