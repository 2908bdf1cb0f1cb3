"""Integer dot products of bytes: 32-bit lanes, each adding four products of levels and activations.

What LARGEST_ACTIVATION bounds, Values.chain keeps exact: no sum leaves the width that it is made in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import emit
from .spec import Values

Pair = tuple[Any, Any]
"""Vectors of 4 * lanes bytes: levels (uint8, or int8 where Values.signed), activations (int8)."""

_VNNI = {16: "llvm.x86.avx512.vpdpbusd.512", 8: "llvm.x86.avx512.vpdpbusd.256"}
_UBS = {16: "llvm.x86.avx512.pmaddubs.w.512", 8: "llvm.x86.avx2.pmadd.ub.sw"}
_MADD = {16: "llvm.x86.avx512.pmaddw.d.512", 8: "llvm.x86.avx2.pmadd.wd", 4: "llvm.x86.sse2.pmadd.wd"}
_TABLE = {16: "llvm.x86.avx512.pshuf.b.512", 8: "llvm.x86.avx2.pshuf.b", 4: "llvm.x86.ssse3.pshuf.b.128"}


def add_products(dot: str, lanes: int, values: Values, acc: Any, pairs: Sequence[Pair]) -> Any:
    """acc int32 [lanes] plus the products of all pairs."""
    if dot.startswith("vnni"):
        for v, x in pairs:
            operands = (emit.bits(part, "int8", 4 * lanes) for part in (v, x))
            acc = emit.intrinsic(_VNNI[lanes], emit.vector("int32", lanes), acc, *operands)
        return acc
    if dot == "portable":
        for v, x in pairs:
            acc = acc + _halves(lanes, v, x)
        return acc
    for at in range(0, len(pairs), values.chain):
        products = [_ubs(lanes, values, v, x) for v, x in pairs[at : at + values.chain]]
        total = products[0]
        for product in products[1:]:
            total = total + product
        ones = emit.splat(1, "int16", 2 * lanes)
        acc = acc + emit.intrinsic(_MADD[lanes], emit.vector("int32", lanes), total, ones)
    return acc


class RunningSums:
    """`count` sums of int32 [lanes] in `whole`, to which steps of products are added in any order. `finish`
    after at most Values.chain of them for each: until then `madd` keeps 16-bit sums of pairs."""

    def __init__(self, dot: str, lanes: int, values: Values, whole: Any, count: int) -> None:
        self.dot, self.lanes, self.values, self.whole = dot, lanes, values, whole
        self.pairs = dot.startswith("madd")
        self.short = emit.local(count, emit.vector("int16", 2 * lanes)) if self.pairs else None
        self.begun: set[int] = set()
        self.count = count

    def add(self, index: int, v: Any, x: Any) -> None:
        lanes = self.lanes
        if not self.pairs:
            total = add_products(self.dot, lanes, self.values, emit.load(self.whole, index), [(v, x)])
            emit.store(self.whole, index, emit.kept(total, lanes))
            return
        total = _ubs(lanes, self.values, v, x)
        if index in self.begun:
            total = emit.bits(emit.load(self.short, index) + total, "int32", lanes)
            total = emit.bits(emit.kept(total, lanes), "int16", 2 * lanes)
        self.begun.add(index)
        emit.store(self.short, index, total)

    def finish(self) -> None:
        if not self.pairs:
            return
        ones = emit.splat(1, "int16", 2 * self.lanes)
        for i in range(self.count):
            wide = emit.intrinsic(
                _MADD[self.lanes], emit.vector("int32", self.lanes), emit.load(self.short, i), ones
            )
            emit.store(self.whole, i, emit.kept(emit.load(self.whole, i) + wide, self.lanes))


def _ubs(lanes: int, values: Values, v: Any, x: Any) -> Any:
    kind = emit.vector("int16", 2 * lanes)
    if not values.signed:
        return emit.intrinsic(_UBS[lanes], kind, v, x)
    size = emit.vmax(x, emit.splat(0, "int8", 4 * lanes) - x)
    return emit.intrinsic(_UBS[lanes], kind, size, _with_sign(lanes, v, x))


def _with_sign(lanes: int, v: Any, x: Any) -> Any:
    """v where x > 0, -v where x < 0; where x is 0 the product is anyway."""
    if lanes == 8:
        return emit.intrinsic("llvm.x86.avx2.psign.b", "int8x32", v, x)
    zero = emit.splat(0, "int8", 4 * lanes)
    return emit.select(x < zero, zero - v, v)


def _halves(lanes: int, v: Any, x: Any) -> Any:
    """With SSE2 only: even and odd bytes as 16-bit numbers."""

    def words(value: Any, dtype: str) -> Any:
        return emit.bits(value, dtype, 2 * lanes)

    def shifted(value: Any, dtype: str, left: bool) -> Any:
        by = emit.splat(8, dtype, 2 * lanes)
        return emit.ib.shift_left(value, by) if left else emit.ib.shift_right(value, by)

    name, kind = _MADD[lanes], emit.vector("int32", lanes)
    low = emit.ib.bitwise_and(words(v, "int16"), emit.splat(255, "int16", 2 * lanes))
    high = words(shifted(words(v, "uint16"), "uint16", False), "int16")
    even = shifted(shifted(words(x, "int16"), "int16", True), "int16", False)
    odd = shifted(words(x, "int16"), "int16", False)
    return emit.intrinsic(name, kind, low, even) + emit.intrinsic(name, kind, high, odd)


def look_up(lanes: int, table: Any, codes: Any) -> Any:
    """Bytes of a table of 16 in each 128 bits, at codes below 16 (not on SSE2, which has no such
    instruction)."""
    return emit.intrinsic(_TABLE[lanes], emit.vector("uint8", 4 * lanes), table, codes)
