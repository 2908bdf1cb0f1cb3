"""int8 weights that a multiply of bytes can sum two at a time in 16 bits without saturating.

`vpmaddubsw` (AVX2) multiplies uint8 activations with int8 weights and adds neighbours into int16: the fastest
exact product that a chip without VNNI has, if 255 * (w0 + w1) fits. So neighbouring weights of one sign may
sum to 128 at most. Neighbours are 2i and 2i + 1 along the axis that kernels read in order: input channels of
channels-last data, window columns where the input is planar. Few pairs break the bound (two large weights of
one sign): those are cut, and the scale is the one with the least squared error, cuts counted.
"""

from __future__ import annotations

import numpy as np

PAIR_LIMIT = 128
"""255 * 128 = 32640 <= 32767."""
FACTORS = np.linspace(1.0, 2.0, 11)


def bounded(w: np.ndarray, axis: int = 1) -> bool:
    """Every pair of int8 weights along `axis` keeps the bound. An odd last one has no neighbour."""
    return bool((_pair_sums(np.moveaxis(w, axis, -1).astype(np.int32)) <= PAIR_LIMIT).all())


def bound_pairs(steps: np.ndarray, axis: int = 1) -> np.ndarray:
    """Whole numbers with every pair along `axis` cut to the bound, half of the excess from each of the two.

    Of an odd excess the larger weight gives the odd step.
    """
    moved = np.moveaxis(steps, axis, -1)
    even = moved.shape[-1] // 2 * 2
    pairs = moved[..., :even].reshape(*moved.shape[:-1], -1, 2)
    total = pairs.sum(-1, keepdims=True)
    excess = np.where(
        (pairs[..., :1] > 0) == (pairs[..., 1:] > 0), np.maximum(np.abs(total) - PAIR_LIMIT, 0), 0
    )
    larger = np.abs(pairs) >= np.abs(pairs[..., ::-1])
    first = np.argmax(larger, -1)[..., None] == np.arange(2)
    cut = np.where(first, np.ceil(excess / 2), np.floor(excess / 2))
    pairs = pairs - (np.sign(total) * cut).astype(pairs.dtype)
    result = np.concatenate([pairs.reshape(*moved.shape[:-1], even), moved[..., even:]], -1)
    return np.moveaxis(result, -1, axis)


def bounded_scale(w: np.ndarray, full: np.ndarray, axis: int) -> np.ndarray:
    """Per-channel scales with the least squared error once pairs are cut: from `full` to twice that, where
    nothing is cut."""
    best, least = full, np.full(len(w), np.inf)
    # In units of the channel's own scale no square is too large or too small for float32.
    units = (w / full.reshape(-1, *(1,) * (w.ndim - 1))).astype(np.float32)
    for factor in FACTORS.astype(np.float32):
        stored = bound_pairs(np.rint(units / factor), axis)
        error = np.square(stored * factor - units).reshape(len(w), -1).sum(1)
        better = error < least
        best, least = np.where(better, full * factor, best), np.where(better, error, least)
    return best


def _pair_sums(rows: np.ndarray) -> np.ndarray:
    """The larger magnitude of what the positive and the negative weights of each last-axis pair sum to."""
    even = rows.shape[-1] // 2 * 2
    pairs = rows[..., :even].reshape(-1, 2)
    return np.maximum(np.maximum(pairs, 0).sum(-1), np.maximum(-pairs, 0).sum(-1))
