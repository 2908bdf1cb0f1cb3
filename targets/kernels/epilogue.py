"""What happens to a vector of accumulators before it is stored (compiler/ops/epilogue.py has the formula)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import emit
from .gelu import gelus
from .rough import ROUGH, Rough

UNIT = 4
"""Vectors whose results are packed together."""
LARGE = 2.0**30
"""In int32; conversion makes a negative number of what is too large for that, as if it were very small."""

UNSEEN = 0.02
"""Steps of a result: the error of a rough activation, beside the half step that rounding takes."""


def unit_order(lanes: int) -> tuple[tuple[int, ...], ...]:
    """Channels of each vector of a unit: unpacking bytes twice within 128 bits leaves every fourth group of
    four, and packing twice restores the natural order."""
    return tuple(tuple(lane // 4 * 16 + 4 * v + lane % 4 for lane in range(lanes)) for v in range(UNIT))


@dataclass(frozen=True)
class Epilogue:
    """Attributes of the node plus which optional operands there are. `residual` is its data type, ""
    when absent.

    `narrow`: before rounding no result leaves int32, so that saturating conversions may clamp it.
    """

    acc_dtype: str = "float32"
    bias: bool = True
    scale: bool = False
    residual: str = ""
    r_scale: float = 1.0
    r_zero: int = 0
    act: str = "none"
    lo: float = -math.inf
    hi: float = math.inf
    alpha: float = 0.01
    y_inv: float = 1.0
    y_zero: int = 0
    out_dtype: str = "float32"
    narrow: bool = False

    @property
    def params(self) -> list[tuple[str, str]]:
        """(name, element type) of the pointers that a kernel has for it, in order, the result's last."""
        optional = (
            ("bias", self.acc_dtype, self.bias),
            ("scale", "float32", self.scale),
            ("residual", self.residual, bool(self.residual)),
        )
        return [*((name, dtype) for name, dtype, there in optional if there), ("y", self.out_dtype)]

    def start(self, bias: Any, index: Any, lanes: int) -> Any:
        """What the accumulators begin with: the bias of channels [index, index + lanes), or zero."""
        if self.bias:
            return emit.load(bias, index, lanes)
        return emit.splat(0.0 if self.acc_dtype == "float32" else 0, self.acc_dtype, lanes)

    def total(self, acc: Any, scale: Any, residual: Any, lanes: int) -> Any:
        """The float32 vector that the activation is applied to; `scale` and `residual` are loaded vectors or
        None."""
        f = acc if self.acc_dtype == "float32" else emit.cast(acc, "float32", lanes)
        if scale is not None:
            f = f * scale
        if residual is not None:
            f = f + real(residual, self.residual, self.r_scale, self.r_zero, lanes)
            if self.narrow and self.residual == "float32":  # which may be any number
                f = emit.vmin(emit.splat(LARGE, "float32", lanes), f)
        return f

    def activated(self, acc: Any, scale: Any, residual: Any, lanes: int) -> Any:
        """The float32 vector that is rounded and stored."""
        return self.activated_all([self.total(acc, scale, residual, lanes)], lanes)[0]

    def activated_all(self, totals: Sequence[Any], lanes: int) -> list[Any]:
        """Those of several vectors. What takes long goes two by two: one is a chain of many cycles, four are
        more than the registers hold (GELU on 48 channels: a layer took 0.94 of the time, of 384 the same)."""
        if self.narrow and self.act == "clip" and self.lo <= -self.y_zero and self.hi >= 255 - self.y_zero:
            return list(totals)  # saturation does the same
        several = self.rough.of if self.rough else gelus if self.act == "gelu" else None
        if several:
            return [f for i in range(0, len(totals), 2) for f in several(totals[i : i + 2], lanes)]
        return [activate(f, self, lanes) for f in totals]

    @property
    def rough(self) -> Rough | None:
        """The activation that nobody tells from the exact one, where results are in long steps."""
        found = ROUGH.get(self.act) if self.out_dtype == "uint8" else None
        return found if found and found.error * abs(self.y_inv) <= UNSEEN else None

    def packs(self, lanes: int) -> bool:
        """Saturating packs do the clamping (`pack`): AVX2 and AVX-512 have them."""
        return self.narrow and lanes in PACK

    def pack(self, lanes: int, *vectors: Any) -> Any:
        """uint8 of one, two or four float32 vectors, in order: about half the instructions of `quantise`."""
        octets = self._octets(lanes, [self.whole(f, lanes) for f in vectors])
        # Packing works within 128 bits: the double words are now a0 b0 c0 d0 a1 b1 c1 d1 ...
        order = tuple(part * 4 + v for v in range(len(vectors)) for part in range(lanes // 4))
        dwords = emit.shuffle(emit.bits(octets, "int32", lanes), order)
        return emit.bits(dwords, "uint8", lanes * len(vectors))

    def packed(self, lanes: int, vectors: Sequence[Any]) -> Any:
        """uint8 of four `whole` vectors that hold a unit's channels in the order in which packing restores
        them (`unit_order`)."""
        return emit.bits(self._octets(lanes, vectors), "uint8", 4 * lanes)

    def unit_residual(self, buffer: Any, at: Any, v: int, lanes: int) -> Any:
        """Vector `v` of a unit of the residual, to be given to `activated`."""
        if self.residual == "float32":
            parts = [emit.load(buffer, at + i * lanes, lanes) for i in range(UNIT)]
            return emit.gather_lanes(parts, unit_order(lanes)[v])
        n = UNIT * lanes
        words = emit.unpack(emit.load(buffer, at, n), emit.splat(0, "uint8", n), n, 16, v >= 2)
        zero = emit.splat(0, "uint16", n // 2)
        return emit.bits(
            emit.unpack(emit.bits(words, "uint16", n // 2), zero, n // 2, 8, v % 2 == 1), "int32", lanes
        )

    def whole(self, f: Any, lanes: int) -> Any:
        """An activated vector in units of the result, rounded to int32, ties to even."""
        return PACK[lanes].whole(f if self.y_inv == 1.0 else f * emit.splat(self.y_inv, "float32", lanes))

    def _octets(self, lanes: int, whole: Sequence[Any]) -> Any:
        words = [
            self._words(lanes, whole[i], whole[min(i + 1, len(whole) - 1)]) for i in range(0, len(whole), 2)
        ]
        return emit.intrinsic(PACK[lanes].octets, emit.vector("int8", 4 * lanes), words[0], words[-1])

    def _words(self, lanes: int, a: Any, b: Any) -> Any:
        kind = emit.vector("int16", 2 * lanes)
        words = emit.intrinsic(PACK[lanes].words, kind, a, b)
        if not self.y_zero:
            return words
        return emit.intrinsic("llvm.sadd.sat", kind, words, emit.splat(self.y_zero, "int16", 2 * lanes))


@dataclass(frozen=True)
class Packing:
    """The instructions of one vector length that round and narrow; `masked`: the conversion takes a mask."""

    convert: str
    words: str
    octets: str
    lanes: int
    masked: bool = False

    def whole(self, f: Any) -> Any:
        kind = emit.vector("int32", self.lanes)
        zero = emit.splat(0, "int32", self.lanes)
        # AVX-512's conversion takes what masked lanes keep, the mask, and the rounding mode (4: as set).
        extra = (zero, emit.splat(-1, "int16", 1), emit.splat(4, "int32", 1)) if self.masked else ()
        return emit.intrinsic(self.convert, kind, f, *extra)


PACK = {
    8: Packing("llvm.x86.avx.cvt.ps2dq.256", "llvm.x86.avx2.packssdw", "llvm.x86.avx2.packuswb", 8),
    16: Packing(
        "llvm.x86.avx512.mask.cvtps2dq.512",
        "llvm.x86.avx512.packssdw.512",
        "llvm.x86.avx512.packuswb.512",
        16,
        masked=True,
    ),
}


def within(spec: Any) -> bool:
    """The activation alone keeps the result inside uint8."""
    return bool(
        spec.act == "clip" and spec.y_inv == 1.0 and spec.lo >= -spec.y_zero and spec.hi <= 255 - spec.y_zero
    )


def real(value: Any, dtype: str, scale: float, zero: int, lanes: int) -> Any:
    """A stored value as float32."""
    if dtype == "uint8":
        value = emit.cast(emit.cast(value, "int32", lanes), "float32", lanes)
    if zero:
        value = value - emit.splat(float(zero), "float32", lanes)
    return value if scale == 1.0 else value * emit.splat(scale, "float32", lanes)


def activate(f: Any, spec: Any, lanes: int) -> Any:
    """The activation on a float32 vector; `spec` has act, lo, hi and alpha."""

    def c(value: float) -> Any:
        return emit.splat(value, "float32", lanes)

    def gate(x: Any) -> Any:
        return emit.vmin(emit.vmax(x * c(1 / 6) + c(0.5), c(0.0)), c(1.0))

    def sigmoid(x: Any) -> Any:
        return c(1.0) / (c(1.0) + emit.exp(c(0.0) - x, lanes))

    if spec.act == "clip":
        f = emit.vmax(f, c(spec.lo)) if spec.lo > -math.inf else f
        return emit.vmin(f, c(spec.hi)) if spec.hi < math.inf else f
    return {
        "none": lambda: f,
        "hard_sigmoid": lambda: gate(f),
        "hard_swish": lambda: f * gate(f),
        "sigmoid": lambda: sigmoid(f),
        "silu": lambda: f * sigmoid(f),
        "tanh": lambda: c(1.0) - c(2.0) / (c(1.0) + emit.exp(f + f, lanes)),
        "gelu": lambda: gelus([f], lanes)[0],
        "leaky_relu": lambda: emit.vmax(f, c(0.0)) + emit.vmin(f, c(0.0)) * c(spec.alpha),
    }[spec.act]()


def quantise(f: Any, spec: Any, lanes: int) -> Any:
    """float32 vector -> `spec.out_dtype`. Clamping first keeps the rounding trick in range; it commutes
    with rounding at whole bounds."""
    if spec.out_dtype == "float32":
        return f
    if spec.y_inv != 1.0:
        f = f * emit.splat(spec.y_inv, "float32", lanes)
    if not within(spec):
        f = emit.vmax(emit.splat(float(-spec.y_zero), "float32", lanes), f)
        f = emit.vmin(emit.splat(float(255 - spec.y_zero), "float32", lanes), f)
    rounded = emit.bits(f + emit.splat(emit.MAGIC, "float32", lanes), "int32", lanes)
    return emit.cast(rounded - emit.splat(emit.MAGIC_BITS - spec.y_zero, "int32", lanes), "uint8", lanes)
