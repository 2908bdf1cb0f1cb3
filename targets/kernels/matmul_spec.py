"""What a product of two matrices is cut into, and the packing of weights for it (matmul.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .bfloat16 import bit_patterns
from .epilogue import Epilogue
from .mac import Mac, mac_for
from .product import Blocks, Matrix, tiling_of
from .tiling import LATENCY, Split

DEPTH = 384
"""Steps of k of a block: a panel of three vectors and the rows of a tile fill the first-level cache."""
CHUNK_BYTES = 192 * 1024
"""What a chunk of A takes of the second-level cache, for one block of k."""
WANTED_TASKS = 8
HEAVY = ("gelu",)
"""Activations that measured slower as straight code behind every tile."""


@dataclass(frozen=True)
class MatmulSpec:
    """y[b, i, j] = finish(scale * sum over k of a[b, i, k] * b[b, k, j]); columns of y are neighbours.

    `packed`: B are weights in the order of `pack_matrix`. `epilogue`: what a linear layer does to its sums.
    `dot`: the row of mac.py for weights in bfloat16, "" for float32; A is then rounded into scratch.
    """

    lanes: int
    registers: int
    batch: tuple[int, ...]
    m: int
    n: int
    k: int
    a: Matrix
    b: Matrix
    y: Matrix
    scale: float = 1.0
    packed: bool = False
    epilogue: Epilogue = Epilogue(bias=False)
    dot: str = ""

    @cached_property
    def mac(self) -> Mac:
        return mac_for("float32", self.dot, self.lanes)

    @cached_property
    def tiling(self) -> tuple[Split, Blocks]:
        return tiling_of(self.m, self.n, self.lanes, self.registers, alike=self.packed, cost=self.mac.cost)

    @property
    def depth(self) -> int:
        """Values of k of all blocks but the last, in whole steps."""
        count, step = -(-self.k // (DEPTH * self.mac.group)), self.mac.group
        return -(-self.k // (count * step)) * step

    @property
    def whole_k(self) -> int:
        """k in whole steps: what is packed of the weights."""
        return -(-self.k // self.mac.group) * self.mac.group

    @property
    def depths(self) -> int:
        """Blocks of k."""
        return -(-self.k // self.depth)

    def chains(self, rows: int, vectors: int) -> int:
        """Partial sums of each result of a tile."""
        return max(1, 2 * LATENCY // (rows * vectors)) if self.dot else 1

    def streams(self, rows: int, vectors: int) -> bool:
        """Weights are asked for ahead: a core that widens them does not look far enough (AHEAD)."""
        return self.chains(rows, vectors) > 1

    @property
    def heavy(self) -> bool:
        """The activation runs in a loop over the finished block: 0.6 ns a value for GELU, 1.9 behind every
        tile."""
        return self.epilogue.act in HEAVY

    @property
    def packs(self) -> bool:
        """B is copied into panels: it is read more than once, or its columns are no neighbours."""
        return not self.packed and (self.tiling[0].count > 1 or self.b.col != 1)

    @property
    def stack_bytes(self) -> int:
        blocks = self.tiling[1]
        widest = max(blocks.width if blocks.whole else 0, blocks.rest)
        panel = 4 * self.depth * widest * self.lanes if self.packs else 0
        return panel + self.rounded * np.dtype(self.mac.a_dtype).itemsize

    @property
    def rounded(self) -> int:
        """Values of A that are rounded into scratch: the rows of a task for one block of k."""
        rows = self.tiling[0]
        tallest = rows.size + (rows.larger > 0)
        return min(self.m, self.chunk * tallest) * self.depth if self.mac.rounds else 0

    @property
    def chunk(self) -> int:
        """Tiles of rows of a task."""
        rows = self.tiling[0]
        return max(4, min(rows.count, CHUNK_BYTES // (4 * self.depth * (rows.size + (rows.larger > 0)))))

    @property
    def chunks(self) -> int:
        return -(-self.tiling[0].count // self.chunk)

    @property
    def group(self) -> int:
        """Blocks of columns of a task: all, unless threads would have too little to share."""
        count = self.tiling[1].count
        return -(-count // min(count, -(-WANTED_TASKS // (math.prod(self.batch) * self.chunks))))

    @property
    def groups(self) -> int:
        return -(-self.tiling[1].count // self.group)

    @property
    def tasks(self) -> int:
        return math.prod(self.batch) * self.chunks * self.groups


def matmul_params(spec: MatmulSpec) -> list[tuple[str, str]]:
    """(name, element type) of the kernel's pointers, in order."""
    e = spec.epilogue
    optional = (("bias", e.bias), ("scale", e.scale), ("residual", bool(e.residual)))
    names = ["a", "b", *(name for name, there in optional if there), "y"]
    kinds = {"residual": e.residual, "b": spec.mac.b_dtype}
    return [(name, kinds.get(name, "float32")) for name in names]


def pack_matrix(spec: MatmulSpec, b: np.ndarray) -> np.ndarray:
    """`b` [k, n] in the order in which the kernel reads it: [block of k][block of columns][k / mac.group]
    [column][mac.group]."""
    blocks, step = spec.tiling[1], spec.mac.group
    wide = np.pad(bit_patterns(b), ((0, spec.whole_k - spec.k), (0, blocks.columns - spec.n)))
    steps = wide.reshape(-1, step, blocks.columns).transpose(0, 2, 1)
    width, deep = blocks.width * spec.lanes, spec.depth // step
    parts = [
        steps[at : at + deep, column : column + width].ravel()
        for at in range(0, len(steps), deep)
        for column in range(0, blocks.columns, width)
    ]
    return np.concatenate(parts).astype(spec.mac.b_dtype)


def batch_offset(index: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """Offset of matrix number `index` of a batch."""
    offset: Any = 0
    for axis in reversed(range(len(shape))):
        if strides[axis] and shape[axis] > 1:
            offset = offset + (index % shape[axis] if axis else index) * strides[axis]
        index = index // shape[axis]
    return offset
