"""The numbers that constraints bound: how each is read from a measurement, and in what units it is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..compiler.measure import Quality, wilson


@dataclass(frozen=True)
class Reading:
    """All that is judged of a plan. `latency_noise` is the relative standard error of `latency_us`."""

    quality: Quality
    latency_us: float
    latency_noise: float
    size_bytes: int


@dataclass(frozen=True)
class Metric:
    """One number.

    at_least   the constraint is `>=` (else `<=`)
    units      unit -> factor to the base unit; "" is the base unit itself
    value      (plan, float baseline, z) -> the number, made worse by z standard errors; None when not known
    scale      bound -> what counts as one unit of excess, to compare constraints with each other
    lowest, highest   the range of bounds that make sense
    needs      what the caller must give for it to be known
    """

    at_least: bool
    units: Mapping[str, float]
    value: Callable[[Reading, Reading, float], float | None]
    scale: Callable[[float], float]
    lowest: float = 0.0
    highest: float = math.inf
    needs: str = "an output whose last axis has at least two entries"


def _share(share: float | None, n: int, z: float) -> float | None:
    """The lower end of the share's interval; a perfect share passes, as nothing better can be observed."""
    return share if share is None or share == 1.0 or z == 0 else wilson(share, n, z)[0]


def _agreement(r: Reading, base: Reading, z: float) -> float | None:
    return _share(r.quality.agreement, r.quality.n, z)


def _accuracy(r: Reading, base: Reading, z: float) -> float | None:
    return _share(r.quality.accuracy, r.quality.n, z)


def _accuracy_drop(r: Reading, base: Reading, z: float) -> float | None:
    """Paired: only samples on which the two models disagree can change the difference."""
    before, after, agreement = base.quality.accuracy, r.quality.accuracy, r.quality.agreement
    if before is None or after is None or agreement is None:
        return None
    return before - after + z * math.sqrt((1.0 - agreement) / max(1, r.quality.n))


def _score_drop(r: Reading, base: Reading, z: float) -> float | None:
    before, after = base.quality.score, r.quality.score
    return None if before is None or after is None else before - after


def _kl(r: Reading, base: Reading, z: float) -> float | None:
    return None if r.quality.kl is None else r.quality.kl + z * (r.quality.kl_error or 0.0)


def _cosine(r: Reading, base: Reading, z: float) -> float | None:
    return None if r.quality.cosine is None else r.quality.cosine - z * (r.quality.cosine_error or 0.0)


def _to_one(bound: float) -> float:
    return max(1.0 - bound, 1e-3)


def _itself(bound: float) -> float:
    return max(abs(bound), 1e-3)


PLAIN = {"": 1.0}
DECIBELS = {"": 1.0, "dB": 1.0}
SHARES = {"": 1.0, "%": 0.01}
TIMES = {"us": 1.0, "ms": 1e3, "s": 1e6}
SIZES = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
LABELS = "evaluate= with labels= (the classes of the evaluation samples)"
SCORE = "evaluate= as a function that returns a score"

METRICS: Mapping[str, Metric] = {
    "agreement": Metric(True, SHARES, _agreement, _to_one, highest=1.0),
    "accuracy": Metric(True, SHARES, _accuracy, _to_one, highest=1.0, needs=LABELS),
    "accuracy_drop": Metric(False, SHARES, _accuracy_drop, _itself, highest=1.0, needs=LABELS),
    "score": Metric(True, PLAIN, lambda r, base, z: r.quality.score, _itself, lowest=-math.inf, needs=SCORE),
    "score_drop": Metric(False, PLAIN, _score_drop, _itself, needs=SCORE),
    "kl": Metric(False, PLAIN, _kl, _itself),
    "cosine": Metric(True, PLAIN, _cosine, _to_one, lowest=-1.0, highest=1.0),
    "sqnr": Metric(True, DECIBELS, lambda r, base, z: r.quality.sqnr_db, _itself, lowest=-math.inf),
    "latency": Metric(
        False, TIMES, lambda r, base, z: r.latency_us * (1 + z * r.latency_noise), _itself, lowest=1e-6
    ),
    "size": Metric(False, SIZES, lambda r, base, z: float(r.size_bytes), _itself, lowest=1e-6),
}
RELATIVE = ("latency", "size")
"""Metrics whose bound may be given as `0.7x`, times the float baseline's; they do not bound quality."""
