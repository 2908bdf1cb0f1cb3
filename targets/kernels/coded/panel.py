"""Many tokens times a coded weight, in int8: blocks of rows are decoded once into a panel in the cache.

for each block, or pair of blocks:  panel[step][row][4] <- levels, four neighbours of k; scales as float32
for each tile of tokens, each group:
    int32 sums of rows <- what the levels' offset adds, taken back
    for each step:  sums += level * q
    float sums += scale * those
"""

from __future__ import annotations

from typing import Any

from .. import emit
from ..product import each_tile
from .dot import RunningSums
from .product import (
    CodedSpec,
    Product,
    coded_params,
    transposed_words,
)
from .spec import ATOM, VECTORS

WORDS = ATOM // 4
"""Steps of four values of k in an atom."""
RUNS = (8, 4, 2, 1)
"""Steps of straight code. Where products are summed in 16 bits, these sums are widened once for all steps."""


def emit_coded_panel(spec: CodedSpec, name: str) -> Any:
    """The PrimFunc. A task is a block of rows or a pair of them, for all tokens."""
    return emit.kernel(name, coded_params(spec), lambda *args: _Panel(spec, args).body())


class _Panel(Product):
    def __init__(self, spec: CodedSpec, args: tuple[Any, ...]) -> None:
        super().__init__(spec, args)
        p, blocks = self.p, spec.wide
        self.panel, self.panel_at = emit.aligned(blocks * spec.panel_bytes, "uint8")
        self.scales, self.scales_at = emit.aligned(blocks * p.groups * p.lanes, "float32")
        self.four = emit.local(VECTORS, emit.vector("int32", self.lanes))
        self.decoder.begin()

    def body(self) -> None:
        emit.over(self.begin, self.end, self.task)

    def task(self, task: Any) -> None:
        wide, rest = self.s.wide, self.p.blocks % self.s.wide
        first = task * wide
        if not rest:
            self.blocks(first, wide)
            return
        last = self.s.tasks - 1
        emit.branch(task == last, lambda: self.blocks(first, rest), lambda: self.blocks(first, wide))

    def blocks(self, first: Any, count: int) -> None:
        """Some blocks of rows, for all tokens."""
        emit.over(0, count, lambda i: self.decode(first + i, i))
        tiles = self.s.tiles
        each_tile(tiles, 0, tiles.count, lambda token, rows: self.tile(first, token, rows, count))

    def decode(self, block: Any, slot: Any) -> None:
        """A block's panel and scales."""
        panel = self.panel_at + slot * self.s.panel_bytes

        def scale(group: Any) -> None:
            at = self.scales_at + (slot * self.p.groups + group) * self.lanes
            emit.store(self.scales, at, self.scale(block, group), self.lanes)

        emit.over(0, self.p.groups, scale)

        def period(base: Any, group: Any, first: Any, atoms: int) -> None:
            size = self.p.group_atoms
            if atoms > size:
                for i in range(0, atoms, size):
                    self.decoder.begin_group(block, group + i // size)
                    here = range(i, min(atoms, i + size))
                    self.decode_atoms(panel, base, first, atoms, here)
                return
            self.decoder.begin_group(block, group)
            self.sections(
                base,
                first,
                atoms,
                lambda at, atom, count: self.decode_atoms(panel, at, atom, count, range(count)),
            )

        self.periods(block, period)

    def decode_atoms(self, panel: Any, section: Any, first: Any, atoms: int, here: range) -> None:
        size = self.p.vector_bytes
        for atom in here:
            for j in range(VECTORS):
                value = self.decoder.value(j, section, atoms, atom)
                emit.store(self.four, j, emit.bits(value, "int32", self.lanes))
            for word, row in enumerate(transposed_words(self.four, self.lanes)):
                at = panel + ((first + atom) * WORDS + word) * size
                emit.store(self.panel, at, emit.bits(row, "uint8", size), size)

    def tile(self, block: Any, token: Any, rows: int, wide: int) -> None:
        """Some tokens times the rows of `wide` blocks. Sums are in the order [token][block]."""
        sums = emit.local(rows * wide, emit.vector("float32", self.lanes))
        for j in range(rows * wide):
            emit.store(sums, j, emit.splat(0.0, "float32", self.lanes))
        last = self.p.atoms - (self.p.groups - 1) * self.p.group_atoms
        full = self.p.groups if last == self.p.group_atoms else self.p.groups - 1
        size = self.p.group_atoms
        emit.over(0, full, lambda group: self.group(sums, token, group, rows, wide, size))
        if full < self.p.groups:
            self.group(sums, token, full, rows, wide, last)
        for t in range(rows):
            for b in range(wide):
                out = (token + t) * self.p.n + (block + b) * self.lanes
                self.finish(block + b, out, emit.load(sums, t * wide + b), token + t)

    def group(self, sums: Any, token: Any, group: Any, rows: int, wide: int, atoms: int) -> None:
        whole = emit.local(rows * wide, emit.vector("int32", self.lanes))
        for t in range(rows):
            start = emit.splat(0, "int32", self.lanes)
            if self.s.factor:
                at = (token + t) * self.p.groups + group
                start = emit.splat(emit.load(self.buffers["sums"], at), "int32", self.lanes)
            for b in range(wide):
                emit.store(whole, t * wide + b, start)
        first, steps = group * self.p.group_atoms * WORDS, atoms * WORDS
        run = next(length for length in RUNS if steps % length == 0 and length <= self.longest)
        # Straight code, even of one run with what is around it, would need more registers than there are.
        runs = emit.rolled(steps // run, self.begin)
        emit.over(0, runs, lambda i: self.steps(whole, token, first + i * run, rows, wide, run))
        for b in range(wide):
            at = self.scales_at + (b * self.p.groups + group) * self.lanes
            scale = emit.local(1, emit.vector("float32", self.lanes))
            emit.store(scale, 0, emit.load(self.scales, at, self.lanes))
            for t in range(rows):
                part = emit.cast(emit.load(whole, t * wide + b), "float32", self.lanes) * emit.load(scale, 0)
                if self.s.by_group:
                    at = (token + t) * self.p.groups + group
                    part = part * emit.splat(emit.load(self.buffers["x_scale"], at), "float32", self.lanes)
                emit.store(sums, t * wide + b, emit.load(sums, t * wide + b) + part)

    @property
    def longest(self) -> int:
        """Steps whose products may be added before they are widened."""
        return self.s.values.chain if self.s.dot.startswith("madd") else RUNS[0]

    def steps(self, whole: Any, token: Any, first: Any, rows: int, wide: int, count: int) -> None:
        """Some steps of k for all tokens and blocks of a tile."""
        sums = RunningSums(self.s.dot, self.lanes, self.s.values, whole, rows * wide)
        size, width = self.p.vector_bytes, self.p.atoms * ATOM
        weights = emit.local(wide, emit.vector("uint8", size))
        word = emit.local(1, emit.vector("int32", self.lanes))
        for i in range(count):
            for b in range(wide):
                at = self.panel_at + b * self.s.panel_bytes + (first + i) * size
                emit.store(weights, b, emit.load(self.panel, at, size))
            for t in range(rows):
                four = emit.load(self.buffers["q"], (token + t) * width + (first + i) * 4, 4)
                emit.store(word, 0, emit.splat(emit.bits(four, "int32", 1), "int32", self.lanes))
                for b in range(wide):
                    weight = emit.load(weights, b)
                    level = emit.bits(weight, "int8", size) if self.s.values.signed else weight
                    sums.add(t * wide + b, level, emit.bits(emit.load(word, 0), "int8", size))
        sums.finish()
