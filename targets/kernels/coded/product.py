"""What the products with coded weights share: the spec, their operands, sums over rows, the end of a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .. import emit
from ..epilogue import Epilogue
from ..partial import load_part, store_part
from ..tiling import Split, split
from .decode import Decoder, real_scale
from .spec import (
    ATOM,
    SECTION,
    Packing,
    Values,
    values_of,
)

FLOAT_TILE = 6
TILES = {"vnni512": (12, 1), "madd512": (10, 1), "madd256": (4, 2), "portable": (4, 1)}
"""Rows of activations and blocks of weights of a tile: measured on Zen 3 for madd256; elsewhere what
registers allow."""


@dataclass(frozen=True)
class CodedSpec:
    """y [m, n] = x [m, k] times a coded weight, its bias, residual and activation. `dot`: the instruction
    set's."""

    packing: Packing
    dot: str
    m: int
    activations: str
    epilogue: Epilogue

    @property
    def quantised(self) -> bool:
        return self.activations != "float32"

    @property
    def by_group(self) -> bool:
        return self.activations == "int8:group"

    @property
    def vector(self) -> bool:
        """One token: codes are multiplied as they are read."""
        return self.m == 1

    @cached_property
    def values(self) -> Values:
        if not self.quantised:
            return Values(0, self.packing.top, True, 1)
        return values_of(self.packing, self.dot, fold_zero=not self.vector)

    @property
    def factor(self) -> int:
        """What the sums of activations come multiplied with: they take back what Values.offset adds."""
        late_zero = self.quantised and self.vector and self.packing.kind == "zero" and not self.values.signed
        return -1 if late_zero else -self.values.offset

    @property
    def rate(self) -> str:
        """The row of mac.py that does the same work, or where several products share an addition the one that
        none of them exceeds; "" where levels change their signs first."""
        if not self.quantised:
            return "float32"
        if not self.dot.startswith("madd"):
            return self.dot
        row = "pairs" if self.values.chain > 1 else "ubs"
        return "" if self.values.signed else self.dot.replace("madd", row)

    @property
    def tiles(self) -> Split:
        return split(self.m, TILES[self.dot][0] if self.quantised else FLOAT_TILE)

    @property
    def wide(self) -> int:
        """Blocks of rows of a tile, and of a task: what all its tokens are multiplied with stays in the
        first-level cache."""
        return min(TILES[self.dot][1], self.packing.blocks) if self.quantised else 1

    @property
    def panel_bytes(self) -> int:
        """Of the decoded weights of one block of rows."""
        return self.packing.atoms * ATOM * self.packing.lanes * (1 if self.quantised else 4)

    @property
    def stack_bytes(self) -> int:
        scales = 4 * self.packing.groups * self.packing.lanes
        return 0 if self.vector else self.wide * (self.panel_bytes + scales)

    @property
    def tasks(self) -> int:
        return self.packing.blocks if self.vector else -(-self.packing.blocks // self.wide)


def coded_params(spec: CodedSpec) -> list[tuple[str, str]]:
    """(name, element type) of the kernel's pointers, in order."""
    p, e = spec.packing, spec.epilogue
    made = (
        [("q", "int8"), ("sums", "int32"), ("x_scale", "float32")] if spec.quantised else [("q", "float32")]
    )
    optional = (
        ("row_scale", "float32", p.two_level),
        ("side", p.side_dtype, p.has_side),
        ("bias", "float32", e.bias),
        ("residual", "float32", bool(e.residual)),
    )
    stored = [("codes", "uint8"), ("scale", p.scale_dtype)]
    return [*made, *stored, *((n, t) for n, t, there in optional if there), ("y", "float32")]


class Product:
    """Buffers of a kernel, and what every kind of product does with them."""

    def __init__(self, spec: CodedSpec, args: tuple[Any, ...]) -> None:
        *buffers, self.begin, self.end = args
        self.s, self.p = spec, spec.packing
        self.lanes = spec.packing.lanes
        self.buffers = dict(zip((n for n, _ in coded_params(spec)), buffers, strict=True))
        self.decoder = Decoder(self.p, spec.values, spec.dot, self.buffers["codes"], self.buffers.get("side"))

    def scale(self, block: Any, group: Any) -> Any:
        at = (block * self.p.groups + group) * self.lanes
        return real_scale(self.buffers["scale"], self.p.scale_dtype, at, self.lanes, self.s.dot != "portable")

    def periods(self, block: Any, body: Callable[[Any, Any, Any, int], None]) -> None:
        """`body(first byte, first group, first atom, atoms)` for the periods of a block's rows."""
        whole, rest = self.p.periods
        size, groups = self.p.bytes_of(self.p.period), self.p.period_groups
        base = block * self.p.block_bytes
        emit.over(0, whole, lambda i: body(base + i * size, i * groups, i * self.p.period, self.p.period))
        if rest:
            body(base + whole * size, whole * groups, whole * self.p.period, rest)

    def sections(self, base: Any, first: Any, atoms: int, body: Callable[[Any, Any, int], None]) -> None:
        """`body(first byte, first atom, atoms)` for the sections of a period's atoms."""
        full, rest = divmod(atoms, SECTION)
        size = self.p.section_bytes(SECTION)
        emit.over(0, full, lambda i: body(base + i * size, first + i * SECTION, SECTION))
        if rest:
            body(base + full * size, first + full * SECTION, rest)

    def finish(self, block: Any, out: Any, sums: Any, row: Any) -> None:
        """Store the float32 sums [lanes] of a block's rows at y[out...]; `row`: of the activations."""
        partial = self.p.n % self.lanes
        store = lambda valid: self._store(block, out, sums, row, valid)  # noqa: E731
        if not partial:
            store(self.lanes)
        elif self.p.blocks == 1:
            store(partial)
        else:
            last = self.p.blocks - 1
            emit.branch(block == last, lambda: store(partial), lambda: store(self.lanes))

    def _store(self, block: Any, out: Any, sums: Any, row: Any, valid: int) -> None:
        e, at = self.s.epilogue, block * self.lanes
        value = sums
        if self.p.two_level:
            value = value * emit.load(self.buffers["row_scale"], at, self.lanes)
        if self.s.quantised and not self.s.by_group:
            value = value * emit.splat(emit.load(self.buffers["x_scale"], row), "float32", self.lanes)
        if e.bias:
            value = value + emit.load(self.buffers["bias"], at, self.lanes)
        residual = (
            load_part(self.buffers["residual"], "float32", out, self.lanes, valid) if e.residual else None
        )
        ready = emit.local(1, emit.vector("float32", self.lanes))
        emit.store(ready, 0, value)
        result = e.activated(emit.load(ready, 0), None, residual, self.lanes)
        store_part(self.buffers["y"], "float32", out, result, self.lanes, valid)


def zipped(a: Any, b: Any, lanes: int, *, high: bool, pairs: bool = False) -> Any:
    """In each 128 bits of two vectors of 32-bit lanes: the lower or higher halves interleaved, by one lane
    or, as `pairs`, by two."""
    order = []
    for part in range(0, lanes, 4):
        low = part + 2 * high
        order += (
            [low, low + 1, low + lanes, low + 1 + lanes]
            if pairs
            else [low, low + lanes, low + 1, low + 1 + lanes]
        )
    return emit.shuffle_two(a, b, tuple(order))


def rows_of(four: Any, lanes: int) -> Any:
    """Sums of four vectors [local buffer] whose 128-bit parts belong to a row each, as one vector of rows."""
    kind = emit.vector("int32", lanes)
    half = emit.local(2, kind)
    for i in range(2):
        a, b = emit.load(four, 2 * i), emit.load(four, 2 * i + 1)
        emit.store(half, i, zipped(a, b, lanes, high=False) + zipped(a, b, lanes, high=True))
    a, b = emit.load(half, 0), emit.load(half, 1)
    return zipped(a, b, lanes, high=False, pairs=True) + zipped(a, b, lanes, high=True, pairs=True)


def transposed_words(four: Any, lanes: int) -> list[Any]:
    """Four vectors [local buffer, int32] whose parts belong to a row each -> four whose lanes are the
    rows."""
    half = emit.local(4, emit.vector("int32", lanes))
    for i in range(2):
        a, b = emit.load(four, 2 * i), emit.load(four, 2 * i + 1)
        emit.store(half, 2 * i, zipped(a, b, lanes, high=False))
        emit.store(half, 2 * i + 1, zipped(a, b, lanes, high=True))
    return [
        zipped(emit.load(half, i), emit.load(half, 2 + i), lanes, high=high, pairs=True)
        for i in range(2)
        for high in (False, True)
    ]
