"""Vectors of which only the first lanes exist in memory: the ends of rows that are not whole vectors long."""

from __future__ import annotations

from typing import Any

from . import emit


def load_part(buffer: Any, dtype: str, at: Any, lanes: int, valid: int) -> Any:
    """A vector of which only the first `valid` lanes may be read from memory; the others are zero."""
    if valid == lanes:
        return emit.load(buffer, at, lanes)
    part = emit.local(lanes, dtype)
    emit.store(part, 0, emit.splat(0.0 if dtype == "float32" else 0, dtype, lanes), lanes)
    for first, size in _pieces(valid):
        emit.store(part, first, emit.load(buffer, at + first, size), size)
    return emit.load(part, 0, lanes)


def store_part(buffer: Any, dtype: str, at: Any, value: Any, lanes: int, valid: int) -> None:
    """Store the first `valid` lanes of a vector."""
    if valid == lanes:
        emit.store(buffer, at, value, lanes)
        return
    part = emit.local(lanes, dtype)
    emit.store(part, 0, value, lanes)
    for first, size in _pieces(valid):
        emit.store(buffer, at + first, emit.load(part, first, size), size)


def _pieces(valid: int) -> list[tuple[int, int]]:
    """(first lane, lanes) of vectors of falling powers of two that make up `valid` lanes."""
    found, first = [], 0
    for bit in range(valid.bit_length() - 1, -1, -1):
        if valid >> bit & 1:
            found.append((first, 1 << bit))
            first += 1 << bit
    return found
