"""Three-dimensional convolutions and pooling windows by two-dimensional ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from .converter import Converter, OnnxNode, UnsupportedForm
from .window import window_pads


def conv_3d(c: Converter, node: OnnxNode, weight: np.ndarray) -> str:
    """Slices in depth become channels: one conv2d of all output slices.

    x [n, c, d, h, w] -> gather [n, c, kd, od, h, w] -> [n * od, c * kd, h, w] -> conv2d -> y
    """
    x = c.value(node)
    n, channels, *sizes = c.type(x).shape
    kernel = weight.shape[2:]
    if len(sizes) != 3 or node.get_ints("kernel_shape", kernel) != kernel:
        raise UnsupportedForm(f"a kernel {kernel} on {len(sizes)}-D data")
    strides, dilations = (node.get_ints(key, (1, 1, 1)) for key in ("strides", "dilations"))
    front, top, left, back, bottom, right = window_pads(node, sizes, kernel, strides, dilations)
    depth = (sizes[0] + front + back - dilations[0] * (kernel[0] - 1) - 1) // strides[0] + 1
    if front or back:
        before, after = (0, 0, front, 0, 0), (0, 0, back, 0, 0)
        x = c.emit(node, "pad", [x], "deep", before=before, after=after)
    taps = np.arange(kernel[0])[:, None] * dilations[0] + np.arange(depth) * strides[0]
    stacked = c.emit(node, "gather", [x, c.param(c.derived(f"{node.output}.taps"), taps)], "taps", axis=2)
    moved = c.emit(node, "transpose", [stacked], "slices", perm=(0, 3, 1, 2, 4, 5))
    planes = c.reshape(node, moved, (n * depth, channels * kernel[0], *sizes[1:]), "planes")
    flat = weight.reshape(weight.shape[0], weight.shape[1] * kernel[0], *kernel[1:])
    inputs = [planes, c.param(node.inputs[1], flat, "planes")]
    if node.has_input(2):
        c.known(node, 2, "bias")
        inputs.append(c.value(node, 2))
    y = c.emit(
        node,
        "conv2d",
        inputs,
        "conv",
        strides=strides[1:],
        dilations=dilations[1:],
        pads=(top, left, bottom, right),
        groups=node.get_int("group", 1),
    )
    oc, oh, ow = c.type(y).shape[1:]
    apart = c.reshape(node, y, (n, depth, oc, oh, ow), "apart")
    return c.emit(node, "transpose", [apart], perm=(0, 2, 1, 3, 4))


def pool_3d(c: Converter, node: OnnxNode, x: str, op: str, window: dict[str, Any]) -> str:
    """Rows and columns first, then depth: maxima of maxima, means of means (of as many numbers each)."""
    n, channels, depth, h, w = c.type(x).shape
    strides, dilations, pads = window["strides"], window["dilations"], window["pads"]
    rest = {key: window[key] for key in window if key == "count_pad"}
    flat = c.reshape(node, x, (n, channels * depth, h, w), "rows")
    y = c.emit(
        node,
        op,
        [flat],
        "plane",
        kernel=window["kernel"][1:],
        strides=strides[1:],
        dilations=dilations[1:],
        pads=(pads[1], pads[2], pads[4], pads[5]),
        **rest,
    )
    oh, ow = c.type(y).shape[2:]
    columns = c.reshape(node, y, (n, channels, depth, oh * ow), "columns")
    y = c.emit(
        node,
        op,
        [columns],
        "depth",
        kernel=(window["kernel"][0], 1),
        strides=(strides[0], 1),
        dilations=(dilations[0], 1),
        pads=(pads[0], 0, pads[3], 0),
        **rest,
    )
    return c.reshape(node, y, (n, channels, c.type(y).shape[2], oh, ow))
