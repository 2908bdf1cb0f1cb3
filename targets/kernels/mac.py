"""Multiply-accumulate: how one instruction set multiplies a broadcast value of A with a vector of B.

    name      group  sum                              instructions
    float32   1      acc[n] += a * b[n]               multiply-add
    bf16      2      acc[n] += 2 x bfloat16 ** 2      B widened when loaded, then multiply-add
    bf16dot   2      acc[n] += 2 x bfloat16 ** 2      vdpbf16ps
    vnni      4      acc[n] += 4 x uint8 * int8       vpdpbusd
    ubs       4      acc[n] += 4 x uint8 * int8       vpmaddubsw, vpmaddwd; for weights in bounded pairs only
    pairs     4      4 x uint8 * int8, in 16 bits     vpmaddubsw; a limit: sums of short codes, widened late
    madd      2      acc[n] += 2 x int16 * int16      vpmaddwd; A widened when packed, B when loaded
    words     2      acc[n] += 2 x int16 * int16      vpmaddwd; both are int16 as they lie
    portable  1      acc[n] += int32 * int32          whatever LLVM makes of it

All integer rows but `pairs`, which no kernel computes with, give the exact int32 sum. `ubs` would saturate at
int16 for large weights: it is chosen only where every pair of weights keeps the bound of
passes/pair_bound.py. It does a third more products a cycle than `madd` (178 against 135 GOP/s on a Zen 3 core
that does 90 GFLOP/s: integer additions have three ports).

A product of two bfloat16 numbers is exact in float32, so the two bf16 rows differ in nothing but this:
vdpbf16ps takes subnormal numbers for zero and makes zero of subnormal sums. Both add the second product of a
pair first, and round to nearest even after each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import emit
from .bfloat16 import first, second
from .tiling import Cost


@dataclass(frozen=True)
class Mac:
    """`group` values of k go into one step. `a_dtype` is what A must be stored as to be read (packing
    converts), `b_dtype` what B
    is stored as; `wide` is the number of accumulator lanes (equal to the float32 lanes of the
    instruction set)."""

    name: str
    group: int
    a_dtype: str
    b_dtype: str
    acc_dtype: str
    lanes: int
    cost: Cost = Cost()

    @property
    def rounds(self) -> bool:
        """A is rounded when it is packed: what is stored of it is no float32 number as it came."""
        return False

    @property
    def wrapped(self) -> str:
        """What `emit.kernel` must be told of the instruction."""
        return ""

    def zero(self) -> Any:
        return emit.splat(0.0 if self.acc_dtype == "float32" else 0, self.acc_dtype, self.lanes)

    def load_a(self, buffer: Any, index: Any, count: int = 0) -> Any:
        """`group` neighbouring values of A, repeated over the vector. `count`, if not 0: how many of them
        exist (which only rows of floats need to know: weights of zero hide any integer)."""
        if self.group == 1:
            value = emit.load(buffer, index)
            if self.acc_dtype == "int32":
                value = emit.cast(value, "int32", 1)
            return emit.splat(value, self.acc_dtype, self.lanes)
        return emit.splat(emit.bits(emit.load(buffer, index, self.group), "int32", 1), "int32", self.lanes)

    def load_b(self, buffer: Any, index: Any) -> Any:
        """A vector of B: `lanes` columns, `group` rows interleaved."""
        value = emit.load(buffer, index, self.lanes * self.group)
        if self.name.startswith("madd"):
            return emit.cast(value, "int16", 2 * self.lanes)
        return emit.cast(value, "int32", self.lanes) if self.name == "portable" else value

    def step(self, acc: Any, a: Any, b: Any) -> Any:
        if self.group == 1:
            return acc + a * b
        out = emit.vector("int32", self.lanes)
        if self.name.startswith(("ubs", "pairs")):
            short = emit.vector("int16", 2 * self.lanes)
            names = {
                16: ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
                8: ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
            }[self.lanes]
            sums = emit.intrinsic(names[0], short, emit.bits(a, "int8", 4 * self.lanes), b)
            if self.name.startswith("pairs"):
                total = emit.bits(acc, "int16", 2 * self.lanes) + sums
                return emit.kept(emit.bits(total, "int32", self.lanes), self.lanes)
            return acc + emit.intrinsic(names[1], out, sums, emit.splat(1, "int16", 2 * self.lanes))
        if self.group == 4:
            name = {16: "llvm.x86.avx512.vpdpbusd.512", 8: "llvm.x86.avx512.vpdpbusd.256"}[self.lanes]
            return emit.intrinsic(name, out, acc, emit.bits(a, "int8", 4 * self.lanes), b)
        name = {16: "llvm.x86.avx512.pmaddw.d.512", 8: "llvm.x86.avx2.pmadd.wd"}[self.lanes]
        return acc + emit.intrinsic(name, out, emit.bits(a, "int16", 2 * self.lanes), b)


DPBF16PS = "llvm.x86.avx512bf16.dpbf16ps.512"


@dataclass(frozen=True)
class Bfloat16Mac(Mac):
    """Pairs of bfloat16 numbers. Without the instruction, A is kept as float32 numbers that are rounded."""

    @property
    def rounds(self) -> bool:
        return True

    @property
    def dot(self) -> bool:
        return self.a_dtype == "uint16"

    @property
    def wrapped(self) -> str:
        return DPBF16PS if self.dot else ""

    def load_a(self, buffer: Any, index: Any, count: int = 0) -> Any:
        """What `step` takes: a vector of pairs, or two vectors, the second None where nothing is there."""
        if not self.dot:
            both = [
                emit.splat(emit.load(buffer, index + i), "float32", self.lanes) for i in range(count or 2)
            ]
            return (*both, None)[:2]
        if count == 1:
            return emit.splat(emit.cast(emit.load(buffer, index), "uint32", 1), "uint32", self.lanes)
        return emit.splat(emit.bits(emit.load(buffer, index, 2), "uint32", 1), "uint32", self.lanes)

    def load_b(self, buffer: Any, index: Any) -> Any:
        return emit.bits(emit.load(buffer, index, 2 * self.lanes), "uint32", self.lanes)

    def step(self, acc: Any, a: Any, b: Any) -> Any:
        if self.dot:
            return emit.intrinsic(DPBF16PS, emit.vector("float32", self.lanes), acc, a, b)
        if a[1] is not None:
            acc = acc + a[1] * second(b, self.lanes)
        return acc + a[0] * first(b, self.lanes)


FLOAT = Cost()


def float_mac(lanes: int) -> Mac:
    return Mac("float32", 1, "float32", "float32", "float32", lanes, FLOAT)


MADD = Cost(operations=2, widen=1, spare=2)
WORDS = Cost(operations=2, spare=2)
UBS = Cost(operations=3, spare=2)

INT8_MACS = {
    mac.name: mac
    for mac in (
        Mac("vnni512", 4, "uint8", "int8", "int32", 16),
        Mac("ubs512", 4, "uint8", "int8", "int32", 16, UBS),
        Mac("ubs256", 4, "uint8", "int8", "int32", 8, UBS),
        Mac("pairs512", 4, "uint8", "int8", "int32", 16),
        Mac("pairs256", 4, "uint8", "int8", "int32", 8),
        Mac("madd512", 2, "int16", "int8", "int32", 16, MADD),
        Mac("madd256", 2, "int16", "int8", "int32", 8, MADD),
        Mac("words512", 2, "int16", "int16", "int32", 16, WORDS),
        Mac("words256", 2, "int16", "int16", "int32", 8, WORDS),
        Mac("portable", 1, "uint8", "int8", "int32", 4),
    )
}


WIDENED = Cost(operations=2, widen=2, spare=2, loads=2, held=2, fused=2)

BFLOAT16_MACS = {
    "bf16": lambda lanes: Bfloat16Mac("bf16", 2, "float32", "uint16", "float32", lanes, WIDENED),
    "bf16dot": lambda lanes: Bfloat16Mac("bf16dot", 2, "uint16", "uint16", "float32", lanes),
}


def mac_for(x_dtype: str, dot: str, lanes: int) -> Mac:
    """The row for activations of that type; `dot` and `lanes` are the instruction set's, `dot` "" for weights
    in float32."""
    return mac_named("float32" if x_dtype == "float32" and not dot else dot, lanes)


def mac_named(name: str, lanes: int) -> Mac:
    """A row by its name."""
    if name in BFLOAT16_MACS:
        return BFLOAT16_MACS[name](lanes)
    return float_mac(lanes) if name == "float32" else INT8_MACS[name]


@dataclass(frozen=True)
class RowDot:
    """Sums down the rows of a depthwise window: `rows` of them in one step, their values interleaved.

    `x_dtype`, `w_dtype`: what activations and weights are kept as in scratch, so that a step only loads and
    multiplies. Exact for any uint8 activations and int8 weights.
    """

    rows: int
    x_dtype: str
    w_dtype: str

    def interleaved(self, rows: list[Any], lanes: int, v: int) -> Any:
        """Vector number `v` of four, of `lanes` channels, their values at the rows interleaved; `rows`: uint8
        vectors of 4 * lanes channels. Which channels: epilogue.unit_order."""
        n = 4 * lanes
        if self.rows == 1:
            return emit.cast(emit.shuffle(rows[0], tuple(range(v * lanes, (v + 1) * lanes))), "int16", lanes)
        first = emit.unpack(rows[0], rows[1], n, 16, v >= 2)
        if self.rows == 2:
            wide = emit.unpack(first, emit.splat(0, "uint8", n), n, 16, v % 2 == 1)
            return emit.bits(wide, "int16", n // 2)
        second = emit.unpack(rows[2], rows[3], n, 16, v >= 2)
        a, b = emit.bits(first, "int16", n // 2), emit.bits(second, "int16", n // 2)
        return emit.bits(emit.unpack(a, b, n // 2, 8, v % 2 == 1), "uint8", n)

    def step(self, lanes: int, acc: Any, x: Any, w: Any) -> Any:
        """acc[n] += sum over i < rows of x[rows * n + i] * w[rows * n + i]."""
        out = emit.vector("int32", lanes)
        if self.rows == 1:
            return acc + emit.cast(x, "int32", lanes) * emit.cast(w, "int32", lanes)
        if self.rows == 4:
            return emit.intrinsic(
                "llvm.x86.avx512.vpdpbusd.512", out, acc, *(emit.bits(v, "int8", 64) for v in (x, w))
            )
        name = {16: "llvm.x86.avx512.pmaddw.d.512", 8: "llvm.x86.avx2.pmadd.wd"}[lanes]
        return acc + emit.intrinsic(name, out, x, w)


ROW_DOTS = {
    "vnni512": RowDot(4, "uint8", "int8"),
    "madd512": RowDot(2, "int16", "int16"),
    "madd256": RowDot(2, "int16", "int16"),
    "portable": RowDot(1, "int16", "int16"),
}
"""By the instruction set's `dot`."""
