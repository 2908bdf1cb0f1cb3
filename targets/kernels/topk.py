"""The k largest or smallest along an axis, in order, with their places; of equal ones the first comes first.

Each row keeps a sorted list of the best so far; most elements are refused by one look at its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import emit


@dataclass(frozen=True)
class TopKSpec:
    """x is [outer, n, inner]; values and indices (int64) are [outer, k, inner]."""

    dtype: str
    outer: int
    n: int
    inner: int
    k: int
    largest: bool

    @property
    def tasks(self) -> int:
        return self.outer * self.inner


def emit_topk(spec: TopKSpec, name: str) -> Any:
    """The PrimFunc; pointers x, values, indices."""

    def body(x: Any, values: Any, indices: Any, begin: Any, end: Any) -> None:
        count, key = emit.local(1, "int64"), emit.local(1, spec.dtype)
        with emit.loop(begin, end) as task:
            outer, inner = task // spec.inner, task % spec.inner
            emit.store(count, 0, emit.splat(0, "int64", 1))

            def at(i: Any, length: int) -> Any:
                return (outer * length + i) * spec.inner + inner

            with emit.loop(0, spec.n) as i:
                emit.store(key, 0, emit.load(x, at(i, spec.n)))
                last = emit.load(values, at(emit.splat(spec.k - 1, "int64", 1), spec.k))
                room = emit.load(count, 0) < spec.k
                with emit.when(room):
                    _insert(spec, values, indices, count, key, i, at)
                    emit.store(count, 0, emit.load(count, 0) + 1)
                with emit.when(emit.ib.And(i >= spec.k, _better(spec, emit.load(key, 0), last))):
                    _insert(spec, values, indices, count, key, i, at)

    params = [("x", spec.dtype), ("values", spec.dtype), ("indices", "int64")]
    return emit.kernel(name, params, body)


def _better(spec: TopKSpec, a: Any, b: Any) -> Any:
    return a > b if spec.largest else a < b


def _insert(spec: TopKSpec, values: Any, indices: Any, count: Any, key: Any, i: Any, at: Any) -> None:
    """Put the key where it belongs among the first `count`, by halving; the worst falls off a full list."""
    low, high = emit.local(1, "int64"), emit.local(1, "int64")
    emit.store(low, 0, emit.splat(0, "int64", 1))
    emit.store(high, 0, emit.load(count, 0))
    with emit.loop(0, spec.k.bit_length()):
        with emit.when(emit.load(low, 0) < emit.load(high, 0)):
            middle = emit.local(1, "int64")
            emit.store(middle, 0, (emit.load(low, 0) + emit.load(high, 0)) // 2)
            there = emit.load(values, at(emit.load(middle, 0), spec.k))
            emit.branch(
                _better(spec, emit.load(key, 0), there),
                lambda: emit.store(high, 0, emit.load(middle, 0)),
                lambda: emit.store(low, 0, emit.load(middle, 0) + 1),
            )
    end = emit.vmin(emit.load(count, 0), emit.splat(spec.k - 1, "int64", 1))
    with emit.loop(0, end - emit.load(low, 0)) as step:
        here = end - step
        for buffer in (values, indices):
            emit.store(buffer, at(here, spec.k), emit.load(buffer, at(here - 1, spec.k)))
    emit.store(values, at(emit.load(low, 0), spec.k), emit.load(key, 0))
    emit.store(indices, at(emit.load(low, 0), spec.k), emit.cast(i, "int64", 1))
