"""The kernels of Winograd convolution (winograd_spec.py): inputs to tiles, then products and the way back.

inputs:   for each tile, vector of channels: V[place][tile] = B^T d B
products: U[place] = G g G^T of a block of output channels; for some tiles at a time
          for each place: M[place] = V[place] x U[place]          in registers, as in gemm.py
          for each tile: y = epilogue(A^T M A)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .. import emit
from ..bfloat16 import first, stored
from .winograd_spec import (
    TRANSFORMS,
    Matrix,
    WinogradInputSpec,
    WinogradSpec,
)

Vectors = list[Any]


def input_params(spec: WinogradInputSpec) -> list[tuple[str, str]]:
    return [("x", "float32"), ("v", "float32")]


def product_params(spec: WinogradSpec) -> list[tuple[str, str]]:
    """(name, element type) of the kernel's pointers, in order."""
    e = spec.epilogue
    optional = (("bias", e.bias), ("residual", bool(e.residual)))
    names = ["v", "g", *(name for name, there in optional if there), "y"]
    return [(name, "uint16" if name == "g" and spec.narrow else "float32") for name in names]


def emit_winograd_input(spec: WinogradInputSpec, name: str) -> Any:
    """The PrimFunc."""
    return emit.kernel(name, input_params(spec), lambda *args: _inputs(spec, *args))


def emit_winograd(spec: WinogradSpec, name: str) -> Any:
    """The PrimFunc."""
    return emit.kernel(name, product_params(spec), lambda *args: _Products(spec, args).body())


def both_sides(matrix: Matrix, square: Vectors, lanes: int) -> Vectors:
    """M s M^T of a square of vectors, row by row; each step is stored, so that no expression is computed
    twice."""
    side = len(matrix[0])
    columns = [_applied(matrix, square[j::side], lanes) for j in range(side)]
    half = _stored([columns[j][i] for i in range(len(matrix)) for j in range(side)], lanes)
    rows = [_applied(matrix, half[i * side : (i + 1) * side], lanes) for i in range(len(matrix))]
    return _stored([value for row in rows for value in row], lanes)


def _applied(matrix: Matrix, values: Sequence[Any], lanes: int) -> Vectors:
    return [_combined(row, values, lanes) for row in matrix]


def _combined(row: Sequence[float], values: Sequence[Any], lanes: int) -> Any:
    """Sum of factor * value, without multiplications by 0 and 1."""
    total: Any = None
    for factor, value in sorted(zip(row, values, strict=True), key=lambda pair: pair[0] < 0):
        if not factor:
            continue
        size = abs(factor)
        part = value if size == 1 else value * emit.splat(float(size), "float32", lanes)
        if total is None:
            total = part if factor > 0 else emit.splat(0.0, "float32", lanes) - part
        else:
            total = total + part if factor > 0 else total - part
    return total


def _stored(values: Vectors, lanes: int) -> Vectors:
    kept = emit.local(len(values), emit.vector("float32", lanes))
    for i, value in enumerate(values):
        emit.store(kept, i, value)
    return [emit.load(kept, i) for i in range(len(values))]


