"""What happens to a vector of accumulators before it is stored (compiler/ops/epilogue.py has the formula)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import emit

UNIT = 4
"""Vectors whose results are packed together."""


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

    def start(self, bias: Any, index: Any, lanes: int) -> Any:
        """What the accumulators begin with: the bias of channels [index, index + lanes), or zero."""
        if self.bias:
            return emit.load(bias, index, lanes)
        return emit.splat(0.0 if self.acc_dtype == "float32" else 0, self.acc_dtype, lanes)

    def activated(self, acc: Any, scale: Any, residual: Any, lanes: int) -> Any:
        """The float32 vector that is rounded and stored; `scale` and `residual` are loaded vectors or
        None."""
        f = acc if self.acc_dtype == "float32" else emit.cast(acc, "float32", lanes)
        if scale is not None:
            f = f * scale
        if residual is not None:
            f = f + real(residual, self.residual, self.r_scale, self.r_zero, lanes)
        if self.narrow and self.act == "clip" and self.lo <= -self.y_zero and self.hi >= 255 - self.y_zero:
            return f  # saturation does the same
        return activate(f, self, lanes)

    def packs(self, lanes: int) -> bool:
        """AVX2's saturating packs do the clamping (`pack`)."""
        return self.narrow and lanes == 8

    def pack(self, *vectors: Any) -> Any:
        """uint8 of one, two or four float32x8 vectors, in order: about half the instructions of
        `quantise`."""
        octets = self._octets([self.whole(f) for f in vectors])
        # Packing works within 128-bit halves: the double words are now a0 b0 c0 d0 a1 b1 c1 d1.
        order = (0, 4, 1, 5, 2, 6, 3, 7)[: 2 * len(vectors)]
        return emit.bits(emit.shuffle(emit.bits(octets, "int32", 8), order), "uint8", 8 * len(vectors))

    def packed(self, vectors: Sequence[Any]) -> Any:
        """uint8 of four `whole` vectors that hold 32 channels in the order in which packing restores them
        (`unit_order`)."""
        return emit.bits(self._octets(vectors), "uint8", 32)

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

    def whole(self, f: Any) -> Any:
        """A float32x8 vector rounded to int32, ties to even."""
        return emit.intrinsic("llvm.x86.avx.cvt.ps2dq.256", "int32x8", f)

    def _octets(self, whole: Sequence[Any]) -> Any:
        words = [self._words(whole[i], whole[min(i + 1, len(whole) - 1)]) for i in range(0, len(whole), 2)]
        return emit.intrinsic("llvm.x86.avx2.packuswb", "int8x32", words[0], words[-1])

    def _words(self, a: Any, b: Any) -> Any:
        words = emit.intrinsic("llvm.x86.avx2.packssdw", "int16x16", a, b)
        if not self.y_zero:
            return words
        return emit.intrinsic("llvm.sadd.sat", "int16x16", words, emit.splat(self.y_zero, "int16", 16))


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
        "gelu": lambda: f * c(0.5) * (c(1.0) + emit.erf(f * c(math.sqrt(0.5)), lanes)),
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
        f = emit.vmax(f, emit.splat(float(-spec.y_zero), "float32", lanes))
        f = emit.vmin(f, emit.splat(float(255 - spec.y_zero), "float32", lanes))
    rounded = emit.bits(f + emit.splat(emit.MAGIC, "float32", lanes), "int32", lanes)
    return emit.cast(rounded - emit.splat(emit.MAGIC_BITS - spec.y_zero, "int32", lanes), "uint8", lanes)
