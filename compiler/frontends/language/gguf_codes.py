"""GGUF's codes as they are, in formats of compiler/formats that have the very same values.

    Q4_0   32 weights: float16 d, codes q of 4 bits; weight = (q - 8) d       int4:32
    Q8_0   32 weights: float16 d, int8 q; weight = q d                        int8:32, without q = -128
    Q4_1   32 weights: float16 d and m, codes q; weight = q d + m             int4a:32, where m is -zero d

The low half of a byte of Q4 is weight i, the high half weight i + 16.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...formats import Coded, format_of
from .gguf_file import GgufTensor

BLOCK = 32


def kept_codes(tensor: GgufTensor, rows: np.ndarray | None) -> Coded | None:
    """The tensor's rows, in the order `rows` if given; None where no format has its values exactly."""
    known = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q8_0": _q8_0}
    if len(tensor.shape) != 2 or tensor.kind.name not in known:
        return None
    n, k = tensor.shape
    blocks = tensor.raw(0, n).reshape(n, k // BLOCK, -1)
    found = known[tensor.kind.name](blocks)
    if found is None:
        return None
    name, arrays = found
    if rows is not None:
        arrays = {key: array[rows] for key, array in arrays.items()}
    return Coded(format_of(name), (n, k), arrays)


def _q4_0(blocks: np.ndarray) -> tuple[str, dict[str, Any]]:
    return "int4:32", {"codes": _neighbours(blocks[..., 2:]), "scale": _half(blocks, 0)}


def _q4_1(blocks: np.ndarray) -> tuple[str, dict[str, Any]] | None:
    scale, low = _half(blocks, 0), _half(blocks, 2)
    wide = scale.astype(np.float32)
    zero = np.rint(np.divide(-low.astype(np.float32), wide, out=np.zeros_like(wide), where=wide != 0))
    if not np.array_equal(-zero * wide, low.astype(np.float32)) or zero.min() < 0 or zero.max() > 127:
        return None
    codes = _neighbours(blocks[..., 4:])
    return "int4a:32", {"codes": codes, "scale": scale, "zero": zero.astype(np.uint8)}


def _q8_0(blocks: np.ndarray) -> tuple[str, dict[str, Any]] | None:
    values = blocks[..., 2:].view(np.int8)
    if (values == -128).any():
        return None
    return "int8:32", {"codes": values.view(np.uint8) ^ np.uint8(128), "scale": _half(blocks, 0)}


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 at a place of every block: [n, groups]."""
    return np.ascontiguousarray(blocks[..., at : at + 2]).view("<f2")[..., 0]


def _neighbours(packed: np.ndarray) -> np.ndarray:
    """Bytes of weights (i, i + 16) -> bytes of weights (2 i, 2 i + 1)."""
    apart = np.concatenate([packed & 15, packed >> 4], axis=-1)
    found: np.ndarray = apart[..., 0::2] | (apart[..., 1::2] << 4)
    return found
