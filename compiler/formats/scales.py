"""How the scales of groups are stored: float16 or float32 each, or uint8 each and a float32 for the row
(two-level).

Two-level scales are those of BitMoD (Chen et al., HPCA 2025, section 3.3): 8 bits are as good as 16, because
the groups of one row are of similar size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LARGEST_FLOAT16 = 65504.0
SMALLEST = np.float32(1e-33)


@dataclass(frozen=True)
class Store:
    """Rounds scales to what can be stored. `row` float32 [m]: each group's row scale (two-level), or None.
    `wide`: float32 scales, which keep what a model brings.
    """

    row: np.ndarray | None = None
    wide: bool = False

    @property
    def signed(self) -> bool:
        """Whether a scale may be negative."""
        return self.row is None

    def real(self, scale: np.ndarray) -> np.ndarray:
        """float32 [m]: the nearest scales that can be stored. A scale that is not 0 stays so where it can: a
        group far below its row's largest still gets the coarsest of its signs and sizes.
        """
        if self.wide:
            return np.where(np.abs(scale) < SMALLEST, np.float32(0), scale)
        if self.row is None:
            clipped = np.clip(scale, -LARGEST_FLOAT16, LARGEST_FLOAT16)
            return clipped.astype(np.float16).astype(np.float32)
        return self.stored(scale).astype(np.float32) * self.row

    def stored(self, scale: np.ndarray) -> np.ndarray:
        """float16, float32 or uint8 [m]; of a scale that `real` gave, exactly that."""
        if self.row is None:
            return scale.astype(np.float32 if self.wide else np.float16)
        steps = np.divide(scale, self.row, out=np.zeros_like(scale), where=self.row > 0)
        steps = np.where(scale > 0, np.maximum(np.rint(steps), 1), 0)
        return np.minimum(steps, 255).astype(np.uint8)

    def take(self, rows: slice | np.ndarray) -> Store:
        return self if self.row is None else Store(self.row[rows])


def row_scales(widest: np.ndarray) -> np.ndarray:
    """float32 [n] from the largest scales [n, G] that the groups may want: 255 steps to the largest. Rows of
    almost nothing get 0, and become zeros: the inverse of their scales would not be finite.
    """
    found = widest.max(1).astype(np.float32) / np.float32(255)
    return np.where(found < SMALLEST, np.float32(0), found)
