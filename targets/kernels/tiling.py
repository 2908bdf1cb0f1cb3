"""Register tiles: how many rows of A and vectors of B a micro-kernel holds at once, by a model of one core."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

LATENCY = 4
"""Cycles from one multiply-add to the next that depends on it, on every x86 since Skylake and Zen 2."""

DECODE = 5
"""Operations a cycle that the front end delivers; nominally 6 on Zen 3, less where a loop is not aligned."""


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
        return tuple((s, n) for s, n in ((self.size + 1, self.larger), (self.size, self.count - self.larger)) if n)


def split(total: int, largest: int) -> Split:
    """The fewest nearly equal pieces of at most `largest`."""
    return Split(total, -(-total // largest))


def step_cycles(rows: int, vectors: int, group: int) -> float:
    """Cycles of one k step of a rows x vectors tile: the busiest of arithmetic ports, load ports, decoder and the dependency chain.

    A group of 2 (widen, multiply, add on four vector ports) costs two operations a product; the others one, on two ports.
    """
    products = rows * vectors
    operations = 2 * products + vectors if group == 2 else products
    arithmetic = operations / 4 if group == 2 else products / 2
    loads = (rows + vectors) / 2
    return max(arithmetic, loads, (operations + rows + vectors) / DECODE, LATENCY if products < 2 * LATENCY else 0)


@cache
def best_tile(rows: int, vectors: int, registers: int, group: int) -> tuple[int, int]:
    """(rows, vectors) of the micro-kernel that covers a rows x vectors problem in the fewest cycles."""
    spare = 2 if group == 2 else 1
    choices = [
        (r, v)
        for r in range(1, 15)
        for v in range(1, 9)
        if r * v + (v if r > 1 else 0) + spare <= registers
    ]
    return min(choices, key=lambda t: (_cover(rows, t[0], vectors, t[1], group), -t[0] * t[1], t))


def _cover(rows: int, tile_rows: int, vectors: int, tile_vectors: int, group: int) -> float:
    full, rest = divmod(vectors, tile_vectors)
    blocks = [(tile_vectors, full)] + ([(rest, 1)] if rest else [])
    pieces = split(rows, tile_rows).sizes()
    return sum(step_cycles(r, v, group) * n * m for r, n in pieces for v, m in blocks)
