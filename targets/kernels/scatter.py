"""scatter_elements and scatter_nd: a copy of x, with updates written to computed places, in order."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from . import emit

_MOVED = {"bool": "uint8", "float16": "uint16"}  # what only is moved


@dataclass(frozen=True)
class ScatterSpec:
    """`axis` of scatter_elements; -1 for scatter_nd. `shape` of x, `at` of the indices."""

    dtype: str
    index_dtype: str
    reduction: str
    shape: tuple[int, ...]
    at: tuple[int, ...]
    axis: int

    @property
    def tasks(self) -> int:
        """One: two updates may meet in one place."""
        return 1


def emit_scatter(spec: ScatterSpec, name: str) -> Any:
    """The PrimFunc; pointers x, indices, updates, y."""
    dtype = _MOVED.get(spec.dtype, spec.dtype)

    def body(x: Any, indices: Any, updates: Any, y: Any, begin: Any, end: Any) -> None:
        with emit.loop(begin, end):
            with emit.loop(0, math.prod(spec.shape)) as i:
                emit.store(y, i, emit.load(x, i))
            write = _elements if spec.axis >= 0 else _slices
            write(spec, indices, updates, y)

    params = [("x", dtype), ("indices", spec.index_dtype), ("updates", dtype), ("y", dtype)]
    return emit.kernel(name, params, body)


def _inside(index: Any, size: int) -> Any:
    """From the end when negative; the nearest place inside when outside."""
    index = emit.cast(index, "int64", 1)
    counted = emit.ib.Select(index < 0, index + size, index)
    return emit.vmin(emit.vmax(counted, emit.splat(0, "int64", 1)), emit.splat(size - 1, "int64", 1))


def _combined(spec: ScatterSpec, old: Any, new: Any) -> Any:
    if spec.reduction == "add":
        return old + new
    if spec.reduction == "mul":
        return old * new
    real = spec.dtype.startswith("float")
    largest, smallest = (emit.larger, emit.smaller) if real else (emit.vmax, emit.vmin)
    return {"max": largest, "min": smallest}[spec.reduction](old, new) if spec.reduction != "none" else new


def _put(spec: ScatterSpec, y: Any, place: Any, new: Any) -> None:
    old = emit.load(y, place) if spec.reduction != "none" else None
    emit.store(y, place, _combined(spec, old, new))


def _elements(spec: ScatterSpec, indices: Any, updates: Any, y: Any) -> None:
    strides = [math.prod(spec.shape[i + 1 :]) for i in range(len(spec.shape))]
    with ExitStack() as loops:
        at: Any = 0
        axes = []
        for size in spec.at:
            axes.append(loops.enter_context(emit.loop(0, size)))
            at = at * size + axes[-1]
        place = emit.local(1, "int64")
        emit.store(place, 0, _inside(emit.load(indices, at), spec.shape[spec.axis]) * strides[spec.axis])
        others: Any = sum(axis * strides[i] for i, axis in enumerate(axes) if i != spec.axis)
        _put(spec, y, emit.load(place, 0) + others, emit.load(updates, at))


def _slices(spec: ScatterSpec, indices: Any, updates: Any, y: Any) -> None:
    depth = spec.at[-1]
    rest = math.prod(spec.shape[depth:])
    place = emit.local(1, "int64")
    with emit.loop(0, math.prod(spec.at[:-1])) as row:
        emit.store(place, 0, emit.splat(0, "int64", 1))
        for i in range(depth):
            index = _inside(emit.load(indices, row * depth + i), spec.shape[i])
            emit.store(place, 0, emit.load(place, 0) * spec.shape[i] + index)
        with emit.loop(0, rest) as i:
            _put(spec, y, emit.load(place, 0) * rest + i, emit.load(updates, row * rest + i))
