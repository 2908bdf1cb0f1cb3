"""Where a resized axis reads from, and with which weights: ONNX's Resize along one axis, in numpy.

Positions are computed in float32, in the order of ONNX Runtime's operations, so that roundings to the nearest
element agree with it. https://onnx.ai/onnx/operators/onnx__Resize.html has the formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
F = np.float32


@dataclass(frozen=True)
class Sampling:
    """How an axis is resized.

    coords            a row of COORDS, or "tf_crop_and_resize" (over `roi`; outside of the data: no weights)
    rounding          of "nearest": a row of ROUNDINGS
    cubic_a           coefficient of "cubic"
    antialias         widen the filter where the axis shrinks ("linear" and "cubic")
    exclude_outside   what lies beyond the ends weighs nothing, instead of being the last element ("cubic")
    """

    mode: str = "nearest"
    coords: str = "half_pixel"
    rounding: str = "round_prefer_floor"
    cubic_a: float = -0.75
    antialias: bool = False
    exclude_outside: bool = False
    roi: tuple[float, float] = (0.0, 1.0)


def _half_pixel(i: Array, size: int, out: int, scale: F) -> Array:
    return (i + F(0.5)) / scale - F(0.5)


def _symmetric(i: Array, size: int, out: int, scale: F) -> Array:
    adjustment = F(out) / (scale * F(size))
    return F(size) / F(2) * (F(1) - adjustment) + (i + F(0.5)) / scale - F(0.5)


COORDS: dict[str, Callable[[Array, int, int, F], Array]] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _symmetric,
    "pytorch_half_pixel": lambda i, size, out, scale: (
        _half_pixel(i, size, out, scale) if out > 1 else i * F(0)
    ),
    "align_corners": lambda i, size, out, scale: i * F(size - 1) / F(out - 1) if out > 1 else i * F(0),
    "asymmetric": lambda i, size, out, scale: i / scale,
    "tf_half_pixel_for_nn": lambda i, size, out, scale: (i + F(0.5)) / scale,
}

ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda x: np.ceil(x - F(0.5)),
    "round_prefer_ceil": lambda x: np.floor(x + F(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}


def positions(size: int, out: int, scale: float, sampling: Sampling) -> Array:
    """Where on an axis of `size` elements each of `out` results lies; float32, maybe beyond the ends.

    `scale` is out / size, or what the model says instead.
    """
    i = np.arange(out, dtype=F)
    if sampling.coords != "tf_crop_and_resize":
        return COORDS[sampling.coords](i, size, out, F(scale))
    begin, end = (F(v) for v in sampling.roi)
    if out == 1:
        return F(0.5) * (begin + end) * F(size - 1) + i
    return begin * F(size - 1) + i * (end - begin) * F(size - 1) / F(out - 1)


def nearest(size: int, out: int, scale: float, sampling: Sampling) -> Array:
    """The element that each result copies."""
    at = positions(size, out, scale, sampling)
    return np.clip(ROUNDINGS[sampling.rounding](at), 0, size - 1).astype(np.int64)


def linear(size: int, out: int, scale: float, sampling: Sampling) -> tuple[Array, Array, Array]:
    """(left neighbour, right neighbour, weight of the right one) of each result."""
    at = np.clip(positions(size, out, scale, sampling), 0, size - 1)
    left = np.minimum(np.floor(at), max(size - 2, 0)).astype(np.int64)
    return left, np.minimum(left + 1, size - 1), (at - left).astype(F)


def matrix(size: int, out: int, scale: float, sampling: Sampling) -> Array:
    """[out, size] float32: what each result takes of each element. A row of zeros lies outside of the data
    (only with "tf_crop_and_resize").
    """
    at = positions(size, out, scale, sampling)
    rows = np.zeros((out, size), np.float64)
    if sampling.mode == "nearest":
        rows[np.arange(out), nearest(size, out, scale, sampling)] = 1
    else:
        for i, position in enumerate(at.astype(np.float64)):
            taps, weights = _taps(position, float(scale), sampling)
            if sampling.exclude_outside:
                weights = np.where((taps >= 0) & (taps < size), weights, 0)
            np.add.at(rows[i], np.clip(taps, 0, size - 1), weights / weights.sum())
    if sampling.coords == "tf_crop_and_resize":
        rows[(at < 0) | (at > size - 1)] = 0
    return rows.astype(F)


def _taps(position: float, scale: float, sampling: Sampling) -> tuple[Array, Array]:
    """Elements around a position and their weights."""
    radius, kernel = (1, _triangle) if sampling.mode == "linear" else (2, _cubic)
    shrink = min(scale, 1.0) if sampling.antialias else 1.0
    reach = int(np.ceil(radius / shrink))
    taps = int(np.floor(position)) + np.arange(1 - reach, reach + 1)
    return taps, kernel((taps - position) * shrink, sampling.cubic_a)


def _triangle(distance: Array, a: float) -> Array:
    return np.maximum(1 - np.abs(distance), 0)


def _cubic(distance: Array, a: float) -> Array:
    """Keys' convolution kernel (1981)."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
