"""matmul of two computed operands, each read where and as it lies.

A task is one block of columns of one product of the batch:

    panel <- the block of B            (unless one tile covers all rows, or B lies just so)
    for each tile of rows: sums in registers, scaled, stored

Strides of any kind: a transposed operand costs its packing (B) or nothing (A).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from . import emit
from .partial import load_part, store_part
from .product import Blocks, Matrix, each_tile, pack, tile, tiling_of
from .tiling import Split


@dataclass(frozen=True)
class MatmulSpec:
    """y[batch, i, j] = scale * sum over k of a[batch, i, k] * b[batch, k, j]; y's columns are neighbours."""

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

    @cached_property
    def tiling(self) -> tuple[Split, Blocks]:
        return tiling_of(self.m, self.n, self.lanes, self.registers)

    @property
    def packs(self) -> bool:
        """B is copied into panels: it is read more than once, or its columns are no neighbours."""
        return self.tiling[0].count > 1 or self.b.col != 1

    @property
    def stack_bytes(self) -> int:
        blocks = self.tiling[1]
        return (
            4 * self.k * max(blocks.width if blocks.whole else 0, blocks.rest) * self.lanes
            if self.packs
            else 0
        )

    @property
    def tasks(self) -> int:
        return math.prod(self.batch) * self.tiling[1].count


def matmul_params(spec: MatmulSpec) -> list[tuple[str, str]]:
    """(name, element type) of the kernel's pointers, in order."""
    return [("a", "float32"), ("b", "float32"), ("y", "float32")]


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

    def body(a: Any, b: Any, y: Any, begin: Any, end: Any) -> None:
        panel = emit.local(spec.stack_bytes // 4, "float32") if spec.packs else None
        blocks = spec.tiling[1]

        def one(task: Any) -> None:
            at = [batch_offset(task // blocks.count, spec.batch, m.batch) for m in (spec.a, spec.b, spec.y)]

            def columns(block: Any, vectors: int, valid: int) -> None:
                _block(spec, (a, b, y), at, panel, block * blocks.width * spec.lanes, vectors, valid)

            blocks.one(task % blocks.count, columns)

        emit.over(begin, end, one)

    return emit.kernel(name, matmul_params(spec), body)


def _block(
    spec: MatmulSpec,
    buffers: tuple[Any, Any, Any],
    at: list[Any],
    panel: Any,
    column: Any,
    vectors: int,
    valid: int,
) -> None:
    a, b, y = buffers
    lanes = spec.lanes
    first = at[1] + column * spec.b.col
    if spec.packs:
        pack(panel, 0, b, first, spec.b, spec.k, vectors, valid, lanes)

    def load_b(v: int, t: Any) -> Any:
        if spec.packs:
            return emit.load(panel, (t * vectors + v) * lanes, lanes)
        here = valid if v == vectors - 1 else lanes
        return load_part(b, "float32", first + t * spec.b.row + v * lanes, lanes, here)

    def rows(row: Any, count: int) -> None:
        base = at[0] + row * spec.a.row
        to = at[2] + row * spec.y.row + column

        def put(i: int, v: int, value: Any) -> None:
            if spec.scale != 1.0:
                value = value * emit.splat(spec.scale, "float32", lanes)
            here = valid if v == vectors - 1 else lanes
            store_part(y, "float32", to + i * spec.y.row + v * lanes, value, lanes, here)

        tile(
            count, vectors, lanes, spec.k,
            lambda i, t: emit.load(a, base + i * spec.a.row + t * spec.a.col),
            load_b,
            put,
        )  # fmt: skip

    each_tile(spec.tiling[0], 0, spec.tiling[0].count, rows)
