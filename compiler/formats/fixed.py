"""Families whose tables of levels are fixed: fitting a scale, choosing a table, and the nearest level.

Levels are integers, so the middle of two is a multiple of one half and floor(2 * value) says between which
levels a value lies: one look-up in 512 entries finds the nearest of any table.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from .coded import Choose, Parameters
from .scales import Store

SHRINK = tuple(np.linspace(1.0, 0.3, 8).tolist())
"""What the scale that keeps the whole range is multiplied with in a search."""
NUDGES = (0.94, 1.06)
"""What the best of these is multiplied with then."""
REFINEMENTS = 2
HALVES = 512


@lru_cache(maxsize=64)
def lookup(table: tuple[int, ...]) -> np.ndarray:
    """uint8 [512]: the code of the level nearest to (i - 256) / 2 + 1/4. Equal levels: the lowest code."""
    middles = (np.arange(HALVES) - HALVES // 2) / 2 + 0.25
    return np.abs(middles[:, None] - np.asarray(table)).argmin(1).astype(np.uint8)


@lru_cache(maxsize=64)
def _lookups(tables: bytes, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Of so many tables of int8: codes uint8 and levels float32, both [count * 512]."""
    each = np.frombuffer(tables, np.int8).reshape(count, -1)
    codes = np.stack([lookup(tuple(table)) for table in each.tolist()])
    levels = np.take_along_axis(each, codes.astype(np.intp), 1)
    return codes.reshape(-1), levels.astype(np.float32).reshape(-1)


def _places(parameters: Parameters) -> Callable[[np.ndarray], np.ndarray]:
    """Where values [m, c] lie in these, each in its own group's table (parameters.side; None: the first)."""
    scale, side = parameters.scale, parameters.side
    halves = np.divide(2, scale, out=np.zeros_like(scale), where=scale != 0)[:, None]
    middle = np.float32(HALVES // 2)
    offset = middle if side is None else (middle + side * np.float32(HALVES))[:, None]

    def places(values: np.ndarray) -> np.ndarray:
        found = values * halves
        np.floor(found, out=found)
        np.maximum(found, -middle, out=found)
        np.minimum(found, middle - 1, out=found)
        found += offset
        return found.astype(np.int32).astype(np.intp)

    return places


def chooser(tables: np.ndarray, parameters: Parameters) -> Choose:
    """The nearest level in each group's table; tables int8 [T, L]."""
    codes, places = _lookups(tables.tobytes(), len(tables))[0], _places(parameters)
    return lambda values: codes.take(places(values))


def fit(
    groups: np.ndarray, tables: np.ndarray, reach: np.ndarray, importance: np.ndarray | None, store: Store
) -> Parameters:
    """Scale and table of least squared error for groups [m, g]; reach [T]: the level that the largest
    magnitude of a group is put on. `side` is the table (uint8), or None when there is only one.
    """
    search = importance is not None
    largest = np.abs(groups).max(1)
    best = Parameters(store.real(largest / reach[0]), np.zeros(len(groups), np.uint8))
    if len(tables) > 1 or search:
        error = np.full(len(groups), np.inf, np.float32)
        for i, table in enumerate(tables):
            for factor in _factors(table, search, store):
                tried = Parameters(
                    store.real(largest * (factor / reach[i])), np.full(len(groups), i, np.uint8)
                )
                best, error = _better(groups, tables, importance, tried, best, error)
        for nudge in NUDGES if search else ():
            tried = Parameters(store.real(best.scale * np.float32(nudge)), best.side)
            best, error = _better(groups, tables, importance, tried, best, error)
        for _ in range(REFINEMENTS if search else 0):
            tried = refined(groups, tables, importance, store, best)
            best, error = _better(groups, tables, importance, tried, best, error)
    return best if len(tables) > 1 else Parameters(best.scale)


def _factors(table: np.ndarray, search: bool, store: Store) -> tuple[np.float32, ...]:
    """A table that reaches further to one side is also tried upside down."""
    factors = SHRINK if search else (1.0,)
    lopsided = search and store.signed and int(table.min()) != -int(table.max())
    return tuple(np.float32(f) for f in (*factors, *(-f for f in factors if lopsided)))


def _better(
    groups: np.ndarray,
    tables: np.ndarray,
    importance: np.ndarray | None,
    tried: Parameters,
    best: Parameters,
    error: np.ndarray,
) -> tuple[Parameters, np.ndarray]:
    lacking = nearest_levels(groups, tables, tried)
    lacking *= tried.scale[:, None]
    np.subtract(groups, lacking, out=lacking)
    found = squared(lacking, importance)
    better = found < error
    return best.where(better, tried), np.where(better, found, error)


def nearest_levels(groups: np.ndarray, tables: np.ndarray, parameters: Parameters) -> np.ndarray:
    """float32 [m, g]: the levels that `chooser` finds."""
    return _lookups(tables.tobytes(), len(tables))[1].take(_places(parameters)(groups))


def squared(errors: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """float32 [m]: sums of squares of errors [m, g], weighted by importance [m, g]."""
    if importance is None:
        found: np.ndarray = np.einsum("mg,mg->m", errors, errors)
        return found
    weighted: np.ndarray = np.einsum("mg,mg,mg->m", errors, errors, importance)
    return weighted


def refined(
    groups: np.ndarray, tables: np.ndarray, importance: np.ndarray | None, store: Store, best: Parameters
) -> Parameters:
    """The scales of least squared error for the codes as they are."""
    levels = nearest_levels(groups, tables, best)
    return Parameters(store.real(best_scale(groups, levels, importance, best.scale)), best.side)


def best_scale(
    groups: np.ndarray, levels: np.ndarray, importance: np.ndarray | None, otherwise: np.ndarray
) -> np.ndarray:
    """float32 [m]: s of least sum importance * (w - s * level)^2; `otherwise` where all levels are 0."""
    weights = levels if importance is None else levels * importance
    size = np.einsum("mg,mg->m", weights, levels)
    found: np.ndarray = np.divide(
        np.einsum("mg,mg->m", weights, groups), size, out=otherwise.copy(), where=size > 0
    )
    return found
