"""Conversion rules: operators that read an image between its pixels, at computed places.

All come to one product. The pixels are rows [pixels, channels]; each result reads K of them:

    index  [M, K] int64      which row
    weight [M, K] float32    how much of it; 0 for what lies outside
    y[m] = sum over k of weight[m, k] * rows[index[m, k]]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .converter import (
    Converter,
    OnnxNode,
    Result,
    Rule,
    UnsupportedForm,
)

CUBIC = -0.75
"""The free number of cubic convolution (Keys, "Cubic convolution interpolation for digital image processing",
1981), as in ONNX's definition."""
INNER = (1.0, 0.0, -(CUBIC + 3), CUBIC + 2)
OUTER = (-4 * CUBIC, 8 * CUBIC, -5 * CUBIC, CUBIC)
TAPS = {
    "nearest": ((0, (1.0,)),),
    "linear": ((0, (1.0, -1.0)), (1, (1.0, -1.0))),
    "cubic": ((-1, OUTER), (0, INNER), (1, INNER), (2, OUTER)),
}
"""Mode -> for each pixel beside a place: how far from the one before the place, and the polynomial in the
distance that is its weight."""
OLD_NAMES = {"bilinear": "linear", "bicubic": "cubic"}
PADDINGS = ("zeros", "border", "reflection")
FARTHEST = 1e9
"""Places are clipped to this before they become integers."""


@dataclass(frozen=True)
class Taps:
    """Along one axis, values [..., K]: `index`, float32 with whole numbers on the axis, and `weight`."""

    index: str
    weight: str


class Arithmetic:
    """Nodes with constants as operands, named after what they are for."""

    def __init__(self, c: Converter, node: OnnxNode) -> None:
        self.c, self.node, self._count = c, node, 0

    def __call__(self, op: str, *operands: str | float | np.ndarray, **attrs: int | float) -> str:
        self._count += 1
        values = [x if isinstance(x, str) else self._param(x) for x in operands]
        return self.c.emit(self.node, op, values, f"{op}{self._count}", **attrs)

    def _param(self, number: float | np.ndarray) -> str:
        array = number if isinstance(number, np.ndarray) else np.array(number, np.float32)
        return self.c.param(self.c.derived(f"{self.node.output}.number"), array, f"{self._count} {array}")

    def reshape(self, value: str, *shape: int) -> str:
        self._count += 1
        return self.c.reshape(self.node, value, shape, f"reshape{self._count}")

    def transpose(self, value: str, *perm: int) -> str:
        self._count += 1
        return self.c.emit(self.node, "transpose", [value], f"transpose{self._count}", perm=perm)

    def taps(self, places: str, size: int, mode: str, padding: str, ends: tuple[float, float]) -> Taps:
        """The pixels beside places [...] on an axis: values [..., K]. `ends`: where reflection turns."""
        shape = self.c.type(places).shape
        column = self.reshape(places, *shape, 1)
        before = column if mode == "nearest" else self("floor", column)
        steps = np.array([step for step, _ in TAPS[mode]], np.float32)
        index = self("add", before, steps)
        weight = self._polynomial(self("abs", self("sub", index, column)), [p for _, p in TAPS[mode]])
        if padding == "zeros":
            weight = self("mul", weight, self.inside(index, 0, size - 1))
        elif padding == "reflection":
            index = self.reflected(index, *ends)
        return Taps(self("clip", index, lo=0.0, hi=float(size - 1)), weight)

    def _polynomial(self, x: str, polynomials: Sequence[Sequence[float]]) -> str:
        """One for each entry of the last axis, by Horner's rule."""
        table = np.array(polynomials, np.float32)
        y: str | np.ndarray = table[:, -1]
        for column in table.T[-2::-1]:
            y = self("add", self("mul", x, y), column)
        return self("add", self("mul", x, 0.0), y) if isinstance(y, np.ndarray) else y

    def inside(self, x: str, low: float, high: float) -> str:
        """1 where it lies between the two, else 0."""
        both = self("bit_and", self("less_equal", np.array(low, np.float32), x), self("less_equal", x, high))
        self._count += 1
        return self.c.cast(self.node, both, "float32", f"inside{self._count}")

    def reflected(self, x: str, low: float, high: float) -> str:
        """As in a mirror at both ends, again and again."""
        if low == high:
            return self("add", self("mul", x, 0.0), low)
        there = self("floor_mod", self("sub", x, low), 2 * (high - low))
        return self("add", self("minimum", there, self("sub", 2 * (high - low), there)), low)

    def flat_index(self, parts: Sequence[str], sizes: Sequence[int], first: np.ndarray) -> str:
        """The rows int64 of places given by axis, float32, which broadcast; `first`: the row of the image."""
        whole: str = ""
        for part, size in zip(parts, sizes, strict=True):
            self._count += 1
            number = self.c.cast(self.node, part, "int64", f"whole{self._count}")
            whole = self("add", self("mul", whole, np.array(size)), number) if whole else number
        return self("add", whole, first)

    def combined(self, rows: str, index: str, weight: str, op: str = "reduce_sum") -> str:
        """[M, C] of rows [R, C], index and weight [M, K]."""
        channels, (m, k) = self.c.type(rows).shape[1], self.c.type(index).shape
        read = self("gather", rows, index, axis=0)
        weighted = self("mul", read, self.reshape(weight, m, k, 1))
        self._count += 1
        summed = self.c.emit(self.node, op, [weighted], f"{op}{self._count}", axes=(1,), keepdims=False)
        return self.reshape(summed, m, channels)


