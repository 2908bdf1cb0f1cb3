"""The numbers of 8-bit storage: scale and zero point of a value, int8 weights, int32 bias.

real = (stored - zero) * scale      values: uint8, one scale and zero point per tensor; 0 is exact
real = stored * scale[n]            weights: int8 in [-127, 127], one scale per output channel
real = stored * x_scale * scale[n]  bias: int32
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..compiler.errors import ModelError

SCALE_MIN = 1e-12  # keeps products of two scales, and their inverses, normal float32 numbers
BIAS_MAX = 2.0**30  # leaves the other half of int32 to the products
SHRINK = np.linspace(1.0, 0.5, 51)


@dataclass(frozen=True)
class QParams:
    """How a value is stored in uint8."""

    scale: float
    zero: int

    @property
    def inverse(self) -> float:
        return 1.0 / self.scale


def qparams(low: float, high: float) -> QParams:
    """For the range from `low` to `high`, widened to hold 0: padding and a cut-off ReLU are then exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / 255, SCALE_MIN)
    return QParams(scale, int(np.clip(np.rint(-low / scale), 0, 255)))


@dataclass(frozen=True)
class QWeights:
    """A layer's weights: `w` int8 in the weight's shape, `scale` float64 per output channel, `bias` int32
    or None.
    """

    w: np.ndarray
    scale: np.ndarray
    bias: np.ndarray | None


def quantise_weights(layer: str, w: np.ndarray, bias: np.ndarray | None, x_scale: float) -> QWeights:
    """Symmetric int8 weights per output channel (axis 0), the scale of each channel with the least squared
    error.

    A channel whose bias would not fit int32 gets a larger scale. Raises ModelError when weights are not
    finite.
    """
    if not np.isfinite(w).all() or (bias is not None and not np.isfinite(bias).all()):
        raise ModelError(f"layer {layer!r} has NaN or infinite weights")
    rows = w.reshape(len(w), -1).astype(np.float64)
    scale = _least_squares_scale(rows)
    if bias is not None:
        scale = np.maximum(scale, np.abs(bias.astype(np.float64)) / (x_scale * BIAS_MAX))
    stored = _round_rows(rows, scale).astype(np.int8).reshape(w.shape)
    if bias is None:
        return QWeights(stored, scale, None)
    return QWeights(stored, scale, np.rint(bias.astype(np.float64) / (x_scale * scale)).astype(np.int32))


def _round_rows(rows: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(rows / scale[:, np.newaxis]), -127, 127)


def _absmax_scale(rows: np.ndarray) -> np.ndarray:
    """The scale that represents each row's largest weight; a row of zeros may have any scale."""
    top = np.abs(rows).max(axis=1, initial=0.0) / 127
    return np.where(top > 0, np.maximum(top, SCALE_MIN), 1.0)


def _least_squares_scale(rows: np.ndarray) -> np.ndarray:
    full = _absmax_scale(rows)
    best, least = full, np.full(len(rows), np.inf)
    for factor in SHRINK:
        scale = np.maximum(full * factor, SCALE_MIN)
        error = ((_round_rows(rows, scale) * scale[:, np.newaxis] - rows) ** 2).sum(1)
        better = error < least
        best, least = np.where(better, scale, best), np.where(better, error, least)
    return best
