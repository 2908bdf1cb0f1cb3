"""Conversion rules: LSTM, GRU and RNN.

Each direction becomes a `linear` layer over all time steps and a loop over time (compiler/ops/recurrent.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...ops.recurrent import CELL_FUNCTIONS, FUNCTIONS, GATES
from .converter import (
    Converter,
    OnnxNode,
    Result,
    Rule,
    UnsupportedForm,
)

DEFAULTS = {"lstm": ("Sigmoid", "Tanh", "Tanh"), "gru": ("Sigmoid", "Tanh"), "rnn": ("Tanh",)}
# Functions with numbers: their defaults for alpha and beta; None: it has no such number, or no default.
NUMBERS: dict[str, tuple[float | None, float | None]] = {
    "affine": (1.0, 0.0),
    "leakyrelu": (0.01, None),
    "thresholdedrelu": (1.0, None),
    "scaledtanh": (None, None),
    "hardsigmoid": (0.2, 0.5),
    "elu": (1.0, None),
}
WITH_ALPHA = tuple(NUMBERS)
WITH_BETA = ("affine", "scaledtanh", "hardsigmoid")


@dataclass(frozen=True)
class _Layer:
    """What a node says of all its directions. `batch_first` is ONNX's layout=1; `lengths` is a value of the
    graph, "" where sequences have all steps."""

    cell: str
    hidden: int
    steps: int
    batch: int
    reverse: tuple[bool, ...]
    batch_first: bool
    lengths: str

    @property
    def wide(self) -> int:
        return GATES[self.cell] * self.hidden


def _layer(c: Converter, node: OnnxNode) -> _Layer:
    r, shape = c.known(node, 2, "recurrence weights"), c.type(c.value(node)).shape
    if r.ndim != 3 or len(shape) != 3:
        raise UnsupportedForm(f"data of shape {shape} and recurrence weights of shape {r.shape}")
    batch_first = bool(node.get_int("layout", 0))
    batch, steps = shape[:2] if batch_first else (shape[1], shape[0])
    directions = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    reverse = directions.get(node.get_str("direction", "forward"))
    if reverse is None or len(reverse) != r.shape[0]:
        raise UnsupportedForm(f"direction {node.get_str('direction', 'forward')!r} with {r.shape[0]} weights")
    lengths = _lengths(c, node, steps, batch)
    return _Layer(node.op.lower(), r.shape[2], steps, batch, reverse, batch_first, lengths)


def _lengths(c: Converter, node: OnnxNode, steps: int, batch: int) -> str:
    if not node.has_input(4):
        return ""
    known = c.constant(node, 4)
    if known is not None and (known.size != batch or known.min() < 0 or known.max() > steps):
        raise UnsupportedForm(f"sequence_lens {known.tolist()}, not one of 0 to {steps} for each of {batch}")
    if known is not None and (known == steps).all():
        return ""
    return c.reshape(node, c.cast(node, c.value(node, 4), "int32", "lengths"), (batch,), "lengths_flat")


def _functions(node: OnnxNode, layer: _Layer) -> list[dict[str, Any]]:
    """Attributes `f`, `g`, `h`, `alpha`, `beta` of each direction. Numbers are taken in the order of the
    functions that have them.
    """
    count = FUNCTIONS[layer.cell]
    names = [n.decode() if isinstance(n, bytes) else str(n) for n in node.attrs.get("activations", ())]
    names = [n.lower() for n in names or DEFAULTS[layer.cell] * len(layer.reverse)]
    if len(names) != count * len(layer.reverse):
        raise UnsupportedForm(f"{len(names)} activations for {len(layer.reverse)} directions")
    alphas = iter(node.attrs.get("activation_alpha", ()))
    betas = iter(node.attrs.get("activation_beta", ()))
    rows = []
    for name in names:
        if name not in CELL_FUNCTIONS:
            raise UnsupportedForm(f"activation {name!r} is not known")
        alpha, beta = NUMBERS.get(name, (0.0, 0.0))
        alpha = next(alphas, alpha) if name in WITH_ALPHA else 0.0
        beta = next(betas, beta) if name in WITH_BETA else 0.0
        if alpha is None or beta is None:
            raise UnsupportedForm(f"activation {name!r} without its numbers")
        rows.append((name, float(alpha), float(beta)))
    groups = [rows[i : i + count] for i in range(0, len(rows), count)]
    return [
        {
            **{key: row[0] for key, row in zip("fgh", group, strict=False)},
            "alpha": tuple(row[1] for row in group),
            "beta": tuple(row[2] for row in group),
        }
        for group in groups
    ]


def _biases(
    c: Converter, node: OnnxNode, layer: _Layer, d: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(what joins the projection of the input, what a gru adds inside of its reset gate)."""
    if not node.has_input(3):
        return None, None
    both = c.known(node, 3, "bias")[d].reshape(2, layer.wide)
    if layer.cell != "gru" or not node.get_int("linear_before_reset", 0):
        return both.sum(0), None
    outer, inner = both.sum(0), both[1, 2 * layer.hidden :]
    outer[2 * layer.hidden :] = both[0, 2 * layer.hidden :]
    return outer, inner


