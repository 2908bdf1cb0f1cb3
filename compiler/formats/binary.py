"""Binary coding: bcq2 to bcq4 with any integer alphas, shiftadd2 to shiftadd4 with alphas made of shifts.

    weight = scale * sum over i of +-alpha[i]          bit i of the code is the sign, 1 is plus

    bcqN         alpha any integer                     Xu et al., "Alternating Multi-bit ...", ICLR 2018
    shiftaddN    alpha a sum of at most three signed powers of two ("ShiftAddLLM", You et al., NeurIPS 2024)
    shiftaddNp   alpha one power of two (the pure form)

A float16 scale of shift-add is itself a power of two, so that a chip without a multiplier needs shifts and
additions only, also between groups; two-level scales are free numbers, one multiplication for each group.
The alphas of a group sum to 127 at most.

Fitting alternates: alphas of least squares for the signs, rounded to what may be stored, then the nearest of
all 2^N levels for each weight. Rounding stands inside the loop, so that the signs make up for it. It starts
from the best of the greedy coding of the residual and some evenly spaced levels, and goes on while it helps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .coded import Choose, Family, Parameters
from .fixed import squared
from .scales import Store

ROUNDS = 20
LARGEST = 127
REACHES = (1.05, 0.85, 0.68, 0.55)
"""Of evenly spaced levels: the largest, over the largest magnitude."""
RIDGE = 1e-5
"""Keeps the equations solvable when two bits agree in every weight of a group; a share of its size."""
SPREADS = (1.0, 1.15, 1.32, 1.52, 1.74)
"""Where alphas are few and scales are free: what the smallest possible scale is multiplied with."""


@dataclass(frozen=True)
class Rule:
    """What alphas may be: sums of `terms` signed powers of two (0: anything)."""

    terms: int

    def shifted(self, store: Store) -> bool:
        """Whether the scale is a power of two, too."""
        return self.terms > 0 and store.row is None and not store.wide


@lru_cache(maxsize=8)
def allowed(terms: int) -> np.ndarray:
    """The integers 0..127 that are sums of at most `terms` signed powers of two, ascending (0: all)."""
    return np.asarray([i for i in range(LARGEST + 1) if not terms or _digits(i) <= terms], np.float32)


def _digits(number: int) -> int:
    """Fewest signed powers of two: the digits of the non-adjacent form (Reitwiesner, 1960)."""
    return (number ^ 3 * number).bit_count()


def signs(bits: int) -> np.ndarray:
    """float32 [2^bits, bits] of +-1: those of each code."""
    codes = np.arange(2**bits)[:, None] >> np.arange(bits)
    return ((codes & 1) * 2 - 1).astype(np.float32)


def _levels(bits: int, side: np.ndarray | None, m: int) -> np.ndarray:
    assert side is not None
    found: np.ndarray = (side.astype(np.float32) @ signs(bits).T).astype(np.int8)
    return found


def _chooser(bits: int, parameters: Parameters) -> Choose:
    levels = _levels(bits, parameters.side, len(parameters.scale)) * parameters.scale[:, None]
    order = np.argsort(levels, 1, kind="stable").astype(np.uint8)
    ordered = np.take_along_axis(levels, order.astype(np.intp), 1)
    middles = (ordered[:, 1:] + ordered[:, :-1]) / 2
    first = (np.arange(len(order)) * 2**bits)[:, None]
    flat = order.reshape(-1)

    def choose(values: np.ndarray) -> np.ndarray:
        place = np.zeros(values.shape, np.uint8)
        for i in range(middles.shape[1]):
            place += values > middles[:, i : i + 1]
        found: np.ndarray = flat[place + first]
        return found

    return choose


def fit(groups: np.ndarray, bits: int, importance: np.ndarray | None, store: Store, rule: Rule) -> Parameters:
    """Scale, and alpha int8 [m, bits] in descending order, of least squared error for groups [m, g]."""
    trial = _Trial(groups, bits, importance, store, rule)
    best, error, codes = trial.coded(trial.greedy())
    for alphas in trial.even():
        best, error, codes, _ = _kept((best, error, codes), trial.coded(alphas))
    rows = np.arange(len(groups))
    for _ in range(ROUNDS):
        part = trial.take(rows)
        now = (best.take(rows), error[rows], codes[rows])
        found, errors, chosen, better = _kept(now, part.coded(part.solved(now[2])))
        if not better.any():
            break
        best.put(rows, found)
        error[rows], codes[rows] = errors, chosen
        rows = rows[better]
    return best


_Found = tuple[Parameters, np.ndarray, np.ndarray]
"""Parameters of m groups, their errors [m] and codes [m, g]."""


def _kept(best: _Found, tried: _Found) -> tuple[Parameters, np.ndarray, np.ndarray, np.ndarray]:
    """For each group the better of the two, and where that was `tried` [m]."""
    better = tried[1] < best[1]
    codes = np.where(better[:, None], tried[2], best[2])
    return best[0].where(better, tried[0]), np.where(better, tried[1], best[1]), codes, better


@dataclass(frozen=True)
class _Trial:
    groups: np.ndarray
    bits: int
    importance: np.ndarray | None
    store: Store
    rule: Rule

    def take(self, rows: np.ndarray) -> _Trial:
        importance = None if self.importance is None else self.importance[rows]
        return _Trial(self.groups[rows], self.bits, importance, self.store.take(rows), self.rule)

    def coded(self, alphas: np.ndarray) -> _Found:
        """For alphas float32 [m, bits]: what is stored of them, the error [m], and the codes [m, g]."""
        parameters = rounded(alphas, self.store, self.rule)
        codes = _chooser(self.bits, parameters)(self.groups)
        levels = _levels(self.bits, parameters.side, len(codes)) * parameters.scale[:, None]
        errors = self.groups - np.take_along_axis(levels, codes.astype(np.intp), 1)
        return parameters, squared(errors, self.importance), codes

    def greedy(self) -> np.ndarray:
        """Each bit codes the sign of what the bits before leave, its alpha the mean magnitude."""
        left = self.groups.copy()
        total = left.shape[1] if self.importance is None else np.maximum(self.importance.sum(1), 1e-30)
        alphas = []
        for _ in range(self.bits):
            size = np.abs(left) if self.importance is None else np.abs(left) * self.importance
            alphas.append(size.sum(1) / total)
            left -= np.where(left >= 0, 1, -1) * alphas[-1][:, None]
        return np.stack(alphas, 1).astype(np.float32)

    def even(self) -> Iterator[np.ndarray]:
        """Levels at equal distances; then such that 0 is among them, for a few outliers in small weights."""
        largest = np.abs(self.groups).max(1)[:, None]
        parts = np.exp2(-np.arange(1, self.bits + 1)).astype(np.float32)
        for reach in REACHES:
            yield largest * np.float32(reach) * parts
        parts[-1] *= 2
        yield largest * parts

    def solved(self, codes: np.ndarray) -> np.ndarray:
        """Alphas of least squares for the signs in codes [m, g]."""
        m, g = codes.shape
        plane = [((codes >> i & 1) * np.float32(2) - 1) for i in range(self.bits)]
        heavy = plane if self.importance is None else [each * self.importance for each in plane]
        gram = np.empty((m, self.bits, self.bits), np.float64)
        for i in range(self.bits):
            for j in range(i + 1):
                gram[:, i, j] = gram[:, j, i] = np.einsum("mg,mg->m", heavy[i], plane[j])
        right = np.stack([np.einsum("mg,mg->m", each, self.groups) for each in heavy], 1)
        size = np.maximum(gram[:, 0, 0], 1e-30)
        gram += (RIDGE * size)[:, None, None] * np.eye(self.bits)
        alphas = np.abs(np.linalg.solve(gram, right.astype(np.float64)[..., None])[..., 0])
        return -np.sort(-alphas, 1).astype(np.float32)


def rounded(alphas: np.ndarray, store: Store, rule: Rule) -> Parameters:
    """Alphas float32 [m, bits] >= 0 as scale and int8 alphas that may be stored."""
    least = alphas.sum(1) / LARGEST
    if rule.shifted(store):
        least = np.exp2(np.ceil(np.log2(np.maximum(least, 2.0**-24)))).astype(np.float32) * (least > 0)
    best = _with_scale(alphas, least, store, rule)
    if rule.terms and not rule.shifted(store):
        error = _loss(alphas, best)
        for spread in SPREADS[1:]:
            tried = _with_scale(alphas, least * np.float32(spread), store, rule)
            found = _loss(alphas, tried)
            better = found < error
            best, error = best.where(better, tried), np.where(better, found, error)
    return best


def _loss(alphas: np.ndarray, parameters: Parameters) -> np.ndarray:
    assert parameters.side is not None
    found: np.ndarray = np.square(alphas - parameters.side * parameters.scale[:, None]).sum(1)
    return found


def _with_scale(alphas: np.ndarray, least: np.ndarray, store: Store, rule: Rule) -> Parameters:
    """With the scale `least` [m], or the next larger ones where the rounded alphas sum to more than 127."""
    wanted = least.copy()
    for _ in range(8):
        scale = store.real(wanted)
        numbers = _numbers(alphas, scale, rule)
        beyond = numbers.sum(1) > LARGEST
        if not beyond.any():
            break
        wanted = np.where(beyond, wanted * np.float32(2 if rule.shifted(store) else 1.2), wanted)
    share = np.minimum(1, LARGEST / np.maximum(numbers.sum(1), 1))[:, None]
    reduced = np.where(beyond[:, None], _below(numbers * share, rule), numbers)
    return Parameters(scale, reduced.astype(np.int8))


def _numbers(alphas: np.ndarray, scale: np.ndarray, rule: Rule) -> np.ndarray:
    """float32 [m, bits]: the allowed integers nearest to alpha / scale."""
    possible = allowed(rule.terms)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    middles = (possible[1:] + possible[:-1]) / 2
    return possible[np.searchsorted(middles, alphas * inverse[:, None])]


def _below(numbers: np.ndarray, rule: Rule) -> np.ndarray:
    possible = allowed(rule.terms)
    return possible[np.searchsorted(possible, np.floor(numbers), side="right") - 1]


def _family(name: str, terms: int, suffix: str = "") -> Family:
    rule = Rule(terms)

    def fit_all(groups: np.ndarray, bits: int, importance: np.ndarray | None, store: Store) -> Parameters:
        return fit(groups, bits, importance, store, rule)

    def widest(groups: np.ndarray, bits: int) -> np.ndarray:
        reach = SPREADS[-1] if terms else 1.1
        found: np.ndarray = np.abs(groups).max(1) * np.float32(reach / LARGEST)
        return found

    return Family(
        name, (2, 3, 4), "alpha", fit_all, _chooser, _levels, widest, suffix=suffix, shifts=terms > 0
    )


BCQ = _family("bcq", 0)
SHIFT_ADD = _family("shiftadd", 3)
SHIFT_ADD_PURE = _family("shiftadd", 1, "p")
