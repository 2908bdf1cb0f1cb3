"""What each weight format costs in each unit of layers: the additive tables that allocation rests on.

    output      relative squared error of the layer's outputs on calibration inputs, these in int8
    shiftadd    ShiftAddLLM's criterion of the layer times the relative squared error of its weights
    curvature   1/2 sum over outputs of curvature * mean squared error, nats: KL by judge.py
    measured    KL with only this unit coded in one format, times the ratio of `output` errors for the others

The first three look at a sample of each matrix's rows, coded as the final ones are (compiler/formats): by
GPTQ's loop for what a linear layer reads, by least squares for a table that rows are gathered from.

Of ShiftAddLLM (You et al., NeurIPS 2024): |IS| * std(IS)^2 with IS = W / diag(chol((X X^T)^-1)).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...compiler.errors import InternalError
from ...compiler.formats import (
    Coded,
    Format,
    decode,
    encode,
)
from ...compiler.formats.compensate import Compensation, Compensator, output_error
from ...compiler.ir import Graph, Node
from ...compiler.ops.coded import rounded_inputs
from ...passes.layer_coder import damping_of, matrix_of
from ...passes.layer_inputs import LayerInputs, layer_inputs, quietened
from ...passes.live_values import LiveValues, needed_nodes
from .judge import Judge, Runs
from .units import Unit

KINDS = ("curvature", "output", "shiftadd", "measured")
SAMPLED = 96
"""Rows of a matrix that stand for all of them."""
READ = 4
"""Of so many runs one says what rounding of inputs costs."""
RIDGE = 0.01
"""Share of the mean diagonal that is added to X^T X before it is inverted, as in compensation."""

Table = Mapping[str, Mapping[Format, float]]
"""unit -> format -> loss."""
Step = Callable[[int, int], None]


def losses(
    graph: Graph,
    runs: Runs,
    units: Sequence[Unit],
    formats: Sequence[Format],
    curvature: Mapping[str, np.ndarray] | None,
    kind: str,
    step: Step = lambda done, total: None,
) -> dict[str, dict[Format, float]]:
    """The table of this kind ("measured" is `measured`). `curvature` by layer."""
    if kind not in ("output", "shiftadd", "curvature") or (kind == "curvature") != (curvature is not None):
        raise InternalError(f"no table of losses {kind!r}, or its curvature is missing or not wanted")
    unit_of = {layer: unit for unit in units for layer in unit.layers}
    table = {unit.name: dict.fromkeys(formats, 0.0) for unit in units}
    nodes = [node for node in graph.nodes if node.name in unit_of]
    wanted = Counter(_read_by(node) for node in nodes)
    running, done = needed_nodes(graph, wanted), 0
    by_group, value, inputs = sorted(formats, key=lambda format: format.group), "", None
    with LiveValues(graph, runs, running, wanted) as values:
        running_names = {node.name for node in running}
        for node in graph.nodes:
            if node.name in unit_of:
                slopes = None if curvature is None else curvature[node.name]
                if node.op == "linear" and node.inputs[0] != value:
                    value = node.inputs[0]
                    inputs = layer_inputs(values, value)
                view = _view(graph, node, values, inputs, slopes, kind)
                for format in by_group:
                    table[unit_of[node.name].name][format] += view.loss(format)
                wanted[_read_by(node)] -= 1
                if not wanted[_read_by(node)]:
                    values.release(_read_by(node))
                done += 1
                step(done, len(nodes))
            if node.name in running_names:
                values.step(node, {})
    return table


def _read_by(node: Node) -> str:
    """What the node looks its matrix up with: a linear layer's inputs, a gather's indices."""
    return node.inputs[0] if node.op == "linear" else node.inputs[1]


def _view(
    graph: Graph,
    node: Node,
    values: LiveValues,
    inputs: LayerInputs | None,
    slopes: np.ndarray | None,
    kind: str,
) -> _View:
    matrix = matrix_of(graph, node)
    assert matrix is not None, "units are made of layers with matrices"
    weight = graph.params[matrix]
    if node.op == "gather":
        return _table_view(weight, node, values, slopes, kind)
    assert inputs is not None, "of a linear layer"
    hessian = inputs.hessian / max(inputs.rows, 1)
    chosen, counts = sampled(np.ones(len(weight)) if slopes is None else slopes, SAMPLED)
    rows = np.ascontiguousarray(weight[chosen])
    damping = damping_of(len(hessian), inputs.rows)
    coder = Compensator(hessian, Compensation(damping=damping, sweeps=0))
    reading = _Reading(values, node.inputs[0], rows)
    return _View(rows, counts, hessian, lambda format: coder.code(rows, format), kind, reading)


def _table_view(
    weight: np.ndarray, node: Node, values: LiveValues, slopes: np.ndarray | None, kind: str
) -> _View:
    """Of a table that rows are gathered from: those rows, as often as they are read. A row's error counts by
    the columns' slopes, in place of X^T X."""
    read = np.concatenate([values.get(run, node.inputs[1]).reshape(-1) for run in range(len(values.runs))])
    chosen, counts = np.unique(read, return_counts=True)
    k = weight.shape[1]
    flat = np.ones(k, np.float32)
    rows = np.ascontiguousarray(weight[chosen])
    metric = np.diag(np.ones(k) if slopes is None else slopes)
    return _View(rows, counts / len(read), metric, lambda format: encode(rows, format, flat), kind)


