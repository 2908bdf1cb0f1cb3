"""GELU without an exponential: by erf as a quotient of polynomials, in twenty instructions; for results of
eight bits by one polynomial, in twelve and without a division.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

from . import emit

ABOVE = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
BELOW = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)
"""Coefficients of Eigen's float erf, in powers of x squared, the highest first."""

EDGE = 4.25
ROUGHLY = (
    -8.46036019e-10,
    7.57079874e-08,
    -2.9387927e-06,
    6.55269541e-05,
    -9.40446451e-04,
    9.25781857e-03,
    -6.54534921e-02,
    3.98420036e-01,
)
"""The normal distribution function is 1/2 + x P(x^2): P by a linear program, so that the largest error of
GELU from -EDGE to EDGE is least and the function is 0 and 1 there."""
ROUGH_ERROR = 1.05e-4
"""Of `rough_gelus` in float32 at most, beside three millionths of the result."""


def erfs(xs: Sequence[Any], lanes: int) -> list[Any]:
    """Absolute error below 4e-7; exactly 1 or -1 from where that is the nearest float32. Several vectors step
    by step together: one alone is a chain of sixty cycles."""

    def c(value: float) -> Any:
        return emit.splat(value, "float32", lanes)

    def each(values: Iterable[Any]) -> list[Any]:
        return [_kept(value, lanes) for value in values]

    xs = each(emit.vmin(emit.vmax(x, c(-4.0)), c(4.0)) for x in xs)
    squares = each(x * x for x in xs)
    above, below = ([c(by[0])] * len(xs) for by in (ABOVE, BELOW))
    for high, low in zip_longest(ABOVE[1:], BELOW[1:]):
        above = each(a * square + c(high) for a, square in zip(above, squares, strict=True))
        if low is not None:
            below = each(b * square + c(low) for b, square in zip(below, squares, strict=True))
    quotients = each(x * a / b for x, a, b in zip(xs, above, below, strict=True))
    return [emit.vmin(emit.vmax(q, c(-1.0)), c(1.0)) for q in quotients]


def gelus(xs: Sequence[Any], lanes: int) -> list[Any]:
    """x * (1 + erf(x / sqrt(2))) / 2 of each."""
    xs = [_kept(x, lanes) for x in xs]
    halves = [_kept(x * emit.splat(0.5, "float32", lanes), lanes) for x in xs]
    erf = erfs([x * emit.splat(math.sqrt(0.5), "float32", lanes) for x in xs], lanes)
    return [half + half * e for half, e in zip(halves, erf, strict=True)]


def rough_gelus(xs: Sequence[Any], lanes: int) -> list[Any]:
    """The same within ROUGH_ERROR."""

    def c(value: float) -> Any:
        return emit.splat(value, "float32", lanes)

    def each(values: Iterable[Any]) -> list[Any]:
        return [_kept(value, lanes) for value in values]

    xs = each(emit.vmax(x, c(-EDGE)) for x in xs)
    near = each(emit.vmin(x, c(EDGE)) for x in xs)
    squares = each(x * x for x in near)
    sums = [c(ROUGHLY[0])] * len(xs)
    for factor in ROUGHLY[1:]:
        sums = each(p * square + c(factor) for p, square in zip(sums, squares, strict=True))
    return [x * (n * p + c(0.5)) for x, n, p in zip(xs, near, sums, strict=True)]


def _kept(value: Any, lanes: int) -> Any:
    """The value stored once: expressions are trees."""
    place = emit.local(1, emit.vector("float32", lanes))
    emit.store(place, 0, value)
    return emit.load(place, 0)
