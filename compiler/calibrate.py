"""Calibration: runs the prepared float32 graph on sample inputs and chooses a range for every value.

minmax       everything that was seen
percentile   all but a share of the extreme values at each end
mse          the range with the least expected squared error of 8-bit storage (the default)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from .errors import InputError
from .histogram import Histogram, least_squares, minmax, percentile
from .ir import Graph
from .plan import Calibration
from .reference import run_reference
from .samples import Samples, iterate


@dataclass(frozen=True)
class Ranges:
    """The chosen range of each value, by name: (low, high) as real numbers, and how they were chosen."""

    values: Mapping[str, tuple[float, float]]
    calibration: Calibration
    samples: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", MappingProxyType(dict(self.values)))

    def __getitem__(self, value: str) -> tuple[float, float]:
        """Raises InputError when calibration did not see the value."""
        if value not in self.values:
            raise InputError(f"calibration has no range for value {value!r}: it was made for another graph")
        return self.values[value]

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.calibration.method,
            "percentile": self.calibration.percentile,
            "samples": self.samples,
            "values": {value: list(pair) for value, pair in self.values.items()},
        }

    @staticmethod
    def from_json(data: Any) -> Ranges:
        """What `to_json` gave. Raises InputError when it is something else."""
        try:
            values = {str(value): (float(low), float(high)) for value, (low, high) in data["values"].items()}
            ranges = Ranges(values, Calibration(data["method"], data["percentile"]), int(data["samples"]))
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
    not fit, hold NaN or infinity, or make the network overflow, and PlanError for an unknown method.
    """
    return choose_ranges(observe(graph, samples, progress=progress), method=method, percentile=percentile)


@dataclass(frozen=True)
class Observations:
    """What the samples showed: a histogram for each value. Ranges by any method can be chosen from it."""

    histograms: Mapping[str, Histogram]
    samples: int


def observe(
    graph: Graph, samples: Samples, *, progress: Callable[[int, int], None] | None = None
) -> Observations:
    """The slow part of `calibrate`: runs the graph. Same arguments and errors."""
    runs = iterate(graph, samples)
    histograms = {value: Histogram() for value in _floats(graph)}
    for done, inputs in enumerate(runs):

        def see(value: str, array: np.ndarray, sample: int = done) -> None:
            if value not in histograms:
                return
            try:
                histograms[value].add(array)
            except FloatingPointError:
                raise InputError(
                    f"sample {sample}: value {value!r} becomes NaN or infinite in float32; "
                    f"check the model's weights and how the sample is scaled"
                ) from None

        run_reference(graph, inputs, see)
        if progress:
            progress(done + 1, len(runs))
    return Observations(histograms, len(runs))


def choose_ranges(seen: Observations, *, method: str = "mse", percentile: float = 99.99) -> Ranges:
    """The fast part of `calibrate`."""
    options = Calibration(method, percentile)
    return Ranges({v: _choose(h, options) for v, h in seen.histograms.items()}, options, seen.samples)


def _floats(graph: Graph) -> list[str]:
    values = [name for name, kind in graph.inputs if kind.dtype == "float32" and kind.size]
    return values + [n.output for n in graph.nodes if n.type.dtype == "float32" and n.type.size]


def _choose(histogram: Histogram, options: Calibration) -> tuple[float, float]:
    if options.method == "minmax":
        return minmax(histogram)
    if options.method == "percentile":
        return percentile(histogram, options.percentile)
    return least_squares(histogram)
