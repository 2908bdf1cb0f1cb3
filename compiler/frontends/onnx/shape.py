"""Conversion rules: operators that move data, and those that vanish because shapes are known."""

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


def _shape_of(c: Converter, node: OnnxNode) -> tuple[int, ...]:
    return c.type(c.value(node)).shape


def _positive(axis: int, rank: int) -> int:
    return axis + rank if axis < 0 else axis


def _numbers(c: Converter, node: OnnxNode, key: str, index: int) -> tuple[int, ...] | None:
    """Integers that old operator sets have as attribute `key`, new ones as input `index`; None if absent."""
    if node.has_input(index):
        return tuple(int(v) for v in c.known(node, index, key).reshape(-1))
    return node.get_ints(key, ()) if key in node.attrs else None


def _reshape(c: Converter, node: OnnxNode) -> Result:
    shape = _shape_of(c, node)
    wanted = [int(v) for v in c.known(node, 1, "shape").reshape(-1)]
    if not node.get_int("allowzero", 0):
        wanted = [shape[i] if v == 0 and i < len(shape) else v for i, v in enumerate(wanted)]
    if -1 in wanted:
        rest = math.prod(v for v in wanted if v != -1)
        wanted[wanted.index(-1)] = math.prod(shape) // rest if rest else 0
    return c.reshape(node, c.value(node), wanted)


def _flatten(c: Converter, node: OnnxNode) -> Result:
    shape = _shape_of(c, node)
    axis = _positive(node.get_int("axis", 1), len(shape))
    return c.reshape(node, c.value(node), (math.prod(shape[:axis]), math.prod(shape[axis:])))


def _squeeze(c: Converter, node: OnnxNode) -> Result:
    shape = _shape_of(c, node)
    axes = _numbers(c, node, "axes", 1)
    gone = (
        {i for i, d in enumerate(shape) if d == 1}
        if axes is None
        else {_positive(a, len(shape)) for a in axes}
    )
    return c.reshape(node, c.value(node), [d for i, d in enumerate(shape) if i not in gone])


def _unsqueeze(c: Converter, node: OnnxNode) -> Result:
    shape = list(_shape_of(c, node))
    axes = _numbers(c, node, "axes", 1) or ()
    for axis in sorted(_positive(a, len(shape) + len(axes)) for a in axes):
        shape.insert(axis, 1)
    return c.reshape(node, c.value(node), shape)


def _transpose(c: Converter, node: OnnxNode) -> Result:
    rank = len(_shape_of(c, node))
    perm = node.get_ints("perm", tuple(reversed(range(rank))))
    x = c.value(node)
    return x if perm == tuple(range(rank)) else c.emit(node, "transpose", [x], perm=perm)


def _concat(c: Converter, node: OnnxNode) -> Result:
    values = [c.value(node, i) for i in range(len(node.inputs))]
    values = [v for v in values if c.type(v).size] or values[:1]
    if len(values) == 1:
        return values[0]
    return c.emit(node, "concat", values, axis=_positive(node.get_int("axis", 1), len(_shape_of(c, node))))


def _emit_slice(
    c: Converter,
    node: OnnxNode,
    starts: Sequence[int],
    stops: Sequence[int],
    steps: Sequence[int],
    part: str = "",
) -> str:
    """The slice node, or the value itself when all of it is taken."""
    x, shape = c.value(node), _shape_of(c, node)
    if tuple(stops) == shape and not any(starts) and set(steps) <= {1}:
        return x
    return c.emit(node, "slice", [x], part, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))


def _slice(c: Converter, node: OnnxNode) -> Result:
    shape = _shape_of(c, node)
    begin, end = _numbers(c, node, "starts", 1) or (), _numbers(c, node, "ends", 2) or ()
    axes = _numbers(c, node, "axes", 3) or tuple(range(len(begin)))
    stride = _numbers(c, node, "steps", 4) or (1,) * len(begin)
    starts, stops, steps = [0] * len(shape), list(shape), [1] * len(shape)
    backwards = []
    for a, b, axis, step in zip(begin, end, axes, stride, strict=True):
        i = _positive(axis, len(shape))
        places = range(shape[i])[slice(a, b, step)]
        if step < 0:  # the same places upwards, then turned round
            places = places[::-1]
            backwards.append(i)
        starts[i] = places[0] if places else 0
        stops[i], steps[i] = (places[-1] + 1 if places else 0), abs(step)
    y = _emit_slice(c, node, starts, stops, steps, "upwards" if backwards else "")
    for i in backwards:
        y = c.emit(node, "reverse", [y], "" if i == backwards[-1] else f"reverse{i}", axis=i)
    return y


def _split_sizes(c: Converter, node: OnnxNode, length: int) -> tuple[int, ...]:
    sizes = _numbers(c, node, "split", 1)
    if sizes is not None:
        return sizes
    count = node.get_int("num_outputs", len(node.outputs))
    size = -(-length // count)
    return (size,) * (count - 1) + (length - size * (count - 1),)


def _split(c: Converter, node: OnnxNode) -> list[Result]:
    shape = _shape_of(c, node)
    axis = _positive(node.get_int("axis", 0), len(shape))
    pieces: list[Result] = []
    at = 0
    for i, size in enumerate(_split_sizes(c, node, shape[axis])):
        starts, stops = [0] * len(shape), list(shape)
        starts[axis], stops[axis] = at, at + size
        pieces.append(_emit_slice(c, node, starts, stops, [1] * len(shape), str(i)))
        at += size
    return pieces


def _identity(c: Converter, node: OnnxNode) -> Result:
    return c.value(node)


def _dropout(c: Converter, node: OnnxNode) -> list[Result]:
    """In evaluation mode, or when it drops nothing, all pass and the mask is true."""
    training = node.has_input(2) and bool(c.known(node, 2, "training_mode").reshape(-1)[0])
    if training and (not node.has_input(1) or float(c.known(node, 1, "ratio").reshape(-1)[0]) != 0):
        raise UnsupportedForm("training_mode is on; export the model in evaluation mode")
    return [c.value(node), np.ones(_shape_of(c, node), bool)]


def _constant(c: Converter, node: OnnxNode) -> Result:
    for key, kind in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if key in node.attrs:
            return np.array(node.attrs[key], kind)
    value = node.attrs.get("value")
    if not isinstance(value, np.ndarray):
        raise UnsupportedForm(f"a constant given as {', '.join(node.attrs)}")
    return value


def _shape(c: Converter, node: OnnxNode) -> Result:
    shape = _shape_of(c, node)
    rank = len(shape)
    start, end = node.get_int("start", 0), node.get_int("end", rank)
    return np.array(shape[slice(*slice(start, end).indices(rank))], np.int64)


def _size(c: Converter, node: OnnxNode) -> Result:
    return np.array(math.prod(_shape_of(c, node)), np.int64)


SHAPE_RULES: dict[str, Rule] = {
    "Concat": _concat,
    "Constant": _constant,
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Identity": _identity,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
