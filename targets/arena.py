"""Where in one block of memory each value lies, so that values alive at the same time do not overlap."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)

ALIGN = 64
SLACK = 64
"""Bytes behind every buffer that a kernel may read (never write): a vector load or a multiply group that runs
past the end."""


@dataclass(frozen=True)
class Lifetime:
    """A buffer of `nbytes` that is written in step `first` and read for the last time in step `last`."""

    nbytes: int
    first: int
    last: int


def plan_arena(buffers: Mapping[Key, Lifetime]) -> tuple[dict[Key, int], int]:
    """Offsets, and the size of the whole.

    Largest first, each at the lowest offset that is free for its lifetime (Pisarchyk and Lee 2020, "greedy by
    size": within a few percent of the lower bound on networks like these).
    """
    offsets: dict[Key, int] = {}
    placed: list[tuple[int, int, Lifetime]] = []
    for name, life in sorted(buffers.items(), key=lambda item: (-item[1].nbytes, item[1].first)):
        size = -(-(life.nbytes + SLACK) // ALIGN) * ALIGN
        busy = sorted(
            (at, end) for at, end, other in placed if other.first <= life.last and life.first <= other.last
        )
        offset = 0
        for at, end in busy:
            if offset + size <= at:
                break
            offset = max(offset, end)
        offsets[name] = offset
        placed.append((offset, offset + size, life))
    return offsets, max((end for _, end, _ in placed), default=0)