def _rows(a: Arithmetic, x: str) -> str:
    """[n, channels, ...] -> [n * pixels, channels]"""
    n, channels, *sizes = a.c.type(x).shape
    flat = a.reshape(x, n, channels, math.prod(sizes))
    return a.reshape(a.transpose(flat, 0, 2, 1), n * math.prod(sizes), channels)


def _spread(a: Arithmetic, parts: Sequence[str]) -> list[str]:
    """[n, points, K] along each axis -> [n, points, 1, K, 1...], so that they broadcast to all pairs."""
    rank = len(parts)
    made = []
    for i, part in enumerate(parts):
        n, points, k = a.c.type(part).shape
        made.append(a.reshape(part, n, points, *(k if i == j else 1 for j in range(rank))))
    return made


def _grid_sample(c: Converter, node: OnnxNode) -> Result:
    mode = node.get_str("mode", "linear" if node.opset >= 20 else "bilinear")
    mode, padding = OLD_NAMES.get(mode, mode), node.get_str("padding_mode", "zeros")
    if mode not in TAPS or padding not in PADDINGS:
        raise UnsupportedForm(f"mode {mode!r} with padding {padding!r} is not known")
    a, x, grid = Arithmetic(c, node), c.value(node), c.value(node, 1)
    n, channels, *sizes = c.type(x).shape
    if mode == "cubic" and len(sizes) != 2:
        raise UnsupportedForm("cubic mode on data that is not 2-D")
    points = c.type(grid).shape[1:-1]
    flat = a.reshape(grid, n, math.prod(points), len(sizes))
    aligned = bool(node.get_int("align_corners", 0))
    axes = [_axis_taps(a, flat, i, size, mode, padding, aligned) for i, size in enumerate(reversed(sizes))][
        ::-1
    ]
    y = between(a, x, axes)
    y = a.transpose(a.reshape(y, n, math.prod(points), channels), 0, 2, 1)
    return c.reshape(node, y, (n, channels, *points))


def between(a: Arithmetic, x: str, axes: Sequence[Taps], factor: str = "") -> str:
    """[n * points, channels] of x [n, channels, ...] at places whose taps by axis are values [n, points, K].

    `factor` [n * points, 1]: what each result is multiplied with.
    """
    n, _, *sizes = a.c.type(x).shape
    first = (np.arange(n) * math.prod(sizes)).reshape(n, *(1,) * (len(sizes) + 1))
    index = a.flat_index(_spread(a, [t.index for t in axes]), sizes, first)
    weight, *others = _spread(a, [t.weight for t in axes])
    for other in others:
        weight = a("mul", weight, other)
    _, points, *taps = a.c.type(weight).shape
    index, weight = (a.reshape(v, n * points, math.prod(taps)) for v in (index, weight))
    return a.combined(_rows(a, x), index, a("mul", weight, factor) if factor else weight)


