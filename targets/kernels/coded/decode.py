"""Codes -> bytes to multiply: bits taken out of their planes, then a table looked up or a zero subtracted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import emit
from .dot import look_up
from .spec import (
    ATOM,
    HALF,
    VECTORS,
    Field,
    Packing,
    Values,
)


def constant(octets: Sequence[int]) -> Any:
    """A vector of known bytes."""
    words = [
        emit.tirx.const(
            int.from_bytes(bytes(b & 255 for b in octets[i : i + 8]), "little", signed=True), "int64"
        )
        for i in range(0, len(octets), 8)
    ]
    wide = emit.tirx.Shuffle(words, [emit.tirx.const(i, "int32") for i in range(len(words))])
    return emit.bits(wide, "uint8", len(octets))


def repeated(value: Any, lanes: int, size: int, places: Sequence[int]) -> Any:
    """The lanes at `places` of a short vector, as one of `size` (TVM's shuffles give no more
    than they take)."""
    return emit.gather_lanes([value] * (size // lanes), tuple(places))


class Decoder:
    """Emits the decoding of blocks of a packed weight. `begin` once in a kernel; `begin_group`, then
    `value`."""

    def __init__(self, packing: Packing, values: Values, dot: str, codes: Any, side: Any) -> None:
        self.p, self.values, self.codes, self.side = packing, values, codes, side
        self.layout = packing
        self.shuffles = dot != "portable"
        self.size = packing.vector_bytes
        self.tabled = packing.kind in ("fixed", "selector", "alpha")
        # Without a shuffle instruction tables are read from memory, byte by byte.
        if self.shuffles or not self.tabled:
            self.tables = emit.local(VECTORS, emit.vector("uint8", self.size))
        else:
            self.tables = emit.local(VECTORS * self.size, "uint8")

    def begin(self) -> None:
        p = self.p
        if p.kind == "fixed":
            for j in range(VECTORS):
                self._put_table(j, constant(self._entries(p.tables[0]) * (p.lanes // 4)))
        elif p.kind == "selector":
            parts = min(2, p.lanes // 4)
            self.choices, self.first = emit.aligned(len(p.tables) ** parts * parts * ATOM, "uint8")
            for index in range(len(p.tables) ** parts):
                chosen = [p.tables[index >> 2 * part & 3] for part in range(parts)]
                row = constant([entry for table in chosen for entry in self._entries(table)])
                emit.store(self.choices, self.first + index * parts * ATOM, row, parts * ATOM)

    def _entries(self, table: Sequence[int]) -> list[int]:
        """The sixteen bytes of a table; shorter ones are repeated."""
        return [level + self.values.offset for level in table] * (ATOM // len(table))

    def _put_table(self, j: int, value: Any) -> None:
        if self.shuffles or not self.tabled:
            emit.store(self.tables, j, value)
        else:
            emit.store(self.tables, j * self.size, value, self.size)

    def begin_group(self, block: Any, group: Any) -> None:
        """Make the tables (or zeros) of a group of the rows of a block."""
        at = block * self.p.groups + group
        if self.p.kind == "selector":
            self._choose(at)
        elif self.p.kind == "alpha":
            for j in range(VECTORS):
                self._put_table(j, self._sums(at, j))
        elif self.p.kind == "zero" and (self.values.offset or self.values.signed):
            zeros = emit.load(self.side, at * self.p.lanes, self.p.lanes)
            offset = emit.splat(self.values.offset, "uint8", self.size)
            for j in range(VECTORS):
                rows = tuple(j + 4 * part for part in range(self.p.lanes // 4) for _ in range(ATOM))
                self._put_table(j, offset - repeated(zeros, self.p.lanes, self.size, rows))

    def _choose(self, at: Any) -> None:
        """The tables that the selectors of a group say: for two rows one entry of `choices`."""
        parts, rows = min(2, self.p.lanes // 4), self.p.lanes // 4
        kind, row = self.p.selector_dtype, parts * ATOM
        chosen = emit.local(1, kind)
        emit.store(chosen, 0, emit.load(self.side, at))
        for j in range(VECTORS):
            pieces = []
            for part in range(0, rows, parts):
                shift = emit.tirx.const(2 * (j * rows + part), kind)
                index = emit.ib.bitwise_and(
                    emit.ib.shift_right(emit.load(chosen, 0), shift), emit.tirx.const(4**parts - 1, kind)
                )
                index = emit.cast(index, "int64", 1)
                pieces.append(emit.load(self.choices, self.first + index * row, row))
            self._put_table(j, pieces[0] if len(pieces) == 1 else emit.gather_lanes(pieces, tuple(range(64))))

    def _sums(self, at: Any, j: int) -> Any:
        """offset + the sums of signed alphas, for all codes of the rows of vector j."""
        return self._sums_at((at * self.p.lanes + j * (self.p.lanes // 4)) * self.p.bits)

    def _sums_at(self, start: Any) -> Any:
        p, rows = self.p, self.p.lanes // 4
        total = emit.splat(self.values.offset, "int8", self.size)
        for first in range(0, p.bits, 2):
            paired = first + 1 < p.bits
            places, signs = [], []
            for row in range(rows):
                for code in range(ATOM):
                    high, low = code >> first & 1, code >> first + 1 & 1
                    places.append(row * p.bits + first + (int(high != low) if paired else 0))
                    signs.append(0 if high else 255)
            mask = emit.bits(constant(signs), "int8", self.size)
            alphas = repeated(emit.load(self.side, start, ATOM), ATOM, self.size, places)
            total = total + (emit.ib.bitwise_xor(alphas, mask) - mask)
        return emit.bits(total, "uint8", self.size)

    def value(self, j: int, section: Any, atoms: int, atom: int) -> Any:
        """The bytes of vector j of an atom; `section`: where the section of `atoms` begins in the codes."""
        code = self._code(j, section, atoms, atom)
        if self.p.kind == "offset" and self.values.signed:
            code = code - emit.splat(2 ** (self.p.bits - 1), "uint8", self.size)
        elif self.p.kind == "zero" and (self.values.offset or self.values.signed):
            code = code + emit.load(self.tables, j)
        elif self.tabled:
            code = self._looked_up(j, code)
        return emit.bits(code, "int8", self.size) if self.values.signed else code

    def _looked_up(self, j: int, code: Any) -> Any:
        if self.shuffles:
            return look_up(self.p.lanes, emit.load(self.tables, j), code)
        places, found = emit.local(self.size, "uint8"), emit.local(self.size, "uint8")
        emit.store(places, 0, code, self.size)
        with emit.loop(0, self.size) as i:
            place = emit.cast(emit.load(places, i), "int64", 1)
            emit.store(found, i, emit.load(self.tables, place + j * self.size))
        return emit.load(found, 0, self.size)

    def _code(self, j: int, section: Any, atoms: int, atom: int) -> Any:
        total: Any = None
        for field in self.layout.fields(atoms, atom):
            at, place = self._place(section, field, j), field.place
            if field.spread:
                value, place = self._gathered(at, field.bits), place - field.bits + 1
            else:
                value = self._from_half(at) if field.half else emit.load(self.codes, at, self.size)
            part = self._moved(value, place - field.low, (2**field.bits - 1) << field.low)
            total = part if total is None else emit.ib.bitwise_or(total, part)
        return total

    def _gathered(self, at: Any, count: int) -> Any:
        """In each half of a byte: its highest bits in `count` slices, the last one's highest. Two atoms need
        the same, and LLVM computes it once."""
        highest, one = emit.splat(0x88, "uint8", self.size), emit.splat(1, "uint16", self.size // 2)
        total: Any = None
        for i in range(count):
            value = emit.load(self.codes, at + i * self.layout.slice_bytes, self.size)
            part = emit.ib.bitwise_and(value, highest)
            if total is not None:
                lower = emit.ib.shift_right(emit.bits(total, "uint16", self.size // 2), one)
                part = emit.ib.bitwise_or(part, emit.bits(lower, "uint8", self.size))
            total = part
        return total

    def _place(self, section: Any, field: Field, j: int) -> Any:
        return section + field.at + j * (self.size // 2 if field.half else self.size)

    def _from_half(self, at: Any) -> Any:
        """A vector of half a slice: eight bytes of each row, then their upper halves."""
        eight, size = ATOM // 2, self.size // 2
        low = emit.load(self.codes, at, size)
        words = emit.bits(low, "uint16", size // 2)
        high = emit.bits(emit.ib.shift_right(words, emit.splat(HALF, "uint16", size // 2)), "uint8", size)
        rows = range(0, size, eight)
        order = [at + i for row in rows for at in (row, size + row) for i in range(eight)]
        return emit.gather_lanes([low, high], tuple(order))

    def _moved(self, value: Any, shift: int, mask: int) -> Any:
        """Bits of each byte moved down by `shift` (up when negative), the others zero. There are no shifts of
        bytes: words are shifted, and what came from the neighbour is masked."""
        if shift:
            wide = emit.bits(value, "uint16", self.size // 2)
            by = emit.splat(abs(shift), "uint16", self.size // 2)
            wide = emit.ib.shift_right(wide, by) if shift > 0 else emit.ib.shift_left(wide, by)
            value = emit.bits(wide, "uint8", self.size)
        if mask == 255:
            return value
        return emit.ib.bitwise_and(value, emit.splat(mask, "uint8", self.size))


def real_scale(buffer: Any, dtype: str, at: Any, lanes: int, hardware: bool) -> Any:
    """Stored scales as float32 [lanes]. `hardware`: there is an instruction that widens float16."""
    value = emit.load(buffer, at, lanes)
    if dtype == "uint8":
        return emit.cast(emit.cast(value, "int32", lanes), "float32", lanes)
    if dtype == "float32":
        return value
    if hardware:
        return emit.cast(value, "float32", lanes)
    half = emit.cast(emit.bits(value, "uint16", lanes), "int32", lanes)
    shift = emit.splat(13, "int32", lanes)
    magnitude = emit.ib.shift_left(emit.ib.bitwise_and(half, emit.splat(0x7FFF, "int32", lanes)), shift)
    sign = emit.ib.shift_left(
        emit.ib.bitwise_and(half, emit.splat(0x8000, "int32", lanes)), emit.splat(16, "int32", lanes)
    )
    # The exponent's bias is 112 less than float32's; subnormal numbers come out right as well.
    scaled = emit.bits(magnitude, "float32", lanes) * emit.splat(2.0**112, "float32", lanes)
    return emit.bits(emit.ib.bitwise_or(emit.bits(scaled, "int32", lanes), sign), "float32", lanes)
