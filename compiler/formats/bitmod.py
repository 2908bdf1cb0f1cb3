"""bitmod3 and bitmod4: small floats whose second zero is a special value, one of four for each group.

Chen et al., "BitMoD: Bit-serial Mixture-of-Datatype LLM Acceleration", HPCA 2025 (arXiv 2411.11745), sec. 3:

    bits   basic values                  special value (times the table's 2 for 4 bits)
    3      0, +-1, +-2, +-4              +3, -3 (extra resolution), +6, -6 (extra asymmetry)
    4      0, +-1, ... +-8, +-12         +10, -10, +16, -16

Rounding tries all four tables on each group, its largest magnitude on the table's largest, and keeps the one
of least squared error. Scales are two-level: with the selector 10 bits for a group.
"""

from __future__ import annotations

import numpy as np

from . import fixed
from .coded import Choose, Family, Parameters
from .float_codes import signed_table
from .scales import Store

SPECIAL = {3: (3, -3, 6, -6), 4: (10, -10, 16, -16)}


def bitmod_tables(bits: int) -> np.ndarray:
    """int8 [4, 2^bits]; the special value is where the floats have -0."""
    found = np.repeat(signed_table(bits), 4, 0)
    found[:, 2 ** (bits - 1)] = SPECIAL[bits]
    return found


def _fit(groups: np.ndarray, bits: int, importance: np.ndarray | None, store: Store) -> Parameters:
    found = bitmod_tables(bits)
    return fixed.fit(groups, found, np.abs(found).max(1).astype(np.float32), importance, store)


def _chooser(bits: int, parameters: Parameters) -> Choose:
    return fixed.chooser(bitmod_tables(bits), parameters)


def _levels(bits: int, side: np.ndarray | None, m: int) -> np.ndarray:
    assert side is not None
    return bitmod_tables(bits)[side]


def _widest(groups: np.ndarray, bits: int) -> np.ndarray:
    found: np.ndarray = np.abs(groups).max(1) / np.float32(signed_table(bits).max())
    return found


BITMOD = Family(
    "bitmod", (3, 4), "selector", _fit, _chooser, _levels, _widest, bitmod_tables, usual_scale="two-level"
)