def _project(c: Converter, node: OnnxNode, layer: _Layer, d: int, x: str, bias: np.ndarray | None) -> str:
    """W x + bias of every step."""
    weight = c.known(node, 1, "weights")[d]
    inputs = [x, c.param(node.inputs[1], weight, f"direction{d}")]
    if bias is not None:
        inputs.append(c.param(node.inputs[3], bias, f"outer{d}"))
    return c.emit(node, "linear", inputs, f"projection{d}")


def _state(c: Converter, node: OnnxNode, layer: _Layer, index: int, d: int) -> str:
    """A first state of one direction as [batch, hidden], "" if it is absent."""
    if not node.has_input(index):
        return ""
    part = f"state{index}_{d}"
    axis = 1 if layer.batch_first else 0
    known = c.constant(node, index)
    if known is not None:
        return c.param(node.inputs[index], np.take(known, d, axis), part)
    value = c.value(node, index)
    if len(layer.reverse) > 1:
        starts, stops = [0, 0, 0], list(c.type(value).shape)
        starts[axis], stops[axis] = d, d + 1
        attrs: dict[str, Any] = {"starts": tuple(starts), "stops": tuple(stops), "steps": (1, 1, 1)}
        value = c.emit(node, "slice", [value], f"{part}_own", **attrs)
    return c.reshape(node, value, (layer.batch, layer.hidden), part)


def _own_inputs(c: Converter, node: OnnxNode, layer: _Layer, d: int, inner: np.ndarray | None) -> list[str]:
    """The inputs of the loop behind x and r: its own kind of weights, and first states."""
    if layer.cell == "rnn":
        return [_state(c, node, layer, 5, d)]
    if layer.cell == "gru":
        return [
            "" if inner is None else c.param(node.inputs[3], inner, f"inner{d}"),
            _state(c, node, layer, 5, d),
        ]
    peephole = c.param(node.inputs[7], c.known(node, 7, "peepholes")[d], f"{d}") if node.has_input(7) else ""
    return [peephole, _state(c, node, layer, 5, d), _state(c, node, layer, 6, d)]


def _swapped(c: Converter, node: OnnxNode, value: str, part: str) -> str:
    """[a, b, c] as [b, a, c]."""
    a, b, rest = c.type(value).shape
    if 1 in (a, b):
        return c.reshape(node, value, (b, a, rest), part)
    return c.emit(node, "transpose", [value], part, perm=(1, 0, 2))


def _joined(
    c: Converter, node: OnnxNode, parts: Sequence[str], axis: int, shape: tuple[int, ...], name: str
) -> str:
    """The directions along a new axis; `shape` is that of one of them, with the axis."""
    if len(parts) == 1:
        return c.reshape(node, parts[0], shape, name)
    pieces = [c.reshape(node, value, shape, f"{name}{i}") for i, value in enumerate(parts)]
    return c.emit(node, "concat", pieces, name, axis=axis)


def recurrent(c: Converter, node: OnnxNode, rounded: bool = False) -> list[Result]:
    """`rounded`: of an lstm, whether products read its state on 256 steps."""
    layer = _layer(c, node)
    x = c.value(node)
    x = _swapped(c, node, x, "steps") if layer.batch_first else x
    made = []
    for d, (reverse, functions) in enumerate(zip(layer.reverse, _functions(node, layer), strict=True)):
        outer, inner = _biases(c, node, layer, d)
        r = c.param(node.inputs[2], c.known(node, 2, "recurrence weights")[d], f"direction{d}")
        own = _own_inputs(c, node, layer, d, inner)
        inputs = [_project(c, node, layer, d, x, outer), r, *own, layer.lengths]
        attrs = {**functions, "reverse": reverse}
        attrs["clip"] = node.get_float("clip", float("inf"))
        if layer.cell == "gru":
            attrs["after"] = bool(node.get_int("linear_before_reset", 0))
        if layer.cell == "lstm":
            attrs |= {"coupled": bool(node.get_int("input_forget", 0)), "rounded": rounded}
        made.append(c.emit_all(node, layer.cell, _trimmed(inputs), f"loop{d}", **attrs))
    return _results(c, node, layer, made)


def _trimmed(inputs: list[str]) -> list[str]:
    while inputs and not inputs[-1]:
        inputs = inputs[:-1]
    return inputs


def _results(c: Converter, node: OnnxNode, layer: _Layer, made: list[list[str]]) -> list[Result]:
    """Y and the last states, in ONNX's order of axes. What nobody reads is left out."""
    n, t, h = layer.batch, layer.steps, layer.hidden
    results: list[Result] = []
    for i, name in enumerate(node.outputs):
        parts = [values[i] for values in made]
        if not name:
            results.append("")
        elif i == 0 and layer.batch_first:
            rows = [_swapped(c, node, value, f"rows{d}") for d, value in enumerate(parts)]
            results.append(_joined(c, node, rows, 2, (n, t, 1, h), "y"))
        elif i == 0:
            results.append(_joined(c, node, parts, 1, (t, 1, n, h), "y"))
        else:
            axis = 1 if layer.batch_first else 0
            shape = (n, 1, h) if layer.batch_first else (1, n, h)
            results.append(_joined(c, node, parts, axis, shape, f"last{i}"))
    return results


RECURRENT_RULES: dict[str, Rule] = {"GRU": recurrent, "LSTM": recurrent, "RNN": recurrent}