@dataclass(frozen=True, eq=False)
class _View:
    """Some rows [r, k] of a matrix; `counts` [r]: for how much each stands; `metric` [k, k] of its errors."""

    rows: np.ndarray
    counts: np.ndarray
    metric: np.ndarray
    code: Callable[[Format], Coded]
    kind: str
    reading: _Reading | None = None

    def loss(self, format: Format) -> float:
        decoded = decode(self.code(format))
        error = float(self.counts @ output_error(self.rows, decoded, self.metric))
        if self.reading is not None:
            error += float(self.counts @ self.reading.error(format))
        if self.kind == "curvature":
            return error / 2
        if self.kind == "output":
            size = float(self.counts @ output_error(self.rows, np.zeros_like(self.rows), self.metric))
            return error / (size or 1.0)
        lacking = self.counts @ np.square(self.rows - decoded).sum(1)
        return self._criterion() * float(lacking / (self.counts @ np.square(self.rows).sum(1) or 1.0))

    def _criterion(self) -> float:
        ridge = RIDGE * float(np.diagonal(self.metric).mean() or 1.0) * np.eye(len(self.metric))
        factor = np.linalg.cholesky(np.linalg.inv(self.metric + ridge))
        salience = self.rows / np.diagonal(factor)
        size = float(np.sqrt(self.counts @ np.square(salience).sum(1)))
        return size * float(salience.std() ** 2)


@dataclass(frozen=True, eq=False)
class _Reading:
    """What int8 inputs cost the outputs of some rows [r, k], whatever the codes: it depends on groups only.
    `value`: what the layer reads."""

    values: LiveValues
    value: str
    rows: np.ndarray
    _known: dict[int, np.ndarray] = field(default_factory=dict)

    def error(self, format: Format) -> np.ndarray:
        """float64 [r]: mean square over tokens."""
        if format.group not in self._known:
            self._known[format.group] = self._measured(format)
        return self._known[format.group]

    def _measured(self, format: Format) -> np.ndarray:
        import torch

        total, count, k = np.zeros(len(self.rows)), 0, self.rows.shape[1]
        for run in range(0, len(self.values.runs), READ):
            x = quietened(np.asarray(self.values.get(run, self.value), np.float32).reshape(-1, k))
            read = rounded_inputs(torch.from_numpy(x), format).numpy()
            total += np.square((read - x) @ self.rows.T).sum(0, dtype=np.float64)
            count += len(x)
        return total / max(count, 1)


def sampled(share: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Some of n rows, and weights such that their weighted sum of errors estimates sum share * error: at even
    steps through the cumulated shares, so that a row is the likelier the more it counts.
    """
    n, total = len(share), float(share.sum())
    if n <= count or total <= 0:
        return np.arange(n), np.asarray(share, np.float64)
    places = (np.arange(count) + 0.5) / count
    picks = np.searchsorted(np.cumsum(share) / total, places).clip(max=n - 1)
    chosen, times = np.unique(picks, return_counts=True)
    return chosen, times * (total / count)


def measured(
    judge: Judge,
    units: Sequence[Unit],
    output: Table,
    probe: Format,
    decoded: Mapping[str, np.ndarray],
    step: Step = lambda done, total: None,
) -> dict[str, dict[Format, float]]:
    """KL with one unit coded as `probe`, scaled for other formats by `output` errors. `decoded`: all matrices
    in that format."""
    table: dict[str, dict[Format, float]] = {}
    for done, unit in enumerate(units, 1):
        coded = {unit.matrix: decoded[unit.matrix]}
        kl = max(judge.kl(coded, dict.fromkeys(unit.layers, probe)), 0.0)
        own = output[unit.name]
        table[unit.name] = {f: kl * loss / own[probe] if own[probe] else 0.0 for f, loss in own.items()}
        step(done, len(units))
    return table