def _inputs(spec: WinogradInputSpec, x: Any, v: Any, begin: Any, end: Any) -> None:
    s, size = spec, spec.size

    def vector(task: Any, across: Any, channel: Any) -> None:
        image, top = task // s.down, task % s.down * s.m - s.pads[0]
        left = across * s.m - s.pads[1]
        at = ((image * s.h + top) * s.w + left) * s.c + channel
        square = emit.local(s.places, emit.vector("float32", s.lanes))

        def read(i: int, j: int) -> None:
            value = emit.load(x, at + (i * s.w + j) * s.c, s.lanes)
            emit.store(square, i * size + j, stored(value, "float32", s.lanes) if s.narrow else value)

        def read_inside(i: int, j: int) -> None:
            inside = (top + i >= 0, top + i < s.h, left + j >= 0, left + j < s.w)
            zero = emit.splat(0.0, "float32", s.lanes)
            emit.branch(
                emit.ib.And(emit.ib.And(*inside[:2]), emit.ib.And(*inside[2:])),
                lambda: read(i, j),
                lambda: emit.store(square, i * size + j, zero),
            )

        def each(what: Callable[[int, int], None]) -> None:
            for i in range(size):
                for j in range(size):
                    what(i, j)

        whole = emit.ib.And(
            emit.ib.And(top >= 0, top + size <= s.h), emit.ib.And(left >= 0, left + size <= s.w)
        )
        emit.branch(whole, lambda: each(read), lambda: each(read_inside))
        loaded = [emit.load(square, i) for i in range(s.places)]
        to = (task * s.across + across) * s.c + channel
        for place, value in enumerate(both_sides(TRANSFORMS[s.m].inputs, loaded, s.lanes)):
            emit.store(v, place * s.tiles * s.c + to, value, s.lanes)

    with (
        emit.loop(begin, end) as task,
        emit.loop(0, s.across) as across,
        emit.loop(0, s.c // s.lanes) as part,
    ):
        vector(task, across, part * s.lanes)


class _Products:
    """Emits one kernel. Holds the buffers that the pieces share."""

    def __init__(self, spec: WinogradSpec, args: tuple[Any, ...]) -> None:
        *buffers, self.begin, self.end = args
        self.spec = s = spec
        self.buffers = dict(zip((n for n, _ in product_params(spec)), buffers, strict=True))
        self.most = s.pieces.sizes()[0][0]
        self.filters, self.f0 = emit.aligned(s.places * s.c * s.width, "float32")
        self.sums, self.s0 = emit.aligned(s.places * s.chunk * self.most * s.width, "float32")

    def body(self) -> None:
        s = self.spec
        with emit.loop(self.begin, self.end) as task:
            block = task // s.parts
            first = task % s.parts * s.part
            self.transform_filters(block)
            last = emit.vmin(first + s.part, s.pieces.count) if s.pieces.count % s.part else first + s.part
            with emit.loop(0, (last - first + s.chunk - 1) // s.chunk) as i:
                begin = first + i * s.chunk
                self.some_tiles(block, begin, emit.vmin(begin + s.chunk, last))

    def transform_filters(self, block: Any) -> None:
        s = self.spec
        with emit.loop(0, s.c) as c, emit.loop(0, s.tile[1]) as v:
            at = (block * s.c + c) * 9 * s.width + v * s.lanes
            g = [emit.load(self.buffers["g"], at + i * s.width, s.lanes) for i in range(9)]
            g = [first(emit.cast(row, "uint32", s.lanes), s.lanes) for row in g] if s.narrow else g
            g = _stored(g, s.lanes)
            for place, value in enumerate(both_sides(TRANSFORMS[s.m].filters, g, s.lanes)):
                to = self.f0 + (place * s.c + c) * s.width + v * s.lanes
                emit.store(self.filters, to, value, s.lanes)

    def first_tile(self, piece: Any) -> Any:
        p = self.spec.pieces
        return piece * p.size + (emit.vmin(piece, p.larger) if p.larger else 0)

    def some_tiles(self, block: Any, begin: Any, end: Any) -> None:
        s = self.spec
        start = self.first_tile(begin)
        with emit.loop(0, s.places) as place, emit.loop(begin, end) as piece:
            self.multiply(place, self.first_tile(piece), start, piece)
        with emit.loop(start, self.first_tile(end)) as tile, emit.loop(0, s.tile[1]) as v:
            self.finish(block, tile, tile - start, v)

    def multiply(self, place: Any, tile: Any, start: Any, piece: Any) -> None:
        (large, count), *others = self.spec.pieces.sizes()
        if not others:
            return self.product(place, tile, start, large)
        return emit.branch(
            piece < count,
            lambda: self.product(place, tile, start, large),
            lambda: self.product(place, tile, start, others[0][0]),
        )

    def product(self, place: Any, tile: Any, start: Any, rows: int) -> None:
        """Sums of neighbouring tiles over all channels, for a block of output channels."""
        s, vectors = self.spec, self.spec.tile[1]
        acc = emit.local(rows * vectors, emit.vector("float32", s.lanes))
        for i in range(rows * vectors):
            emit.store(acc, i, emit.splat(0.0, "float32", s.lanes))
        source = (place * s.tiles + tile) * s.c
        with emit.loop(0, s.c) as c:
            at = self.f0 + (place * s.c + c) * s.width
            b = [emit.load(self.filters, at + v * s.lanes, s.lanes) for v in range(vectors)]
            for i in range(rows):
                a = emit.splat(emit.load(self.buffers["v"], source + i * s.c + c), "float32", s.lanes)
                for v in range(vectors):
                    emit.store(acc, i * vectors + v, emit.load(acc, i * vectors + v) + a * b[v])
        to = self.s0 + (place * s.chunk * self.most + tile - start) * s.width
        for i in range(rows * vectors):
            emit.store(self.sums, to + i * s.lanes, emit.load(acc, i), s.lanes)

    def finish(self, block: Any, tile: Any, kept: Any, v: Any) -> None:
        """A tile's outputs, of one vector of channels."""
        s, e = self.spec, self.spec.epilogue
        at = self.s0 + kept * s.width + v * s.lanes
        step = s.chunk * self.most * s.width
        sums = [emit.load(self.sums, at + place * step, s.lanes) for place in range(s.places)]
        made = both_sides(TRANSFORMS[s.m].outputs, _stored(sums, s.lanes), s.lanes)
        channel = block * s.width + v * s.lanes
        image = tile // (s.down * s.across)
        top, left = tile // s.across % s.down * s.m, tile % s.across * s.m
        out = ((image * s.oh + top) * s.ow + left) * s.oc + channel
        bias = e.start(self.buffers.get("bias"), channel, s.lanes)

        def put(i: int, j: int) -> None:
            to = out + (i * s.ow + j) * s.oc
            residual = emit.load(self.buffers["residual"], to, s.lanes) if e.residual else None
            value = e.activated(made[i * s.m + j] + bias, None, residual, s.lanes)
            emit.store(self.buffers["y"], to, value, s.lanes)

        for i in range(s.m):
            for j in range(s.m):
                conditions = [top + i < s.oh] if s.oh % s.m and i else []
                conditions += [left + j < s.ow] if s.ow % s.m and j else []
                if conditions:
                    with emit.when(emit.ib.And(*conditions) if len(conditions) > 1 else conditions[0]):
                        put(i, j)
                else:
                    put(i, j)
