"""Float32 activations times a coded weight.

Atoms are decoded and transposed as in coded/panel.py; then each of the four levels in a 32-bit lane becomes a
float32 vector of rows. One token multiplies these at once, scaling the sums of groups; for many, scaled
weights go to a panel [k][row] that the tokens pass over.
"""

from __future__ import annotations

from typing import Any

from .. import emit
from ..product import each_tile
from .product import (
    CodedSpec,
    Product,
    coded_params,
    transposed_words,
)
from .spec import ATOM, VECTORS

WORD = 4


def emit_coded_float(spec: CodedSpec, name: str) -> Any:
    """The PrimFunc. A task is a block of rows."""
    return emit.kernel(name, coded_params(spec), lambda *args: _Float(spec, args).body())


class _Float(Product):
    def __init__(self, spec: CodedSpec, args: tuple[Any, ...]) -> None:
        super().__init__(spec, args)
        self.kind = emit.vector("float32", self.lanes)
        self.four = emit.local(VECTORS, emit.vector("int32", self.lanes))
        self.words = emit.local(VECTORS, emit.vector("int32", self.lanes))
        self.factor = emit.local(1, self.kind)
        self.part = emit.local(1, self.kind)
        self.sums = emit.local(1, self.kind)
        if not spec.vector:
            self.panel, self.panel_at = emit.aligned(spec.panel_bytes // 4, "float32")
        self.decoder.begin()

    def body(self) -> None:
        if self.s.vector:
            emit.over(self.begin, self.end, self.one_token)
        else:
            emit.over(self.begin, self.end, self.many)

    def one_token(self, block: Any) -> None:
        emit.store(self.sums, 0, emit.splat(0.0, "float32", self.lanes))

        def add(k: Any, levels: Any) -> None:
            x = emit.splat(emit.load(self.buffers["q"], k), "float32", self.lanes)
            emit.store(self.part, 0, emit.load(self.part, 0) + levels * x)

        def begin(group: Any) -> None:
            emit.store(self.part, 0, emit.splat(0.0, "float32", self.lanes))

        def end(group: Any) -> None:
            scaled = emit.load(self.part, 0) * self.scale(block, group)
            emit.store(self.sums, 0, emit.load(self.sums, 0) + scaled)

        self.levels(block, begin, add, end)
        self.finish(block, block * self.lanes, emit.load(self.sums, 0), 0)

    def many(self, block: Any) -> None:
        def put(k: Any, levels: Any) -> None:
            at = self.panel_at + k * self.lanes
            emit.store(self.panel, at, levels * emit.load(self.factor, 0), self.lanes)

        def begin(group: Any) -> None:
            emit.store(self.factor, 0, self.scale(block, group))

        self.levels(block, begin, put, lambda group: None)
        tiles = self.s.tiles
        each_tile(tiles, 0, tiles.count, lambda token, rows: self.tile(block, token, rows))

    def tile(self, block: Any, token: Any, rows: int) -> None:
        sums = emit.local(rows, self.kind)
        depth = self.p.atoms * ATOM
        for t in range(rows):
            emit.store(sums, t, emit.splat(0.0, "float32", self.lanes))
        with emit.loop(0, depth) as k:
            weights = emit.load(self.panel, self.panel_at + k * self.lanes, self.lanes)
            for t in range(rows):
                x = emit.splat(emit.load(self.buffers["q"], (token + t) * depth + k), "float32", self.lanes)
                emit.store(sums, t, emit.load(sums, t) + weights * x)
        for t in range(rows):
            out = (token + t) * self.p.n + block * self.lanes
            self.finish(block, out, emit.load(sums, t), token + t)

    def levels(self, block: Any, begin: Any, each: Any, end: Any) -> None:
        """`each(k, levels of the rows as float32)` for all k of a block, between `begin(group)` and
        `end(group)`."""

        def period(base: Any, group: Any, first: Any, atoms: int) -> None:
            size = self.p.group_atoms

            def whole(number: Any, body: Any) -> None:
                self.decoder.begin_group(block, number)
                begin(number)
                body()
                end(number)

            if atoms > size:
                for i in range(0, atoms, size):
                    here = range(i, min(atoms, i + size))
                    whole(group + i // size, lambda here=here: self.atoms(base, first, atoms, here, each))
                return
            whole(
                group,
                lambda: self.sections(
                    base, first, atoms, lambda at, atom, n: self.atoms(at, atom, n, range(n), each)
                ),
            )

        self.periods(block, period)

    def atoms(self, section: Any, first: Any, atoms: int, here: range, each: Any) -> None:
        for atom in here:
            for j in range(VECTORS):
                value = self.decoder.value(j, section, atoms, atom)
                emit.store(self.four, j, emit.bits(value, "int32", self.lanes))
            for i, word in enumerate(transposed_words(self.four, self.lanes)):
                emit.store(self.words, i, word)
            for i in range(VECTORS):
                for byte in range(WORD):
                    each((first + atom) * ATOM + i * WORD + byte, self.level(i, byte))

    def level(self, word: int, byte: int) -> Any:
        """One of the four int8 in each lane, as float32."""
        value = emit.load(self.words, word)
        if byte < WORD - 1:
            value = emit.ib.shift_left(value, emit.splat(24 - 8 * byte, "int32", self.lanes))
        value = emit.ib.shift_right(value, emit.splat(24, "int32", self.lanes))
        return emit.cast(value, "float32", self.lanes)
