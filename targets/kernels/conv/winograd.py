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
from ..epilogue import UNIT, quantise
from .winograd_spec import (
    WHOLE_SHIFT,
    Matrix,
    WinogradInputSpec,
    WinogradSpec,
)

Vectors = list[Any]


def input_params(spec: WinogradInputSpec) -> list[tuple[str, str]]:
    return [("x", spec.x_dtype), ("v", spec.mac.a_dtype)]


def product_params(spec: WinogradSpec) -> list[tuple[str, str]]:
    """(name, element type) of the kernel's pointers, in order."""
    return [
        ("v", spec.mac.a_dtype),
        ("g", "int8" if spec.quantised else "uint16" if spec.narrow else "float32"),
        *spec.epilogue.params,
    ]


def emit_winograd_input(spec: WinogradInputSpec, name: str) -> Any:
    """The PrimFunc."""
    return emit.kernel(name, input_params(spec), lambda *args: _inputs(spec, *args))


def emit_winograd(spec: WinogradSpec, name: str) -> Any:
    """The PrimFunc."""
    return emit.kernel(name, product_params(spec), lambda *args: _Products(spec, args).body())


def both_sides(matrix: Matrix, square: Vectors, dtype: str, lanes: int) -> Vectors:
    """M s M^T of a square of vectors, row by row; each step is stored, so that no expression is computed
    twice."""
    side = len(matrix[0])
    columns = [_applied(matrix, square[j::side], dtype, lanes) for j in range(side)]
    half = _stored([columns[j][i] for i in range(len(matrix)) for j in range(side)], dtype, lanes)
    rows = [_applied(matrix, half[i * side : (i + 1) * side], dtype, lanes) for i in range(len(matrix))]
    return _stored([value for row in rows for value in row], dtype, lanes)


def _applied(matrix: Matrix, values: Sequence[Any], dtype: str, lanes: int) -> Vectors:
    return [_combined(row, values, dtype, lanes) for row in matrix]


def _combined(row: Sequence[float], values: Sequence[Any], dtype: str, lanes: int) -> Any:
    """Sum of factor * value, without multiplications by 0 and 1."""
    number = float if dtype == "float32" else int
    total: Any = None
    for factor, value in sorted(zip(row, values, strict=True), key=lambda pair: pair[0] < 0):
        if not factor:
            continue
        size = abs(factor)
        part = value if size == 1 else value * emit.splat(number(size), dtype, lanes)
        if total is None:
            total = part if factor > 0 else emit.splat(number(0), dtype, lanes) - part
        else:
            total = total + part if factor > 0 else total - part
    return total


def _stored(values: Vectors, dtype: str, lanes: int) -> Vectors:
    kept = emit.local(len(values), emit.vector(dtype, lanes))
    for i, value in enumerate(values):
        emit.store(kept, i, value)
    return [emit.load(kept, i) for i in range(len(values))]


