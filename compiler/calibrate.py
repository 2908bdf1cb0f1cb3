"""Calibration: runs the prepared float32 graph on sample inputs and chooses a range for every value.

minmax       everything that was seen
percentile   all but a share of the extreme values at each end
mse          the range with the least expected squared error of 8-bit storage (the default)

What linear layers read may be divided by channel, and has a range for that: compiler/analysis/smoothing.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from .analysis.smoothing import Smoothing, choose_smoothings, linear_inputs
from .errors import InputError
from .histogram import (
    Histogram,
    RowSample,
    least_squares,
    minmax,
    percentile,
)
from .ir import Graph, Node
from .machine import usable_cores
from .plan import Calibration, Plan, layers_of
from .reference import run_reference
from .samples import Samples, iterate
from .turns import Turns, run_in_turns

MOST_THREADS = 4  # each holds the values of one run


@dataclass(frozen=True)
class Ranges:
    """What a plan needs to know of a network's values.

    values        value name -> (low, high), the chosen range in real numbers
    means         layer name -> mean of each channel of the layer's input, over samples and positions
    calibration   how the ranges were chosen
    samples       from how many runs
    smoothing     value name -> how linear layers in int8 store it when they read it, if not as in `values`
    """

    values: Mapping[str, tuple[float, float]]
    means: Mapping[str, tuple[float, ...]]
    calibration: Calibration
    samples: int
    smoothing: Mapping[str, Smoothing] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "smoothing", MappingProxyType(dict(self.smoothing)))
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))
        object.__setattr__(self, "means", MappingProxyType(dict(self.means)))

    def __getitem__(self, value: str) -> tuple[float, float]:
        """Raises InputError when calibration did not see the value."""
        if value not in self.values:
            raise InputError(f"calibration has no range for value {value!r}: it was made for another graph")
        return self.values[value]

    def for_plan(self, plan: Plan) -> Ranges | None:
        """What an artifact keeps: means only of layers that the plan makes int8; None when it makes none."""
        int8 = {layer for layer, choice in plan.layers.items() if choice == "int8"}
        means = {layer: row for layer, row in self.means.items() if layer in int8}
        smoothing = {v: s for v, s in self.smoothing.items() if int8.intersection(s.layers)}
        return replace(self, means=means, smoothing=smoothing) if int8 else None

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.calibration.method,
            "percentile": self.calibration.percentile,
            "samples": self.samples,
            "values": {value: list(pair) for value, pair in self.values.items()},
            "means": {layer: list(means) for layer, means in self.means.items()},
            "smoothing": {value: each.to_json() for value, each in self.smoothing.items()},
        }

    @staticmethod
    def from_json(data: Any) -> Ranges:
        """What `to_json` gave. Raises InputError when it is something else."""
        try:
            values = {str(value): (float(low), float(high)) for value, (low, high) in data["values"].items()}
            means = {str(layer): tuple(map(float, row)) for layer, row in data["means"].items()}
            options = Calibration(data["method"], data["percentile"])
            smoothing = {str(v): Smoothing.from_json(s) for v, s in data.get("smoothing", {}).items()}
            ranges = Ranges(values, means, options, int(data["samples"]), smoothing)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"these are no calibration ranges: {error}") from None
        wrong = [
            v for v, (low, high) in values.items() if not (np.isfinite([low, high]).all() and low <= high)
        ]
        if wrong:
            raise InputError(f"calibration ranges of {', '.join(wrong)} are not finite or upside down")
        return ranges

    def to_text(self) -> str:
        return json.dumps(self.to_json(), indent=1)


def calibrate(
    graph: Graph,
    samples: Samples,
    *,
    method: str = "mse",
    percentile: float = 99.99,
    progress: Callable[[int, int], None] | None = None,
) -> Ranges:
    """Run the prepared graph on every sample and choose a range for each of its float32 values.

    `samples` as compiler/samples.py describes them; `percentile` (above 50, at most 100) only matters to
    that method; `progress(done, total)` is called after each sample. Raises InputError for samples that do
    not fit, hold NaN or infinity, or make the network overflow, and PlanError for an unknown method. A value
    that may be infinite, because no layer reads it and the network does not return it, gets no range.
    """
    return choose_ranges(observe(graph, samples, progress=progress), method=method, percentile=percentile)


@dataclass(frozen=True)
class Observations:
    """What the samples showed of a graph: a histogram per value, rows of the inputs of linear layers, and
    `Ranges.means`. Any method can choose from it.
    """

    graph: Graph
    histograms: Mapping[str, Histogram]
    rows: Mapping[str, RowSample]
    means: Mapping[str, tuple[float, ...]]
    samples: int


def observe(
    graph: Graph, samples: Samples, *, progress: Callable[[int, int], None] | None = None
) -> Observations:
    """The slow part of `calibrate`: runs the graph. Same arguments and errors."""
    runs = iterate(graph, samples)
    observer = _Observer(graph, len(runs))

    def run(index: int, turns: Turns) -> None:
        def see(value: str, array: np.ndarray) -> None:
            with turns.at(value, index):
                observer.see(value, array)

        try:
            run_reference(graph, runs[index], see)
        except _NotFinite as error:
            raise InputError(
                f"sample {index}: value {error} becomes NaN, infinite or larger than 4e37; "
                f"check the model's weights and how the sample is scaled"
            ) from None

    tell = progress or (lambda done, total: None)
    with _one_thread():
        threads = min(usable_cores(), MOST_THREADS, len(runs))
        run_in_turns(len(runs), threads, run, lambda index: tell(index + 1, len(runs)))
    return Observations(graph, observer.histograms, observer.rows, observer.means(len(runs)), len(runs))


@contextmanager
def _one_thread() -> Iterator[None]:
    """torch on one thread for each run: at batch 1 more gain little, and on a busy machine they cost 15 times
    the time.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _NotFinite(ArithmeticError):
    """A value, by name, that is not finite."""


