"""Small floats and NormalFloat: one fixed table each.

    fp3   0, +-1, +-2, +-4                                       (code 4 is a second 0)
    fp4   0, +-0.5, +-1, +-1.5, +-2, +-3, +-4, +-6, times 2      (code 8 is a second 0)
    nf4   the sixteen levels of QLoRA (Dettmers et al., NeurIPS 2023, appendix E), rounded to integers / 127:
          at most 0.004 off, which changes the error of a Gaussian group by less than 0.1 %

The codes of floats are sign and magnitude: the highest bit is the sign.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import fixed
from .coded import Choose, Family, Parameters
from .scales import Store

MAGNITUDES = {3: (0, 1, 2, 4), 4: (0, 1, 2, 3, 4, 6, 8, 12)}
NORMAL = (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0) + (
    0.0795803,
    0.1609302,
    0.2461123,
    0.3379152,
    0.4407098,
    0.5626170,
    0.7229568,
    1.0,
)


def signed_table(bits: int) -> np.ndarray:
    """int8 [1, 2^bits] of the floats of 3 or 4 bits."""
    magnitudes = np.asarray(MAGNITUDES[bits], np.int8)
    return np.concatenate([magnitudes, -magnitudes])[None]


def normal_table(bits: int) -> np.ndarray:
    """int8 [1, 16]."""
    return np.rint(np.asarray(NORMAL) * 127).astype(np.int8)[None]


def _family(name: str, widths: tuple[int, ...], table: Callable[[int], np.ndarray]) -> Family:
    def fit(groups: np.ndarray, bits: int, importance: np.ndarray | None, store: Store) -> Parameters:
        return fixed.fit(groups, table(bits), _reach(bits), importance, store)

    def _reach(bits: int) -> np.ndarray:
        return np.asarray([np.abs(table(bits)).max()], np.float32)

    def chooser(bits: int, parameters: Parameters) -> Choose:
        return fixed.chooser(table(bits), parameters)

    def levels(bits: int, side: np.ndarray | None, m: int) -> np.ndarray:
        return np.broadcast_to(table(bits), (m, 2**bits))

    def widest(groups: np.ndarray, bits: int) -> np.ndarray:
        found: np.ndarray = np.abs(groups).max(1) / _reach(bits)
        return found

    return Family(name, widths, "", fit, chooser, levels, widest, table)


FLOAT = _family("fp", (3, 4), signed_table)
NORMAL_FLOAT = _family("nf", (4,), normal_table)
