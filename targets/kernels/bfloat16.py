"""bfloat16 in kernels: the upper half of a float32 (sign, 8 bits of exponent, 7 of mantissa).

Two neighbours along k lie in one 32-bit lane, the first in its lower half: what `vdpbf16ps` reads, and what
one shift and one mask widen into two vectors of float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import emit

HIGH = 0xFFFF0000
INFINITY, QUIET = 0x7F800000, 0x00400000
AHEAD = 512
"""Weights from the one that is read to the one whose cache line is asked for, where one row streams them:
4096 x 4096 take 1.64 ms instead of 1.9 on a Zen 3 core."""


def rounded(x: Any, lanes: int) -> Any:
    """A float32 vector rounded to the nearest bfloat16, ties to even, as uint32 whose lower halves are to be
    dropped. Not-a-numbers stay what they are, subnormal numbers too."""

    def word(value: int) -> Any:
        return emit.splat(value, "uint32", lanes)

    both = emit.ib.bitwise_and
    u = emit.bits(x, "uint32", lanes)
    odd = both(emit.ib.shift_right(u, word(16)), word(1))
    # Adding would carry a not-a-number into infinity, or into another sign.
    wrong = both(u, word(0x7FFFFFFF)) > word(INFINITY)
    return emit.select(wrong, emit.ib.bitwise_or(u, word(QUIET)), u + (word(0x7FFF) + odd))


def stored(x: Any, dtype: str, lanes: int) -> Any:
    """A float32 vector rounded, as what a product reads: the float32 number, or its upper half as uint16."""
    bits = rounded(x, lanes)
    if dtype == "float32":
        return emit.bits(emit.ib.bitwise_and(bits, emit.splat(HIGH, "uint32", lanes)), "float32", lanes)
    return emit.cast(emit.ib.shift_right(bits, emit.splat(16, "uint32", lanes)), "uint16", lanes)


def first(pairs: Any, lanes: int) -> Any:
    """float32 of the lower halves of uint32 lanes."""
    return emit.bits(emit.ib.shift_left(pairs, emit.splat(16, "uint32", lanes)), "float32", lanes)


def second(pairs: Any, lanes: int) -> Any:
    """float32 of the upper halves."""
    return emit.bits(emit.ib.bitwise_and(pairs, emit.splat(HIGH, "uint32", lanes)), "float32", lanes)


def bit_patterns(array: np.ndarray) -> np.ndarray:
    """bfloat16 numbers as uint16; other arrays as they are."""
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array
