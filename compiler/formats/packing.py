"""Codes of 1 to 8 bits in bytes, and 2-bit selectors; little-endian: the first is in the lowest bits."""

from __future__ import annotations

import numpy as np


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """codes uint8 [..., g], each below 2^bits -> uint8 [..., ceil(g * bits / 8)]."""
    *lead, g = codes.shape
    size = -(-g * bits // 8)
    if bits == 8:
        return np.ascontiguousarray(codes)
    if g % 8:
        codes = np.concatenate([codes, np.zeros((*lead, -g % 8), np.uint8)], -1)
    eights = codes.reshape(*lead, -1, 8)
    word = np.zeros(eights.shape[:-1], np.uint64)
    for i in range(8):
        word |= eights[..., i].astype(np.uint64) << np.uint64(i * bits)
    octets = word.astype("<u8")[..., None].view(np.uint8)[..., :bits]
    return np.ascontiguousarray(octets.reshape(*lead, -1)[..., :size])


def unpack(packed: np.ndarray, bits: int, g: int) -> np.ndarray:
    """The inverse: uint8 [..., bytes] -> uint8 [..., g]."""
    *lead, size = packed.shape
    if bits == 8:
        return packed[..., :g]
    if size % bits:
        packed = np.concatenate([packed, np.zeros((*lead, -size % bits), np.uint8)], -1)
    octets = np.zeros((*lead, packed.shape[-1] // bits, 8), np.uint8)
    octets[..., :bits] = packed.reshape(*lead, -1, bits)
    word = octets.view("<u8")[..., 0]
    codes = np.empty((*lead, word.shape[-1], 8), np.uint8)
    for i in range(8):
        codes[..., i] = (word >> np.uint64(i * bits)) & np.uint64(2**bits - 1)
    return codes.reshape(*lead, -1)[..., :g]
