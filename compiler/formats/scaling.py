"""Which factor each input channel of some layers is worth: activation-aware weight scaling.

Lin et al., "AWQ: Activation-aware Weight Quantization", MLSys 2024 (arXiv 2306.00978): weights of channels
that carry large inputs are multiplied by s before they are coded, and the inputs divided by it, so that their
errors matter less:

    s = mean|x|^r, divided by sqrt(max s * min s), r in 0 .. 0.95, of which the least output error decides
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .coded import Coded
from .compensate import output_error
from .encode import decode

RATIOS = tuple(np.linspace(0.05, 0.95, 10).tolist())
MOST_ROWS = 256
"""Of each weight: those that the error is measured on."""
WORTH = 0.99
"""Share of the error that may be left for a scaling to be used."""

Coder = Callable[[int, np.ndarray, np.ndarray], Coded]
"""(which of the layers, weight [n, k], hessian [k, k]) -> its codes."""


def candidate(magnitude: np.ndarray, ratio: float) -> np.ndarray:
    """float32 [k]: s for one r; channels that are never active get 1."""
    active = magnitude > 0
    if not active.any():
        return np.ones(len(magnitude), np.float32)
    s = np.where(active, magnitude, 1.0) ** ratio
    s = np.where(active, s / np.sqrt(s[active].max() * s[active].min()), 1.0)
    return np.clip(s, 1e-4, 1e4).astype(np.float32)


def choose_factors(
    weights: Sequence[np.ndarray], hessian: np.ndarray, magnitude: np.ndarray, quick: Coder, final: Coder
) -> np.ndarray | None:
    """float32 [k]: what the columns of all these weights are multiplied with; None where nothing is gained.

    `quick` codes for the search over r, `final` for the decision whether the best of it is worth while.
    """
    parts = [weight[:: -(-len(weight) // MOST_ROWS)] for weight in weights]
    sizes = [output_error(part, np.zeros_like(part), hessian).sum() or 1.0 for part in parts]

    def error(code: Coder, factors: np.ndarray) -> float:
        scaled = hessian / np.outer(factors, factors)
        total = 0.0
        for i, (part, size) in enumerate(zip(parts, sizes, strict=True)):
            decoded = decode(code(i, part * factors, scaled)) / factors
            total += float(output_error(part, decoded, hessian).sum() / size)
        return total

    tried = [candidate(magnitude, ratio) for ratio in RATIOS]
    best = min(tried, key=lambda factors: error(quick, factors))
    none = np.ones_like(best)
    return best if error(final, best) < WORTH * error(final, none) else None
