"""Weights of few bits in blocks, each with a scale of its own, as weight formats with the very same values.

Exact: weight = (code - zero) * scale with the model's own codes, and its scales as float16 where that is what
they are, else as float32. What no format holds is None: bytes whose differences from their zero point leave
-127..127, zero points that are no codes, blocks that are not a multiple of 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...formats import Coded, format_of
from ...formats.families import LARGEST_GROUP
from ...formats.packing import pack

LARGEST_LEVEL = 127


@dataclass(frozen=True)
class Blocks:
    """A weight [n, k] as (codes - zero) * scale: codes and zero integers [n, k] and [n, G], scale [n, G]."""

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    bits: int
    block: int

    def weight(self) -> np.ndarray:
        """float32 [n, k]."""
        k = self.codes.shape[1]
        scale, zero = (np.repeat(v.astype(np.float32), self.block, 1)[:, :k] for v in (self.scale, self.zero))
        return (self.codes.astype(np.float32) - zero) * scale


def coded_of(blocks: Blocks) -> Coded | None:
    """The same weight in a format, exactly; None where no format has it."""
    n, k = blocks.codes.shape
    one = blocks.block >= k
    if not n or not k or not np.isfinite(blocks.scale).all():
        return None
    if not one and (blocks.block % 8 or blocks.block > LARGEST_GROUP):
        return None
    found = _family(blocks, k)
    if found is None:
        return None
    name, codes, zero = found
    half = blocks.scale.astype(np.float16)
    exact = np.array_equal(half.astype(np.float32), blocks.scale.astype(np.float32))
    group = "channel" if one else str(blocks.block)
    format = format_of(f"{name}:{group}" if exact else f"{name}:{group}:float32")
    arrays = {
        "codes": pack(_grouped(codes, zero, format.width(k)), format.bits),
        "scale": half if exact else blocks.scale.astype(np.float32),
    }
    if name.endswith("a"):
        arrays["zero"] = zero.astype(np.uint8)
    return Coded(format, (n, k), arrays)


def _family(blocks: Blocks, k: int) -> tuple[str, np.ndarray, np.ndarray] | None:
    """Name of the format; codes uint8 [n, k] and zero points uint8 [n, G] as it counts them."""
    bits, zero = blocks.bits, blocks.zero
    last, middle = (1 << bits) - 1, 1 << (bits - 1)
    if bits < 8:
        if not np.array_equal(zero, np.rint(zero)) or zero.min() < 0 or zero.max() > last:
            return None
        name = f"int{bits}" if (zero == middle).all() else f"int{bits}a"
        return name, blocks.codes.astype(np.uint8), zero.astype(np.uint8)
    if not np.array_equal(zero, np.rint(zero)):
        return None
    levels = blocks.codes.astype(np.int32) - np.repeat(zero.astype(np.int32), blocks.block, 1)[:, :k]
    if np.abs(levels).max() > LARGEST_LEVEL:
        return None
    return "int8", (levels + middle).astype(np.uint8), np.full(zero.shape, middle, np.uint8)


def _grouped(codes: np.ndarray, zero: np.ndarray, width: int) -> np.ndarray:
    """[n, G, width]: codes of each group, the last one filled with its zero."""
    (n, k), groups = codes.shape, zero.shape[1]
    full = np.repeat(zero, width, 1)
    full[:, :k] = codes
    return full.reshape(n, groups, width)


KINDS: Mapping[str, tuple[int, int]] = {
    "int2": (2, 2),
    "uint2": (2, 0),
    "int4": (4, 8),
    "uint4": (4, 0),
    "int8": (8, 128),
    "uint8": (8, 0),
}
"""ONNX's element types: their bits, and what makes their codes unsigned."""


@dataclass(frozen=True)
class Noted:
    """Constant operands of a DequantizeLinear on a matrix: `axis` is the one that has blocks, or, where
    `block` is 0, a scale for each of its elements."""

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None
    axis: int
    block: int

    @property
    def turned(self) -> Noted:
        """The same of the transposed matrix."""
        scale, zero = (v.T if v is not None and v.ndim == 2 else v for v in (self.scale, self.zero))
        assert scale is not None
        return Noted(self.codes.T, scale, zero, 1 - self.axis, self.block)

    def rows(self) -> Blocks:
        """With the codes of a row side by side: what a linear layer's weight [n, k] can be."""
        along = 1 if self.block else 0
        data = self if self.axis == along else self.turned
        n, k = data.codes.shape
        bits, shift = KINDS[data.codes.dtype.name]
        block = data.block or max(k, 1)
        groups = -(-k // block)
        scale = np.broadcast_to(data.scale.reshape(-1, groups), (n, groups))
        zero = np.zeros((1, groups), np.int32) if data.zero is None else data.zero.astype(np.int32)
        zero = np.broadcast_to(zero.reshape(-1, groups), (n, groups)) + shift
        return Blocks(data.codes.astype(np.int32) + shift, scale, zero, bits, block)


def noted(
    codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, axis: int, block: int
) -> Noted | None:
    """None for what is no matrix of such codes, and for bytes with scales per channel: codes.py has those."""
    known = codes.ndim == 2 and codes.dtype.name in KINDS
    if not known or (not block and codes.dtype.name in ("int8", "uint8")):
        return None
    return Noted(codes, scale, zero, axis % 2, block)
