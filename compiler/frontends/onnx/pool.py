"""Conversion rules: pooling windows, and pools over everything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .converter import (
    Converter,
    OnnxNode,
    Result,
    Rule,
    UnsupportedForm,
)
from .volume import pool_3d
from .window import (
    axes_2d,
    flat,
    pads_2d,
    window_pads,
)


def _window(c: Converter, node: OnnxNode, sizes: Sequence[int]) -> dict[str, Any]:
    """kernel, strides, dilations, pads (begins, then ends) of the node, one number for each spatial axis."""
    kernel = node.get_ints("kernel_shape", ())
    if len(kernel) != len(sizes) or len(kernel) > 3:
        raise UnsupportedForm(f"a {len(kernel)}-D window on {len(sizes)}-D data")
    ones = [1] * len(kernel)
    strides, dilations = node.get_ints("strides", ones), node.get_ints("dilations", ones)
    pads = window_pads(node, sizes, kernel, strides, dilations)
    return {"kernel": kernel, "strides": strides, "dilations": dilations, "pads": pads}


def _pooled(c: Converter, node: OnnxNode, x: str, op: str, counted: bool = False, part: str = "") -> str:
    """The pool of a value by the node's window. A pool of float32 serves all types."""
    sizes = c.type(x).shape[2:]
    window = _window(c, node, sizes)
    if node.get_int("ceil_mode", 0):
        grown = _ceil_pads(sizes, **window)
        if counted and grown != window["pads"]:  # what is beyond the padding does not count
            x, sizes = _padded(c, node, x, window["pads"])
            grown = tuple(g - p for g, p in zip(grown, window["pads"], strict=True))
            counted = False
        window["pads"] = grown
    if op == "avg_pool2d":
        window["count_pad"] = counted
    if len(sizes) == 3:
        return pool_3d(c, node, x, op, window)
    if len(sizes) == 1:
        x = c.reshape(node, x, (*c.type(x).shape[:2], 1, *sizes), "row")
    for key, fill in (("kernel", 1), ("strides", 1), ("dilations", 1)):
        window[key] = axes_2d(window[key], fill)
    window["pads"] = pads_2d(window["pads"])
    y = c.emit(node, op, [x], part or ("pool" if len(sizes) == 1 else ""), **window)
    return flat(c, node, y, len(sizes))


def _padded(c: Converter, node: OnnxNode, x: str, pads: Sequence[int]) -> tuple[str, tuple[int, ...]]:
    rank = len(pads) // 2
    before, after = (0, 0, *pads[:rank]), (0, 0, *pads[rank:])
    x = c.emit(node, "pad", [x], "padded", before=before, after=after)
    return x, c.type(x).shape[2:]


