"""Kernels that only move values: transpose, slice, concat.

Every input is a block of y with its own strides. The axes are sorted by their stride in y and merged where
they lie alike on both sides; what is left is one of

    runs        neighbours stay neighbours: whole vectors are copied
    squares     neighbours in x end up in rows of y: squares are transposed in registers (32-bit values)
    elements    one at a time

A task is a stretch of the last axis but one (two, for squares) under one index of the axes before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import emit
from .vectors import transposed

TASK = 8192
"""Elements of a task."""
TYPES = {1: "uint8", 2: "uint16", 4: "int32", 8: "int64"}
"""What values of so many bytes are moved as."""


@dataclass(frozen=True)
class Axis:
    """`size` values that are `x` apart in the input and `y` in the output."""

    size: int
    x: int
    y: int


@dataclass(frozen=True)
class Block:
    """What one input contributes: where its first value is on both sides, its axes, outermost first."""

    x_start: int
    y_start: int
    axes: tuple[Axis, ...]

    @property
    def kind(self) -> str:
        last = self.axes[-1]
        if last.x == last.y == 1:
            return "runs"
        return "squares" if last.y == 1 and any(a.x == 1 for a in self.axes[:-1]) else "elements"

    @property
    def size(self) -> int:
        return math.prod(a.size for a in self.axes)


def block(x_start: int, y_start: int, axes: Sequence[Axis]) -> Block:
    """The canonical form of a block: no axes of one element, none that two neighbours can be written as."""
    merged: list[Axis] = []
    for axis in sorted((a for a in axes if a.size > 1), key=lambda a: -a.y):
        before = merged[-1] if merged else None
        if before and before.x == axis.x * axis.size and before.y == axis.y * axis.size:
            merged[-1] = Axis(before.size * axis.size, axis.x, axis.y)
        else:
            merged.append(axis)
    found = Block(x_start, y_start, tuple(merged) or (Axis(1, 1, 1),))
    return Block(x_start, y_start, _shared(found))


def _shared(b: Block) -> tuple[Axis, ...]:
    """The axes, with a long one cut in two where otherwise threads had nothing to share."""
    squares = b.kind == "squares"
    if b.size < 2 * TASK or len(b.axes) > 1 + squares:
        return b.axes
    axis, *rest = b.axes
    if squares and axis.x != 1:
        return b.axes
    low, high = (16, 64) if squares else (TASK // 16, TASK)
    parts = [size for size in range(high, low - 1, -1) if axis.size % size == 0 and axis.size > size]
    if not parts:
        return b.axes
    cut = Axis(axis.size // parts[0], axis.x * parts[0], axis.y * parts[0])
    return (cut, Axis(parts[0], axis.x, axis.y), *rest)


@dataclass(frozen=True)
class MoveSpec:
    """`item` bytes a value; `vector` bytes of a register; one block for each input."""

    item: int
    vector: int
    blocks: tuple[Block, ...]

    def cuts(self, index: int) -> Cut:
        b = self.blocks[index]
        squares = self.item == 4 and b.kind == "squares"
        return Cut(b, "squares" if squares else "runs" if b.kind == "runs" else "elements")

    @property
    def tasks(self) -> int:
        return sum(self.cuts(i).tasks for i in range(len(self.blocks)))


@dataclass(frozen=True)
class Cut:
    """A block cut into tasks. `inner`: the axes of the innermost loops, `along`: the one that is cut."""

    block: Block
    kind: str

    @property
    def inner(self) -> tuple[Axis, ...]:
        axes = self.block.axes
        if self.kind == "squares":
            return (next(a for a in axes if a.x == 1), axes[-1])
        return axes[-1:]

    @property
    def outer(self) -> tuple[Axis, ...]:
        return tuple(a for a in self.block.axes if a not in self.inner)

    @property
    def along(self) -> Axis:
        return self.outer[-1] if self.outer else Axis(1, 0, 0)

    @property
    def chunk(self) -> int:
        """Values of `along` of a task."""
        return max(1, min(self.along.size, TASK // math.prod(a.size for a in self.inner)))

    @property
    def chunks(self) -> int:
        return -(-self.along.size // self.chunk)

    @property
    def tasks(self) -> int:
        return math.prod(a.size for a in self.outer[:-1]) * self.chunks


def move_params(spec: MoveSpec) -> list[tuple[str, str]]:
    """(name, element type) of the kernel's pointers, in order."""
    names = [f"x{i}" for i in range(len(spec.blocks))]
    return [(name, TYPES[spec.item]) for name in (*names, "y")]


