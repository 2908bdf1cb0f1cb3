"""The pieces of a product of computed matrices: panels of B packed into scratch, register tiles over them.

panel[k][column]    `vectors` whole vectors of columns for each k, zero beyond the matrix
tile                rows x vectors sums in registers; every A value is broadcast from where it lies
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import emit
from .mac import FLOAT, Mac
from .partial import load_part
from .tiling import (
    MANY_ROWS,
    Cost,
    Split,
    best_tile,
    split,
    step_cycles,
)
from .vectors import transposed

UNROLL_STEPS = 8
"""Shorter products are straight code."""


@dataclass(frozen=True)
class Matrix:
    """Where a batch of matrices lies: element (i, j) is at sum(batch index * batch) + i * row + j * col."""

    batch: tuple[int, ...]
    row: int
    col: int


@dataclass(frozen=True)
class Blocks:
    """`n` columns cut into `whole` blocks of `width` vectors that are full, and a rest."""

    n: int
    lanes: int
    width: int

    @property
    def whole(self) -> int:
        return self.n // (self.width * self.lanes)

    @property
    def rest(self) -> int:
        """Vectors of the rest, the last of which may be partial."""
        return -(-(self.n - self.whole * self.width * self.lanes) // self.lanes)

    @property
    def valid(self) -> int:
        """Lanes of the rest's last vector that exist."""
        return (self.n - 1) % self.lanes + 1

    @property
    def count(self) -> int:
        return self.whole + (self.rest > 0)

    @property
    def columns(self) -> int:
        """Whole vectors of all blocks, in elements."""
        return (self.whole * self.width + self.rest) * self.lanes

    def each(self, body: Callable[[Any, int, int], None]) -> None:
        """`body(block, vectors, valid lanes of the last)` for every block."""
        emit.over(0, self.whole, lambda block: body(block, self.width, self.lanes))
        if self.rest:
            body(self.whole, self.rest, self.valid)

    def one(self, block: Any, body: Callable[[Any, int, int], None]) -> None:
        """The same for one block that is known at run time."""
        full = lambda: body(block, self.width, self.lanes)  # noqa: E731
        last = lambda: body(self.whole, self.rest, self.valid)  # noqa: E731
        if not self.rest:
            full()
        elif not self.whole:
            last()
        else:
            emit.branch(block < self.whole, full, last)


@dataclass(frozen=True)
class Parts:
    """One of `count` pieces of a sum: where the sum so far is, and where it is kept."""

    index: Any
    count: int
    so_far: Callable[[int, int], Any]
    keep: Callable[[int, int, Any], None]


