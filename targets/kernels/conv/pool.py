"""NHWC pooling windows and means over the whole picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .. import emit
from ..epilogue import real
from ..partial import load_part, store_part
from .window import Window


@dataclass(frozen=True)
class PoolSpec(Window):
    """`kind` is "max" or "avg"; avg is float32 only. `count_pad`: the mean divides by the whole window."""

    kind: str
    lanes: int
    dtype: str
    count_pad: bool
    padded: tuple[int, int] = (0, 0)  # height and width of the padded input, over which count_pad counts

    @property
    def tasks(self) -> int:
        return self.n * self.oh


def emit_pool(spec: PoolSpec, name: str) -> Any:
    """The PrimFunc; pointers x, y."""
    wide = "int32" if spec.dtype == "uint8" else "float32"
    full, rest = divmod(spec.c, spec.lanes)

    def body(x: Any, y: Any, begin: Any, end: Any) -> None:
        with emit.loop(begin, end) as task:
            image = task // spec.oh if spec.n > 1 else 0
            row = task % spec.oh if spec.n > 1 else task
            with emit.loop(0, spec.ow) as col:
                for first, count, valid in ((0, full, spec.lanes), (full, 1 if rest else 0, rest)):
                    emit.over(first, first + count, lambda b, v=valid: pixel(x, y, image, row, col, b, v))  # type: ignore[misc]

    def pixel(x: Any, y: Any, image: Any, row: Any, col: Any, block: Any, valid: int) -> None:
        acc = emit.local(1, emit.vector(wide, spec.lanes))
        larger = emit.larger if wide == "float32" else emit.vmax
        empty: float | int = 0.0 if spec.kind == "avg" else (0 if wide == "int32" else -math.inf)
        emit.store(acc, 0, emit.splat(empty, wide, spec.lanes))
        top, left = row * spec.strides[0] - spec.pads[0], col * spec.strides[1] - spec.pads[1]

        def tap(kh: Any, kw: Any) -> None:
            height, width = top + kh * spec.dilations[0], left + kw * spec.dilations[1]
            at = ((image * spec.h + height) * spec.w + width) * spec.c + block * spec.lanes
            value = load_part(x, spec.dtype, at, spec.lanes, valid)
            value = emit.cast(value, wide, spec.lanes) if wide != spec.dtype else value
            old = emit.load(acc, 0)
            emit.store(acc, 0, larger(old, value) if spec.kind == "max" else old + value)

        rows = _bounds(top, spec.h, spec.kernel[0], spec.dilations[0])
        cols = _bounds(left, spec.w, spec.kernel[1], spec.dilations[1])
        with emit.loop(*rows) as kh, emit.loop(*cols) as kw:
            tap(kh, kw)
        result = emit.load(acc, 0)
        if spec.kind == "avg":
            result = result / emit.splat(
                emit.cast(_count(spec, top, left, rows, cols), "float32", 1), "float32", spec.lanes
            )
        result = emit.cast(result, spec.dtype, spec.lanes) if wide != spec.dtype else result
        out = ((image * spec.oh + row) * spec.ow + col) * spec.c + block * spec.lanes
        store_part(y, spec.dtype, out, result, spec.lanes, valid)

    return emit.kernel(name, [("x", spec.dtype), ("y", spec.dtype)], body)


def _bounds(start: Any, size: int, taps: int, dilation: int) -> tuple[Any, Any]:
    """First and last tap of a window that lie inside [0, size)."""
    first = emit.vmax(0, (0 - start + dilation - 1) // dilation)
    return first, emit.vmin(taps, (size - start + dilation - 1) // dilation)


def _count(spec: PoolSpec, top: Any, left: Any, rows: tuple[Any, Any], cols: tuple[Any, Any]) -> Any:
    """By how much a mean divides: the taps inside the picture, or inside its padding too when `count_pad`."""
    if not spec.count_pad:
        return (rows[1] - rows[0]) * (cols[1] - cols[0])
    (dh, dw), (high, wide) = spec.dilations, spec.padded
    inside_h = emit.vmin(spec.kernel[0], (high - (top + spec.pads[0]) + dh - 1) // dh)
    inside_w = emit.vmin(spec.kernel[1], (wide - (left + spec.pads[1]) + dw - 1) // dw)
    return inside_h * inside_w


@dataclass(frozen=True)
class MeanSpec:
    """Mean over `pixels` of [n, pixels, c]; a uint8 input is (x - zero) * scale."""

    lanes: int
    dtype: str
    n: int
    pixels: int
    c: int
    scale: float
    zero: int

    @property
    def blocks(self) -> int:
        return -(-self.c // self.lanes)

    @property
    def tasks(self) -> int:
        return self.n


def emit_mean(spec: MeanSpec, name: str) -> Any:
    """The PrimFunc; pointers x, y (float32)."""
    wide = "int32" if spec.dtype == "uint8" else "float32"
    full, rest = divmod(spec.c, spec.lanes)

    def body(x: Any, y: Any, begin: Any, end: Any) -> None:
        with emit.loop(begin, end) as image:
            emit.over(0, full, lambda block: mean(x, y, image, block, spec.lanes))
            if rest:
                mean(x, y, image, full, rest)

    def mean(x: Any, y: Any, image: Any, block: Any, valid: int) -> None:
        acc = emit.local(1, emit.vector(wide, spec.lanes))
        emit.store(acc, 0, emit.splat(0.0 if wide == "float32" else 0, wide, spec.lanes))
        with emit.loop(0, spec.pixels) as p:
            value = load_part(
                x, spec.dtype, (image * spec.pixels + p) * spec.c + block * spec.lanes, spec.lanes, valid
            )
            value = emit.cast(value, wide, spec.lanes) if wide != spec.dtype else value
            emit.store(acc, 0, emit.load(acc, 0) + value)
        total = emit.load(acc, 0)
        total = emit.cast(total, "float32", spec.lanes) if wide == "int32" else total
        result = real(
            total * emit.splat(1.0 / spec.pixels, "float32", spec.lanes),
            "float32",
            spec.scale,
            spec.zero,
            spec.lanes,
        )
        store_part(y, "float32", image * spec.c + block * spec.lanes, result, spec.lanes, valid)

    return emit.kernel(name, [("x", spec.dtype), ("y", "float32")], body)
