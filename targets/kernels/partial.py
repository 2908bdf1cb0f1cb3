"""Vectors of which only the first lanes exist in memory: the ends of rows that are not whole vectors long."""

from __future__ import annotations

from typing import Any

from . import emit


def load_part(buffer: Any, dtype: str, at: Any, lanes: int, valid: int) -> Any:
    """A vector of which only the first `valid` lanes may be read from memory."""
    if valid == lanes:
        return emit.load(buffer, at, lanes)
    part = emit.local(lanes, dtype)
    for i in range(lanes):
        emit.store(
            part,
            i,
            emit.load(buffer, at + i)
            if i < valid
            else emit.splat(0.0 if dtype == "float32" else 0, dtype, 1),
        )
    return emit.load(part, 0, lanes)


def store_part(buffer: Any, dtype: str, at: Any, value: Any, lanes: int, valid: int) -> None:
    """Store the first `valid` lanes of a vector."""
    if valid == lanes:
        emit.store(buffer, at, value, lanes)
        return
    part = emit.local(lanes, dtype)
    emit.store(part, 0, value, lanes)
    for i in range(valid):
        emit.store(buffer, at + i, emit.load(part, i))
