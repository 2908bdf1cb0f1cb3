"""Rows of a coded weight as float32: what an embedding reads. A task is a row.

Rows lie as the products read them, so that an embedding and a head that share a weight are stored once: 16
codes of a row are neighbours, in the 128-bit part of a vector that is the row's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from .. import emit
from .decode import Decoder, real_scale
from .spec import (
    ATOM,
    SECTION,
    VECTORS,
    Field,
    Packing,
    Values,
)


@dataclass(frozen=True)
class CodedGatherSpec:
    """`count` rows; `indices` is their type. Negative ones count from the end; what is outside is moved
    inside."""

    packing: Packing
    dot: str
    count: int
    indices: str

    @property
    def tasks(self) -> int:
        return self.count


def coded_gather_params(spec: CodedGatherSpec) -> list[tuple[str, str]]:
    """(name, element type) of the kernel's pointers, in order."""
    p = spec.packing
    optional = (("row_scale", "float32", p.two_level), ("side", p.side_dtype, p.has_side))
    stored = [("codes", "uint8"), ("scale", p.scale_dtype)]
    more = [(name, kind) for name, kind, there in optional if there]
    return [("indices", spec.indices), *stored, *more, ("y", "float32")]


def emit_coded_gather(spec: CodedGatherSpec, name: str) -> Any:
    """The PrimFunc."""
    return emit.kernel(name, coded_gather_params(spec), lambda *args: _Gather(spec, args).body())


class _RowDecoder(Decoder):
    """Decodes one row: what is a vector for a block is the row's 128 bits of it here."""

    def __init__(self, packing: Packing, dot: str, codes: Any, side: Any) -> None:
        super().__init__(replace(packing, lanes=4), Values(0, packing.top, True, 1), dot, codes, side)
        self.layout = packing

    def begin_row(self, row: Any) -> None:
        """Everything that follows is of this row."""
        lanes = self.layout.lanes
        self.row, self.rows_block, inner = row, row // lanes, row % lanes
        self.vector, self.part = inner % VECTORS, inner // VECTORS

    def begin_group(self, block: Any, group: Any) -> None:
        b = self.layout
        at = self.rows_block * b.groups + group
        if b.kind == "selector":
            shift = emit.cast(2 * (self.vector * (b.lanes // 4) + self.part), b.selector_dtype, 1)
            chosen = emit.ib.shift_right(emit.load(self.side, at), shift)
            index = emit.cast(emit.ib.bitwise_and(chosen, emit.tirx.const(3, b.selector_dtype)), "int64", 1)
            self._put_table(0, emit.load(self.choices, self.first + index * ATOM, ATOM))
        elif b.kind == "alpha":
            rows = b.lanes // 4
            self._put_table(0, self._sums_at((at * b.lanes + self.vector * rows + self.part) * b.bits))
        elif b.kind == "zero":
            zero = emit.load(self.side, at * b.lanes + self.row % b.lanes)
            self._put_table(0, emit.splat(0, "uint8", ATOM) - emit.splat(zero, "uint8", ATOM))

    def _place(self, section: Any, field: Field, j: int) -> Any:
        vector, part = (size // (2 if field.half else 1) for size in (self.layout.vector_bytes, ATOM))
        return section + field.at + self.vector * vector + self.part * part


class _Gather:
    def __init__(self, spec: CodedGatherSpec, args: tuple[Any, ...]) -> None:
        *buffers, self.begin, self.end = args
        self.s, self.p = spec, spec.packing
        self.buffers = dict(zip((n for n, _ in coded_gather_params(spec)), buffers, strict=True))
        self.decoder = _RowDecoder(self.p, spec.dot, self.buffers["codes"], self.buffers.get("side"))
        self.factor = emit.local(1, "float32")
        self.place = emit.local(1, "int64")
        self.weights = emit.local(self.p.atoms * ATOM, "float32")
        self.decoder.begin()

    def body(self) -> None:
        with emit.loop(self.begin, self.end) as task:
            given = emit.local(1, "int64")
            emit.store(given, 0, emit.cast(emit.load(self.buffers["indices"], task), "int64", 1))
            index = emit.load(given, 0)
            counted = emit.select(index < 0, index + self.p.n, index)
            emit.store(self.place, 0, emit.vmin(emit.vmax(counted, 0), self.p.n - 1))
            self.decode(emit.load(self.place, 0))
            self.copy(task)

    def decode(self, row: Any) -> None:
        """Into `weights`, each group at a whole atom."""
        p = self.p
        self.decoder.begin_row(row)
        whole, rest = p.periods
        base, size = row // p.lanes * p.block_bytes, p.bytes_of(p.period)
        each = lambda i, atoms: self.period(  # noqa: E731
            row, base + i * size, i * p.period_groups, i * p.period, atoms
        )
        emit.over(0, whole, lambda i: each(i, p.period))
        if rest:
            each(whole, rest)

    def period(self, row: Any, base: Any, group: Any, first: Any, atoms: int) -> None:
        wide, size = self.p.group_atoms, self.p.section_bytes(SECTION)
        if atoms > wide:
            for i in range(0, atoms, wide):
                self.start(row, group + i // wide)
                self.atoms(base, first, atoms, range(i, min(atoms, i + wide)))
            return
        self.start(row, group)
        full, rest = divmod(atoms, SECTION)
        every = range(SECTION)
        emit.over(0, full, lambda i: self.atoms(base + i * size, first + i * SECTION, SECTION, every))
        if rest:
            self.atoms(base + full * size, first + full * SECTION, rest, range(rest))

    def start(self, row: Any, group: Any) -> None:
        """Table and scale of a group of the row."""
        p = self.p
        self.decoder.begin_group(None, group)
        at = (row // p.lanes * p.groups + group) * p.lanes + row % p.lanes
        scale = real_scale(self.buffers["scale"], p.scale_dtype, at, 1, self.s.dot != "portable")
        if p.two_level:
            scale = scale * emit.load(self.buffers["row_scale"], row)
        emit.store(self.factor, 0, scale)

    def atoms(self, section: Any, first: Any, atoms: int, here: range) -> None:
        factor = emit.splat(emit.load(self.factor, 0), "float32", ATOM)
        for atom in here:
            level = emit.cast(self.decoder.value(0, section, atoms, atom), "float32", ATOM)
            emit.store(self.weights, (first + atom) * ATOM, level * factor, ATOM)

    def copy(self, task: Any) -> None:
        """`weights` to y, without what fills the atoms of groups."""
        p, to = self.p, task * self.p.k
        if p.width % ATOM == 0 or p.groups == 1:
            self.move(0, to, p.k)
            return
        each = lambda group, count: self.move(  # noqa: E731
            group * p.group_atoms * ATOM, to + group * p.width, count
        )
        emit.over(0, p.groups - 1, lambda group: each(group, p.width))
        each(p.groups - 1, p.k - (p.groups - 1) * p.width)

    def move(self, at: Any, to: Any, count: int) -> None:
        y = self.buffers["y"]
        emit.over(
            0, count // 8, lambda i: emit.store(y, to + i * 8, emit.load(self.weights, at + i * 8, 8), 8)
        )
        for i in range(count // 8 * 8, count):
            emit.store(y, to + i, emit.load(self.weights, at + i))
