"""Gives layers of a model that came quantised their int8 weights back.

    d: dequantize(x8) {x_scale, x_zero} -> d          c: conv2d(x8, codes, bias32, _, scale) {x_zero} -> c
    c: conv2d(d, w, b) -> c                      =>   with w = codes * s exactly, scale = x_scale * s

    l: linear(x, w, b) -> l                       =>    l: coded_linear(x, codes, scale, _, zero, b) -> l
                                                        with w = (codes - zero) * scale in blocks

Only where nothing is lost: weights that are codes times a scale per output channel (or one for all), and a
bias in steps of x_scale * s. A layer whose input is float32 keeps float32 weights: no layer reads both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...builder import GraphBuilder
from ...formats import Coded, decode
from ...ir import Node, TensorType
from ...ops.coded import coded_operands
from .block_codes import Noted, coded_of

LAYERS = ("conv2d", "linear")
# Operators on constants that leave each element's scale what it was.
MOVING = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")


@dataclass
class Quantised:
    """What the rules noted. `scales`: ONNX name of a constant -> the numbers that its codes were multiplied
    with; `bytes`: value in int8 -> the same codes plus 128 as uint8; `blocks`: ONNX name of a constant -> its
    codes of few bits.
    """

    scales: dict[str, np.ndarray] = field(default_factory=dict)
    bytes: dict[str, str] = field(default_factory=dict)
    blocks: dict[str, Noted] = field(default_factory=dict)

    def moved(self, op: str, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """A constant was made of another."""
        if op in MOVING and inputs[0] in self.scales:
            self.scales[outputs[0]] = self.scales[inputs[0]]
        if op in ("Transpose", "Identity") and inputs[0] in self.blocks:
            data = self.blocks[inputs[0]]
            self.blocks[outputs[0]] = data.turned if op == "Transpose" else data


def restore_codes(builder: GraphBuilder, quantised: Quantised, names: Mapping[str, str]) -> None:
    """Rewrite the layers that can have codes. `names`: parameter -> ONNX name of the constant in it."""
    makers = {node.output: node for node in builder.nodes}
    for i, node in enumerate(builder.nodes):
        if node.op == "linear" and names.get(node.inputs[1], "") in quantised.blocks:
            builder.nodes[i] = _in_blocks(builder, node, quantised.blocks[names[node.inputs[1]]]) or node
            continue
        scale = quantised.scales.get(names.get(node.inputs[1], "")) if node.op in LAYERS else None
        source = makers.get(node.inputs[0]) if scale is not None else None
        if scale is not None and source is not None and source.op == "dequantize":
            builder.nodes[i] = _with_codes(builder, node, source, scale) or node


def _in_blocks(builder: GraphBuilder, node: Node, data: Noted) -> Node | None:
    """The layer on codes of few bits; None if its weight is not what they are."""
    x, w, bias = (*node.inputs, "")[:3]
    blocks, weight = data.rows(), builder.params.get(w)
    if weight is None or len(node.inputs) > 3 or weight.shape != blocks.codes.shape:
        return None
    coded = coded_of(blocks)
    if coded is None or not np.array_equal(decode(coded), weight):
        return None
    inputs = [x, *stored_codes(builder, w, coded, bool(bias)), *filter(None, [bias])]
    attrs = {**node.attrs, "format": str(coded.format), "k": coded.shape[1]}
    return replace(node, op="coded_linear", inputs=tuple(inputs), attrs=attrs)


def stored_codes(builder: GraphBuilder, name: str, coded: Coded, more: bool) -> list[str]:
    """The arrays as parameters called after the weight, in the order of coded_linear's inputs; absent ones at
    the end only where `more` inputs follow."""
    parts = list(zip(("codes", "scale", "row_scale", "side"), coded_operands(coded), strict=True))
    while not more and parts[-1][1] is None:
        parts.pop()
    return ["" if array is None else _param(builder, f"{name}.{part}", array) for part, array in parts]


def _with_codes(builder: GraphBuilder, node: Node, source: Node, scale: np.ndarray) -> Node | None:
    """The layer on the codes that `source` dequantises; None if its numbers are no codes."""
    w, bias, residual = (*node.inputs, "", "")[1:4]
    weight = builder.params.get(w)
    if weight is None or weight.dtype != np.float32 or len(weight) % scale.size:
        return None
    per_channel = np.tile(scale.astype(np.float32), len(weight) // scale.size)
    codes = _codes(weight, per_channel)
    x_scale = float(source.attrs["x_scale"])  # type: ignore[arg-type]
    steps = x_scale * per_channel
    bias_codes = None if not bias else _bias_codes(builder.params.get(bias), steps)
    if codes is None or (bias and bias_codes is None):
        return None
    inputs = (
        source.inputs[0],
        _param(builder, f"{node.name}.weight.int8", codes),
        "" if bias_codes is None else _param(builder, f"{node.name}.bias.int32", bias_codes),
        residual,
        _param(builder, f"{node.name}.scale", steps.astype(np.float32)),
    )
    attrs: dict[str, Any] = {**node.attrs}
    if source.attrs["x_zero"]:
        attrs["x_zero"] = source.attrs["x_zero"]
    return replace(node, inputs=inputs, attrs=attrs)


def _codes(weight: np.ndarray, scale: np.ndarray) -> np.ndarray | None:
    rows = scale.reshape(-1, *[1] * (weight.ndim - 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.where(rows == 0, 0, np.rint(weight / rows))
    fits = np.abs(codes).max(initial=0) <= 127 or (codes.min() >= -128 and codes.max() <= 127)
    return codes.astype(np.int8) if fits and np.array_equal(codes.astype(np.float32) * rows, weight) else None


def _bias_codes(bias: np.ndarray | None, steps: np.ndarray) -> np.ndarray | None:
    """int32 codes of a bias, if it is whole in these steps (up to the rounding of its float32 numbers)."""
    if bias is None or not steps.all():
        return None
    exact = bias.astype(np.float64) / steps
    codes = np.rint(exact)
    whole = np.abs(exact - codes) <= 0.02 + 4e-7 * np.abs(codes)
    return codes.astype(np.int32) if whole.all() and np.abs(codes).max(initial=0) < 2**31 else None


def _param(builder: GraphBuilder, wanted: str, array: np.ndarray) -> str:
    name = builder.param(wanted, np.ascontiguousarray(array))
    builder.types[name] = TensorType(array.shape, array.dtype.name)
    return name
