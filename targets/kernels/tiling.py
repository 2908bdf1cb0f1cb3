"""Register tiles: how many rows of A and vectors of B a micro-kernel holds, by a model of one core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

LATENCY = 4
"""Cycles from one multiply-add to the next that depends on it, on every x86 since Skylake and Zen 2."""

DECODE = 5
"""Operations a cycle that the front end delivers; nominally 6 on Zen 3, less where a loop is not aligned."""

DOUBTFUL = 1.3
"""The model's cycles of a tile over those of the best one, up to which measuring may find it the better."""

CACHE_LINE = 64
"""Bytes, on every chip that we know."""

MANY_ROWS = 96
"""As good as any number: the width of a tile for them is that of weights which are packed for all."""


@dataclass(frozen=True)
class Split:
    """`total` cut into `count` pieces: the first `larger` of them of `size + 1`, the others of `size`."""

    total: int
    count: int

    @property
    def size(self) -> int:
        return self.total // self.count

    @property
    def larger(self) -> int:
        return self.total % self.count

    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(piece size, how many), without empty entries."""
        return tuple(
            (s, n) for s, n in ((self.size + 1, self.larger), (self.size, self.count - self.larger)) if n
        )


def split(total: int, largest: int) -> Split:
    """The fewest nearly equal pieces of at most `largest`."""
    return Split(total, -(-total // largest))


@dataclass(frozen=True)
class Cost:
    """What a multiply costs on the vector ports.

    operations   instructions per vector of products
    widen        instructions per vector of B and step before it can be multiplied
    spare        registers that a step needs besides accumulators and a vector of B
    loads        of A for each row and step
    held         registers for each vector of B, where it is used more than once
    fused        instructions that run on two ports only, where they share three with the others; 0: one alone
                 runs on two ports, several share three
    """

    operations: int = 1
    widen: int = 0
    spare: int = 1
    loads: int = 1
    held: int = 1
    fused: int = 0

    def arithmetic(self, products: int, vectors: int) -> float:
        ports = 2 if self.operations == 1 else 3
        shared = (self.operations * products + self.widen * vectors) / ports
        return max(shared, self.fused * products / 2)


def step_cycles(rows: int, vectors: int, cost: Cost) -> float:
    """Cycles of one k step of a tile: the busiest of arithmetic ports, load ports, decoder and the
    dependency chain."""
    products = rows * vectors
    operations = cost.operations * products + cost.widen * vectors
    loads = cost.loads * rows + vectors
    chain = LATENCY if products < 2 * LATENCY else 0
    return max(cost.arithmetic(products, vectors), loads / 2, (operations + loads) / DECODE, chain)


def vectors_of_line(lanes: int) -> int:
    """Vectors of float32 results that fill a cache line."""
    return max(1, CACHE_LINE // (4 * lanes))


Tile = tuple[int, int]
"""(rows, vectors)"""


@cache
def best_tile(
    rows: int, vectors: int, registers: int, cost: Cost, width: int | None = None, line: int = 1
) -> Tile:
    """The tile of the micro-kernel that covers a rows x vectors problem in the fewest cycles, `width` vectors
    wide when that is given; `line` vectors of results fill a cache line.

    Among tiles within 3 % of the best, which is as far as the model can be trusted, one that writes whole
    lines (2 to 6 % faster, 17 % where results leave the second-level cache), and of these the one that loads
    least per product.
    """
    cycles = _all_tiles(rows, vectors, registers, cost, width)
    good = [t for t in cycles if cycles[t] <= 1.03 * min(cycles.values())]
    torn = {t: not vectors % line and bool(t[1] % line) for t in good}
    return min(good, key=lambda t: (torn[t], (t[0] + t[1]) / (t[0] * t[1]), t))


def likely_tiles(
    rows: int,
    vectors: int,
    registers: int,
    cost: Cost,
    width: int | None = None,
    line: int = 1,
    most: int = 5,
) -> tuple[Tile, ...]:
    """The best tile and after it others that measuring may find faster: the model's next ones."""
    first = best_tile(rows, vectors, registers, cost, width, line)
    cycles = _all_tiles(rows, vectors, registers, cost, width)
    near = [t for t in cycles if t != first and cycles[t] <= DOUBTFUL * cycles[first]]
    return (first, *sorted(near, key=lambda t: (cycles[t], t))[: most - 1])


@cache
def _all_tiles(
    rows: int, vectors: int, registers: int, cost: Cost, width: int | None
) -> Mapping[Tile, float]:
    """Tile -> cycles, of all that fit. A quarter of the registers is left to operands: fuller tiles measured
    slower than the model says, or spilled."""
    fitting = [
        (r, v)
        for r in range(1, min(rows, 16) + 1)
        for v in range(1, min(vectors, 8) + 1)
        if width in (None, v)
        if 4 * r * v <= 3 * registers and r * v + (cost.held * v if r > 1 else 0) + cost.spare <= registers
    ]
    return {t: _cover(rows, t[0], vectors, t[1], cost) for t in fitting}


def _cover(rows: int, tile_rows: int, vectors: int, tile_vectors: int, cost: Cost) -> float:
    full, rest = divmod(vectors, tile_vectors)
    blocks = [(tile_vectors, full)] + ([(rest, 1)] if rest else [])
    pieces = split(rows, tile_rows).sizes()
    return sum(step_cycles(r, v, cost) * n * m for r, n in pieces for v, m in blocks)
