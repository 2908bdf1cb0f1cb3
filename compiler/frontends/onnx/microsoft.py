"""Conversion rules: operators that ONNX Runtime's optimiser fuses, back to what they were made of."""

from __future__ import annotations

import math

import numpy as np

from .converter import (
    Converter,
    OnnxNode,
    Result,
    Rule,
    UnsupportedForm,
)

OPSET = 17
"""ONNX's operator set whose meaning the parts have."""


def _part(c: Converter, node: OnnxNode, op: str, inputs: tuple[str, ...], **attrs: object) -> str:
    """What the rule of an ONNX operator makes of inputs given by their ONNX names."""
    return c.computed(OnnxNode(node.name, op, inputs, (f"{node.output}.{op}",), attrs, OPSET))


def _with_bias(c: Converter, node: OnnxNode, index: int) -> str:
    """The first input plus a vector, if there is one."""
    x = c.value(node)
    return c.emit(node, "add", [x, c.value(node, index)], "biased") if node.has_input(index) else x


def _bias_gelu(c: Converter, node: OnnxNode) -> Result:
    return c.emit(node, "gelu", [_with_bias(c, node, 1)])


def _fast_gelu(c: Converter, node: OnnxNode) -> Result:
    """The tanh form."""
    c.values[f"{node.output}.in"] = _with_bias(c, node, 1)
    return _part(c, node, "Gelu", (f"{node.output}.in",), approximate="tanh")


def _quick_gelu(c: Converter, node: OnnxNode) -> Result:
    x = c.value(node)
    scaled = c.emit(node, "mul", [x, c.scalar(node, "alpha", node.get_float("alpha", 1.702))], "scaled")
    return c.emit(node, "mul", [x, c.emit(node, "sigmoid", [scaled], "gate")])


def _skip_norm(op: str) -> Rule:
    """Norm of x + skip (+ bias); the sum is an output too."""

    def rule(c: Converter, node: OnnxNode) -> list[Result]:
        norm_inputs = 2 if op == "rms_norm" else 3
        total = c.emit(node, "add", [c.value(node, 0), c.value(node, 1)], "sum")
        bias = norm_inputs + 1
        if node.has_input(bias):
            total = c.emit(node, "add", [total, c.value(node, bias)], "biased")
        if any((*node.outputs, "", "", "")[1:3]):
            raise UnsupportedForm("its statistics are read as outputs")
        operands = [c.value(node, i) for i in range(2, norm_inputs + 1) if node.has_input(i)]
        eps = node.get_float("epsilon", 1e-5 if op == "rms_norm" else 1e-12)
        return [c.emit(node, op, [total, *operands], eps=eps), "", "", total]

    return rule


def _turned(c: Converter, node: OnnxNode, value: str, part: str) -> str:
    rank = len(c.type(value).shape)
    return c.emit(node, "transpose", [value], part, perm=(*range(rank - 2), rank - 1, rank - 2))


def _fused_matmul(c: Converter, node: OnnxNode) -> Result:
    if node.get_int("transBatchA", 0) or node.get_int("transBatchB", 0):
        raise UnsupportedForm("transBatchA or transBatchB")
    alpha, weight = node.get_float("alpha", 1.0), c.constant(node, 1)
    a = c.value(node)
    a = _turned(c, node, a, "a") if node.get_int("transA", 0) else a
    if weight is not None and weight.ndim == 2:
        rows = (weight if node.get_int("transB", 0) else weight.T) * np.float32(alpha)
        return c.emit(node, "linear", [a, c.param(node.inputs[1], rows, f"rows x{alpha}")])
    b = c.value(node, 1)
    b = _turned(c, node, b, "b") if node.get_int("transB", 0) else b
    if alpha == 1.0:
        return c.emit(node, "matmul", [a, b])
    product = c.emit(node, "matmul", [a, b], "product")
    return c.emit(node, "mul", [product, c.scalar(node, "alpha", alpha)])


