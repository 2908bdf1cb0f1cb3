"""A weight of signed sums, without a multiplication: for chips that have no multiplier, and as what others
are held against.

    sums[row, group] = sum over bits i of alpha_i * (sum over k in group of +-q)     +: bit i of the code

The sign sums come from tables: for every eight activations the 256 sums that their signs can make, each made
from another by one addition. A byte of a bit-plane is where to look (You et al., "ShiftAddLLM", NeurIPS 2024,
section 4). The product with alpha is made of shifts, one for each signed digit; a power of two has one.

    SignTableSpec   tables int16 [token][eight][256]      from q, as coded/input.py makes it
    PlaneSpec       sums int32 [token][row][group]        from tables, planes and alphas
    PlaneScaleSpec  y float32 [token][row]                from sums: the only products, one for each group

    planes   [row][group][bit][byte]     eight signs a byte, the first in the lowest bit
    alphas   [row][group][bit]           int8
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ....compiler.formats import Coded, codes_of
from .. import emit
from ..epilogue import Epilogue
from .spec import ATOM

EIGHT = 8
ENTRIES = 256
DIGITS = 8
"""Of a magnitude up to 127, with signs."""


@dataclass(frozen=True)
class SignTableSpec:
    """Of `count` eights of activations."""

    count: int

    @property
    def nbytes(self) -> int:
        return self.count * ENTRIES * 2

    @property
    def tasks(self) -> int:
        return self.count


@dataclass(frozen=True)
class PlaneSpec:
    """`width` weights of a group, a multiple of 8; the last of a row has `atoms` atoms of activations in
    all."""

    m: int
    n: int
    groups: int
    width: int
    atoms: int
    bits: int

    @property
    def bytes(self) -> int:
        """Of a bit of a group."""
        return self.width // EIGHT

    @property
    def plane_bytes(self) -> int:
        return self.n * self.groups * self.bits * self.bytes

    @property
    def sums_bytes(self) -> int:
        return self.m * self.n * self.groups * 4

    @property
    def tasks(self) -> int:
        return self.n


@dataclass(frozen=True)
class PlaneScaleSpec:
    """Scales of groups, the activations' scales, bias, residual and activation."""

    m: int
    n: int
    groups: int
    by_group: bool
    scale_dtype: str
    epilogue: Epilogue

    @property
    def tasks(self) -> int:
        return self.m


