"""Conversion rule: DeformConv, a convolution each of whose taps reads the image where an offset says.

Every result reads its taps between pixels, which makes an image with kernel times the channels; one 1x1
convolution sums them (Dai et al., "Deformable Convolutional Networks", 2017; Zhu et al., 2019, for the mask).
"""

from __future__ import annotations

import math

import numpy as np

from .converter import Converter, OnnxNode, Result, Rule, UnsupportedForm
from .sample import FARTHEST, Arithmetic, between


def _deform_conv(c: Converter, node: OnnxNode) -> Result:
    weight, x = c.known(node, 1, "weight"), c.value(node)
    n, channels, *sizes = c.type(x).shape
    kernel = weight.shape[2:]
    if len(sizes) != 2 or node.get_ints("kernel_shape", kernel) != kernel:
        raise UnsupportedForm(f"a kernel of {list(kernel)} on {len(sizes)}-D data")
    a, parts = Arithmetic(c, node), node.get_int("offset_group", 1)
    outs, taps = c.type(c.value(node, 2)).shape[2:], math.prod(kernel)
    points = taps * math.prod(outs)
    offsets = a.reshape(c.value(node, 2), n * parts, taps, 2, math.prod(outs))
    axes = []
    for i, (size, base) in enumerate(zip(sizes, _bases(node, kernel, outs), strict=True)):
        only = {"starts": (0, 0, i, 0), "stops": (n * parts, taps, i + 1, math.prod(outs))}
        moved = c.emit(node, "slice", [offsets], f"offset{i}", **only, steps=(1,) * 4)
        places = a("add", a.reshape(moved, n * parts, points), base.reshape(1, points))
        places = a("clip", places, lo=-FARTHEST, hi=FARTHEST)
        axes.append(a.taps(places, size, "linear", "zeros", (0.0, 0.0)))
    mask = a.reshape(c.value(node, 4), n * parts * points, 1) if node.has_input(4) else ""
    y = between(a, a.reshape(x, n * parts, channels // parts, *sizes), axes, mask)
    y = a.transpose(a.reshape(y, n, parts, points, channels // parts), 0, 1, 3, 2)
    operands = [
        a.reshape(y, n, channels * taps, *outs),
        c.param(node.inputs[1], weight.reshape(len(weight), -1, 1, 1), "taps"),
    ]
    if node.has_input(3):
        c.known(node, 3, "bias")
        operands.append(c.value(node, 3))
    return c.emit(node, "conv2d", operands, groups=node.get_int("group", 1))


def _bases(node: OnnxNode, kernel: tuple[int, ...], outs: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """float32 [kernel h, kernel w, out h, out w]: rows and columns that the taps read without offsets."""
    strides, dilations = node.get_ints("strides", (1, 1)), node.get_ints("dilations", (1, 1))
    pads = node.get_ints("pads", (0, 0, 0, 0))
    rows, columns = (
        np.arange(k)[:, None] * dilations[i] + np.arange(o) * strides[i] - pads[i]
        for i, (k, o) in enumerate(zip(kernel, outs, strict=True))
    )
    shape = (*kernel, *outs)
    whole = (rows[:, None, :, None], columns[None, :, None, :])
    made = [np.broadcast_to(part, shape).astype(np.float32) for part in whole]
    return made[0], made[1]


DEFORM_RULES: dict[str, Rule] = {"DeformConv": _deform_conv}
