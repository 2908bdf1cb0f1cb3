"""Conversion rule: ONNX Runtime's GroupQueryAttention, which language models are exported with.

Heads of queries share a head of keys and values. How many keys each sequence of the batch has is data: new
keys are put behind those that are valid, and later ones are left out. Where all keys are of this call
(total_sequence_length is the number of queries), that is known and costs nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .attention import LEAST, apart, columns, rotated, turned
from .converter import (
    Converter,
    OnnxNode,
    Result,
    Rule,
    UnsupportedForm,
)

_UNKNOWN = {
    12: "a quantised cache",
    13: "a quantised cache",
    14: "q_norm_weight",
    15: "k_norm_weight",
    16: "query_seqlens",
}
_FLAGS = ("qk_output", "sliding_window_cache")


@dataclass(frozen=True)
class Keys:
    """Where keys lie: `steps` new ones of each sequence behind `start` old ones, in `total` places.

    `start`: int64 [batch] computed at run time; None where there are none before.
    """

    batch: int
    steps: int
    total: int
    start: str | None


def _refuse(node: OnnxNode) -> None:
    said = [name for index, name in _UNKNOWN.items() if node.has_input(index)]
    said += [f"{flag}={node.attrs[flag]}" for flag in _FLAGS if node.get_int(flag, 0)]
    if said:
        raise UnsupportedForm(", ".join(said))


def _grouped(c: Converter, node: OnnxNode) -> list[Result]:
    _refuse(node)
    heads, groups = int(node.attrs["num_heads"]), int(node.attrs["kv_num_heads"])
    q, k, v = _operands(c, node, heads, groups)
    batch, _, steps, size = c.type(q).shape
    keys = _keys(c, node, batch, steps)
    if node.get_int("do_rotary", 0):
        cos, sin = _angles(c, node, keys)
        odd = bool(node.get_int("rotary_interleaved", 0))
        q, k = (rotated(c, node, x, cos, sin, odd) for x in (q, k))
    k, v = (_present(c, node, new, index, keys) for index, new in ((3, k), (4, v)))
    return [_attended(c, node, q, k, v, keys, node.get_float("scale", 0.0) or 1 / math.sqrt(size)), k, v]


def _operands(c: Converter, node: OnnxNode, heads: int, groups: int) -> list[str]:
    """Queries, keys and values by heads; they may come side by side."""
    x = c.value(node)
    counts = (heads, groups, groups)
    if node.has_input(1):
        values = [c.value(node, i) for i in range(3)]
    else:
        size = c.type(x).shape[-1] // sum(counts)
        ends = np.cumsum((0, *counts)) * size
        values = [
            columns(c, node, x, int(a), int(b), f"{name}.part")
            for a, b, name in zip(ends[:-1], ends[1:], ("query", "key", "value"), strict=True)
        ]
    names = ("query", "key", "value")
    return [apart(c, node, x, n, name) for x, n, name in zip(values, counts, names, strict=True)]


def _keys(c: Converter, node: OnnxNode, batch: int, steps: int) -> Keys:
    total = int(c.known(node, 6, "total_sequence_length (the number of keys)").reshape(-1)[0])
    past = c.type(c.value(node, 3)).shape[2] if node.has_input(3) else 0
    if total == steps:
        return Keys(batch, steps, max(past, total), None)
    if total < steps or total > past + steps:
        raise UnsupportedForm(f"{total} keys of {past} old and {steps} new ones")
    ends = c.reshape(node, c.cast(node, c.value(node, 5), "int64", "ends"), (batch,), "ends.row")
    before = c.scalar(node, "before", steps - 1, ends)
    return Keys(batch, steps, max(past, total), c.emit(node, "sub", [ends, before], "start"))


def _counted(c: Converter, node: OnnxNode, count: int, shape: tuple[int, ...], name: str) -> str:
    return c.param(c.derived(f"{node.output}.{name}"), np.arange(count).reshape(shape), f"{name}{shape}")


def _places(c: Converter, node: OnnxNode, keys: Keys) -> str:
    """int64 [batch, 1, steps, 1]: where the queries' own keys lie."""
    own = _counted(c, node, keys.steps, (1, 1, keys.steps, 1), "steps")
    if keys.start is None:
        return own
    return c.emit(node, "add", [c.reshape(node, keys.start, (keys.batch, 1, 1, 1), "starts"), own], "places")