def emit_move(spec: MoveSpec, name: str) -> Any:
    """The PrimFunc."""

    def body(*args: Any) -> None:
        *xs, y, begin, end = args
        first = 0
        for index, x in enumerate(xs):
            cut = spec.cuts(index)
            start, stop = emit.vmax(begin - first, 0), emit.vmin(end - first, cut.tasks)
            with emit.loop(start, stop) as task:
                _task(spec, cut, x, y, task)
            first += cut.tasks

    return emit.kernel(name, move_params(spec), body)


def _task(spec: MoveSpec, cut: Cut, x: Any, y: Any, task: Any) -> None:
    at, to = cut.block.x_start, cut.block.y_start
    index = task // cut.chunks
    for axis in reversed(cut.outer[:-1]):
        at, to = at + index % axis.size * axis.x, to + index % axis.size * axis.y
        index = index // axis.size
    first = task % cut.chunks * cut.chunk
    last = emit.vmin(first + cut.chunk, cut.along.size)

    def one(i: Any) -> None:
        mover = {"runs": _run, "squares": _squares, "elements": _elements}[cut.kind]
        mover(spec, cut.inner, x, y, at + i * cut.along.x, to + i * cut.along.y)

    emit.over(first, last, one)


def _run(spec: MoveSpec, inner: Sequence[Axis], x: Any, y: Any, at: Any, to: Any) -> None:
    """Whole vectors; the last one, and shorter runs, overlap what is copied already."""
    size, lanes = inner[0].size, spec.vector // spec.item

    def copy(i: Any, width: int) -> None:
        emit.store(y, to + i, emit.load(x, at + i, width), width)

    if size >= lanes:
        emit.over(0, size // lanes, lambda i: copy(i * lanes, lanes))
        if size % lanes:
            copy(size - lanes, lanes)
        return
    width = 1 << (size.bit_length() - 1)
    copy(0, width)
    if size > width:
        copy(size - width, width)


def _elements(spec: MoveSpec, inner: Sequence[Axis], x: Any, y: Any, at: Any, to: Any) -> None:
    axis = inner[0]
    emit.over(0, axis.size, lambda i: emit.store(y, to + i * axis.y, emit.load(x, at + i * axis.x)))


def _squares(spec: MoveSpec, inner: Sequence[Axis], x: Any, y: Any, at: Any, to: Any) -> None:
    """`inner`: the axes of neighbours in x and in y. Two squares at a time use whole cache lines."""
    rows, columns = inner
    lanes = spec.vector // spec.item

    def square(r: Any, c: Any) -> None:
        values = [emit.load(x, at + r + (c + i) * columns.x, lanes) for i in range(lanes)]
        for i, value in enumerate(transposed(values, lanes, TYPES[spec.item])):
            emit.store(y, to + (r + i) * rows.y + c, value, lanes)

    def band(r: Any, squares: int) -> None:
        def step(j: Any) -> None:
            for k in range(squares):
                square(r + k * lanes, j * lanes)

        emit.over(0, columns.size // lanes, step)
        single(r, squares * lanes, columns.size // lanes * lanes)

    def single(r: Any, count: int, first: int) -> None:
        def row(i: Any) -> None:
            emit.over(
                first,
                columns.size,
                lambda c: emit.store(y, to + (r + i) * rows.y + c, emit.load(x, at + r + i + c * columns.x)),
            )

        if first < columns.size:
            emit.over(0, count, row)

    _bands(rows.size, lanes, band)
    single(rows.size // lanes * lanes, rows.size % lanes, 0)


def _bands(size: int, lanes: int, band: Callable[[Any, int], None]) -> None:
    pairs = size // (2 * lanes)
    emit.over(0, pairs, lambda i: band(i * 2 * lanes, 2))
    if size // lanes % 2:
        band(pairs * 2 * lanes, 1)