def padded_width(coded: Coded) -> int:
    """Of a group, in whole atoms, as the activations are laid out."""
    return -(-min(coded.format.width(coded.shape[1]), coded.shape[1]) // ATOM) * ATOM


def pack_planes(coded: Coded) -> np.ndarray:
    """uint8 [n, groups, bits, width / 8]."""
    codes, width = codes_of(coded), padded_width(coded)
    wide = np.zeros((*codes.shape[:2], width), np.uint8)
    used = min(width, codes.shape[2])
    wide[:, :, :used] = codes[:, :, :used]
    bits = np.stack([wide >> i & 1 for i in range(coded.format.bits)], 2)
    return np.packbits(bits, axis=-1, bitorder="little")


def times(value: Any, factor: int) -> Any:
    """value * factor in shifts and additions: what addresses are made of where there is no multiplier."""
    if isinstance(value, int):
        return emit.tirx.const(value * factor, "int64")
    total: Any = None
    for bit in range(factor.bit_length()):
        if factor >> bit & 1:
            part = kept(emit.ib.shift_left(value, emit.tirx.const(bit, "int64"))) if bit else value
            total = part if total is None else total + part
    return emit.tirx.const(0, "int64") if total is None else total


def kept(value: Any) -> Any:
    """An int64 computed as written: LLVM would otherwise make a product of shifts that are added. (Its fence
    is for floats.)"""
    return emit.bits(
        emit.intrinsic("llvm.arithmetic.fence", "float64", emit.bits(value, "float64", 1)), "int64", 1
    )


def emit_sign_table(spec: SignTableSpec, name: str) -> Any:
    """The PrimFunc; pointers q, tables. A task is eight activations. An entry costs one addition."""

    def body(q: Any, tables: Any, begin: Any, end: Any) -> None:
        with emit.loop(begin, end) as eight:
            at, to = times(eight, EIGHT), times(eight, ENTRIES)
            lowest: Any = emit.tirx.const(0, "int16")
            for j in range(EIGHT):
                lowest = lowest - emit.cast(emit.load(q, at + j), "int16", 1)
            emit.store(tables, to, lowest)
            for j in range(EIGHT):
                twice = emit.local(1, "int16")
                one = emit.cast(emit.load(q, at + j), "int16", 1)
                emit.store(twice, 0, emit.ib.shift_left(one, emit.tirx.const(1, "int16")))
                with emit.loop(0, 1 << j) as entry:
                    made = emit.load(tables, to + entry) + emit.load(twice, 0)
                    emit.store(tables, to + entry + (1 << j), made)

    return emit.kernel(name, [("q", "int8"), ("tables", "int16")], body)


def emit_planes(spec: PlaneSpec, name: str) -> Any:
    """The PrimFunc; pointers tables, planes, alphas, sums. A task is a row of the weight."""
    return emit.kernel(name, plane_params(), lambda *args: _Planes(spec, args).body())


def plane_params() -> list[tuple[str, str]]:
    return [("tables", "int16"), ("planes", "uint8"), ("alphas", "int8"), ("sums", "int32")]


class _Planes:
    def __init__(self, spec: PlaneSpec, args: Sequence[Any]) -> None:
        self.tables, self.planes, self.alphas, self.sums, self.begin, self.end = args
        self.s = spec
        self.total, self.signed = emit.local(1, "int32"), emit.local(1, "int32")

    def body(self) -> None:
        s = self.s
        last = s.atoms * ATOM // EIGHT - (s.groups - 1) * s.bytes

        def one(row: Any, token: Any) -> None:
            emit.over(0, s.groups - 1, lambda group: self.group(row, token, group, s.bytes))
            self.group(row, token, s.groups - 1, last)

        with emit.loop(self.begin, self.end) as row:
            emit.over(0, s.m, lambda token: one(row, token))

    def group(self, row: Any, token: Any, group: Any, count: int) -> None:
        s = self.s
        emit.store(self.total, 0, emit.tirx.const(0, "int32"))
        place = times(row, s.groups) + group
        tables = times(token, s.atoms * ATOM // EIGHT * ENTRIES) + times(group, s.bytes * ENTRIES)
        with emit.loop(0, s.bits) as bit:
            emit.store(self.signed, 0, emit.tirx.const(0, "int32"))
            plane = times(times(place, s.bits) + bit, s.bytes)
            self.add_signs(plane, tables, count)
            self.weigh(emit.cast(emit.load(self.alphas, times(place, s.bits) + bit), "int32", 1))
        emit.store(self.sums, times(times(token, s.n) + row, s.groups) + group, emit.load(self.total, 0))

    def add_signs(self, plane: Any, tables: Any, count: int) -> None:
        emit.over(0, count, lambda i: self.look_up(plane + i, tables + times(i, ENTRIES)))

    def look_up(self, plane: Any, table: Any) -> None:
        """Add what eight signs, a byte of a plane, make of eight activations."""
        entry = emit.cast(emit.load(self.planes, plane), "int64", 1)
        found = emit.cast(emit.load(self.tables, table + entry), "int32", 1)
        emit.store(self.signed, 0, emit.load(self.signed, 0) + found)

    def weigh(self, alpha: Any) -> None:
        """total += alpha * signed: a shift and an addition for each signed digit of alpha.

        The digits of least number are those of (3 a - a) / 2 without borrowing: 7 is 8 - 1 (Reitwiesner,
        1960).
        """
        zero, one = emit.tirx.const(0, "int32"), emit.tirx.const(1, "int32")
        size, part, digits = emit.local(1, "int32"), emit.local(1, "int32"), emit.local(2, "int32")
        emit.store(size, 0, emit.vmax(alpha, zero - alpha))
        emit.store(part, 0, emit.load(self.signed, 0))
        with emit.when(alpha < zero):
            emit.store(part, 0, zero - emit.load(self.signed, 0))
        once = emit.load(size, 0)
        thrice = once + emit.ib.shift_left(once, one)
        both = emit.ib.bitwise_and(thrice, once)
        emit.store(digits, 0, emit.ib.shift_right(emit.ib.bitwise_xor(thrice, both), one))
        emit.store(digits, 1, emit.ib.shift_right(emit.ib.bitwise_xor(once, both), one))
        for bit in range(DIGITS):
            for sign in (0, 1):
                here = emit.ib.bitwise_and(emit.load(digits, sign), emit.tirx.const(1 << bit, "int32"))
                with emit.when(here != zero):
                    shifted = emit.ib.shift_left(emit.load(part, 0), emit.tirx.const(bit, "int32"))
                    total = emit.load(self.total, 0)
                    emit.store(self.total, 0, total - shifted if sign else total + shifted)


def plane_scale_params(spec: PlaneScaleSpec) -> list[tuple[str, str]]:
    e = spec.epilogue
    optional = (
        ("row_scale", "float32", spec.scale_dtype == "uint8"),
        ("bias", "float32", e.bias),
        ("residual", "float32", bool(e.residual)),
    )
    given = [("sums", "int32"), ("x_scale", "float32"), ("scale", spec.scale_dtype)]
    return [*given, *((n, t) for n, t, there in optional if there), ("y", "float32")]


def emit_plane_scale(spec: PlaneScaleSpec, name: str) -> Any:
    """The PrimFunc. A task is a token."""
    from .decode import real_scale

    def body(*args: Any) -> None:
        *pointers, begin, end = args
        buffers = dict(zip((n for n, _ in plane_scale_params(spec)), pointers, strict=True))
        total = emit.local(1, "float32")

        def add(token: Any, row: Any, group: Any) -> None:
            at = row * spec.groups + group
            part = emit.cast(emit.load(buffers["sums"], token * spec.n * spec.groups + at), "float32", 1)
            part = part * real_scale(buffers["scale"], spec.scale_dtype, at, 1, False)
            if spec.by_group:
                part = part * emit.load(buffers["x_scale"], token * spec.groups + group)
            emit.store(total, 0, emit.load(total, 0) + part)

        with emit.loop(begin, end) as token, emit.loop(0, spec.n) as row:
            emit.store(total, 0, emit.tirx.const(0.0, "float32"))
            emit.over(0, spec.groups, lambda group: add(token, row, group))
            value, to = emit.load(total, 0), token * spec.n + row
            if "row_scale" in buffers:
                value = value * emit.load(buffers["row_scale"], row)
            if not spec.by_group:
                value = value * emit.load(buffers["x_scale"], token)
            if spec.epilogue.bias:
                value = value + emit.load(buffers["bias"], row)
            residual = emit.load(buffers["residual"], to) if spec.epilogue.residual else None
            emit.store(total, 0, value)
            emit.store(buffers["y"], to, spec.epilogue.activated(emit.load(total, 0), None, residual, 1))

    return emit.kernel(name, plane_scale_params(spec), body)
