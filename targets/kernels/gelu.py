"""GELU in twenty instructions: erf as a quotient of polynomials, without an exponential."""

from __future__ import annotations

import math
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


def erf(x: Any, lanes: int) -> Any:
    """Absolute error below 4e-7; exactly 1 or -1 from where that is the nearest float32."""

    def c(value: float) -> Any:
        return emit.splat(value, "float32", lanes)

    x = _kept(emit.vmin(emit.vmax(x, c(-4.0)), c(4.0)), lanes)
    square = _kept(x * x, lanes)
    above, below = c(ABOVE[0]), c(BELOW[0])
    for coefficient in ABOVE[1:]:
        above = above * square + c(coefficient)
    for coefficient in BELOW[1:]:
        below = below * square + c(coefficient)
    return emit.vmin(emit.vmax(x * above / below, c(-1.0)), c(1.0))


def gelu(x: Any, lanes: int) -> Any:
    """x * (1 + erf(x / sqrt(2))) / 2."""
    x = _kept(x, lanes)
    half = _kept(x * emit.splat(0.5, "float32", lanes), lanes)
    return half + half * erf(x * emit.splat(math.sqrt(0.5), "float32", lanes), lanes)


def _kept(value: Any, lanes: int) -> Any:
    """The value stored once: expressions are trees."""
    place = emit.local(1, emit.vector("float32", lanes))
    emit.store(place, 0, value)
    return emit.load(place, 0)
