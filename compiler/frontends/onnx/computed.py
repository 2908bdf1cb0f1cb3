"""Convolutions whose weight is computed at run time, as in trackers and networks that make their own."""

from __future__ import annotations

import math

import numpy as np

from .converter import Converter, OnnxNode
from .window import axes_2d, flat, pads_2d, plane, window_pads


def conv_computed(c: Converter, node: OnnxNode) -> str:
    """Windows become columns; each group of channels is a product with them.

    x [n, c, h, w] -> [n, groups, c / groups * kernel, pixels of y]; weight [groups, out / groups, the same]
    """
    x, sizes = plane(c, node)
    n, channels, *_ = c.type(x).shape
    out, per_group, *kernel = c.type(c.value(node, 1)).shape
    ones = [1] * len(kernel)
    strides, dilations = node.get_ints("strides", ones), node.get_ints("dilations", ones)
    top, left, bottom, right = pads_2d(window_pads(node, sizes, kernel, strides, dilations))
    if top or left or bottom or right:
        x = c.emit(node, "pad", [x], "padded", before=(0, 0, top, left), after=(0, 0, bottom, right))
    _, _, high, wide = c.type(x).shape
    taps, outs = _taps((high, wide), axes_2d(kernel, 1), axes_2d(strides, 1), axes_2d(dilations, 1))
    pixels = c.reshape(node, x, (n, channels, high * wide), "pixels")
    table = c.param(c.derived(f"{node.output}.taps"), taps)
    columns = c.emit(node, "gather", [pixels, table], "columns", axis=2)
    groups = node.get_int("group", 1)
    deep = per_group * len(taps)
    columns = c.reshape(node, columns, (n, groups, deep, math.prod(outs)), "columns.groups")
    weight = c.reshape(node, c.value(node, 1), (1, groups, out // groups, deep), "weight.groups")
    y = c.emit(node, "matmul", [weight, columns], "product")
    y = c.reshape(node, y, (n, out, *outs), "planes")
    if node.has_input(2):
        bias = c.reshape(node, c.value(node, 2), (out, 1, 1), "bias.column")
        y = c.emit(node, "add", [y, bias], "biased")
    return flat(c, node, y, len(kernel))


def _taps(
    sizes: tuple[int, int], kernel: tuple[int, int], strides: tuple[int, int], dilations: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, ...]]:
    """(int64 [taps, pixels of y]: the pixel of x that each tap reads, the sizes of y)."""
    outs = [
        (d - e * (k - 1) - 1) // s + 1 for d, k, s, e in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    rows, columns = (
        np.arange(k)[:, None] * e + np.arange(o) * s
        for k, o, s, e in zip(kernel, outs, strides, dilations, strict=True)
    )
    index = rows[:, None, :, None] * sizes[1] + columns[None, :, None, :]
    return index.reshape(math.prod(kernel), math.prod(outs)), tuple(outs)
