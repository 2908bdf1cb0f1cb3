"""One token times a coded weight: codes are read once, decoded in registers and multiplied at once.

    for each block of rows, each group:
        four int32 vectors <- sums of level * q        two rows (AVX-512: four) in each, in 128-bit parts
        one int32 vector   <- the rows' sums, minus what the offset of the levels added
        sums += scale * that

Memory bounds it: at 4 bits a core of Zen 3 does about 40 instructions for the 128 bytes of a section, where
the memory takes longer to deliver them.
"""

from __future__ import annotations

from typing import Any

from .. import emit
from ..tiling import CACHE_LINE
from .decode import repeated
from .dot import add_products
from .product import (
    CodedSpec,
    Product,
    coded_params,
    rows_of,
)
from .spec import ATOM, VECTORS

AHEAD = 2048
"""Bytes that codes are fetched ahead: by itself the hardware begins anew with every page."""


def emit_coded_vector(spec: CodedSpec, name: str) -> Any:
    """The PrimFunc. A task is a block of rows."""
    return emit.kernel(name, coded_params(spec), lambda *args: _Vector(spec, args).body())


class _Vector(Product):
    def __init__(self, spec: CodedSpec, args: tuple[Any, ...]) -> None:
        super().__init__(spec, args)
        self.whole = emit.local(VECTORS, emit.vector("int32", self.lanes))
        self.sums = emit.local(1, emit.vector("float32", self.lanes))
        self.decoder.begin()

    def body(self) -> None:
        with emit.loop(self.begin, self.end) as block:
            emit.store(self.sums, 0, emit.splat(0.0, "float32", self.lanes))
            self.periods(block, lambda *period: self.period(block, *period))
            self.finish(block, block * self.lanes, emit.load(self.sums, 0), 0)

    def period(self, block: Any, base: Any, group: Any, first: Any, atoms: int) -> None:
        size = self.p.group_atoms
        if atoms > size:
            for i in range(0, atoms, size):
                here = range(i, min(atoms, i + size))
                self.start(block, group + i // size)
                self.add(base, first, atoms, here)
                self.end_group(block, group + i // size)
            return
        self.start(block, group)
        self.sections(base, first, atoms, lambda at, atom, count: self.add(at, atom, count, range(count)))
        self.end_group(block, group)

    def start(self, block: Any, group: Any) -> None:
        self.decoder.begin_group(block, group)
        for j in range(VECTORS):
            emit.store(self.whole, j, emit.splat(0, "int32", self.lanes))

    def add(self, section: Any, first: Any, atoms: int, here: range) -> None:
        """The products of some atoms of a section, whose first atom of activations is `first`."""
        if not here.start:
            for line in range(0, self.p.section_bytes(atoms), CACHE_LINE):
                emit.fetch(self.buffers["codes"], section + AHEAD + line)
        for j in range(VECTORS):
            pairs = [
                (self.decoder.value(j, section, atoms, atom), self.activations(first + atom)) for atom in here
            ]
            acc = emit.load(self.whole, j)
            emit.store(self.whole, j, add_products(self.s.dot, self.lanes, self.s.values, acc, pairs))

    def activations(self, atom: Any) -> Any:
        """An atom's, in every 128 bits."""
        one = emit.load(self.buffers["q"], atom * ATOM, ATOM)
        return repeated(one, ATOM, self.p.vector_bytes, tuple(range(ATOM)) * (self.lanes // 4))

    def end_group(self, block: Any, group: Any) -> None:
        total = rows_of(self.whole, self.lanes)
        if self.s.factor:
            sums = emit.splat(emit.load(self.buffers["sums"], group), "int32", self.lanes)
            if self.p.kind == "zero":
                at = (block * self.p.groups + group) * self.lanes
                zeros = emit.load(self.buffers["side"], at, self.lanes)
                sums = sums * emit.cast(zeros, "int32", self.lanes)
            total = total + sums
        scaled = emit.cast(total, "float32", self.lanes) * self.scale(block, group)
        if self.s.by_group:
            scaled = scaled * emit.splat(emit.load(self.buffers["x_scale"], group), "float32", self.lanes)
        emit.store(self.sums, 0, emit.load(self.sums, 0) + scaled)
