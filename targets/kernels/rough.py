"""Activations whose results are rounded to eight bits: within a known error of the exact ones, in about half
the instructions.

Polynomials are those of least largest error, found by linear programs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from . import emit

EDGE = 4.25
NORMAL = (
    -8.46036019e-10,
    7.57079874e-08,
    -2.9387927e-06,
    6.55269541e-05,
    -9.40446451e-04,
    9.25781857e-03,
    -6.54534921e-02,
    3.98420036e-01,
)
"""The normal distribution function is 1/2 + x P(x^2). It is 0 at -EDGE and 1 at EDGE; between them the error
of x times it is least."""
POWER = (5.51716685e-02, 2.42611125e-01, 6.93260968e-01, 9.99928057e-01)
"""2^x between -1/2 and 1/2, relative error 7.5e-5."""


@dataclass(frozen=True)
class Rough:
    """`error`: the largest, in units of the result, beside three millionths of it."""

    error: float
    of: Callable[[Sequence[Any], int], list[Any]]


def gelus(xs: Sequence[Any], lanes: int) -> list[Any]:
    """Without a division."""
    xs = _kept([emit.vmax(x, _c(-EDGE, lanes)) for x in xs], lanes)
    near = _kept([emit.vmin(x, _c(EDGE, lanes)) for x in xs], lanes)
    sums = _polynomial(NORMAL, _kept([x * x for x in near], lanes), lanes)
    return [x * (n * p + _c(0.5, lanes)) for x, n, p in zip(xs, near, sums, strict=True)]


def silus(xs: Sequence[Any], lanes: int) -> list[Any]:
    xs = _kept(xs, lanes)
    return [x / d for x, d in zip(xs, _denominators(xs, -1.0, lanes), strict=True)]


def sigmoids(xs: Sequence[Any], lanes: int) -> list[Any]:
    return [_c(1.0, lanes) / d for d in _denominators(_kept(xs, lanes), -1.0, lanes)]


def tanhs(xs: Sequence[Any], lanes: int) -> list[Any]:
    return [_c(1.0, lanes) - _c(2.0, lanes) / d for d in _denominators(_kept(xs, lanes), 2.0, lanes)]


ROUGH = {
    "gelu": Rough(1.05e-4, gelus),
    "sigmoid": Rough(1.9e-5, sigmoids),
    "silu": Rough(1.7e-5, silus),
    "tanh": Rough(3.8e-5, tanhs),
}


def _denominators(xs: Sequence[Any], factor: float, lanes: int) -> list[Any]:
    """1 + e^(factor * x). The exponent of a power of two is added to where floats keep theirs."""
    scale = _c(factor * 1.4426950408889634, lanes)
    most, magic = _c(126.0, lanes), _c(emit.MAGIC, lanes)
    powers = _kept([emit.vmin(emit.vmax(x * scale, _c(-126.0, lanes)), most) for x in xs], lanes)
    whole = _kept([p + magic for p in powers], lanes, "int32")
    bias = emit.splat(emit.MAGIC_BITS, "int32", lanes)
    # Not `whole - magic`: TVM's simplifier would cancel it.
    rest = _kept(
        [p - emit.cast(w - bias, "float32", lanes) for p, w in zip(powers, whole, strict=True)], lanes
    )
    shift = emit.splat(23, "int32", lanes)
    exponentials = [
        emit.bits(emit.bits(p, "int32", lanes) + emit.ib.shift_left(w, shift), "float32", lanes)
        for p, w in zip(_polynomial(POWER, rest, lanes), whole, strict=True)
    ]
    return [e + _c(1.0, lanes) for e in exponentials]


def _polynomial(factors: Sequence[float], xs: Sequence[Any], lanes: int) -> list[Any]:
    """The highest power's factor first."""
    sums = [_c(factors[0], lanes)] * len(xs)
    for factor in factors[1:]:
        sums = _kept([s * x + _c(factor, lanes) for s, x in zip(sums, xs, strict=True)], lanes)
    return sums


def _c(value: float, lanes: int) -> Any:
    return emit.splat(value, "float32", lanes)


def _kept(values: Sequence[Any], lanes: int, dtype: str = "float32") -> list[Any]:
    """The values stored once, as bits of that type: expressions are trees."""
    return [_stored(value, lanes, dtype) for value in values]


def _stored(value: Any, lanes: int, dtype: str) -> Any:
    place = emit.local(1, emit.vector(dtype, lanes))
    emit.store(place, 0, value if dtype == "float32" else emit.bits(value, dtype, lanes))
    return emit.load(place, 0)
