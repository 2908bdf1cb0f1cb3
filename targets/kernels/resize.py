"""Resizing images, nearest and linear: positions and weights come in tables, so that all modes are alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import emit
from .partial import load_part, store_part


@dataclass(frozen=True)
class ResizeSpec:
    """[n, h, w, c] -> [n, oh, ow, c]; channels first is c = 1 with n images of one channel.

    Tables hold offsets in elements: `rows` [2, oh] and `cols` [2, ow] int32 (first and second neighbour), for
    linear also `shares` [oh + ow] float32, the weight of the second one.
    """

    lanes: int
    dtype: str
    linear: bool
    n: int
    h: int
    w: int
    c: int
    oh: int
    ow: int

    @property
    def tasks(self) -> int:
        return self.n * self.oh


def resize_params(spec: ResizeSpec) -> list[tuple[str, str]]:
    """(name, element type) of the kernel's pointers, in order."""
    shares = [("shares", "float32")] if spec.linear else []
    return [("x", spec.dtype), ("rows", "int32"), ("cols", "int32"), *shares, ("y", spec.dtype)]


def emit_resize(spec: ResizeSpec, name: str) -> Any:
    """The PrimFunc."""
    full, rest = divmod(spec.c, spec.lanes)
    pixel = _linear if spec.linear else _nearest

    def body(x: Any, rows: Any, cols: Any, *others: Any) -> None:
        *shares, y, begin, end = others
        with emit.loop(begin, end) as task, emit.loop(0, spec.ow) as col:
            row = task % spec.oh if spec.n > 1 else task
            image = task // spec.oh * (spec.h * spec.w * spec.c) if spec.n > 1 else 0
            out = (task * spec.ow + col) * spec.c
            for first, count, valid in ((0, full, spec.lanes), (full, 1 if rest else 0, rest)):

                def block(b: Any, valid: int = valid) -> None:
                    value = pixel(spec, x, image + b * spec.lanes, rows, cols, shares, row, col, valid)
                    store_part(y, spec.dtype, out + b * spec.lanes, value, spec.lanes, valid)

                emit.over(first, first + count, block)

    return emit.kernel(name, resize_params(spec), body)


def _at(table: Any, index: Any) -> Any:
    return emit.cast(emit.load(table, index), "int64", 1)


def _nearest(
    spec: ResizeSpec, x: Any, base: Any, rows: Any, cols: Any, shares: Any, row: Any, col: Any, valid: int
) -> Any:
    return load_part(x, spec.dtype, base + _at(rows, row) + _at(cols, col), spec.lanes, valid)


def _linear(
    spec: ResizeSpec, x: Any, base: Any, rows: Any, cols: Any, shares: Any, row: Any, col: Any, valid: int
) -> Any:
    """First along the row, then between the rows."""
    (share,) = shares
    right = emit.splat(emit.load(share, spec.oh + col), "float32", spec.lanes)
    lower = emit.splat(emit.load(share, row), "float32", spec.lanes)

    def mixed(a: Any, b: Any, weight: Any) -> Any:
        return a * (emit.splat(1.0, "float32", spec.lanes) - weight) + b * weight

    def line(which: int) -> Any:
        start = base + _at(rows, row + which * spec.oh)
        left = load_part(x, spec.dtype, start + _at(cols, col), spec.lanes, valid)
        other = load_part(x, spec.dtype, start + _at(cols, col + spec.ow), spec.lanes, valid)
        return mixed(left, other, right)

    return mixed(line(0), line(1), lower)