class _Observer:
    """Sees every value of every run."""

    def __init__(self, graph: Graph, runs: int) -> None:
        kinds = [*graph.inputs, *((node.output, node.type) for node in graph.nodes)]
        self.histograms = {v: Histogram() for v, kind in kinds if kind.dtype == "float32" and kind.size}
        self.rows = {
            value: RowSample(graph.type_of(value).shape[-1], runs)
            for value in linear_inputs(graph)
            if value in self.histograms
        }
        self._layers: dict[str, list[tuple[str, int]]] = {}
        self._totals: dict[str, np.ndarray] = {}
        self._needed = {*graph.outputs, *dict(graph.inputs), *(node.inputs[0] for node in layers_of(graph))}
        for layer in layers_of(graph):
            x = layer.inputs[0]
            if x in self.histograms:
                self._layers.setdefault(x, []).append((layer.name, _channel_axis(layer)))
                self._totals[layer.name] = np.zeros(graph.type_of(x).shape[_channel_axis(layer)])

    def see(self, value: str, array: np.ndarray) -> None:
        if value not in self.histograms:
            return
        try:
            self.histograms[value].add(array)
        except FloatingPointError:
            if value in self._needed or np.isnan(array).any():
                raise _NotFinite(repr(value)) from None
            self.histograms.pop(value)  # as of an attention mask: no layer reads it, so it needs no range
            return
        if value in self.rows:
            self.rows[value].add(array)
        means: dict[int, np.ndarray] = {}
        for layer, axis in self._layers.get(value, ()):
            if axis not in means:
                others = tuple(a for a in range(array.ndim) if a != axis % array.ndim)
                means[axis] = array.mean(others, dtype=np.float64)
            self._totals[layer] += means[axis]

    def means(self, runs: int) -> dict[str, tuple[float, ...]]:
        return {layer: tuple((total / runs).tolist()) for layer, total in self._totals.items()}


def _channel_axis(layer: Node) -> int:
    """The axis of a layer's input that its weights mix (or, depthwise, go along)."""
    first = layer.op == "conv2d" and str(layer.attrs.get("layout", "NCHW")).startswith("NCHW")
    return 1 if first else -1


def choose_ranges(seen: Observations, *, method: str = "mse", percentile: float = 99.99) -> Ranges:
    """The fast part of `calibrate`."""
    options = Calibration(method, percentile)
    values = {value: _choose(histogram, options) for value, histogram in seen.histograms.items()}
    smoothing = choose_smoothings(seen.graph, seen.rows, values, options)
    return Ranges(values, seen.means, options, seen.samples, smoothing)


def _choose(histogram: Histogram, options: Calibration) -> tuple[float, float]:
    if options.method == "minmax":
        return minmax(histogram)
    if options.method == "percentile":
        return percentile(histogram, options.percentile)
    return least_squares(histogram)
