"""Multiply-accumulate: how one instruction set multiplies a broadcast value of A with a vector of B.

    name      group  sum                              instructions
    float32   1      acc[n] += a * b[n]               multiply-add
    vnni      4      acc[n] += 4 x uint8 * int8       vpdpbusd
    ubs       4      acc[n] += 4 x uint8 * int8       vpmaddubsw, vpmaddwd; for weights in bounded pairs only
    madd      2      acc[n] += 2 x int16 * int16      vpmaddwd; A widened when packed, B when loaded
    portable  1      acc[n] += int32 * int32          whatever LLVM makes of it

All integer rows give the exact int32 sum. `ubs` would saturate at int16 for large weights: it is chosen only
where every pair of weights keeps the bound of passes/pair_bound.py. It does a third more products a cycle
than `madd` (178 against 135 GOP/s on a Zen 3 core that does 90 GFLOP/s: integer additions have three ports).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import emit
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

    def zero(self) -> Any:
        return emit.splat(0.0 if self.acc_dtype == "float32" else 0, self.acc_dtype, self.lanes)

    def load_a(self, buffer: Any, index: Any) -> Any:
        """`group` neighbouring values of A, repeated over the vector."""
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
        if self.name.startswith("ubs"):
            pairs = emit.vector("int16", 2 * self.lanes)
            names = {
                16: ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
                8: ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
            }[self.lanes]
            sums = emit.intrinsic(names[0], pairs, emit.bits(a, "int8", 4 * self.lanes), b)
            return acc + emit.intrinsic(names[1], out, sums, emit.splat(1, "int16", 2 * self.lanes))
        if self.group == 4:
            name = {16: "llvm.x86.avx512.vpdpbusd.512", 8: "llvm.x86.avx512.vpdpbusd.256"}[self.lanes]
            return emit.intrinsic(name, out, acc, emit.bits(a, "int8", 4 * self.lanes), b)
        name = {16: "llvm.x86.avx512.pmaddw.d.512", 8: "llvm.x86.avx2.pmadd.wd"}[self.lanes]
        return acc + emit.intrinsic(name, out, emit.bits(a, "int16", 2 * self.lanes), b)


def float_mac(lanes: int) -> Mac:
    return Mac("float32", 1, "float32", "float32", "float32", lanes)


MADD = Cost(operations=2, widen=1, spare=2)
UBS = Cost(operations=3, spare=2)

INT8_MACS = {
    mac.name: mac
    for mac in (
        Mac("vnni512", 4, "uint8", "int8", "int32", 16),
        Mac("ubs512", 4, "uint8", "int8", "int32", 16, UBS),
        Mac("ubs256", 4, "uint8", "int8", "int32", 8, UBS),
        Mac("madd512", 2, "int16", "int8", "int32", 16, MADD),
        Mac("madd256", 2, "int16", "int8", "int32", 8, MADD),
        Mac("portable", 1, "uint8", "int8", "int32", 4),
    )
}


def mac_for(x_dtype: str, dot: str, lanes: int) -> Mac:
    """The row for activations of that type; `dot` and `lanes` are the instruction set's."""
    return float_mac(lanes) if x_dtype == "float32" else INT8_MACS[dot]


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
