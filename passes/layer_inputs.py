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
    """hessian float32 [k, k]: sum over rows of x x^T, added in float64; magnitude float64 [k]: mean |x|;
    rows: how many; drift float32 [k, k]: sum of (x in the float network - x) x^T, None where not asked for.
    """

    hessian: np.ndarray
    magnitude: np.ndarray
    rows: int
    drift: np.ndarray | None = None


def layer_inputs(values: LiveValues, value: str, in_float: LiveValues | None = None) -> LayerInputs:
    """Of a value [..., k] over all runs; with `in_float`, the values of the float network, its drift too.
    Raises InputError where it is not finite.
    """
    k = values.graph.type_of(value).shape[-1]
    hessian, magnitude, rows = np.zeros((k, k)), np.zeros(k), 0
    drift = None if in_float is None else np.zeros((k, k), np.float32)
    for run in range(len(values.runs)):
        x = np.asarray(values.get(run, value), np.float32).reshape(-1, k)
        if not np.isfinite(x).all():
            raise InputError(f"calibration sample {run} makes value {value!r} NaN or infinite")
        softer = quietening(x)
        if in_float is not None and drift is not None:
            lacking = np.asarray(in_float.get(run, value), np.float32).reshape(-1, k) - x
            _add_products(drift, lacking * np.square(softer), x)
        x = x * softer
        _add_products(hessian, x, x)
        magnitude += np.abs(x).sum(0, dtype=np.float64)
        rows += len(x)
    return LayerInputs(hessian.astype(np.float32), magnitude / max(rows, 1), rows, drift)


def _add_products(total: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    for begin in range(0, len(total), STRIPE):
        total[begin : begin + STRIPE] += left[:, begin : begin + STRIPE].T @ right


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
    return x * quietening(x)


def quietening(x: np.ndarray) -> np.ndarray:
    """float32 [n, 1], what `quietened` multiplies rows [n, k] with: 1, less for loud ones."""
    sizes = np.sqrt(np.einsum("nk,nk->n", x, x, dtype=np.float64))
    most = LOUDEST * float(np.median(sizes))
    if not most:
        return np.ones((len(x), 1), np.float32)
    return np.minimum(1, most / np.maximum(sizes, most)).astype(np.float32)[:, None]
