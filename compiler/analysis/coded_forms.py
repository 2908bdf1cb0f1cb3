"""What a product with a coded weight costs in either of its two forms, counted by operation.

    table    each code -> its level by a look-up, each level times its activation
    planes   sums of eight signed activations by a look-up for eight bits of codes, then shifts and additions;
             only for levels that are signed sums (targets/kernels/coded/planes.py)

A chip without a multiplier runs the second: a multiplication in software is some thirty instructions on 8
bits. A chip with integer dot products runs the first, where two instructions do a vector of weights of any
format.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..formats import Format, family_of, tables

EIGHT = 8
SIGN_SUMS = 256


@dataclass(frozen=True)
class Operations:
    """Of one token; `multiplies` are of weights or of sums, `scalings` float32 multiplications by a scale."""

    multiplies: int
    adds: int
    shifts: int
    lookups: int
    scalings: int


def signed_digits(alpha: np.ndarray) -> np.ndarray:
    """How many powers of two, with signs, each int8 is at least a sum of (non-adjacent form)."""
    size = np.abs(alpha.astype(np.int16))
    plus, minus = 3 * size & ~size, size & ~(3 * size)
    found: np.ndarray = np.bitwise_count((plus | minus).astype(np.uint16)).astype(np.int64)
    return found


def table_operations(format: Format, n: int, k: int) -> Operations:
    """Of x [k] times a weight [n, k]."""
    groups, weights = format.groups(k), n * k
    found = tables(format)
    straight = found is not None and len(found) == 1 and family_of(format).name == "int"
    looked_up = 0 if straight or family_of(format).side == "zero" else weights
    return Operations(weights, weights + n * groups, 0, looked_up, n * groups)


def plane_operations(format: Format, n: int, k: int, alpha: np.ndarray | None = None) -> Operations:
    """The same in planes; `alpha` int8 [n, groups, bits] are the weight's, without them each is a power of
    two.

    Raises ValueError for a format whose levels are no signed sums.
    """
    if family_of(format).side != "alpha":
        raise ValueError(f"levels of {format} are not signed sums")
    groups, eights = format.groups(k), -(-k // EIGHT)
    terms = n * groups * format.bits if alpha is None else int(signed_digits(alpha).sum())
    bytes_read = n * format.bits * eights
    tables_made = eights * (SIGN_SUMS - 1 + EIGHT)
    return Operations(0, tables_made + bytes_read + terms, eights * EIGHT + terms, bytes_read, n * groups)
