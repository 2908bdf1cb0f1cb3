"""Several lowered graphs in one library: the same network for several shapes, on one weights file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .arena import ALIGN
from .lower import Lowered
from .program import (
    Place,
    Program,
    Space,
    Step,
)
from .scratch import scratch_folder


def all_kernels(parts: Sequence[Lowered]) -> dict[str, Any]:
    """Symbol -> spec of every kernel that one of them calls."""
    return {symbol: spec for part in parts for symbol, spec in part.kernels.items()}


def share_weights(parts: Sequence[Lowered], path: Path) -> tuple[Program, ...]:
    """Writes their weights file to `path`; returns the programs on it.

    The first program's weights lie as they do without the others; what these need and is not there yet
    follows. How a weight is packed depends on its kernel alone, so shapes with the same kernels add nothing.
    Each array is packed once for each program, written and compared by its hash: no two are held at a time.
    """
    first, *others = parts
    found: dict[bytes, int] = {}
    with open(path, "wb") as file:
        for offset, packed in first.packed():
            _put(file, offset, packed)
            if others:
                found.setdefault(_key(packed), offset)
        end = first.program.weights_bytes
        moved = []
        for part in others:
            table, end = _add(part, file, end, found)
            moved.append(table)
        file.truncate(end)
    placed = [_relocated(part.program, table) for part, table in zip(others, moved, strict=True)]
    return tuple(replace(program, weights_bytes=end) for program in (first.program, *placed))


def own_weights(parts: Sequence[Lowered], weights: np.ndarray) -> np.ndarray:
    """The weights of the last part as they lie without the others, out of the bytes of a file that
    `share_weights` wrote for these parts, in this order, and maybe more. What the file lacks is zeros.
    """
    last = parts[-1].program
    with scratch_folder() as folder:
        program = share_weights(parts, folder / "weights.bin")[-1]
    pairs = zip(last.steps, program.steps, strict=True)
    both = (pair for a, b in pairs for pair in zip(a.places, b.places, strict=True))
    moved = {own.offset: shared.offset for own, shared in both if own.space is Space.WEIGHTS}
    starts = sorted(moved)
    result = np.zeros(last.weights_bytes, np.uint8)
    for start, end in zip(starts, [*starts[1:], last.weights_bytes], strict=True):
        found = weights[moved[start] : moved[start] + end - start]
        result[start : start + len(found)] = found
    return result


def _put(file: BinaryIO, offset: int, packed: np.ndarray) -> None:
    file.seek(offset)  # what is skipped is zeros
    file.write(packed.data)


def _key(packed: np.ndarray) -> bytes:
    return hashlib.sha256(packed.data).digest()


def _add(part: Lowered, file: BinaryIO, end: int, found: dict[bytes, int]) -> tuple[dict[int, int], int]:
    """Own offset -> offset in the shared file, of each array, and where the file ends then; those that
    `found` lacks are written there.
    """
    moved = {}
    for offset, packed in part.packed():
        key = _key(packed)
        if key not in found:
            found[key] = end
            _put(file, end, packed)
            end += -(-packed.nbytes // ALIGN) * ALIGN
        moved[offset] = found[key]
    return moved, end


def _relocated(program: Program, moved: Mapping[int, int]) -> Program:
    def place(at: Place) -> Place:
        return replace(at, offset=moved[at.offset]) if at.space is Space.WEIGHTS else at

    def step(each: Step) -> Step:
        return replace(each, places=tuple(map(place, each.places)))

    return replace(program, steps=tuple(map(step, program.steps)))
