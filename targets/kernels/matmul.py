"""Products of two matrices, each read where and as it lies: matmul, and linear layers whose sums are long.

A task is a chunk of rows and a group of column blocks of one product of the batch:

    for each block of k:
        for each block of columns:
            panel <- the block of B        (unless it is packed already, or read once just as it lies)
            for each tile of rows:
                acc <- 0, or the sums so far in y;  for k: acc += a * b;  y <- acc, at the end with epilogue

A panel stays in the first-level cache while the tiles of the chunk pass over it, the chunk of A in the second
(Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008). Strides of any kind: a
transposed operand costs its packing (B) or nothing (A).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from . import emit
from .epilogue import Epilogue
from .partial import load_part, store_part
from .product import (
    Blocks,
    Matrix,
    Parts,
    each_tile,
    pack,
    tile,
    tiling_of,
)
from .tiling import Split

DEPTH = 384
"""Values of k of a block: a panel of three vectors and the rows of a tile fill the first-level cache."""
CHUNK_BYTES = 192 * 1024
"""What a chunk of A takes of the second-level cache, for one block of k."""
WANTED_TASKS = 8
HEAVY = ("gelu",)
"""Activations that measured slower as straight code behind every tile."""


@dataclass(frozen=True)
class MatmulSpec:
    """y[b, i, j] = finish(scale * sum over k of a[b, i, k] * b[b, k, j]); columns of y are neighbours.

    `packed`: B are weights in the order of `pack_matrix`. `epilogue`: what a linear layer does to its sums.
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

    @cached_property
    def tiling(self) -> tuple[Split, Blocks]:
        return tiling_of(self.m, self.n, self.lanes, self.registers, alike=self.packed)

    @property
    def depth(self) -> int:
        """Values of k of all blocks but the last."""
        count = -(-self.k // DEPTH)
        return -(-self.k // count)

    @property
    def depths(self) -> int:
        """Blocks of k."""
        return -(-self.k // self.depth)

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
        return 4 * self.depth * widest * self.lanes if self.packs else 0

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
    return [(name, e.residual if name == "residual" else "float32") for name in names]


def pack_matrix(spec: MatmulSpec, b: np.ndarray) -> np.ndarray:
    """`b` [k, n] in the order in which the kernel reads it: [block of k][block of columns][k][column]."""
    blocks = spec.tiling[1]
    wide = np.pad(b, ((0, 0), (0, blocks.columns - spec.n)))
    width = blocks.width * spec.lanes
    parts = [
        wide[at : at + spec.depth, column : column + width].ravel()
        for at in range(0, spec.k, spec.depth)
        for column in range(0, blocks.columns, width)
    ]
    return np.concatenate(parts).astype(np.float32)


def batch_offset(index: Any, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """Offset of matrix number `index` of a batch."""
    offset: Any = 0
    for axis in reversed(range(len(shape))):
        if strides[axis] and shape[axis] > 1:
            offset = offset + (index % shape[axis] if axis else index) * strides[axis]
        index = index // shape[axis]
    return offset


def emit_matmul(spec: MatmulSpec, name: str) -> Any:
    """The PrimFunc."""
    return emit.kernel(name, matmul_params(spec), lambda *args: _Matmul(spec, args).body())


class _Matmul:
    """Emits one kernel. `at` holds the offset of the task's matrix in every operand."""

    def __init__(self, spec: MatmulSpec, args: tuple[Any, ...]) -> None:
        *buffers, self.begin, self.end = args
        self.spec = spec
        self.buffers = dict(zip((n for n, _ in matmul_params(spec)), buffers, strict=True))
        self.panel = emit.local(spec.stack_bytes // 4, "float32") if spec.packs else None
        self.at: dict[str, Any] = {}

    def body(self) -> None:
        s = self.spec
        blocks = s.tiling[1]

        def one(task: Any) -> None:
            group = task % s.groups if s.groups > 1 else 0
            rest = task // s.groups
            chunk = rest % s.chunks if s.chunks > 1 else 0
            index = rest // s.chunks
            self.at = {
                n: batch_offset(index, s.batch, m.batch) for n, m in zip("aby", (s.a, s.b, s.y), strict=True)
            }
            first: Any = 0
            last: Any = blocks.count
            if s.groups > 1:
                first = group * s.group
                last = emit.vmin(first + s.group, blocks.count)
            emit.over(0, s.depths, lambda kb: self.columns(chunk, first, last, kb))

        emit.over(self.begin, self.end, one)

    def columns(self, chunk: Any, first: Any, last: Any, kb: Any) -> None:
        """All blocks [first, last) of columns for one block of k."""
        blocks = self.spec.tiling[1]
        whole = emit.vmin(last, blocks.whole) if self.spec.groups > 1 and blocks.rest else last
        if self.spec.groups == 1:
            whole = blocks.whole
        emit.over(first, whole, lambda block: self.block(chunk, block, kb, blocks.width, blocks.lanes))
        if not blocks.rest:
            return
        if self.spec.groups == 1:
            self.block(chunk, blocks.whole, kb, blocks.rest, blocks.valid)
            return
        with emit.when(last == blocks.count):
            self.block(chunk, blocks.whole, kb, blocks.rest, blocks.valid)

    def block(self, chunk: Any, block: Any, kb: Any, vectors: int, valid: int) -> None:
        s = self.spec
        lanes, blocks = s.lanes, s.tiling[1]
        column = block * blocks.width * lanes
        depth = emit.vmin(s.depth, s.k - kb * s.depth) if s.k % s.depth else s.depth
        first = self.at["b"] + column * s.b.col + kb * s.depth * s.b.row
        if s.packs:
            pack(self.panel, 0, self.buffers["b"], first, s.b, depth, vectors, valid, lanes)
        packed = self.at["b"] + kb * s.depth * blocks.columns + column * depth

        def load_b(v: int, t: Any) -> Any:
            if s.packs:
                return emit.load(self.panel, (t * vectors + v) * lanes, lanes)
            if s.packed:
                return emit.load(self.buffers["b"], packed + (t * vectors + v) * lanes, lanes)
            here = valid if v == vectors - 1 else lanes
            return load_part(self.buffers["b"], "float32", first + t * s.b.row + v * lanes, lanes, here)

        def rows(row: Any, count: int) -> None:
            base = self.at["a"] + row * s.a.row + kb * s.depth * s.a.col
            self.tile(row, column, kb, count, vectors, valid, depth, base, load_b)

        start: Any = 0
        end: Any = s.tiling[0].count
        if s.chunks > 1:
            start = chunk * s.chunk
            end = emit.vmin(start + s.chunk, s.tiling[0].count)
        each_tile(s.tiling[0], start, end, rows)
        if s.heavy and s.depths > 1:
            with emit.when(kb == s.depths - 1):
                self.finish(start, end, column, vectors, valid)
        elif s.heavy:
            self.finish(start, end, column, vectors, valid)

    def finish(self, start: Any, end: Any, column: Any, vectors: int, valid: int) -> None:
        """Epilogue of the rows of tiles [start, end) that are in y as sums."""
        s, y, lanes = self.spec, self.buffers["y"], self.spec.lanes
        tiles = s.tiling[0]
        first, last = (t * tiles.size + emit.vmin(t, tiles.larger) for t in (start, end))
        with emit.loop(first, last) as row:
            to = self.at["y"] + row * s.y.row + column
            for v in range(vectors):
                here = valid if v == vectors - 1 else lanes
                at = to + v * lanes
                self.put(load_part(y, "float32", at, lanes, here), at, column + v * lanes, here)

    def put(self, value: Any, at: Any, column: Any, valid: int) -> None:
        value = self.finished(value, at, column, valid)
        store_part(self.buffers["y"], "float32", at, value, self.spec.lanes, valid)

    def tile(
        self,
        row: Any,
        column: Any,
        kb: Any,
        count: int,
        vectors: int,
        valid: int,
        depth: Any,
        base: Any,
        load_b: Any,
    ) -> None:
        s, y, lanes = self.spec, self.buffers["y"], self.spec.lanes
        to = self.at["y"] + row * s.y.row + column

        def place(i: int, v: int) -> tuple[Any, int]:
            return to + i * s.y.row + v * lanes, valid if v == vectors - 1 else lanes

        def so_far(i: int, v: int) -> Any:
            at, here = place(i, v)
            return load_part(y, "float32", at, lanes, here)

        def keep(i: int, v: int, value: Any) -> None:
            at, here = place(i, v)
            store_part(y, "float32", at, value, lanes, here)

        def done(i: int, v: int, value: Any) -> None:
            at, here = place(i, v)
            self.put(value, at, column + v * lanes, here)

        tile(
            count, vectors, lanes, depth,
            lambda i, t: emit.load(self.buffers["a"], base + i * s.a.row + t * s.a.col),
            load_b,
            keep if s.heavy else done,
            Parts(kb, s.depths, so_far, keep),
        )  # fmt: skip

    def finished(self, value: Any, at: Any, column: Any, valid: int) -> Any:
        """The result's vector: scaled, or as the epilogue says. Packed operands hold whole vectors."""
        s, e, lanes = self.spec, self.spec.epilogue, self.spec.lanes
        if s.scale != 1.0:
            value = value * emit.splat(s.scale, "float32", lanes)
        if e.bias:
            value = value + emit.load(self.buffers["bias"], column, lanes)
        scale = emit.load(self.buffers["scale"], column, lanes) if e.scale else None
        residual = load_part(self.buffers["residual"], e.residual, at, lanes, valid) if e.residual else None
        return e.activated(value, scale, residual, lanes)
