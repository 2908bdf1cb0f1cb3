"""What calibration remembers of a value: a histogram whose range grows, and the ways to choose a range
from it; of the inputs of linear layers also some rows, and the extremes of each channel.
"""

from __future__ import annotations

import math

import numpy as np

BINS = 2048
SAMPLED = 16384
"""Numbers of one array that are counted; minimum and maximum look at all of them."""
LARGEST = 2.0**125
"""Numbers beyond this are refused: a range that grows to hold them would leave float32."""
LEVELS = 255
SHRINK = np.linspace(1.0, 0.2, 81)
"""Factors that the search tries on each end of a range."""
ROUNDS = 3
KEPT_BYTES = 2**21
"""Of the rows that are kept of one value."""


class Histogram:
    """Counts of a stream of float32 arrays in 2048 bins over `[low, high]`, with the exact minimum and
    maximum.

    When a number lies outside, the range doubles on that side and neighbouring bins merge, so no count is
    ever split. Of large arrays, evenly spread numbers are counted: all would take longer than running the
    network that made them.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.low = self.high = 0.0
        self.minimum, self.maximum = math.inf, -math.inf

    def add(self, array: np.ndarray) -> None:
        """Count a float32 array of any shape. Raises FloatingPointError for NaN and beyond LARGEST."""
        import torch

        if not array.size:
            return
        values = torch.from_numpy(np.require(array, requirements=["C", "W"])).flatten()
        low, high = (float(v) for v in torch.aminmax(values))
        if not -LARGEST <= low <= high <= LARGEST:
            raise FloatingPointError("not finite, or too large")
        first = self.maximum < self.minimum
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        if first:
            self.low = low
            # A constant needs a range too; its width only has to be positive in float32.
            self.high = high if high > low else low + max(abs(low), 1e-6) * 1e-3
        while high > self.high:
            self._grow(up=True)
        while low < self.low:
            self._grow(up=False)
        counted = values[:: _stride(len(values))]
        self.counts += torch.histc(counted, BINS, self.low, self.high).to(torch.int64).numpy()

    def _grow(self, up: bool) -> None:
        merged = self.counts.reshape(-1, 2).sum(1)
        empty = np.zeros(BINS // 2, np.int64)
        width = self.high - self.low
        if up:
            self.high, self.counts = self.high + width, np.concatenate([merged, empty])
        else:
            self.low, self.counts = self.low - width, np.concatenate([empty, merged])

    @property
    def centres(self) -> np.ndarray:
        """Middle of each bin, float64[2048]."""
        return self.low + (np.arange(BINS) + 0.5) * ((self.high - self.low) / BINS)


class RowSample:
    """Evenly spread rows of a stream of float32 arrays [..., channels], and each channel's exact extremes.

    `runs` is the number of arrays to come; of all together at most KEPT_BYTES are kept (and one row).
    `count` is the number of rows seen.
    """

    def __init__(self, channels: int, runs: int) -> None:
        self.lows = np.full(channels, math.inf, np.float32)
        self.highs = np.full(channels, -math.inf, np.float32)
        most = max(1, KEPT_BYTES // (4 * max(channels, 1)))
        self._each = max(1, most // max(runs, 1))
        self._every = max(1, -(-runs // most))
        self._seen = 0
        self.count = 0
        self._kept: list[np.ndarray] = []

    def add(self, array: np.ndarray) -> None:
        rows = array.reshape(-1, len(self.lows))
        self.lows, self.highs = np.minimum(self.lows, rows.min(0)), np.maximum(self.highs, rows.max(0))
        if self._seen % self._every == 0:
            step = -(-len(rows) // self._each)
            self._kept.append(rows[self._seen % step :: step].copy())
        self._seen += 1
        self.count += len(rows)

    def without(self, channels: np.ndarray) -> RowSample:
        """The same with zeros in some channels."""
        other = RowSample(len(self.lows), 1)
        other.lows, other.highs, other.count = self.lows.copy(), self.highs.copy(), self.count
        other._kept = [self.rows.copy()]
        for array in (other.lows, other.highs, *other._kept):
            array[..., channels] = 0
        return other

    @property
    def rows(self) -> np.ndarray:
        """float32 [n, channels]."""
        return np.concatenate(self._kept) if self._kept else np.zeros((0, len(self.lows)), np.float32)


def _stride(size: int) -> int:
    """A step through an array that meets all channels and positions alike: it shares no factor with the
    array's size.
    """
    step = max(size // SAMPLED, 1)
    while math.gcd(step, size) > 1:
        step += 1
    return step


def minmax(histogram: Histogram) -> tuple[float, float]:
    """Everything that was seen."""
    return histogram.minimum, histogram.maximum


def percentile(histogram: Histogram, percent: float) -> tuple[float, float]:
    """The range that leaves out `100 - percent` percent of the numbers at each end."""
    total = int(histogram.counts.sum())
    cumulated = np.cumsum(histogram.counts)
    tail = total * (1 - percent / 100)
    width = (histogram.high - histogram.low) / BINS
    low = histogram.low + width * int(np.searchsorted(cumulated, tail, side="right"))
    high = histogram.low + width * (int(np.searchsorted(cumulated, total - tail, side="left")) + 1)
    return max(low, histogram.minimum), min(high, histogram.maximum)


def least_squares(histogram: Histogram) -> tuple[float, float]:
    """The range whose 256 levels have the least expected squared error; the range always holds 0.

    Each end is scaled down in turn, the other held, until both rest. The lower end of values that are never
    negative is 0.
    """
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    used = histogram.counts > 0
    centres, counts = np.clip(histogram.centres[used], low, high), histogram.counts[used].astype(np.float64)
    best = np.array([low, high])
    for _ in range(ROUNDS):
        before = best.copy()
        for end in (0, 1):
            if (low, high)[end] == 0.0:
                continue
            trials = np.repeat(best[np.newaxis], len(SHRINK), 0)
            trials[:, end] = (low, high)[end] * SHRINK
            best = trials[int(np.argmin(_errors(centres, counts, trials)))]
        if np.array_equal(before, best):
            break
    return float(best[0]), float(best[1])


def _errors(centres: np.ndarray, counts: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    """Summed squared error of 8-bit storage for each of the ranges [n, 2]; ties go to the first, the
    widest.
    """
    step = np.maximum(ranges[:, 1] - ranges[:, 0], 1e-30)[:, np.newaxis] / LEVELS
    zero = np.rint(-ranges[:, :1] / step)
    stored = (np.clip(np.rint(centres / step) + zero, 0, LEVELS) - zero) * step
    result: np.ndarray = ((stored - centres) ** 2) @ counts
    return result
