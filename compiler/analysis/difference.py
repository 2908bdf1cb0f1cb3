"""How far the values of a compiled model are from those that they should be, layer by layer.

Each layer is compared with two truths. Its reference: the same planned layer, run by the reference executor
on the very inputs that the compiled layer read; what differs is the compiled layer's own doing. And the
float model, run from the model's inputs: that difference is all the error that has come together up to here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..measure.quality import SQNR_LIMIT

TIES = 0.01  # share of uint8 results that may be a step off: kernels may round a*b+c once, not twice

NARROW = 0.01  # of numbers closer together than this share of their size, rounding alone is much of the range


@dataclass(frozen=True)
class LayerDifference:
    """One node of the planned graph, over all samples; of several results, the worst.

    choice         "int8", "float32"... of a layer that the plan decides about; "" of other nodes
    dtype, shape   of the (first) result
    error          largest |compiled - reference|; steps of its scale where the result is uint8
    relative       error / (largest - smallest reference value), see Spread.relative
    unequal        share (0..1) of the results that are not equal to the reference's
    float_error    largest |compiled - float model|, in real numbers; None of values the float model lacks
    float_relative float_error / (largest - smallest value of the float model)
    sqnr_db        10 log10(sum float^2 / sum (float - compiled)^2), within +-200; None likewise
    added_noise    noise energy as a share of the signal's, less that of the node's noisiest input: what the
                   node adds; None likewise
    weight_bytes_changed
                   bytes of its weights in the artifact that are not what the model compiles to
    departs        whether the compiled layer computes something else than its reference
    """

    layer: str
    op: str
    choice: str
    dtype: str
    shape: tuple[int, ...]
    error: float
    relative: float
    unequal: float
    float_error: float | None
    float_relative: float | None
    sqnr_db: float | None
    added_noise: float | None
    weight_bytes_changed: int
    departs: bool


@dataclass
class Spread:
    """Errors of a value over samples: largest, range of what is right, energy of both."""

    error: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    unequal: int = 0
    count: int = 0
    signal: float = 0.0
    noise: float = 0.0

    def add(self, right: np.ndarray, found: np.ndarray) -> None:
        """One more sample. Infinities and NaN are right where both have the same, else an infinite error."""
        right, found = (np.asarray(a, np.float64).ravel() for a in (right, found))
        same = (right == found) | (np.isnan(right) & np.isnan(found))
        with np.errstate(invalid="ignore"):
            gap = np.where(same, 0.0, np.abs(right - found))
        gap = np.where(np.isnan(gap), np.inf, gap)
        finite = right[np.isfinite(right)]
        self.error = max(self.error, float(gap.max(initial=0.0)))
        self.low = min(self.low, float(finite.min(initial=math.inf)))
        self.high = max(self.high, float(finite.max(initial=-math.inf)))
        self.unequal += int((~same).sum())
        self.count += right.size
        self.signal += float(np.sum(np.square(finite)))
        self.noise += float(np.sum(np.square(gap)))

    @property
    def relative(self) -> float:
        """Of the range, or of NARROW times the largest number where that is more; where both are 0, of 1."""
        extent = max(self.high - self.low, NARROW * max(abs(self.low), abs(self.high)))
        return 0.0 if self.error == 0 else self.error / (extent if 0 < extent < math.inf else 1.0)

    @property
    def share_unequal(self) -> float:
        return self.unequal / max(self.count, 1)

    @property
    def noise_share(self) -> float:
        """Noise energy as a share of the signal's."""
        return 0.0 if self.noise == 0 else self.noise / self.signal if self.signal else math.inf

    @property
    def sqnr_db(self) -> float:
        if self.noise == 0:
            return SQNR_LIMIT
        if self.signal == 0 or not math.isfinite(self.noise):
            return -SQNR_LIMIT
        return max(-SQNR_LIMIT, min(SQNR_LIMIT, 10 * math.log10(self.signal / self.noise)))

    def departs(self, dtype: str, tolerance: float) -> bool:
        """Floats beyond `tolerance` of their range; uint8 by more than ties in rounding; others at all."""
        if dtype.startswith("float"):
            return self.relative > tolerance
        if dtype == "uint8":
            return self.error > 1 or self.unequal > max(1, TIES * self.count)
        return self.unequal > 0


def worst(spreads: Mapping[str, Spread]) -> Spread | None:
    """The one of largest relative error; None when there are none."""
    return max(spreads.values(), key=lambda s: s.relative, default=None)
