"""What error compensation needs to know of a layer's inputs: X^T X, and the mean magnitude of each
channel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..compiler.errors import InputError
from ..compiler.ir import Graph, Node
from .live_values import LiveValues, needed_nodes

LOUDEST = 4.0
STRIPE = 1024
"""Channels whose products with all others are added at a time: no second array of k * k is made."""


@dataclass(frozen=True)
class LayerInputs:
    """hessian float64 [k, k]: sum over rows of x x^T; magnitude float64 [k]: mean |x|; rows: how many."""

    hessian: np.ndarray
    magnitude: np.ndarray
    rows: int


def layer_inputs(values: LiveValues, value: str) -> LayerInputs:
    """Of a value [..., k] over all runs. Raises InputError where it is not finite."""
    k = values.graph.type_of(value).shape[-1]
    hessian, magnitude, rows = np.zeros((k, k)), np.zeros(k), 0
    for run in range(len(values.runs)):
        x = np.asarray(values.get(run, value), np.float32).reshape(-1, k)
        if not np.isfinite(x).all():
            raise InputError(f"calibration sample {run} makes value {value!r} NaN or infinite")
        x = quietened(x)
        for begin in range(0, k, STRIPE):
            hessian[begin : begin + STRIPE] += x[:, begin : begin + STRIPE].T @ x
        magnitude += np.abs(x).sum(0, dtype=np.float64)
        rows += len(x)
    return LayerInputs(hessian, magnitude / max(rows, 1), rows)


def float_inputs(
    graph: Graph, runs: Sequence[Mapping[str, np.ndarray]], layers: Sequence[Node], memory: int
) -> LayerInputs:
    """Of linear layers together, in the network as it is. Raises InputError as `layer_inputs`."""
    wanted = list(dict.fromkeys(layer.inputs[0] for layer in layers))
    running = needed_nodes(graph, wanted)
    with LiveValues(graph, runs, running, wanted, memory) as values:
        for node in running:
            values.step(node, {})
        found = [layer_inputs(values, value) for value in wanted]
    rows = sum(each.rows for each in found)
    magnitude = np.sum([each.magnitude * each.rows for each in found], 0) / max(rows, 1)
    return LayerInputs(np.sum([each.hessian for each in found], 0), magnitude, rows)


def quietened(x: np.ndarray) -> np.ndarray:
    """Rows [n, k], the loud ones made smaller. A median of 0 leaves them as they are."""
    sizes = np.sqrt(np.einsum("nk,nk->n", x, x, dtype=np.float64))
    most = LOUDEST * float(np.median(sizes))
    if not most or sizes.max() <= most:
        return x
    found: np.ndarray = x * np.minimum(1, most / np.maximum(sizes, most)).astype(np.float32)[:, None]
    return found
