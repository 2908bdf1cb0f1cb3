"""Several lowered graphs in one library: the same network for several shapes, on one weights file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .arena import ALIGN
from .lower import Lowered
from .program import Place, Program, Space, Step


def all_kernels(parts: Sequence[Lowered]) -> dict[str, Any]:
    """Symbol -> spec of every kernel that one of them calls."""
    return {symbol: spec for part in parts for symbol, spec in part.kernels.items()}


def share_weights(parts: Sequence[Lowered]) -> tuple[tuple[Program, ...], np.ndarray]:
    """The programs on one weights file, and its contents.

    The first program's weights lie as they do without the others; what these need and is not there yet
    follows. How a weight is packed depends on its kernel alone, so shapes with the same kernels add nothing.
    Each array is packed once and compared by its hash: no more is held than the file.
    """
    first, *others = parts
    if not others:
        return (first.program,), first.weight_bytes()
    data = bytearray(first.program.weights_bytes)
    found: dict[bytes, int] = {}
    for offset, packed in _packed(first):
        data[offset : offset + packed.nbytes] = packed.data
        found.setdefault(_key(packed), offset)
    moved = [_add(part, data, found) for part in others]
    programs = [
        first.program,
        *(_relocated(p.program, table) for p, table in zip(others, moved, strict=True)),
    ]
    return tuple(replace(p, weights_bytes=len(data)) for p in programs), np.frombuffer(data, np.uint8)


def _packed(part: Lowered) -> Iterable[tuple[int, np.ndarray]]:
    for offset, make in part.weights:
        yield offset, np.ascontiguousarray(make()).reshape(-1).view(np.uint8)


def _key(packed: np.ndarray) -> bytes:
    return hashlib.sha256(packed.data).digest()


def _add(part: Lowered, data: bytearray, found: dict[bytes, int]) -> dict[int, int]:
    """Own offset -> offset in the shared file, of each array; those that `found` lacks are appended."""
    moved = {}
    for offset, packed in _packed(part):
        key = _key(packed)
        if key not in found:
            found[key] = len(data)
            data += packed.data
            data += bytes(-len(data) % ALIGN)
        moved[offset] = found[key]
    return moved


def _relocated(program: Program, moved: Mapping[int, int]) -> Program:
    def place(at: Place) -> Place:
        return replace(at, offset=moved[at.offset]) if at.space is Space.WEIGHTS else at

    def step(each: Step) -> Step:
        return replace(each, places=tuple(map(place, each.places)))

    return replace(program, steps=tuple(map(step, program.steps)))