def _angles(c: Converter, node: OnnxNode, keys: Keys) -> list[str]:
    """Cosines and sines [batch or 1, 1, steps, half] of the new positions."""
    positions = _places(c, node, keys)
    if node.has_input(9):
        positions = c.cast(node, c.value(node, 9), "int64", "positions")
        if keys.start is None:  # of a first call ONNX Runtime reads one number
            flat = c.reshape(node, positions, (c.type(positions).size,), "positions.flat")
            first = c.emit(node, "slice", [flat], "first", starts=(0,), stops=(1,), steps=(1,))
            own = _counted(c, node, keys.steps, (1, keys.steps), "own")
            positions = c.emit(node, "add", [own, first], "positions.new")
    rows = c.type(positions).size // keys.steps
    index = c.reshape(node, positions, (rows, keys.steps), "positions.rows")
    tables = [c.emit(node, "gather", [c.value(node, i), index], f"table{i}", axis=0) for i in (7, 8)]
    half = c.type(tables[0]).shape[-1]
    return [c.reshape(node, t, (rows, 1, keys.steps, half), f"angles{i}") for i, t in enumerate(tables)]


def _present(c: Converter, node: OnnxNode, new: str, index: int, keys: Keys) -> str:
    """[batch, groups, total, size]: new rows behind the valid ones of the past, zeros behind them."""
    batch, groups, steps, size = c.type(new).shape
    name = f"present{index}"
    if steps == keys.total:
        return new
    zeros = np.zeros((batch, groups, max(1, keys.total - steps), size), np.float32)
    none = c.param(c.derived(f"{node.output}.none"), zeros, f"none{zeros.shape}")
    if keys.start is None:
        return c.emit(node, "concat", [new, none], name, axis=2)
    past = c.value(node, index)
    old = c.type(past).shape[2]
    at = _sources(c, node, keys, old)
    source = c.emit(node, "concat", [past, new, none], f"{name}.source", axis=2)
    pairs = [(_row(c, node, source, b, name), _row(c, node, at, b, "at")) for b in range(batch)]
    rows = [c.emit(node, "gather", list(pair), f"{name}.{b}", axis=2) for b, pair in enumerate(pairs)]
    parts = [c.reshape(node, r, (1, groups, keys.total, size), f"{name}.row{b}") for b, r in enumerate(rows)]
    return parts[0] if batch == 1 else c.emit(node, "concat", parts, name, axis=0)


def _row(c: Converter, node: OnnxNode, x: str, b: int, name: str) -> str:
    """One sequence of the batch; of a matrix, as a vector."""
    shape = c.type(x).shape
    if shape[0] > 1:
        starts, stops = (b, *(0 for _ in shape[1:])), (b + 1, *shape[1:])
        steps = (1,) * len(shape)
        x = c.emit(node, "slice", [x], f"{name}.of{b}", starts=starts, stops=stops, steps=steps)
    return c.reshape(node, x, shape[1:], f"{name}.vector{b}") if len(shape) == 2 else x


def _sources(c: Converter, node: OnnxNode, keys: Keys, old: int) -> str:
    """int64 [batch, total]: the rows of (past, new, zeros) that make the present."""
    at = _counted(c, node, keys.total, (1, keys.total), "keys")
    start = c.reshape(node, keys.start or "", (keys.batch, 1), "start.column")
    new = c.emit(node, "sub", [at, start], "new")
    moved = c.emit(node, "add", [new, c.scalar(node, "old", old, at)], "new.moved")
    beyond = c.scalar(node, "beyond", old + keys.steps, at)
    behind = c.emit(node, "minimum", [moved, beyond], "behind")
    return c.emit(node, "where", [c.emit(node, "less", [at, start], "is_old"), at, behind], "sources")