def tiling_of(
    rows: int, columns: int, lanes: int, registers: int, *, alike: bool = False, cost: Cost = FLOAT
) -> tuple[Split, Blocks]:
    """How rows and columns of a product are cut into register tiles. `alike`: columns as for many rows, so
    that what is packed for them serves any number."""
    vectors = -(-columns // lanes)
    width = best_tile(MANY_ROWS, vectors, registers, cost)[1] if alike else None
    tile = best_tile(rows, vectors, registers, cost, width)
    return split(rows, tile[0]), Blocks(columns, lanes, tile[1])


def tiling_of_two(
    rows: int, columns: tuple[int, int], depths: tuple[int, int], lanes: int, registers: int
) -> tuple[Split, Blocks, Blocks]:
    """The same for two products that share their rows: the fewest cycles for both together."""
    cost = FLOAT
    found = []
    for tall in range(1, min(rows, 12) + 1):
        cuts = split(rows, tall)
        widths, cycles, loads = [], 0.0, 0.0
        for n, depth in zip(columns, depths, strict=True):
            vectors = -(-n // lanes)
            fitting = [v for v in range(1, min(vectors, 8) + 1) if v == 1 or _fits(tall, v, registers)]
            each = {v: sum(c * cover(r, v, vectors, cost) for r, c in cuts.sizes()) for v in fitting}
            widths.append(min(fitting, key=lambda v: (each[v], v)))
            cycles += depth * each[widths[-1]]
            loads += (tall + widths[-1]) / (tall * widths[-1])
        found.append((cycles, loads, cuts, widths))
    # Among those within 3 % of the best the one that loads least, as in best_tile.
    good = [f for f in found if f[0] <= 1.03 * min(f[0] for f in found)]
    _, _, cuts, (first, second) = min(good, key=lambda f: f[1])
    return cuts, Blocks(columns[0], lanes, first), Blocks(columns[1], lanes, second)


def _fits(rows: int, vectors: int, registers: int) -> bool:
    """The rule of best_tile: a quarter of the registers is left to operands."""
    return 4 * rows * vectors <= 3 * registers and (rows + 1) * vectors < registers


def cover(rows: int, width: int, vectors: int, cost: Cost) -> float:
    """Cycles of one k step over `vectors` in tiles of `width`."""
    full, rest = divmod(vectors, width)
    return full * step_cycles(rows, width, cost) + (step_cycles(rows, rest, cost) if rest else 0.0)


def each_tile(rows: Split, first: Any, end: Any, body: Callable[[Any, int], None]) -> None:
    """`body(first row, rows)` for the tiles [first, end) of a split."""
    if not rows.larger:
        emit.over(first, end, lambda t: body(t * rows.size, rows.size))
        return
    if isinstance(first, int) and isinstance(end, int):
        middle: Any = min(max(rows.larger, first), end)
    else:
        middle = emit.vmin(emit.vmax(rows.larger, first), end)
    emit.over(first, middle, lambda t: body(t * (rows.size + 1), rows.size + 1))
    emit.over(middle, end, lambda t: body(t * rows.size + rows.larger, rows.size))


def pack(
    panel: Any,
    to: Any,
    source: Any,
    at: Any,
    matrix: Matrix,
    depth: Any,
    vectors: int,
    valid: int,
    lanes: int,
) -> None:
    """Copy `depth` rows of a block of columns, the first element of which is at `at`, to panel[to...]."""
    if matrix.row == 1 and matrix.col != 1:
        _pack_columns(panel, to, source, at, matrix.col, depth, vectors, valid, lanes)
        return

    def row(k: Any) -> None:
        for v in range(vectors):
            here = valid if v == vectors - 1 else lanes
            start = at + k * matrix.row + v * lanes * matrix.col
            if matrix.col == 1:
                value = load_part(source, "float32", start, lanes, here)
                emit.store(panel, to + (k * vectors + v) * lanes, value, lanes)
                continue
            for i in range(lanes):
                one = emit.load(source, start + i * matrix.col) if i < here else emit.splat(0.0, "float32", 1)
                emit.store(panel, to + (k * vectors + v) * lanes + i, one)

    with emit.loop(0, depth) as k:
        row(k)


def _pack_columns(
    panel: Any, to: Any, source: Any, at: Any, col: int, depth: Any, vectors: int, valid: int, lanes: int
) -> None:
    """The same where the values of a column are neighbours: squares are transposed in registers."""

    def square(k: Any, v: int, here: int) -> None:
        start = at + k + v * lanes * col
        zero = emit.splat(0.0, "float32", lanes)
        rows = [emit.load(source, start + i * col, lanes) if i < here else zero for i in range(lanes)]
        for i, value in enumerate(transposed(rows, lanes)):
            emit.store(panel, to + ((k + i) * vectors + v) * lanes, value, lanes)

    def single(k: Any, v: int, here: int) -> None:
        for i in range(lanes):
            one = (
                emit.load(source, at + k + (v * lanes + i) * col)
                if i < here
                else emit.splat(0.0, "float32", 1)
            )
            emit.store(panel, to + (k * vectors + v) * lanes + i, one)

    for v in range(vectors):
        here = valid if v == vectors - 1 else lanes
        emit.over(0, depth // lanes, lambda k, v=v, here=here: square(k * lanes, v, here))  # type: ignore[misc]
        emit.over(depth // lanes * lanes, depth, lambda k, v=v, here=here: single(k, v, here))  # type: ignore[misc]


def tile(
    rows: int,
    vectors: int,
    lanes: int,
    depth: Any,
    a: Callable[[int, Any], Any],
    b: Callable[[int, Any], Any],
    finish: Callable[[int, int, Any], None],
    parts: Parts | None = None,
    mac: Mac | None = None,
    chains: int = 1,
) -> None:
    """`finish(i, v, sum over t of a(i, t) * b(v, t))` for every row and vector of a tile.

    `a` gives a scalar, `b` a vector. `parts`: the sum is made in several calls. `mac`: another way to
    multiply; `a` and `b` then give what it loads, `depth` counts its steps. `chains`: partial sums of each
    result, for tiles that would wait for their own additions.
    """
    size = rows * vectors
    acc = emit.local(chains * size, emit.vector("float32", lanes))

    def each(what: Callable[[int, int], None]) -> Callable[[], None]:
        def run() -> None:
            for i in range(rows):
                for v in range(vectors):
                    what(i, v)

        return run

    def put(value: Callable[[int, int], Any]) -> Callable[[], None]:
        return each(lambda i, v: emit.store(acc, i * vectors + v, value(i, v)))

    def give(to: Callable[[int, int, Any], None]) -> Callable[[], None]:
        return each(lambda i, v: to(i, v, emit.load(acc, i * vectors + v)))

    def step(t: Any, chain: int) -> None:
        columns = [b(v, t) for v in range(vectors)]
        for i in range(rows):
            value = a(i, t) if mac else emit.splat(a(i, t), "float32", lanes)
            for v in range(vectors):
                at = chain * size + i * vectors + v
                total = emit.load(acc, at)
                emit.store(acc, at, mac.step(total, value, columns[v]) if mac else total + value * columns[v])

    zero = put(lambda i, v: emit.splat(0.0, "float32", lanes))
    if parts is None or parts.count == 1:
        zero()
    else:
        emit.branch(parts.index == 0, zero, put(parts.so_far))
    for i in range(size, chains * size):
        emit.store(acc, i, emit.splat(0.0, "float32", lanes))
    _walk(depth, chains, step)
    for i in range(size, chains * size):
        emit.store(acc, i % size, emit.load(acc, i % size) + emit.load(acc, i))
    if parts is None or parts.count == 1:
        give(finish)()
    else:
        emit.branch(parts.index == parts.count - 1, give(finish), give(parts.keep))


def _walk(depth: Any, chains: int, step: Callable[[Any, int], None]) -> None:
    """`step(t, chain)` for every t below `depth`, the chains in turns; what is left goes to the first."""
    if isinstance(depth, int) and depth <= UNROLL_STEPS:
        for t in range(depth):
            step(t, 0)
        return
    with emit.loop(0, depth // chains) as t:
        for chain in range(chains):
            step(t * chains + chain, chain)
    if chains > 1:
        with emit.loop(depth // chains * chains, depth) as t:
            step(t, 0)
