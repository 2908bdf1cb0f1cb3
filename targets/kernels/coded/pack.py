"""Packs a coded weight into the layout of coded/spec.py."""

from __future__ import annotations

import numpy as np

from ....compiler.formats import (
    Coded,
    Format,
    codes_of,
    family_of,
    side_of,
    tables,
)
from .spec import (
    ATOM,
    HALF,
    VECTORS,
    Packing,
)

SPARE = 16
"""Bytes behind alphas that a kernel may load with the last of them."""


def packing_of(format: Format, n: int, k: int, lanes: int, largest: int) -> Packing:
    """The layout for one instruction set; `largest`: the largest magnitude of a level, where no table says
    it. It does not depend on what the weight is multiplied with."""
    fixed, side = tables(format), family_of(format).side
    straight = fixed is not None and not side and _is_straight(fixed, format.bits)
    kind = "offset" if straight else side or "fixed"
    kept: tuple[tuple[int, ...], ...] = ()
    if fixed is not None:
        largest = int(np.abs(fixed.astype(np.int16)).max())
        kept = () if straight else tuple(map(tuple, fixed.tolist()))
    elif kind == "zero":
        largest = 2**format.bits - 1
    # A group as wide as the row, or wider, is the whole row.
    group = format.group if format.group < k else 0
    scale = "uint8" if format.scale == "two-level" else format.scale
    return Packing(lanes, n, k, format.bits, group, kind, kept, largest, scale)


def _is_straight(fixed: np.ndarray, bits: int) -> bool:
    """level = code - 2^(bits-1), but for the first code of 8 bits, which is not used."""
    line = np.arange(2**bits) - 2 ** (bits - 1)
    return len(fixed) == 1 and bool((fixed[0, bits == 8 :] == line[bits == 8 :]).all())


def largest_level(alpha: np.ndarray) -> int:
    """Of a weight whose levels are sums of signed alphas int8 [n, groups, bits]."""
    return max(1, int(np.abs(alpha.astype(np.int16)).sum(-1).max()))


def pack_codes(packing: Packing, coded: Coded) -> np.ndarray:
    """uint8 [blocks * block_bytes]."""
    p = packing
    step = max(1, (1 << 22) // max(1, p.atoms * ATOM * p.lanes)) * p.lanes
    parts = [_pack_rows(p, coded.rows(i, min(p.n, i + step))) for i in range(0, p.n, step)]
    return np.concatenate(parts)


def _pack_rows(p: Packing, coded: Coded) -> np.ndarray:
    atoms = _atoms(p, coded)
    blocks = len(atoms) // p.lanes
    # [block][l][j][atom][byte] -> [block][atom][j][l][byte]
    parts = atoms.reshape(blocks, p.lanes // VECTORS, VECTORS, p.atoms, ATOM).transpose(0, 3, 2, 1, 4)
    vectors = np.ascontiguousarray(parts).reshape(blocks, p.atoms, VECTORS, p.vector_bytes)
    whole, rest = p.periods
    sections, at = [], 0
    for atoms_here in [p.period] * whole + ([rest] if rest else []):
        for size in p.sections(atoms_here):
            sections.append(_section(p, vectors[:, at : at + size]))
            at += size
    return np.concatenate(sections, 1).reshape(-1)


def _atoms(p: Packing, coded: Coded) -> np.ndarray:
    """Codes uint8 [rows, atoms, 16], rows filled to whole blocks."""
    found = codes_of(coded)
    n = len(found)
    found = found[:, :, : p.width]
    wide = np.zeros((-(-n // p.lanes) * p.lanes, p.groups, p.group_atoms * ATOM), np.uint8)
    wide[:n, :, : found.shape[2]] = found
    return wide.reshape(len(wide), -1, ATOM)[:, : p.atoms]


def _section(p: Packing, vectors: np.ndarray) -> np.ndarray:
    """uint8 [blocks, section bytes] of codes [blocks, atoms, j, bytes]."""
    blocks, atoms = vectors.shape[:2]
    result = np.zeros((blocks, p.section_bytes(atoms)), np.uint8)
    for atom in range(atoms):
        for field in p.fields(atoms, atom):
            bits = vectors[:, atom] >> field.low & 2**field.bits - 1
            if field.spread:
                for i in range(field.bits):
                    _add(result, field.at + i * p.slice_bytes, (bits >> i & 1) << field.place)
                continue
            bits <<= field.place
            if field.half:
                eights = bits.reshape(blocks, -1, 2, ATOM // 2)
                bits = eights[:, :, 0] | eights[:, :, 1] << HALF
            _add(result, field.at, bits)
    return result


def _add(sections: np.ndarray, at: int, bits: np.ndarray) -> None:
    """Sets bits [blocks, ...] from byte `at` on of sections [blocks, bytes]."""
    bits = bits.reshape(len(sections), -1)
    sections[:, at : at + bits.shape[1]] |= bits


def pack_scale(packing: Packing, coded: Coded) -> np.ndarray:
    return _by_rows(packing, coded.arrays["scale"])


def pack_rows(packing: Packing, values: np.ndarray) -> np.ndarray:
    """One number for each row, filled to whole blocks."""
    return np.pad(values, (0, packing.blocks * packing.lanes - packing.n))


def _by_rows(p: Packing, values: np.ndarray) -> np.ndarray:
    """[n, groups, ...] -> [block][group][row]..."""
    wide = np.zeros((p.blocks * p.lanes, *values.shape[1:]), values.dtype)
    wide[: p.n] = values
    shaped = wide.reshape(p.blocks, p.lanes, *values.shape[1:])
    return np.ascontiguousarray(np.moveaxis(shaped, 1, 2)).reshape(-1)


def _by_parts(p: Packing, values: np.ndarray) -> np.ndarray:
    """[n, groups, w] -> [block, group, j, l, w]."""
    rows = _by_rows(p, values).reshape(p.blocks, p.groups, p.lanes // VECTORS, VECTORS, -1)
    return rows.swapaxes(2, 3)


def pack_side(packing: Packing, coded: Coded) -> np.ndarray:
    p, side = packing, side_of(coded)
    assert side is not None
    if p.kind == "zero":
        return _by_rows(p, side)
    if p.kind == "selector":
        parts = _by_parts(p, side[:, :, None]).reshape(p.blocks, p.groups, p.lanes)
        shifts = 2 * np.arange(p.lanes, dtype=np.uint64)
        return (parts.astype(np.uint64) << shifts).sum(-1).astype(p.selector_dtype)
    return np.concatenate([_by_parts(p, pair_sums(side)).reshape(-1), np.zeros(SPARE, np.int8)])


def pair_sums(alpha: np.ndarray) -> np.ndarray:
    """Of alphas a, b, c, d: a + b, a - b, c + d, c - d. A last one without a partner stays."""
    pairs = alpha[..., : alpha.shape[-1] // 2 * 2]
    first, second = pairs[..., 0::2].astype(np.int16), pairs[..., 1::2].astype(np.int16)
    both = np.stack([first + second, first - second], -1).reshape(pairs.shape)
    return np.concatenate([both, alpha[..., pairs.shape[-1] :]], -1).astype(np.int8)
