"""Conversion rules: ONNX Runtime's operators that round their data to 256 steps as they run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .converter import Converter, OnnxNode, Result, Rule, UnsupportedForm
from .qlinear import product_with_codes
from .recurrent import recurrent


def _on_steps(c: Converter, node: OnnxNode) -> str:
    """The first input, float32, on the steps; 0 is one of them."""
    x, rank = c.value(node), len(c.type(c.value(node)).shape)
    zero, most = (c.scalar(node, name, number) for name, number in (("zero", 0.0), ("most", 255.0)))
    ends = []
    for name, op in (("reduce_min", "minimum"), ("reduce_max", "maximum")):
        end = c.emit(node, name, [x], name, axes=tuple(range(rank)))
        ends.append(c.emit(node, op, [end, zero], f"{name}.end"))
    width = c.emit(node, "sub", [ends[1], ends[0]], "width")
    step = c.emit(node, "div", [width, most], "step")
    some = c.emit(node, "equal", [step, zero], "constant")
    step = c.emit(node, "where", [some, c.scalar(node, "one", 1.0), step], "scale")
    start = c.emit(node, "round", [c.emit(node, "div", [ends[0], step], "start")], "start.whole")
    codes = c.emit(node, "round", [c.emit(node, "div", [x, step], "steps")], "steps.whole")
    codes = c.emit(node, "sub", [codes, start], "codes.free")
    codes = c.emit(node, "clip", [codes], "codes", lo=0.0, hi=255.0)
    centred = c.emit(node, "add", [codes, start], "codes.centred")
    return c.emit(node, "mul", [centred, step], "a")


def _matmul(c: Converter, node: OnnxNode) -> Result:
    c.values[f"{node.output}.a"] = _on_steps(c, node)
    return product_with_codes(c, node, f"{node.output}.a", 1, (2, 3), 4)


def _lstm(c: Converter, node: OnnxNode) -> list[Result]:
    """Data is rounded as a whole, the state anew at each step. Weights are [directions, input, gates]."""
    batch = c.type(c.value(node)).shape[1]
    if batch != 1:
        raise UnsupportedForm(
            f"a batch of {batch}: which sequences share their steps depends on ONNX Runtime's threads; "
            "compile it for a batch of 1"
        )
    rounded, *weights = (f"{node.output}.{name}" for name in ("rounded", "w", "r"))
    c.values[rounded] = _on_steps(c, node)
    for at, scale, zero, name in ((1, 8, 9, weights[0]), (2, 10, 11, weights[1])):
        codes = c.known(node, at, "weights").astype(np.int64)
        each = (len(codes), 1, -1)
        if node.has_input(zero):
            codes = codes - c.known(node, zero, "zero point").astype(np.int64).reshape(each)
        real = codes * c.known(node, scale, "scale").astype(np.float32).reshape(each)
        c.constants[name] = real.astype(np.float32).transpose(0, 2, 1)
    inputs = (rounded, *weights, *node.inputs[3:8])
    return recurrent(c, replace(node, op="LSTM", inputs=inputs), rounded=True)


DYNAMIC_RULES: dict[str, Rule] = {
    "com.microsoft::DynamicQuantizeLSTM": _lstm,
    "com.microsoft::DynamicQuantizeMatMul": _matmul,
}
