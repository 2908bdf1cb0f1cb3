"""GELU in twenty instructions: erf as a quotient of polynomials, without an exponential."""

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


def _kept(value: Any, lanes: int) -> Any:
    """The value stored once: expressions are trees."""
    place = emit.local(1, emit.vector("float32", lanes))
    emit.store(place, 0, value)
    return emit.load(place, 0)
