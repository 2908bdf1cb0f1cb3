"""Conversion rule: ONNX Runtime's products with weights of few bits in blocks, whose codes are kept."""

from __future__ import annotations

import numpy as np

from ...formats.packing import unpack
from .block_codes import Blocks, coded_of
from .codes import stored_codes
from .converter import (
    Converter,
    OnnxNode,
    Result,
    Rule,
    UnsupportedForm,
)

BITS = (2, 4, 8)


def _matmul_nbits(c: Converter, node: OnnxNode) -> Result:
    """ONNX Runtime's product with weights of 2, 4 or 8 bits in blocks along K."""
    k, n, bits, block = (int(node.attrs[key]) for key in ("K", "N", "bits", "block_size"))
    if bits not in BITS or node.has_input(4):
        raise UnsupportedForm(f"{bits} bits" if bits not in BITS else "g_idx, an order of its own")
    groups = -(-k // block)
    codes = unpack(c.known(node, 1, "weights").reshape(n, -1), bits, k)
    scale = c.known(node, 2, "scales").reshape(n, groups)
    blocks = Blocks(codes, scale, _zero_points(c, node, n, groups, bits), bits, block)
    coded = coded_of(blocks)
    bias = []
    if node.has_input(5):
        bias = [c.param(node.inputs[5], c.known(node, 5, "bias").astype(np.float32), "real")]
    if coded is None:
        weight = c.param(node.inputs[1], blocks.weight(), "real")
        return c.emit(node, "linear", [c.value(node), weight, *bias])
    operands = [c.value(node), *stored_codes(c.builder, node.inputs[1], coded, bool(bias)), *bias]
    return c.emit(node, "coded_linear", operands, format=str(coded.format), k=k)


def _zero_points(c: Converter, node: OnnxNode, n: int, groups: int, bits: int) -> np.ndarray:
    """[n, groups]: packed like the codes, or numbers of the scales' type, or the middle of the range."""
    if not node.has_input(3):
        return np.full((n, groups), 1 << (bits - 1), np.uint8)
    points = c.known(node, 3, "zero points")
    if points.dtype != np.uint8:
        return points.reshape(n, groups)
    return unpack(points.reshape(n, -1), bits, groups)


BLOCK_RULES: dict[str, Rule] = {"com.microsoft::MatMulNBits": _matmul_nbits}
