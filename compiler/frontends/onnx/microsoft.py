"""Conversion rules: operators that ONNX Runtime's optimiser fuses, back to what they were made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .attention import OPSET, part, turned
from .converter import (
    Converter,
    OnnxNode,
    Result,
    Rule,
    UnsupportedForm,
)


def _with_bias(c: Converter, node: OnnxNode, index: int) -> str:
    """The first input plus a vector, if there is one."""
    x = c.value(node)
    return c.emit(node, "add", [x, c.value(node, index)], "biased") if node.has_input(index) else x


def _bias_gelu(c: Converter, node: OnnxNode) -> Result:
    return c.emit(node, "gelu", [_with_bias(c, node, 1)])


def _fast_gelu(c: Converter, node: OnnxNode) -> Result:
    """The tanh form."""
    c.values[f"{node.output}.in"] = _with_bias(c, node, 1)
    return part(c, node, "Gelu", (f"{node.output}.in",), approximate="tanh")


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


def _batches_turned(c: Converter, node: OnnxNode, index: int) -> str:
    """An operand, its first axis behind the other axes of batches where the node says so."""
    x = c.value(node, index)
    rank = len(c.type(x).shape)
    if not node.get_int("transBatchB" if index else "transBatchA", 0) or rank < 3:
        return x
    perm = (*range(1, rank - 1), 0, rank - 1)
    return c.emit(node, "transpose", [x], f"batches{index}", perm=perm)


def _fused_matmul(c: Converter, node: OnnxNode) -> Result:
    alpha, weight = node.get_float("alpha", 1.0), c.constant(node, 1)
    a = _batches_turned(c, node, 0)
    a = turned(c, node, a, "a") if node.get_int("transA", 0) else a
    if weight is not None and weight.ndim == 2 and not node.get_int("transBatchB", 0):
        rows = (weight if node.get_int("transB", 0) else weight.T) * np.float32(alpha)
        return c.emit(node, "linear", [a, c.param(node.inputs[1], rows, f"rows x{alpha}")])
    b = _batches_turned(c, node, 1)
    b = turned(c, node, b, "b") if node.get_int("transB", 0) else b
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
    if name == "Clip":
        low, high = (float(v) for v in node.attrs["activation_params"])
        return c.emit(node, "clip", [value], lo=low, hi=high)
    if name not in known:
        raise UnsupportedForm(f"activation {name!r}")
    if not name:
        return value
    numbers = [float(v) for v in node.attrs.get("activation_params", ())]
    c.values[f"{node.output}.before"] = value
    attrs = {key: numbers[i] for key, i in known[name].items() if i < len(numbers)}
    return part(c, node, name, (f"{node.output}.before",), **attrs)


def _fused_conv(c: Converter, node: OnnxNode) -> Result:
    attrs = {k: v for k, v in node.attrs.items() if not k.startswith("activation")}
    y = part(c, node, "Conv", node.inputs[:3], **attrs)
    if node.has_input(3):
        y = c.emit(node, "add", [y, c.value(node, 3)], "sum")
    return _activated(c, node, y)


def _fused_gemm(c: Converter, node: OnnxNode) -> Result:
    attrs = {k: v for k, v in node.attrs.items() if not k.startswith("activation")}
    y = part(c, node, "Gemm", node.inputs, **attrs)
    given = (node.attrs.get(f"activation_{key}") for key in ("alpha", "beta"))
    numbers = [number for number in given if number is not None]
    return _activated(c, replace(node, attrs={**node.attrs, "activation_params": numbers}), y)


def _embed_norm(c: Converter, node: OnnxNode) -> list[Result]:
    """Norm of the sum of rows of the tables of words, positions and segments; and the number of words."""
    tokens = c.value(node)
    batch, steps = c.type(tokens).shape
    if node.has_input(8):
        rows = c.emit(node, "gather", [c.value(node, 3), c.value(node, 8)], "position", axis=0)
    else:
        table = c.known(node, 3, "positions")[:steps]
        rows = c.param(node.inputs[3], table, f"first {steps}")
    total = c.emit(node, "gather", [c.value(node, 2), tokens], "word", axis=0)
    total = c.emit(node, "add", [total, rows], "sum")
    if node.has_input(1) and node.has_input(4):
        segment = c.emit(node, "gather", [c.value(node, 4), c.value(node, 1)], "segment", axis=0)
        total = c.emit(node, "add", [total, segment], "embedding_sum")
    eps = node.get_float("epsilon", 1e-12)
    y = c.emit(node, "layer_norm", [total, c.value(node, 5), c.value(node, 6)], eps=eps)
    if node.used_outputs() < 2:
        return [y]
    if not node.has_input(7):
        return [y, np.zeros(batch, np.int32), total]
    mask = c.cast(node, c.value(node, 7), "int32", "mask")
    words = c.emit(node, "reduce_sum", [mask], "words", axes=(1,), keepdims=False)
    return [y, words, total]


def _as_onnx(op: str) -> Rule:
    """ONNX's operator of a later operator set (the simplified norm is called RMSNormalization there)."""

    def rule(c: Converter, node: OnnxNode) -> list[Result]:
        if op == "RMSNormalization" and node.used_outputs() > 1:
            raise UnsupportedForm("its statistics are read as outputs")
        return list(c.apply(replace(node, op=op, opset=OPSET)))

    return rule


_RULES: dict[str, Rule] = {
    "BiasGelu": _bias_gelu,
    "EmbedLayerNormalization": _embed_norm,
    "FastGelu": _fast_gelu,
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "Gelu": _bias_gelu,
    "GridSample": _as_onnx("GridSample"),
    "LayerNormalization": _as_onnx("LayerNormalization"),
    "QuickGelu": _quick_gelu,
    "SimplifiedLayerNormalization": _as_onnx("RMSNormalization"),
    "SkipLayerNormalization": _skip_norm("layer_norm"),
    "SkipSimplifiedLayerNormalization": _skip_norm("rms_norm"),
    "TransposeMatMul": _fused_matmul,
    "Trilu": _as_onnx("Trilu"),
}
MICROSOFT_RULES: dict[str, Rule] = {f"com.microsoft::{name}": rule for name, rule in _RULES.items()}
