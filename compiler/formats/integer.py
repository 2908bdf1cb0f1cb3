"""int2 to int8 symmetric, int2a to int7a asymmetric.

    int    level = code - 2^(bits-1); a float16 scale may be negative: the further end is on either side
    inta   level = code - zero, zero one code of each group; the range always holds 0

Rounding (no importance) puts the largest magnitude of a group on 2^(bits-1) - 1, or the ends of the range on
the first and the last code. An asymmetric 8-bit level would need nine bits, so there is no int8a.
"""

from __future__ import annotations

import numpy as np

from . import fixed
from .coded import Choose, Family, Parameters
from .scales import Store


def symmetric_table(bits: int) -> np.ndarray:
    """int8 [1, 2^bits]. Of 8 bits, code 0 is not used: its level would be -128."""
    half = 2 ** (bits - 1)
    return np.maximum(np.arange(-half, half), -127).astype(np.int8)[None]


def _reach(bits: int) -> np.ndarray:
    return np.asarray([2 ** (bits - 1) - 1], np.float32)


def _fit(groups: np.ndarray, bits: int, importance: np.ndarray | None, store: Store) -> Parameters:
    return fixed.fit(groups, symmetric_table(bits), _reach(bits), importance, store)


def _chooser(bits: int, parameters: Parameters) -> Choose:
    half = np.float32(2 ** (bits - 1))
    if bits < 8:
        return fixed.chooser(symmetric_table(bits), parameters)
    inverse = _inverse(parameters.scale)

    def choose(values: np.ndarray) -> np.ndarray:
        found: np.ndarray = (np.clip(np.rint(values * inverse), 1 - half, half - 1) + half).astype(np.uint8)
        return found

    return choose


def _inverse(scale: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)[:, None]
    return found


def _levels(bits: int, side: np.ndarray | None, m: int) -> np.ndarray:
    return np.broadcast_to(symmetric_table(bits), (m, 2**bits))


def _fit_asymmetric(groups: np.ndarray, bits: int, importance: np.ndarray | None, store: Store) -> Parameters:
    low, high = np.minimum(groups.min(1), 0), np.maximum(groups.max(1), 0)
    best = _range(low, high, bits, store)
    if importance is None:
        return best
    error = _error(groups, bits, importance, best)
    for shrink in fixed.SHRINK:
        for other in (1.0, 0.9, 0.8):
            for end in ((shrink * other, shrink), (shrink, shrink * other)):
                tried = _range(low * np.float32(end[0]), high * np.float32(end[1]), bits, store)
                best, error = _better(groups, bits, importance, tried, best, error)
    for _ in range(fixed.REFINEMENTS):
        levels = _chosen_levels(groups, bits, best)
        scale = np.maximum(fixed.best_scale(groups, levels, importance, best.scale), 0)
        tried = Parameters(store.real(scale), best.side)
        best, error = _better(groups, bits, importance, tried, best, error)
    return best


def _range(low: np.ndarray, high: np.ndarray, bits: int, store: Store) -> Parameters:
    """Scale and zero that reach from low <= 0 to high >= 0."""
    last = 2**bits - 1
    scale = store.real((high - low) / np.float32(last))
    zero = np.clip(np.rint(-low * _inverse(scale)[:, 0]), 0, last)
    return Parameters(scale, zero.astype(np.uint8))


def _chosen_levels(groups: np.ndarray, bits: int, parameters: Parameters) -> np.ndarray:
    assert parameters.side is not None
    codes = _chooser_asymmetric(bits, parameters)(groups)
    levels: np.ndarray = codes.astype(np.float32) - parameters.side[:, None]
    return levels


def _error(groups: np.ndarray, bits: int, importance: np.ndarray, parameters: Parameters) -> np.ndarray:
    levels = _chosen_levels(groups, bits, parameters)
    return fixed.squared(groups - parameters.scale[:, None] * levels, importance)


def _better(
    groups: np.ndarray,
    bits: int,
    importance: np.ndarray,
    tried: Parameters,
    best: Parameters,
    error: np.ndarray,
) -> tuple[Parameters, np.ndarray]:
    found = _error(groups, bits, importance, tried)
    better = found < error
    return best.where(better, tried), np.where(better, found, error)


def _chooser_asymmetric(bits: int, parameters: Parameters) -> Choose:
    inverse = _inverse(parameters.scale)
    assert parameters.side is not None
    zero, last = parameters.side.astype(np.float32)[:, None], np.float32(2**bits - 1)

    def choose(values: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.clip(np.rint(values * inverse) + zero, 0, last).astype(np.uint8)
        return found

    return choose


def _levels_asymmetric(bits: int, side: np.ndarray | None, m: int) -> np.ndarray:
    assert side is not None
    found: np.ndarray = np.arange(2**bits, dtype=np.int16)[None] - side.astype(np.int16)[:, None]
    return found.astype(np.int8)


def _widest(groups: np.ndarray, bits: int) -> np.ndarray:
    found: np.ndarray = np.abs(groups).max(1) / _reach(bits)
    return found


def _widest_asymmetric(groups: np.ndarray, bits: int) -> np.ndarray:
    spread = np.maximum(groups.max(1), 0) - np.minimum(groups.min(1), 0)
    found: np.ndarray = spread / np.float32(2**bits - 1)
    return found


SYMMETRIC = Family("int", (2, 3, 4, 5, 6, 7, 8), "", _fit, _chooser, _levels, _widest, symmetric_table)
ASYMMETRIC = Family(
    "int",
    (2, 3, 4, 5, 6, 7),
    "zero",
    _fit_asymmetric,
    _chooser_asymmetric,
    _levels_asymmetric,
    _widest_asymmetric,
    suffix="a",
)
