"""Latency, measured so that two numbers may be compared.

A machine's speed drifts by more than the differences of interest (clock, neighbours, page placement). So
all that is to be compared is run in turns within one process, in an order that rotates from round to round,
and compared round by round: the drift falls out of the ratio.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import InputError

Feed = Mapping[str, np.ndarray]
"""One run's inputs by name."""
MIN_ROUNDS = 5  # fewer give no spread worth the name
MEDIAN_PER_MEAN = math.sqrt(math.pi / 2)  # standard error of a median over that of a mean, for normal noise
SIGMA_PER_MAD = 1.4826  # standard deviation over median absolute deviation, for normal noise


class Runnable(Protocol):
    """An opened artifact, or anything that runs like one."""

    def run(self, *arrays: np.ndarray, **named: np.ndarray) -> Mapping[str, np.ndarray]: ...


Subject = Runnable | Callable[[Feed], Any]


@dataclass(frozen=True)
class Latency:
    """Time of one run.

    median_us          median, microseconds
    spread_us          interquartile range, microseconds
    noise              relative standard error of `ratio_to_first` (of the median, for the first itself)
    n                  runs timed
    ratio_to_first     median over the rounds of this / the first subject; 1.0 for the first
    ratio_of_medians   this median / the first subject's; close to `ratio_to_first` on a quiet machine
    """

    median_us: float
    spread_us: float
    noise: float
    n: int
    ratio_to_first: float = 1.0
    ratio_of_medians: float = 1.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Latency:
        return Latency(**data)


def measure_latency(
    subjects: Mapping[str, Subject],
    feeds: Sequence[Feed],
    *,
    repeats: int = 50,
    warmup: int = 3,
    seconds: float | None = None,
    target_noise: float | None = None,
) -> dict[str, Latency]:
    """Times every subject on the same inputs in rotating order; the garbage collector is off meanwhile.

    subjects       name -> artifact (its `run` gets the feed's arrays by name) or callable (gets the feed)
    feeds          inputs; round i uses feed i modulo their number
    repeats        rounds, at most; each runs every subject once
    warmup         rounds before, not counted
    seconds        stop early when so much time has passed (after 5 rounds at least)
    target_noise   stop early when no subject's `noise` is above it
    Raises InputError when there is nothing to run or a number is out of range.
    """
    if not subjects or not feeds:
        raise InputError("measure_latency needs at least one subject and one feed")
    if repeats < 1 or warmup < 0:
        raise InputError(f"repeats must be at least 1 and warmup at least 0, got {repeats} and {warmup}")
    names = list(subjects)
    calls = [_call(subjects[name]) for name in names]
    with _no_garbage_collection():
        for i in range(warmup):
            for call in calls:
                call(feeds[i % len(feeds)])
        times = _timed_rounds(calls, feeds, repeats, seconds, target_noise)
    return dict(zip(names, summarise(times), strict=True))


def _timed_rounds(
    calls: Sequence[Callable[[Feed], Any]],
    feeds: Sequence[Feed],
    repeats: int,
    seconds: float | None,
    target_noise: float | None,
) -> np.ndarray:
    """Nanoseconds `[rounds, subjects]`."""
    table = np.zeros((repeats, len(calls)))
    end = math.inf if seconds is None else time.perf_counter() + seconds
    clock = time.perf_counter_ns
    for i in range(repeats):
        feed = feeds[i % len(feeds)]
        for k in range(len(calls)):
            which = (k + i) % len(calls)
            call = calls[which]
            start = clock()
            call(feed)
            table[i, which] = clock() - start
        rounds = i + 1
        if rounds >= MIN_ROUNDS and time.perf_counter() > end:
            return table[:rounds]
        # Looked at rarely: the sums must not disturb the caches between two rounds.
        if target_noise is not None and rounds >= 4 * MIN_ROUNDS and rounds % 10 == 0:
            if max(s.noise for s in summarise(table[:rounds])) <= target_noise:
                return table[:rounds]
    return table


def summarise(times: np.ndarray) -> list[Latency]:
    """Latencies from nanoseconds `[rounds, subjects]`."""
    first = np.maximum(times[:, :1], 1.0)
    ratios = np.maximum(times, 1.0) / first
    ratios[:, 0] = first[:, 0] / np.median(first)
    medians = np.median(times, axis=0)
    quarter = np.percentile(times, [25, 75], axis=0)
    standard_error = MEDIAN_PER_MEAN * SIGMA_PER_MAD / math.sqrt(len(times))
    result = []
    for k in range(times.shape[1]):
        middle = float(np.median(ratios[:, k]))
        deviation = float(np.median(np.abs(ratios[:, k] - middle)))
        result.append(
            Latency(
                median_us=float(medians[k]) / 1e3,
                spread_us=float(quarter[1, k] - quarter[0, k]) / 1e3,
                noise=standard_error * deviation / max(middle, 1e-12),
                n=len(times),
                ratio_to_first=middle if k else 1.0,
                ratio_of_medians=float(medians[k] / max(medians[0], 1.0)) if k else 1.0,
            )
        )
    return result


def _call(subject: Subject) -> Callable[[Feed], Any]:
    run = getattr(subject, "run", None)
    if run is not None:
        return lambda feed: run(**feed)
    if callable(subject):
        return subject
    raise InputError(f"cannot measure a {type(subject).__name__}: give an artifact or a callable")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
