"""Conversion rules: convolution, products and batch normalisation."""

from __future__ import annotations

import math

import numpy as np

from .computed import conv_computed
from .converter import (
    Converter,
    OnnxNode,
    Result,
    Rule,
    UnsupportedForm,
)
from .volume import conv_3d
from .window import (
    axes_2d,
    flat,
    pads_2d,
    plane,
    window_pads,
)


def _conv(c: Converter, node: OnnxNode) -> Result:
    if c.constant(node, 1) is None and len(c.type(c.value(node)).shape) < 5:
        return conv_computed(c, node)
    weight = c.known(node, 1, "weight")
    if weight.ndim == 5:
        return conv_3d(c, node, weight)
    x, sizes = plane(c, node)
    kernel = weight.shape[2:]
    if node.get_ints("kernel_shape", kernel) != kernel:
        raise UnsupportedForm(f"kernel_shape {node.attrs['kernel_shape']} differs from its weight's {kernel}")
    if len(kernel) != len(sizes):
        raise UnsupportedForm(f"a {len(kernel)}-D kernel on {len(sizes)}-D data")
    ones = [1] * len(kernel)
    strides, dilations = node.get_ints("strides", ones), node.get_ints("dilations", ones)
    pads = window_pads(node, sizes, kernel, strides, dilations)
    one_d = len(kernel) == 1
    inputs = [x, c.param(node.inputs[1], weight[:, :, None] if one_d else weight, "row" if one_d else "")]
    if node.has_input(2):
        c.known(node, 2, "bias")
        inputs.append(c.value(node, 2))
    y = c.emit(
        node,
        "conv2d",
        inputs,
        "conv" if one_d else "",
        strides=axes_2d(strides, 1),
        pads=pads_2d(pads),
        dilations=axes_2d(dilations, 1),
        groups=node.get_int("group", 1),
    )
    return flat(c, node, y, len(kernel))


def _transposed(c: Converter, node: OnnxNode, value: str, part: str) -> str:
    rank = len(c.type(value).shape)
    return c.emit(node, "transpose", [value], part, perm=(*range(rank - 2), rank - 1, rank - 2))


def _gemm(c: Converter, node: OnnxNode) -> Result:
    alpha, beta = node.get_float("alpha", 1.0), node.get_float("beta", 1.0)
    a, weight = c.value(node, 0), c.constant(node, 1)
    if node.get_int("transA", 0):
        a = _transposed(c, node, a, "a_transposed")
    addend = c.constant(node, 2)
    bias = None if addend is None else _as_bias(addend, weight, node.get_int("transB", 0))
    separate = node.has_input(2) and beta != 0.0 and bias is None
    last = "product" if separate else ""
    if weight is not None:
        rows = weight if node.get_int("transB", 0) else weight.T
        scaled = rows if alpha == 1.0 else rows * np.float32(alpha)
        form = f"rows x{alpha}" if alpha != 1.0 else "rows"
        inputs = [a, c.param(node.inputs[1], scaled, "" if scaled is weight else form)]
        if bias is not None and beta != 0.0:
            inputs.append(c.param(node.inputs[2], bias * np.float32(beta), "" if beta == 1.0 else f"x{beta}"))
        y = c.emit(node, "linear", inputs, last)
    else:
        b = c.value(node, 1)
        if node.get_int("transB", 0):
            b = _transposed(c, node, b, "b_transposed")
        separate = node.has_input(2) and beta != 0.0
        y = c.emit(node, "matmul", [a, b], "product" if separate or alpha != 1.0 else "")
        if alpha != 1.0:
            y = c.emit(node, "mul", [y, c.scalar(node, "alpha", alpha)], "scaled" if separate else "")
    if not separate:
        return y
    other = c.value(node, 2)
    if beta != 1.0:
        other = c.emit(node, "mul", [other, c.scalar(node, "beta", beta)], "beta")
    return c.emit(node, "add", [y, other])


def _as_bias(addend: np.ndarray, weight: np.ndarray | None, transposed: int) -> np.ndarray | None:
    """A constant addend as one number per output, or None when it differs from row to row."""
    if weight is None or addend.size == 0 or addend.size != math.prod(addend.shape[-1:]):
        return None
    return np.ascontiguousarray(np.broadcast_to(addend.reshape(-1), (weight.shape[0 if transposed else 1],)))


def _matmul(c: Converter, node: OnnxNode) -> Result:
    weight = c.constant(node, 1)
    a = c.value(node, 0)
    if weight is not None and weight.ndim == 2:
        return c.emit(node, "linear", [a, c.param(node.inputs[1], weight.T, "rows")])
    if weight is not None and weight.ndim == 1:
        y = c.emit(node, "linear", [a, c.param(node.inputs[1], weight[None], "rows")], "column")
        return c.reshape(node, y, c.type(a).shape[:-1])
    b = c.value(node, 1)
    a_shape, b_shape = c.type(a).shape, c.type(b).shape
    if len(a_shape) >= 2 and len(b_shape) >= 2:
        return c.emit(node, "matmul", [a, b])
    # A vector is a matrix of one row (left) or one column (right), whose axis goes again afterwards.
    if len(a_shape) == 1:
        a = c.reshape(node, a, (1, *a_shape), "row")
    if len(b_shape) == 1:
        b = c.reshape(node, b, (*b_shape, 1), "column")
    y = c.emit(node, "matmul", [a, b], "product")
    shape = list(c.type(y).shape)
    if len(b_shape) == 1:
        del shape[-1]
    if len(a_shape) == 1:
        del shape[-1 if len(b_shape) == 1 else -2]
    return c.reshape(node, y, shape)


def _batch_norm(c: Converter, node: OnnxNode) -> Result:
    if node.get_int("training_mode", 0):
        raise UnsupportedForm("training_mode=1; export the model in evaluation mode")
    if node.used_outputs() > 1:
        raise UnsupportedForm("its statistics are read as outputs; export the model in evaluation mode")
    if node.get_int("spatial", 1) == 0:
        raise UnsupportedForm("spatial=0")
    for i, what in enumerate(("scale", "bias", "mean", "variance"), 1):
        c.known(node, i, what)
    return c.emit(
        node, "batch_norm", [c.value(node, i) for i in range(5)], eps=node.get_float("epsilon", 1e-5)
    )


NN_RULES: dict[str, Rule] = {
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