def _axis_taps(
    a: Arithmetic, flat: str, axis: int, size: int, mode: str, padding: str, aligned: bool
) -> Taps:
    """Of the grid's numbers [n, points, axes] for one axis, -1 to 1 from end to end."""
    n, points, count = a.c.type(flat).shape
    only = {"starts": (0, 0, axis), "stops": (n, points, axis + 1), "steps": (1, 1, 1)}
    part = a.c.emit(a.node, "slice", [flat], f"axis{axis}", **only) if count > 1 else flat
    half = (size - 1) / 2 if aligned else size / 2
    ends = (0.0, size - 1.0) if aligned else (-0.5, size - 0.5)
    places = a("add", a("mul", a.reshape(part, n, points), half), (size - 1) / 2)
    places = a("clip", places, lo=-FARTHEST, hi=FARTHEST)
    if mode == "nearest":
        places = a("round", places)
    # ONNX Runtime moves what lies outside before it looks for the pixels beside it, and those again; in cubic
    # mode the pixels alone.
    if padding == "border" and mode != "cubic":
        places = a("clip", places, lo=0.0, hi=size - 1.0)
    elif padding == "reflection":
        places = a.reflected(places, *ends)
    return a.taps(places, size, mode, padding, ends)


def _roi_align(c: Converter, node: OnnxNode) -> Result:
    """Each part of a box is the mean (or maximum) of samples * samples places; linear between pixels."""
    samples, mode = node.get_int("sampling_ratio", 0), node.get_str("mode", "avg")
    if samples < 1:
        raise UnsupportedForm(
            "sampling_ratio 0: how many places of a box are read depends on its size; export with a "
            "sampling_ratio of 2"
        )
    if mode not in ("avg", "max"):
        raise UnsupportedForm(f"mode {mode!r} is not known")
    a, x, boxes = Arithmetic(c, node), c.value(node), c.value(node, 1)
    _, channels, *sizes = c.type(x).shape
    outs = (node.get_int("output_height", 1), node.get_int("output_width", 1))
    count = c.type(boxes).shape[0]
    axes = [_box_taps(a, node, boxes, i, size, outs[i], samples) for i, size in enumerate(sizes)]
    image = c.cast(node, c.value(node, 2), "int64", "images")
    start = a("mul", a.reshape(image, count, 1, 1, 1, 1), np.array(math.prod(sizes)))
    parts = [
        (a.reshape(t.index, *shape), a.reshape(t.weight, *shape))
        for t, shape in zip(axes, _pairs(count, outs, 2 * samples), strict=True)
    ]
    index = a("add", a.flat_index([i for i, _ in parts], sizes, np.zeros((), np.int64)), start)
    weight = a("mul", *(w for _, w in parts))
    many = (count * math.prod(outs), (2 * samples) ** 2)
    rows, index, weight = _rows(a, x), a.reshape(index, *many), a.reshape(weight, *many)
    if mode == "max":
        y = a.combined(rows, index, weight, "reduce_max")
    else:
        y = a.combined(rows, index, a("mul", weight, 1 / samples**2))
    y = a.transpose(a.reshape(y, count, math.prod(outs), channels), 0, 2, 1)
    return c.reshape(node, y, (count, channels, *outs))


def _pairs(count: int, outs: tuple[int, int], taps: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (count, outs[0], 1, taps, 1), (count, 1, outs[1], 1, taps)


def _box_taps(
    a: Arithmetic, node: OnnxNode, boxes: str, axis: int, size: int, out: int, samples: int
) -> Taps:
    """For rows (axis 0) or columns of boxes [count, 4] = x1, y1, x2, y2: values [count, out, samples * 2]."""
    count, scale = a.c.type(boxes).shape[0], node.get_float("spatial_scale", 1.0)
    half = (
        node.get_str("coordinate_transformation_mode", "half_pixel" if node.opset >= 16 else "")
        == "half_pixel"
    )
    ends = []
    for at in (1 - axis, 3 - axis):
        part = a.c.emit(
            a.node, "slice", [boxes], f"end{at}", starts=(0, at), stops=(count, at + 1), steps=(1, 1)
        )
        scaled = a("mul", part, scale)
        ends.append(a("sub", scaled, 0.5) if half else scaled)
    length = a("sub", ends[1], ends[0])
    if not half:
        length = a("maximum", length, 1.0)
    shares = ((np.arange(out * samples) + 0.5) / (out * samples)).reshape(1, -1)
    places = a("add", a("mul", length, shares.astype(np.float32)), ends[0])
    near = a.inside(places, -1.0, size)
    taps = a.taps(a("clip", places, lo=0.0, hi=size - 1.0), size, "linear", "border", (0.0, 0.0))
    weight = a("mul", taps.weight, a.reshape(near, count, out * samples, 1))
    return Taps(*(a.reshape(v, count, out, samples * 2) for v in (taps.index, weight)))


SAMPLE_RULES: dict[str, Rule] = {"GridSample": _grid_sample, "RoiAlign": _roi_align}
