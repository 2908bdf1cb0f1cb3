"""Conversion rules: ONNX Runtime's attention operators, back to products and softmax.

    scores = Q K^T * scale + mask, weights = softmax(scores), y = weights V, for each head

Keys that a mask excludes get `mask_filter_value` (-10000 unless the node says), later ones the least number:
a query all of whose keys are excluded looks at the earlier ones alike, as ONNX Runtime's does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .converter import (
    Converter,
    OnnxNode,
    Result,
    Rule,
    UnsupportedForm,
)

LEAST = float(np.finfo(np.float32).min)
OPSET = 17
"""ONNX's operator set whose meaning the parts have."""


def part(c: Converter, node: OnnxNode, op: str, inputs: tuple[str, ...], **attrs: object) -> str:
    """What the rule of an ONNX operator makes of inputs given by their ONNX names."""
    return c.computed(OnnxNode(node.name, op, inputs, (f"{node.output}.{op}",), attrs, OPSET))


def turned(c: Converter, node: OnnxNode, value: str, name: str) -> str:
    """The last two axes exchanged."""
    rank = len(c.type(value).shape)
    return c.emit(node, "transpose", [value], name, perm=(*range(rank - 2), rank - 1, rank - 2))


@dataclass(frozen=True)
class Sizes:
    """batch, queries, keys that were before, keys with these."""

    batch: int
    steps: int
    past: int
    total: int


