"""Codes without calibration that care less about outliers than rounding: HQQ, for every format.

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023: least sum of |w -
decoded|^p with p = 0.7 instead of 2, by turns

    e = shrink(w - decoded)       what the group's largest errors exceed, by the half-quadratic of |.|^p
    fit scale, zero and tables to w - e by least squares; codes are nearest to w

The paper moves the zero of asymmetric integers only; here the format's own fit takes its place, errors are
measured in units of the group's root mean square, and each group keeps the best that was seen.
"""

from __future__ import annotations

import numpy as np

from .coded import Coded, Format, Parameters
from .encode import encode_by
from .families import family_of
from .scales import Store

POWER = 0.7
ROUNDS = 6
BETA, GROWTH = 1.0, 1.3


def half_quadratic(weight: np.ndarray, format: Format) -> Coded:
    """The weight float32 [n, k] in codes. Raises FormatError as `encode` does."""
    return encode_by(weight, format, lambda groups, store: _fit(groups, format, store))


def _fit(groups: np.ndarray, format: Format, store: Store) -> Parameters:
    family, bits = family_of(format), format.bits
    same = np.ones_like(groups)
    now = best = family.fit(groups, bits, same, store)
    error = _error(groups, _decoded(groups, format, best))
    beta = BETA
    for _ in range(ROUNDS):
        lacking = groups - _decoded(groups, format, now)
        now = family.fit(groups - shrink(lacking, beta), bits, same, store)
        found = _error(groups, _decoded(groups, format, now))
        better = found < error
        best, error = best.where(better, now), np.where(better, found, error)
        beta *= GROWTH
    return best


def shrink(errors: np.ndarray, beta: float) -> np.ndarray:
    """What of errors [m, g] is taken for outliers: sign(x) * max(0, |x| - |x|^(p - 1) / beta), x in units of
    their root mean square.
    """
    unit = np.sqrt(np.square(errors).mean(1, keepdims=True)) + np.float32(1e-30)
    size = np.abs(errors) / unit
    over = np.maximum(0, size - np.power(np.maximum(size, 1e-6), POWER - 1) / np.float32(beta))
    found: np.ndarray = np.sign(errors) * over * unit
    return found


def _decoded(groups: np.ndarray, format: Format, parameters: Parameters) -> np.ndarray:
    family = family_of(format)
    codes = family.chooser(format.bits, parameters)(groups)
    levels = family.levels(format.bits, parameters.side, len(groups))
    chosen = np.take_along_axis(levels, codes.astype(np.intp), 1)
    found: np.ndarray = chosen * parameters.scale[:, None]
    return found


def _error(groups: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.power(np.abs(groups - decoded), np.float32(POWER)).sum(1)
    return found