def _mask(c: Converter, node: OnnxNode, keys: Keys) -> str:
    """float32 [batch or 1, 1, steps, total]: what is added to scores so that each query reads its keys."""
    window, causal = node.get_int("local_window_size", -1), node.get_int("causal", 1)
    own, at = _places(c, node, keys), _counted(c, node, keys.total, (1, 1, 1, keys.total), "all")
    last = own
    if not causal:  # every query reads what the last one does
        behind = keys.steps - 1 - np.arange(keys.steps).reshape(1, 1, -1, 1)
        more = c.param(c.derived(f"{node.output}.behind"), behind, "behind")
        last = c.emit(node, "add", [own, more], "last")
    left_out = c.emit(node, "less", [last, at], "later")
    if window >= 0:
        lowest = c.emit(node, "sub", [own, c.scalar(node, "window", window - 1, own)], "lowest")
        before = c.emit(node, "less", [at, lowest], "earlier")
        left_out = c.emit(node, "bit_or", [left_out, before], "left_out")
    least, zero = c.scalar(node, "least", LEAST), c.scalar(node, "nothing", 0.0)
    return c.emit(node, "where", [left_out, least, zero], "mask")


def _attended(c: Converter, node: OnnxNode, q: str, k: str, v: str, keys: Keys, scale: float) -> str:
    """[batch, steps, heads * size]. Queries that share keys are rows of one product."""
    batch, heads, steps, size = c.type(q).shape
    groups = c.type(k).shape[1]
    rows = heads // groups * steps
    q = c.reshape(node, q, (batch, groups, rows, size), "queries")
    scores = c.emit(node, "matmul", [q, turned(c, node, k, "keys.turned")], "products")
    scores = c.reshape(node, scores, (batch, heads, steps, keys.total), "products.heads")
    scores = c.emit(node, "mul", [scores, c.scalar(node, "scale", scale)], "scores")
    cap = node.get_float("softcap", 0.0)
    if cap > 0:
        bound = c.scalar(node, "cap", cap)
        bent = c.emit(node, "tanh", [c.emit(node, "div", [scores, bound], "scores.part")], "scores.bent")
        scores = c.emit(node, "mul", [bent, bound], "scores.capped")
    if node.has_input(10):
        scores = c.emit(node, "add", [scores, c.value(node, 10)], "scores.biased")
    scores = c.emit(node, "add", [scores, _mask(c, node, keys)], "scores.masked")
    weights = _weights(c, node, scores)
    weights = c.reshape(node, weights, (batch, groups, rows, keys.total), "weights.rows")
    y = c.reshape(node, c.emit(node, "matmul", [weights, v], "rows"), (batch, heads, steps, size), "heads")
    moved = c.emit(node, "transpose", [y], "together", perm=(0, 2, 1, 3))
    return c.reshape(node, moved, (batch, steps, heads * size))


def _weights(c: Converter, node: OnnxNode, scores: str) -> str:
    """Softmax along the keys; a sink is one more score of each head, whose weight no value gets."""
    batch, heads, steps, total = c.type(scores).shape
    if not node.has_input(11) and not node.get_int("smooth_softmax", 0):
        return c.emit(node, "softmax", [scores], "weights", axis=3)
    zero = c.param(c.derived(f"{node.output}.sink"), np.zeros((batch, heads, steps, 1), np.float32))
    if node.has_input(11):
        own = c.reshape(node, c.value(node, 11), (1, heads, 1, 1), "sink.heads")
        zero = c.emit(node, "add", [zero, own], "sink")
    both = c.emit(node, "concat", [scores, zero], "scores.sink", axis=3)
    return columns(c, node, c.emit(node, "softmax", [both], "weights.sink", axis=3), 0, total, "weights")


GROUPED_RULES: dict[str, Rule] = {"com.microsoft::GroupQueryAttention": _grouped}