def apart(c: Converter, node: OnnxNode, x: str, heads: int, name: str) -> str:
    """[batch, steps, heads * size] -> [batch, heads, steps, size]"""
    shape = c.type(x).shape
    if len(shape) != 3 or shape[2] % heads:
        raise UnsupportedForm(f"{name} of shape {shape} for {heads} heads")
    split = c.reshape(node, x, (*shape[:2], heads, shape[2] // heads), f"{name}.apart")
    return c.emit(node, "transpose", [split], name, perm=(0, 2, 1, 3))


def attend(c: Converter, node: OnnxNode, q: str, k: str, v: str, scale: float, masks: Sequence[str]) -> str:
    """[batch, steps, heads * size] of heads [batch, heads, steps, size]."""
    scores = c.emit(node, "matmul", [q, turned(c, node, k, "key.turned")], "products")
    scores = c.emit(node, "mul", [scores, c.scalar(node, "scale", scale)], "scores")
    for i, mask in enumerate(masks):
        scores = c.emit(node, "add", [scores, mask], f"scores.masked{i}")
    weights = c.emit(node, "softmax", [scores], "weights", axis=3)
    y = c.emit(node, "matmul", [weights, v], "heads")
    batch, heads, steps, size = c.type(y).shape
    moved = c.emit(node, "transpose", [y], "together", perm=(0, 2, 1, 3))
    return c.reshape(node, moved, (batch, steps, heads * size))


def _positions(c: Converter, node: OnnxNode, count: int) -> str:
    return c.param(c.derived(f"{node.output}.positions"), np.arange(count, dtype=np.int32), f"0..{count}")


def _excluded(c: Converter, node: OnnxNode, index: int, sizes: Sizes) -> str | None:
    """bool [batch, 1, steps or 1, keys]: the keys that the input at `index` excludes; None without one."""
    if not node.has_input(index):
        return None
    mask = c.cast(node, c.value(node, index), "int32", "mask.whole")
    shape, (batch, total) = c.type(mask).shape, (sizes.batch, sizes.total)
    if shape in ((batch, total), (batch, sizes.steps, total)):
        zero = c.scalar(node, "zero", 0, mask)
        each = shape[1] if len(shape) == 3 else 1
        rows = c.reshape(node, mask, (batch, 1, each, total), "mask.rows")
        return c.emit(node, "less_equal", [rows, zero], "mask.excluded")
    if shape not in ((batch,), (2 * batch,)):
        raise UnsupportedForm(f"a mask of shape {shape}")
    column, at = (batch, 1, 1, 1), _positions(c, node, total)
    end = c.emit(node, "slice", [mask], "mask.ends", starts=(0,), stops=(batch,), steps=(1,))
    beyond = c.emit(node, "less_equal", [c.reshape(node, end, column, "mask.end"), at], "mask.beyond")
    if shape == (batch,):
        return beyond
    start = c.emit(node, "slice", [mask], "mask.starts", starts=(batch,), stops=(2 * batch,), steps=(1,))
    before = c.emit(node, "less", [at, c.reshape(node, start, column, "mask.start")], "mask.before")
    return c.emit(node, "bit_or", [beyond, before], "mask.excluded")


def _causal(sizes: Sizes) -> np.ndarray:
    """float32 [steps, keys]: what is added so that a query sees itself and what is before it."""
    later = np.arange(sizes.total) > np.arange(sizes.steps)[:, None] + sizes.past
    return np.where(later, np.float32(LEAST), np.float32(0))


def _masks(c: Converter, node: OnnxNode, sizes: Sizes, mask: int, bias: int) -> list[str]:
    """What is added to the scores: the mask at input `mask` with what is later, the bias at input `bias`."""
    added = []
    if node.has_input(bias):
        added.append(c.value(node, bias))
    causal = None
    if node.get_int("unidirectional", 0):
        causal = c.param(c.derived(f"{node.output}.causal"), _causal(sizes), "causal")
    excluded = _excluded(c, node, mask, sizes)
    if excluded is not None:
        fill = c.scalar(node, "filter", node.get_float("mask_filter_value", -10000.0))
        zero = c.scalar(node, "nothing", 0.0)
        padding = c.emit(node, "where", [excluded, fill, zero], "mask.added")
        both = padding if causal is None else c.emit(node, "minimum", [padding, causal], "mask.both")
        return [*added, both]
    return added if causal is None else [*added, causal]


def _joined(c: Converter, node: OnnxNode, past: str | None, new: str, name: str) -> str:
    """Keys or values [batch, heads, steps, size] behind those of `past`."""
    return new if past is None or not c.type(past).size else c.emit(node, "concat", [past, new], name, axis=2)


def _attention(c: Converter, node: OnnxNode) -> list[Result]:
    """Input [batch, steps, width] times weights of queries, keys and values side by side."""
    if node.has_input(6):
        raise UnsupportedForm("a past of its own length")
    product = part(c, node, "MatMul", node.inputs[:2])
    if node.has_input(2):
        product = c.emit(node, "add", [product, c.value(node, 2)], "biased")
    return attended(c, node, product, mask=3, past=4, bias=5)


def attended(c: Converter, node: OnnxNode, product: str, mask: int, past: int, bias: int) -> list[Result]:
    """Of queries, keys and values side by side; `mask`, `past`, `bias`: the inputs that these are."""
    if node.get_int("do_rotary", 0):
        raise UnsupportedForm("do_rotary")
    heads = int(node.attrs["num_heads"])
    batch, steps, width = c.type(product).shape
    widths = node.get_ints("qkv_hidden_sizes", (width // 3,) * 3)
    q, k, v = (
        apart(c, node, columns(c, node, product, at, at + size, name), heads, f"{name}.heads")
        for at, size, name in zip(np.cumsum((0, *widths[:2])).tolist(), widths, ("q", "k", "v"), strict=True)
    )
    if node.has_input(past):
        before = c.value(node, past)
        k, v = (
            _joined(c, node, _half(c, node, before, i), new, name)
            for i, (new, name) in enumerate(((k, "keys"), (v, "values")))
        )
    total = c.type(k).shape[2]
    sizes = Sizes(batch, steps, total - steps, total)
    scale = node.get_float("scale", 0.0) or 1 / math.sqrt(widths[0] // heads)
    y = attend(c, node, q, k, v, scale, _masks(c, node, sizes, mask, bias))
    return [y, _present(c, node, k, v)] if node.used_outputs() > 1 else [y]


def columns(c: Converter, node: OnnxNode, x: str, begin: int, end: int, name: str) -> str:
    """Some neighbours of the last axis."""
    rank = len(c.type(x).shape)
    starts, stops = [0] * rank, list(c.type(x).shape)
    starts[-1], stops[-1] = begin, end
    return c.emit(node, "slice", [x], name, starts=tuple(starts), stops=tuple(stops), steps=(1,) * rank)


def _half(c: Converter, node: OnnxNode, past: str, index: int) -> str:
    """Keys (0) or values (1) of a past [2, batch, heads, steps, size]."""
    shape = c.type(past).shape
    piece = c.emit(
        node,
        "slice",
        [past],
        f"past{index}.slice",
        starts=(index, 0, 0, 0, 0),
        stops=(index + 1, *shape[1:]),
        steps=(1,) * 5,
    )
    return c.reshape(node, piece, shape[1:], f"past{index}")


def _present(c: Converter, node: OnnxNode, k: str, v: str) -> str:
    rows = [c.reshape(node, x, (1, *c.type(x).shape), f"present.{i}") for i, x in enumerate((k, v))]
    return c.emit(node, "concat", rows, "present", axis=0)


def _multi_head(c: Converter, node: OnnxNode) -> list[Result]:
    """Queries, keys and values [batch, steps, heads * size], or keys and values by heads already."""
    if not (node.has_input(1) and node.has_input(2)) or node.has_input(8) or node.has_input(9):
        raise UnsupportedForm("packed keys and values, or a past of its own length")
    heads = int(node.attrs["num_heads"])
    values = [c.value(node, i) for i in range(3)]
    if any(len(c.type(v).shape) == 5 for v in values):
        raise UnsupportedForm("packed keys and values")
    values = _biased(c, node, values)
    q, k, v = (
        x if len(c.type(x).shape) == 4 else apart(c, node, x, heads, name)
        for x, name in zip(values, ("query", "key", "value"), strict=True)
    )
    if node.has_input(6):
        k = _joined(c, node, c.value(node, 6), k, "keys")
        v = _joined(c, node, c.value(node, 7), v, "values")
    (batch, _, steps, size), total = c.type(q).shape, c.type(k).shape[2]
    sizes = Sizes(batch, steps, total - steps, total)
    scale = node.get_float("scale", 0.0) or 1 / math.sqrt(size)
    y = attend(c, node, q, k, v, scale, _masks(c, node, sizes, 4, 5))
    if any((*node.outputs, "", "", "")[3:4]):
        raise UnsupportedForm("its scores are read as an output")
    return [y, k, v]


def _biased(c: Converter, node: OnnxNode, values: list[str]) -> list[str]:
    """Each plus its part of the bias that lies side by side; what comes by heads has its own already."""
    if not node.has_input(3):
        return values
    bias, ends = c.known(node, 3, "bias"), [c.type(v).shape[-1] for v in values]
    if any(len(c.type(v).shape) != 3 for v in values):
        raise UnsupportedForm("a bias, and keys that come by heads")
    parts = np.split(bias, np.cumsum(ends)[:2])
    return [
        c.emit(node, "add", [v, c.param(node.inputs[3], b, name)], f"{name}.biased")
        for v, b, name in zip(values, parts, ("query", "key", "value"), strict=True)
    ]


def _rotary(c: Converter, node: OnnxNode) -> Result:
    """Pairs of channels turned by angles that tables [positions, size / 2] have the cosines and sines of."""
    if node.get_int("is_packed_batching", 0) or node.get_float("scale", 1.0) != 1.0:
        raise UnsupportedForm("is_packed_batching or a scale")
    x, positions = c.value(node), c.value(node, 1)
    shape, half = c.type(x).shape, c.type(c.value(node, 2)).shape[-1]
    by_heads = len(shape) == 4
    heads = shape[1] if by_heads else node.get_int("num_heads", 0) or shape[2] // (2 * half)
    x = x if by_heads else apart(c, node, x, heads, "x.heads")
    batch, steps = c.type(x).shape[0], c.type(x).shape[2]
    if c.type(positions).size == 1:
        counted = c.param(c.derived(f"{node.output}.steps"), np.arange(steps, dtype=np.int64), f"0..{steps}")
        start = c.cast(node, c.reshape(node, positions, (1, 1), "position"), "int64", "position.whole")
        positions = c.emit(node, "add", [counted, start], "positions")
    tables = [
        c.emit(node, "gather", [c.value(node, i), positions], name, axis=0)
        for i, name in ((2, "cos"), (3, "sin"))
    ]
    rows = c.type(tables[0]).shape[0]
    cos, sin = (c.reshape(node, t, (rows, 1, steps, half), f"angles{i}") for i, t in enumerate(tables))
    y = rotated(c, node, x, cos, sin, bool(node.get_int("interleaved", 0)))
    if by_heads:
        return y
    moved = c.emit(node, "transpose", [y], "together", perm=(0, 2, 1, 3))
    return c.reshape(node, moved, (batch, steps, shape[2]))


def rotated(c: Converter, node: OnnxNode, x: str, cos: str, sin: str, interleaved: bool) -> str:
    """x [batch, heads, steps, size] with its first 2 * half channels turned; cos [.., 1, steps, half]."""
    batch, heads, steps, size = c.type(x).shape
    half = c.type(cos).shape[-1]
    kept = [] if size == 2 * half else [columns(c, node, x, 2 * half, size, "kept")]
    piece = x if not kept else columns(c, node, x, 0, 2 * half, "turning")
    pairs = (batch, heads, steps, half, 2) if interleaved else (batch, heads, steps, 2, half)
    split, axis = c.reshape(node, piece, pairs, "pairs"), 4 if interleaved else 3
    a, b = (_taken(c, node, split, axis, i, (batch, heads, steps, half)) for i in range(2))
    products = [
        c.emit(node, "mul", list(pair), f"product{i}")
        for i, pair in enumerate(((a, cos), (b, sin), (a, sin), (b, cos)))
    ]
    first = c.emit(node, "sub", products[:2], "first")
    second = c.emit(node, "add", products[2:], "second")
    rows = (batch, heads, steps, half, 1) if interleaved else (batch, heads, steps, 1, half)
    both = [c.reshape(node, v, rows, f"row{i}") for i, v in enumerate((first, second))]
    joined = c.emit(node, "concat", both, "turned.pairs", axis=axis)
    whole = c.reshape(node, joined, (batch, heads, steps, 2 * half), "turned")
    return whole if not kept else c.emit(node, "concat", [whole, *kept], "turned.whole", axis=3)


def _taken(c: Converter, node: OnnxNode, x: str, axis: int, index: int, shape: Sequence[int]) -> str:
    starts, stops = [0] * 5, list(c.type(x).shape)
    starts[axis], stops[axis] = index, index + 1
    name = f"half{index}"
    taken = c.emit(
        node, "slice", [x], f"{name}.slice", starts=tuple(starts), stops=tuple(stops), steps=(1,) * 5
    )
    return c.reshape(node, taken, shape, name)


ATTENTION_RULES: dict[str, Rule] = {
    "com.microsoft::Attention": _attention,
    "com.microsoft::MultiHeadAttention": _multi_head,
    "com.microsoft::RotaryEmbedding": _rotary,
}
