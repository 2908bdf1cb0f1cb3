"""Work across the lanes of vectors: sums and maxima over a vector, squares transposed in registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import emit


def across(value: Any, lanes: int, combine: Callable[[Any, Any], Any]) -> Any:
    """One float32 from all lanes of a vector, by halves."""
    while lanes > 1:
        whole = emit.local(1, emit.vector("float32", lanes))
        emit.store(whole, 0, value)
        both = emit.load(whole, 0)
        half = lanes // 2
        value = combine(emit.shuffle(both, tuple(range(half))), emit.shuffle(both, tuple(range(half, lanes))))
        lanes = half
    return value


def transposed(rows: Sequence[Any], lanes: int, dtype: str = "float32") -> list[Any]:
    """`lanes` vectors of a 32-bit type, as the columns of the square that they are the rows of.

    Squares of four are transposed within 128-bit parts of the registers, where shuffles are cheap (Intel's
    "Optimization Reference Manual", section on matrix transposition); then the parts change places.
    """
    groups = range(lanes // 4)
    low = tuple(4 * g + i for g in groups for i in (0, 1))
    high = tuple(4 * g + i for g in groups for i in (2, 3))
    every = _Stage(rows, lanes, dtype)
    pairs = _Stage(
        [every.zip(2 * i, 2 * i + 1, part) for i in range(lanes // 2) for part in (low, high)], lanes, dtype
    )
    # pairs[2 i]: columns 0 and 1 of rows 2 i and 2 i + 1 of each part; pairs[2 i + 1]: columns 2 and 3.
    quads = []
    for quad in range(lanes // 4):
        for column in range(4):
            a, b = 4 * quad + column // 2, 4 * quad + 2 + column // 2
            quads.append(pairs.halves(a, b, column % 2))
    return _exchange(_Stage(quads, lanes, dtype), lanes, dtype)


class _Stage:
    """Vectors stored once, so that each may be used several times."""

    def __init__(self, values: Sequence[Any], lanes: int, dtype: str) -> None:
        self.lanes = lanes
        self.buffer = emit.local(len(values), emit.vector(dtype, lanes))
        for i, value in enumerate(values):
            emit.store(self.buffer, i, value)

    def __getitem__(self, index: int) -> Any:
        return emit.load(self.buffer, index)

    def pick(self, a: int, b: int, order: Sequence[int]) -> Any:
        """Lanes of two vectors; those of the second are numbered from `lanes` on."""
        return emit.shuffle_two(self[a], self[b], tuple(order))

    def zip(self, a: int, b: int, chosen: Sequence[int]) -> Any:
        """The chosen lanes of both, alternating."""
        return self.pick(a, b, [at for lane in chosen for at in (lane, lane + self.lanes)])

    def halves(self, a: int, b: int, which: int) -> Any:
        """In each part of four lanes: the lower or upper half of the first vector, then of the second."""
        order = []
        for part in range(0, self.lanes, 4):
            at = part + 2 * which
            order += [at, at + 1, at + self.lanes, at + 1 + self.lanes]
        return self.pick(a, b, order)


def _exchange(quads: _Stage, lanes: int, dtype: str) -> list[Any]:
    """Part g of quad q, column c, becomes part q of column 4 g + c."""
    parts = lanes // 4
    if parts == 1:
        return [quads[c] for c in range(4)]

    def join(stage: _Stage, a: int, b: int, first: Sequence[int], second: Sequence[int]) -> Any:
        order = [4 * p + i for p in first for i in range(4)]
        order += [lanes + 4 * p + i for p in second for i in range(4)]
        return stage.pick(a, b, order)

    if parts == 2:
        return [join(quads, c, 4 + c, (g,), (g,)) for g in range(2) for c in range(4)]
    # Four quads of four parts: two at a time.
    pairs = _Stage(
        [
            join(quads, 8 * pair + c, 8 * pair + 4 + c, half, half)
            for c in range(4)
            for pair in range(2)
            for half in ((0, 1), (2, 3))
        ],
        lanes,
        dtype,
    )
    return [
        join(pairs, 4 * c + g // 2, 4 * c + 2 + g // 2, (g % 2, 2 + g % 2), (g % 2, 2 + g % 2))
        for g in range(4)
        for c in range(4)
    ]


def load_filled(buffer: Any, at: Any, lanes: int, valid: int, filler: float | Callable[[], Any]) -> Any:
    """A float32 vector of which only the first `valid` lanes may be read; the others hold `filler`."""
    if valid == lanes:
        return emit.load(buffer, at, lanes)
    part = emit.local(lanes, "float32")
    for i in range(lanes):
        missing = filler() if callable(filler) else emit.splat(filler, "float32", 1)
        emit.store(part, i, emit.load(buffer, at + i) if i < valid else missing)
    return emit.load(part, 0, lanes)
