"""Conversion rules: normalisations.

Over trailing axes they become layer_norm or rms_norm. Group, instance and mean-variance normalisation
become means and arithmetic that work on an image in either layout: a mean per channel, then over the
channels of a group.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .converter import (
    Converter,
    OnnxNode,
    Result,
    Rule,
    UnsupportedForm,
)

TINY = 1e-38
"""Added to nothing, only the least norm that is divided by: zeros stay zeros."""


def _from_axis(node: OnnxNode, rank: int) -> int:
    axis = node.get_int("axis", -1)
    return axis + rank if axis < 0 else axis


def _per_element(c: Converter, node: OnnxNode, index: int, shape: tuple[int, ...]) -> np.ndarray | None:
    """A constant scale or bias with one number for each element of the trailing axes `shape`, flat.

    None when it is computed, or also varies along other axes.
    """
    array = c.constant(node, index)
    if array is None:
        return None
    extra = array.ndim - len(shape)
    if extra > 0 and array.shape[:extra] != (1,) * extra:
        return None
    return np.broadcast_to(array.reshape(array.shape[max(extra, 0) :]), shape).reshape(-1)


def _layer_norm(c: Converter, node: OnnxNode) -> list[Result]:
    x = c.value(node)
    shape = c.type(x).shape
    axis = _from_axis(node, len(shape))
    y = _normalised(c, node, "layer_norm", x, axis, (1, 2))
    mean, inverse = (*node.outputs, "", "")[1:3]
    if not mean and not inverse:
        return [y]
    axes = tuple(range(axis, len(shape)))
    average = c.emit(node, "reduce_mean", [x], "mean", axes=axes)
    centred = c.emit(node, "sub", [x, average], "centred")
    return [y, average, _inverse_deviation(c, node, centred, axes, node.get_float("epsilon", 1e-5))]


def _rms_norm(c: Converter, node: OnnxNode) -> Result:
    x = c.value(node)
    return _normalised(c, node, "rms_norm", x, _from_axis(node, len(c.type(x).shape)), (1,))


def _normalised(c: Converter, node: OnnxNode, op: str, x: str, axis: int, operands: Sequence[int]) -> str:
    """`op` over the axes from `axis` on; `operands` are the inputs that hold gamma and beta."""
    shape = c.type(x).shape
    inner = shape[axis:]
    given = [i for i in operands if node.has_input(i)]
    known = [(i, _per_element(c, node, i, inner)) for i in given]
    inside = all(array is not None for _, array in known)
    flat = c.reshape(node, x, (*shape[:axis], math.prod(inner)), "flat")
    inputs = [flat]
    if inside:
        inputs += [c.param(node.inputs[i], array, f"flat{inner}") for i, array in known if array is not None]
    plain = flat == x and inside
    y = c.emit(node, op, inputs, "" if plain else op, eps=node.get_float("epsilon", 1e-5))
    y = c.reshape(node, y, shape, "" if inside else "rows")
    if not inside:
        for i, arithmetic in zip(given, ("mul", "add"), strict=False):
            y = c.emit(node, arithmetic, [y, c.value(node, i)], "" if i == given[-1] else arithmetic)
    return y


def _inverse_deviation(c: Converter, node: OnnxNode, centred: str, axes: tuple[int, ...], eps: float) -> str:
    """1 / sqrt(mean(centred^2) + eps) over `axes`, which are kept with length 1."""
    square = c.emit(node, "mul", [centred, centred], "square")
    variance = c.emit(node, "reduce_mean", [square], "variance", axes=axes)
    shifted = c.emit(node, "add", [variance, c.scalar(node, "eps", eps)], "variance_eps")
    return c.emit(node, "rsqrt", [shifted], "inverse_deviation")


def _over_groups(c: Converter, node: OnnxNode, x: str, groups: int, part: str) -> str:
    """Mean of x over the pixels and channels of each group, for each channel: [n, c, 1, ...]."""
    shape = c.type(x).shape
    n, channels = shape[:2]
    mean = c.emit(node, "reduce_mean", [x], f"{part}_pixels", axes=tuple(range(2, len(shape))))
    if groups == channels:
        return mean
    grouped = c.reshape(node, mean, (n, groups, channels // groups), f"{part}_groups")
    mean = c.emit(node, "reduce_mean", [grouped], f"{part}_group", axes=(2,))
    ones = c.param(c.derived(f"{node.output}.ones"), np.ones(channels // groups, np.float32), "ones")
    spread = c.emit(node, "mul", [mean, ones], f"{part}_spread")
    return c.reshape(node, spread, (n, channels, *(1,) * (len(shape) - 2)), part)


def _per_channel(c: Converter, node: OnnxNode, index: int, shape: tuple[int, ...], what: str) -> str:
    """Scale or bias as [c, 1, ...]."""
    column = (shape[1], *(1,) * (len(shape) - 2))
    array = c.constant(node, index)
    if array is None:
        return c.reshape(node, c.value(node, index), column, what)
    return c.param(node.inputs[index], array.reshape(column), f"column{len(shape)}")


def _group_norm(c: Converter, node: OnnxNode) -> Result:
    x = c.value(node)
    shape = c.type(x).shape
    if len(shape) < 3:
        raise UnsupportedForm(f"data of {len(shape)} axes: there are no pixels to normalise over")
    groups = node.get_int("num_groups", shape[1])
    if groups < 1 or shape[1] % groups:
        raise UnsupportedForm(f"{shape[1]} channels do not split into {groups} groups")
    eps = c.scalar(node, "eps", node.get_float("epsilon", 1e-5))
    centred = c.emit(node, "sub", [x, _over_groups(c, node, x, groups, "mean")], "centred")
    square = c.emit(node, "mul", [centred, centred], "square")
    variance = c.emit(node, "add", [_over_groups(c, node, square, groups, "variance"), eps], "variance_eps")
    gamma = _per_channel(c, node, 1, shape, "scale")
    factor = c.emit(node, "mul", [c.emit(node, "rsqrt", [variance], "inverse"), gamma], "factor")
    scaled = c.emit(node, "mul", [centred, factor], "scaled")
    return c.emit(node, "add", [scaled, _per_channel(c, node, 2, shape, "bias")])


def _mean_variance(c: Converter, node: OnnxNode) -> Result:
    """(x - mean) / (standard deviation + 1e-9), as ONNX defines it."""
    x = c.value(node)
    rank = len(c.type(x).shape)
    axes = tuple(sorted(a % rank for a in node.get_ints("axes", (0, 2, 3))))
    mean = c.emit(node, "reduce_mean", [x], "mean", axes=axes)
    centred = c.emit(node, "sub", [x, mean], "centred")
    square = c.emit(node, "mul", [centred, centred], "square")
    variance = c.emit(node, "reduce_mean", [square], "variance", axes=axes)
    deviation = c.emit(node, "sqrt", [variance], "deviation")
    divisor = c.emit(node, "add", [deviation, c.scalar(node, "eps", 1e-9)], "divisor")
    return c.emit(node, "div", [centred, divisor])


def _lp_norm(c: Converter, node: OnnxNode) -> Result:
    x = c.value(node)
    axis, power = _from_axis(node, len(c.type(x).shape)), node.get_int("p", 2)
    if power not in (1, 2):
        raise UnsupportedForm(f"p={power}; ONNX has 1 and 2")
    size = c.emit(node, "abs", [x], "abs") if power == 1 else c.emit(node, "mul", [x, x], "square")
    norm = c.emit(node, "reduce_sum", [size], "sum", axes=(axis,))
    if power == 2:
        norm = c.emit(node, "sqrt", [norm], "norm")
    divisor = c.emit(node, "maximum", [norm, c.scalar(node, "tiny", TINY)], "divisor")
    return c.emit(node, "div", [x, divisor])


def _local_response(c: Converter, node: OnnxNode) -> Result:
    """x / (bias + alpha / size * sum of x^2 over `size` neighbouring channels) ^ beta."""
    x, size = c.value(node), node.get_int("size", 1)
    shape = c.type(x).shape
    if size > 2 * shape[1]:
        raise UnsupportedForm(f"size={size} for {shape[1]} channels")
    square = c.emit(node, "mul", [x, x], "square")
    rows = c.reshape(node, square, (shape[0], 1, shape[1], math.prod(shape[2:])), "channels")
    before = (size - 1) // 2
    pads = (before, 0, size - 1 - before, 0)
    # The mean over a window of `size`, zeros beyond the ends counted, is the sum times 1 / size.
    mean = c.emit(node, "avg_pool2d", [rows], "window", kernel=(size, 1), pads=pads, count_pad=True)
    mean = c.reshape(node, mean, shape, "mean")
    scaled = c.emit(node, "mul", [mean, c.scalar(node, "alpha", node.get_float("alpha", 1e-4))], "scaled")
    base = c.emit(node, "add", [scaled, c.scalar(node, "bias", node.get_float("bias", 1.0))], "base")
    exponent = c.scalar(node, "exponent", -node.get_float("beta", 0.75))
    log = c.emit(node, "mul", [c.emit(node, "log", [base], "log"), exponent], "power")
    return c.emit(node, "mul", [x, c.emit(node, "exp", [log], "factor")])


NORM_RULES: dict[str, Rule] = {
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _group_norm,
    "LRN": _local_response,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _lp_norm,
    "MeanVarianceNormalization": _mean_variance,
    "RMSNormalization": _rms_norm,
}