def _inputs(spec: WinogradInputSpec, x: Any, v: Any, begin: Any, end: Any) -> None:
    s, size, kind, lanes = spec, spec.size, spec.mac.a_dtype, spec.wide

    def vector(task: Any, across: Any, channel: Any) -> None:
        image, top = task // s.down, task % s.down * s.m - s.pads[0]
        left = across * s.m - s.pads[1]
        at = ((image * s.h + top) * s.w + left) * s.c + channel
        square = emit.local(s.places, emit.vector(kind, lanes))

        def read(i: int, j: int) -> None:
            value = emit.load(x, at + (i * s.w + j) * s.c, lanes)
            if s.quantised:
                value = emit.cast(value, kind, lanes)
            emit.store(square, i * size + j, stored(value, kind, lanes) if s.narrow else value)

        def read_inside(i: int, j: int) -> None:
            inside = (top + i >= 0, top + i < s.h, left + j >= 0, left + j < s.w)
            outside = emit.splat(s.x_zero if s.quantised else 0.0, kind, lanes)
            emit.branch(
                emit.ib.And(emit.ib.And(*inside[:2]), emit.ib.And(*inside[2:])),
                lambda: read(i, j),
                lambda: emit.store(square, i * size + j, outside),
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
        for place, value in enumerate(both_sides(s.transform.inputs, loaded, kind, lanes)):
            emit.store(v, place * s.place + to, value, lanes)

    with (
        emit.loop(begin, end) as task,
        emit.loop(0, s.across) as across,
        emit.loop(0, s.c // lanes) as part,
    ):
        vector(task, across, part * lanes)


class _Products:
    """Emits one kernel. Holds the buffers that the pieces share."""

    def __init__(self, spec: WinogradSpec, args: tuple[Any, ...]) -> None:
        *buffers, self.begin, self.end = args
        self.spec = s = spec
        self.buffers = dict(zip((n for n, _ in product_params(spec)), buffers, strict=True))
        self.filters, self.f0 = emit.aligned(s.places * s.filter_place, s.mac.b_dtype)
        self.sums, self.s0 = emit.aligned(s.places * s.sum_place, s.mac.acc_dtype)

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
        s, group, lanes, kind = self.spec, self.spec.mac.group, self.spec.wide, self.spec.mac.b_dtype
        with emit.loop(0, s.c // group) as c, emit.loop(0, s.tile[1]) as v:
            at = (block * s.c + c * group) * 9 * s.width + v * lanes
            g = [emit.load(self.buffers["g"], at + i * s.width * group, lanes) for i in range(9)]
            if s.narrow:
                g = [first(emit.cast(row, "uint32", lanes), lanes) for row in g]
            elif s.quantised:
                g = [emit.cast(row, kind, lanes) for row in g]
            g = _stored(g, kind, lanes)
            for place, value in enumerate(both_sides(s.transform.filters, g, kind, lanes)):
                to = self.f0 + place * s.filter_place + c * group * s.width + v * lanes
                emit.store(self.filters, to, value, lanes)

    def first_tile(self, piece: Any) -> Any:
        p = self.spec.pieces
        return piece * p.size + (emit.vmin(piece, p.larger) if p.larger else 0)

    def some_tiles(self, block: Any, begin: Any, end: Any) -> None:
        s = self.spec
        start = self.first_tile(begin)
        with emit.loop(0, s.places) as place, emit.loop(begin, end) as piece:
            self.multiply(place, self.first_tile(piece), start, piece)
        with emit.loop(start, self.first_tile(end)) as tile:
            if s.in_units:
                self.finish(block, tile, tile - start, tuple(range(UNIT)))
            else:
                emit.over(0, s.tile[1], lambda v: self.finish(block, tile, tile - start, (v,)))

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
        s, mac, vectors = self.spec, self.spec.mac, self.spec.tile[1]
        acc = emit.local(rows * vectors, emit.vector(mac.acc_dtype, mac.lanes))
        for i in range(rows * vectors):
            emit.store(acc, i, mac.zero())
        source = place * s.place + tile * s.c
        with emit.loop(0, s.c // mac.group) as step:
            c = step * mac.group
            at = self.f0 + place * s.filter_place + c * s.width
            b = [mac.load_b(self.filters, at + v * s.wide) for v in range(vectors)]
            for i in range(rows):
                a = mac.load_a(self.buffers["v"], source + i * s.c + c)
                for v in range(vectors):
                    total = mac.step(emit.load(acc, i * vectors + v), a, b[v])
                    emit.store(acc, i * vectors + v, emit.kept(total, s.lanes) if s.quantised else total)
        to = self.s0 + place * s.sum_place + (tile - start) * s.width
        for i in range(rows * vectors):
            emit.store(self.sums, to + i * s.lanes, emit.load(acc, i), s.lanes)

    def finish(self, block: Any, tile: Any, kept: Any, vectors: Sequence[Any]) -> None:
        """A tile's outputs, of some vectors of its block's channels."""
        s = self.spec
        made = [self.outputs(kept, v) for v in vectors]
        image = tile // (s.down * s.across)
        top, left = tile // s.across % s.down * s.m, tile % s.across * s.m
        at = ((image * s.oh + top) * s.ow + left) * s.oc + block * s.width
        for i in range(s.m):
            for j in range(s.m):
                conditions = [top + i < s.oh] if s.oh % s.m and i else []
                conditions += [left + j < s.ow] if s.ow % s.m and j else []
                pixel = [outputs[i * s.m + j] for outputs in made]
                to = at + (i * s.ow + j) * s.oc
                if conditions:
                    with emit.when(emit.ib.And(*conditions) if len(conditions) > 1 else conditions[0]):
                        self.put(block, to, vectors, pixel)
                else:
                    self.put(block, to, vectors, pixel)

    def outputs(self, kept: Any, v: Any) -> Vectors:
        """Those of a tile before its epilogue, a vector of channels of each."""
        s = self.spec
        at = self.s0 + kept * s.width + v * s.lanes
        kind = s.mac.acc_dtype
        sums = [emit.load(self.sums, at + place * s.sum_place, s.lanes) for place in range(s.places)]
        made = both_sides(s.transform.outputs, _stored(sums, kind, s.lanes), kind, s.lanes)
        if s.quantised:
            shift = emit.splat(WHOLE_SHIFT, kind, s.lanes)
            made = _stored([emit.ib.shift_right(y, shift) for y in made], kind, s.lanes)
        return made

    def put(self, block: Any, to: Any, vectors: Sequence[Any], sums: Sequence[Any]) -> None:
        """One pixel's outputs of these vectors of channels."""
        s, e = self.spec, self.spec.epilogue

        def total(v: Any, summed: Any) -> Any:
            channel = block * s.width + v * s.lanes
            residual = None
            if e.residual and s.in_units:
                residual = e.unit_residual(self.buffers["residual"], to, v, s.lanes)
            elif e.residual:
                residual = emit.load(self.buffers["residual"], to + v * s.lanes, s.lanes)
            scale = emit.load(self.buffers["scale"], channel, s.lanes) if e.scale else None
            summed = summed + e.start(self.buffers.get("bias"), channel, s.lanes)
            return e.total(summed, scale, residual, s.lanes)

        totals = [total(v, summed) for v, summed in zip(vectors, sums, strict=True)]
        values = e.activated_all(totals, s.lanes)
        if s.in_units:
            packed = e.packed(s.lanes, [e.whole(f, s.lanes) for f in values])
            emit.store(self.buffers["y"], to, packed, UNIT * s.lanes)
            return
        for v, f in zip(vectors, values, strict=True):
            emit.store(self.buffers["y"], to + v * s.lanes, quantise(f, e, s.lanes), s.lanes)