def _ceil_pads(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
) -> tuple[int, ...]:
    """The padding with which rounding down gives what ceil_mode gives; no window starts behind the data."""
    rank = len(kernel)
    begins, ends = list(pads[:rank]), list(pads[rank:])
    for i in range(rank):
        reach = dilations[i] * (kernel[i] - 1) + 1
        free = sizes[i] + begins[i] + ends[i] - reach
        windows = -(-free // strides[i]) + 1
        if (windows - 1) * strides[i] >= sizes[i] + begins[i]:
            windows -= 1
        ends[i] += max((windows - 1) * strides[i] - free, 0)
    return (*begins, *ends)


def _average_pool(c: Converter, node: OnnxNode) -> Result:
    return _pooled(c, node, c.value(node), "avg_pool2d", bool(node.get_int("count_include_pad", 0)))


def _max_pool(c: Converter, node: OnnxNode) -> Result | list[Result]:
    x = c.value(node)
    if node.used_outputs() > 1:
        return _max_pool_with_places(c, node, x)
    return _pooled(c, node, x, "max_pool2d")


def _max_pool_with_places(c: Converter, node: OnnxNode, x: str) -> list[Result]:
    """Each window's numbers side by side; the place of the largest, looked up in a table of places."""
    n, channels, *sizes = c.type(x).shape
    window = _window(c, node, sizes)
    pads = _ceil_pads(sizes, **window) if node.get_int("ceil_mode", 0) else window["pads"]
    places, inside, made = _window_places(sizes, {**window, "pads": pads})
    order = np.arange(math.prod(sizes)).reshape(sizes)
    if node.get_int("storage_order", 0):  # columns first
        order = np.arange(math.prod(sizes)).reshape(sizes[::-1]).T
    table = order.reshape(-1)[places]
    rows, taps = places.shape
    flat_x = c.reshape(node, x, (n, channels, math.prod(sizes)), "flat")
    around = c.emit(
        node, "gather", [flat_x, c.param(c.derived(f"{node.output}.windows"), places)], "windows", axis=2
    )
    if not inside.all():
        mask = c.param(c.derived(f"{node.output}.inside"), inside)
        around = c.emit(
            node, "where", [mask, around, c.scalar(node, "least", _least(c.type(x).dtype), x)], "masked"
        )
    y = c.emit(node, "reduce_max", [around], "max", axes=(3,), keepdims=False)
    (wide,), _ = c.widened(node, "arg_max", [around])
    chosen = c.emit(node, "arg_max", [wide], "chosen", axis=3, keepdims=False)
    starts = c.param(c.derived(f"{node.output}.starts"), np.arange(rows) * taps)
    at = c.emit(node, "add", [chosen, starts], "at")
    own = c.emit(
        node, "gather", [c.param(c.derived(f"{node.output}.table"), table.reshape(-1)), at], "own", axis=0
    )
    planes = (np.arange(n * channels) * math.prod(sizes)).reshape(n, channels, 1)
    index = c.emit(node, "add", [own, c.param(c.derived(f"{node.output}.planes"), planes)], "index")
    shape = (n, channels, *made)
    return [c.reshape(node, y, shape), c.reshape(node, index, shape, "places")]


def _least(dtype: str) -> float:
    return -math.inf if dtype.startswith("float") else int(np.iinfo(dtype).min)


def _window_places(
    sizes: Sequence[int], window: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """(places [windows, taps] in a flat plane, whether each is inside, windows along each axis)"""
    rank = len(sizes)
    places: np.ndarray = np.zeros((1, 1), np.int64)
    inside: np.ndarray = np.ones((1, 1), bool)
    made = []
    for i, size in enumerate(sizes):
        k, s, d = (window[key][i] for key in ("kernel", "strides", "dilations"))
        begin, end = window["pads"][i], window["pads"][i + rank]
        made.append((size + begin + end - d * (k - 1) - 1) // s + 1)
        at = np.arange(made[-1])[:, None] * s + np.arange(k) * d - begin
        fits = (at >= 0) & (at < size)
        shape = (places.shape[0] * made[-1], places.shape[1] * k)
        combined = places[:, None, :, None] * size + np.clip(at, 0, size - 1)[None, :, None, :]
        places, inside = (
            combined.reshape(shape),
            (inside[:, None, :, None] & fits[None, :, None, :]).reshape(shape),
        )
    return places, inside, tuple(made)


def _max_unpool(c: Converter, node: OnnxNode) -> Result:
    """Zeros, with each number at its place."""
    x = c.value(node)
    n, channels, *sizes = c.type(x).shape
    kernel = node.get_ints("kernel_shape", ())
    rank = len(kernel)
    strides, pads = node.get_ints("strides", [1] * rank), node.get_ints("pads", [0] * 2 * rank)
    grown = [(d - 1) * strides[i] + kernel[i] - pads[i] - pads[i + rank] for i, d in enumerate(sizes)]
    shape = (n, channels, *grown)
    zeros = c.param(c.derived(f"{node.output}.zeros"), np.zeros(math.prod(shape), c.type(x).dtype))
    count = (math.prod(c.type(x).shape),)
    values, places = c.reshape(node, x, count, "values"), c.reshape(node, c.value(node, 1), count, "places")
    y = c.emit(node, "scatter_elements", [zeros, places, values], "flat", axis=0)
    y = c.reshape(node, y, shape)
    if not node.has_input(2):
        return y
    # A larger output gets zeros behind; the places count in the shape that the window gives.
    wanted = [int(v) for v in c.known(node, 2, "output_shape").reshape(-1)]
    after = tuple(w - d for w, d in zip(wanted, shape, strict=True))
    return c.emit(node, "pad", [y], before=(0,) * len(shape), after=after) if any(after) else y


def _powers(c: Converter, node: OnnxNode, x: str, p: int) -> str:
    """|x|^p"""
    size = c.emit(node, "abs", [x], "size")
    return size if p == 1 else c.emit(node, "pow", [size, c.scalar(node, "p", p, x)], "power")


def _root(c: Converter, node: OnnxNode, total: str, p: int) -> str:
    return total if p == 1 else c.emit(node, "pow", [total, c.scalar(node, "root", 1 / p, total)])


def _lp_pool(c: Converter, node: OnnxNode) -> Result:
    """(sum |x|^p)^(1/p); the sum is the mean, padding counted, times the window's size"""
    x, p = c.value(node), node.get_int("p", 2)
    size = math.prod(node.get_ints("kernel_shape", ()))
    mean = _pooled(c, node, _powers(c, node, x, p), "avg_pool2d", True, "mean")
    total = c.emit(node, "mul", [mean, c.scalar(node, "count", size, mean)], "" if p == 1 else "total")
    return _root(c, node, total, p)


def _global_pool(op: str) -> Rule:
    def rule(c: Converter, node: OnnxNode) -> Result:
        x = c.value(node)
        return c.emit(node, op, [x], axes=tuple(range(2, len(c.type(x).shape))), keepdims=True)

    return rule


def _global_lp_pool(c: Converter, node: OnnxNode) -> Result:
    x, p = c.value(node), node.get_int("p", 2)
    axes = tuple(range(2, len(c.type(x).shape)))
    total = c.emit(node, "reduce_sum", [_powers(c, node, x, p)], "" if p == 1 else "total", axes=axes)
    return _root(c, node, total, p)


POOL_RULES: dict[str, Rule] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_pool("reduce_mean"),
    "GlobalLpPool": _global_lp_pool,
    "GlobalMaxPool": _global_pool("reduce_max"),
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
    "MaxUnpool": _max_unpool,
}
