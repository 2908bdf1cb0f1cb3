"""Rotary embedding, and writing rows into a cache: what happens to new keys and values."""

from __future__ import annotations

from typing import Any

from .. import emit
from ..vectors import across
from .spec import (
    CacheWriteSpec,
    RopeSpec,
    first_row,
    kept,
)

F = "float32"


def emit_rope(spec: RopeSpec, name: str) -> Any:
    """The PrimFunc; pointers x, cos, sin, position, y."""

    def body(x: Any, cos: Any, sin: Any, position: Any, y: Any, begin: Any, end: Any) -> None:
        first = kept(first_row(position, spec.index_dtype, spec.positions - spec.tokens), "int64")

        def token(t: Any) -> None:
            table = (first + t) * spec.pairs
            with emit.loop(0, spec.heads) as head:
                _turn(spec, (x, cos, sin, y), table, (t * spec.heads + head) * spec.features)

        each_token(spec, begin, end, token)

    params = [("x", F), ("cos", F), ("sin", F), ("position", spec.index_dtype), ("y", F)]
    return emit.kernel(name, params, body)


def each_token(spec: RopeSpec | CacheWriteSpec, begin: Any, end: Any, body: Any) -> None:
    """Tasks are tokens, or one is all of them."""
    share = spec.tokens // spec.tasks
    with emit.loop(begin * share, end * share) as token:
        body(token)


def _turn(spec: RopeSpec, buffers: tuple[Any, ...], table: Any, at: Any) -> None:
    x, cos, sin, y = buffers
    step, apart = (2, 1) if spec.interleaved else (1, spec.pairs)

    def some(i: Any, lanes: int) -> None:
        c, s = (kept(emit.load(t, table + i, lanes), F, lanes) for t in (cos, sin))
        first, second = at + i * step, at + i * step + apart
        a, b = (kept(emit.load(x, place, lanes), F, lanes) for place in (first, second))
        emit.store(y, first, a * c - b * s, lanes)
        emit.store(y, second, b * c + a * s, lanes)

    lanes = 1 if spec.interleaved else spec.lanes
    by_lanes(spec.pairs, lanes, some)
    by_lanes(
        spec.features - 2 * spec.pairs,
        spec.lanes,
        lambda i, n: emit.store(y, at + 2 * spec.pairs + i, emit.load(x, at + 2 * spec.pairs + i, n), n),
    )


def by_lanes(count: int, lanes: int, body: Any) -> None:
    """`body(first, lanes)` over `count` numbers: whole vectors, then one by one."""
    emit.over(0, count // lanes, lambda v: body(v * lanes, lanes))
    if count % lanes:
        emit.over(count // lanes * lanes, count, lambda i: body(i, 1))


def write_params(spec: CacheWriteSpec) -> list[tuple[str, str]]:
    """(name, element type) of the kernel's pointers, in order."""
    scale = [("scale", F)] if spec.dtype == "int8" else []
    return [("new", F), ("position", spec.index_dtype), ("cache", spec.dtype), *scale]


def emit_cache_write(spec: CacheWriteSpec, name: str) -> Any:
    """The PrimFunc."""

    def body(new: Any, position: Any, cache: Any, *rest: Any) -> None:
        *scale, begin, end = rest
        first = kept(first_row(position, spec.index_dtype, spec.capacity - spec.tokens), "int64")

        def token(t: Any) -> None:
            with emit.loop(0, spec.heads) as head:
                row = head * spec.capacity + first + t
                at = (t * spec.heads + head) * spec.features
                if scale:
                    _write_codes(spec, new, at, cache, scale[0], row)
                    return
                by_lanes(
                    spec.features,
                    spec.lanes,
                    lambda i, n: emit.store(
                        cache, row * spec.features + i, _narrowed(spec, emit.load(new, at + i, n), n), n
                    ),
                )

        each_token(spec, begin, end, token)

    return emit.kernel(name, write_params(spec), body)


def _narrowed(spec: CacheWriteSpec, value: Any, lanes: int) -> Any:
    return value if spec.dtype == F else emit.cast(value, spec.dtype, lanes)


def _write_codes(spec: CacheWriteSpec, new: Any, at: Any, cache: Any, scale: Any, row: Any) -> None:
    """A row as codes of 1/127 of its largest magnitude; zeros have the scale 0."""
    lanes = spec.lanes
    most, one = emit.local(1, emit.vector(F, lanes)), emit.local(1, F)
    emit.store(most, 0, emit.splat(0.0, F, lanes))
    emit.store(one, 0, emit.splat(0.0, F, 1))

    def larger(i: Any, n: int) -> None:
        value = kept(emit.load(new, at + i, n), F, n)
        magnitude = emit.vmax(value, emit.splat(0.0, F, n) - value)
        place = most if n == lanes else one
        emit.store(place, 0, emit.vmax(emit.load(place, 0), magnitude))

    by_lanes(spec.features, lanes, larger)
    top = kept(emit.vmax(across(emit.load(most, 0), lanes, emit.vmax), emit.load(one, 0)), F)
    zero = emit.splat(0.0, F, 1)
    inverse = kept(emit.select(top > zero, emit.splat(127.0, F, 1) / top, zero), F)

    def code(i: Any, n: int) -> None:
        value = emit.load(new, at + i, n) * emit.splat(inverse, F, n)
        # Rounded before the next addition, with which it would be one multiply-add: so rounds the reference.
        value = emit.intrinsic("llvm.arithmetic.fence", emit.vector(F, n), value)
        shifted = emit.bits(value + emit.splat(emit.MAGIC, F, n), "int32", n)
        emit.store(
            cache, row * spec.features + i,
            emit.cast(shifted - emit.splat(emit.MAGIC_BITS, "int32", n), "int8", n), n,
        )  # fmt: skip

    by_lanes(spec.features, lanes, code)
    emit.store(scale, row, top * emit.splat(1 / 127, F, 1))
