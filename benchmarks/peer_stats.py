"""What the table says of the samples: their spread, and ratios formed within each round."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Median and quartiles, in the unit of the samples."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(samples: Sequence[float]) -> "Spread":
        low, median, high = np.percentile(np.asarray(samples, np.float64), [25, 50, 75])
        return Spread(float(median), float(low), float(high))


def paired_ratio(rounds: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> Spread:
    """Time as a multiple of the reference's: a ratio of medians for each round, so that drifts cancel.

    Raises ValueError when the two have not taken part in the same rounds.
    """
    pairs = zip(rounds, reference, strict=True)
    return Spread.of([float(np.median(one) / np.median(other)) for one, other in pairs])