def _activated(c: Converter, node: OnnxNode, value: str) -> Result:
    """The activation that a fused layer ends with."""
    name = node.get_str("activation", "")
    known = {
        "": {},
        "Relu": {},
        "Sigmoid": {},
        "Tanh": {},
        "LeakyRelu": {"alpha": 0},
        "HardSigmoid": {"alpha": 0, "beta": 1},
    }
    if name not in known:
        raise UnsupportedForm(f"activation {name!r}")
    if not name:
        return value
    numbers = [float(v) for v in node.attrs.get("activation_params", ())]
    c.values[f"{node.output}.before"] = value
    attrs = {key: numbers[i] for key, i in known[name].items() if i < len(numbers)}
    return _part(c, node, name, (f"{node.output}.before",), **attrs)


def _fused_conv(c: Converter, node: OnnxNode) -> Result:
    attrs = {k: v for k, v in node.attrs.items() if not k.startswith("activation")}
    y = _part(c, node, "Conv", node.inputs[:3], **attrs)
    if node.has_input(3):
        y = c.emit(node, "add", [y, c.value(node, 3)], "sum")
    return _activated(c, node, y)


def _heads(c: Converter, node: OnnxNode, index: int, heads: int, bias: np.ndarray | None, part: str) -> str:
    """[batch, steps, heads * size] (+ bias) -> [batch, heads, steps, size]"""
    x = c.value(node, index)
    shape = c.type(x).shape
    if len(shape) != 3 or shape[2] % heads:
        raise UnsupportedForm(f"{part} of shape {shape} for {heads} heads")
    if bias is not None:
        x = c.emit(node, "add", [x, c.param(node.inputs[3], bias, part)], f"{part}.biased")
    apart = c.reshape(node, x, (*shape[:2], heads, shape[2] // heads), f"{part}.apart")
    return c.emit(node, "transpose", [apart], part, perm=(0, 2, 1, 3))


def _multi_head(c: Converter, node: OnnxNode) -> Result:
    """softmax(Q K^T * scale + attention bias) V, for each head; no masks or past."""
    if any(node.has_input(i) for i in (4, 6, 7)) or node.get_int("unidirectional", 0):
        raise UnsupportedForm("a padding mask, a past, or unidirectional")
    if not (node.has_input(1) and node.has_input(2)) or node.used_outputs() > 1:
        raise UnsupportedForm("packed keys and values, or present ones as outputs")
    heads, widths = int(node.attrs["num_heads"]), [c.type(c.value(node, i)).shape[-1] for i in range(3)]
    biases: list[np.ndarray | None] = [None, None, None]
    if node.has_input(3):
        biases = list(np.split(c.known(node, 3, "bias"), np.cumsum(widths)[:2]))
    names = ("query", "key", "value")
    q, k, v = (_heads(c, node, i, heads, biases[i], names[i]) for i in range(3))
    scale = node.get_float("scale", 0.0) or 1 / math.sqrt(widths[0] // heads)
    scores = c.emit(node, "matmul", [q, _turned(c, node, k, "key.turned")], "products")
    scores = c.emit(node, "mul", [scores, c.scalar(node, "scale", scale)], "scores")
    if node.has_input(5):
        scores = c.emit(node, "add", [scores, c.value(node, 5)], "scores.biased")
    weights = c.emit(node, "softmax", [scores], "weights", axis=3)
    y = c.emit(node, "matmul", [weights, v], "heads")
    batch, _, steps, size = c.type(y).shape
    moved = c.emit(node, "transpose", [y], "together", perm=(0, 2, 1, 3))
    return c.reshape(node, moved, (batch, steps, heads * size))


_RULES: dict[str, Rule] = {
    "BiasGelu": _bias_gelu,
    "FastGelu": _fast_gelu,
    "FusedConv": _fused_conv,
    "FusedMatMul": _fused_matmul,
    "Gelu": _bias_gelu,
    "MultiHeadAttention": _multi_head,
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": _skip_norm("layer_norm"),
    "SkipSimplifiedLayerNormalization": _skip_norm("rms_norm"),
}
MICROSOFT_RULES: dict[str, Rule] = {f"com.microsoft::{name}": rule for name, rule in _RULES.items()}
