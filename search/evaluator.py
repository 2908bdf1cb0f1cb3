"""What a search needs to know about a network on a chip. The search itself knows nothing about compilers.

search/compiled.py answers by compiling and measuring; the tests answer from formulas.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..compiler.ledger import LedgerRow
from ..compiler.machine import Machine
from ..compiler.measure import Latency, Quality
from ..compiler.plan import Plan
from .allocation import Edge
from .result import Sensitivity

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total)"""
SEARCH_PART, CONFIRM_PART = "search", "confirm"


@dataclass(frozen=True)
class Layer:
    """A layer that the plan decides about, or a large table. `shape` is of its output; bytes count weights,
    bias and scales. `quantised`: what a plan calls its int8 form.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    macs: int
    weights: int
    float_bytes: int
    int8_bytes: int
    quantised: str = "int8"


@dataclass(frozen=True)
class CostTable:
    """Kernel times, microseconds on one thread: each layer in either type, conversions between neighbours."""

    float_us: Mapping[str, float]
    int8_us: Mapping[str, float]
    edges: tuple[Edge, ...]


class Built(Protocol):
    """A compiled plan, ready to run."""

    @property
    def size_bytes(self) -> int: ...

    def save(self, path: Path) -> None:
        """Copies the artifact to the directory `path`, whole or not at all."""

    def close(self) -> None: ...


class Evaluator(Protocol):
    """Answers about one network, one chip, one set of data.

    identity          what a study must share with this search to be continued: name -> value, hashes for
                      large things
    layers            in the order of the network
    base_plan         any plan of the graph; others are made from it by choosing per layer
    sensitivity_samples   number of calibration samples for sensitivities
    notes             what the reader of the result should know about the data
    """

    @property
    def identity(self) -> Mapping[str, str]: ...

    @property
    def layers(self) -> tuple[Layer, ...]: ...

    @property
    def base_plan(self) -> Plan: ...

    @property
    def sensitivity_samples(self) -> int: ...

    @property
    def notes(self) -> tuple[str, ...]: ...

    @property
    def names(self) -> Names: ...

    def sensitivity(self, sample: int) -> Mapping[str, Sensitivity]:
        """On one calibration sample: what each layer does to the output when it alone is int8."""

    def costs(self, progress: Progress) -> CostTable:
        """The kernel times, measured where the database does not have them yet."""

    def predict(self, plan: Plan) -> float:
        """Sum of the kernel table for the whole network under this plan, microseconds."""

    def narrowed(self, plan: Plan, smallest: bool) -> Plan | None:
        """The plan with bfloat16 for its float32 layers that gain by it, each by itself; with `smallest`, for
        those that do not take much longer. None when there are none; where nothing lets one expect any,
        nothing is measured."""

    def build(self, plan: Plan) -> Built:
        """Compiles the plan."""

    def quality(self, built: Built, part: str) -> Quality:
        """Against the float model on the samples of the part; "confirm" takes in those of "search"."""

    def latency(
        self, builds: Mapping[str, Built], *, repeats: int, seconds: float, threads: int | None = None
    ) -> Mapping[str, Latency]:
        """Times of all, in turns, ratios to the first. `threads`: the search's by default."""

    def layer_times(self, built: Built) -> Mapping[str, float]:
        """Microseconds in each layer inside the compiled network, one thread, conversions not counted."""

    def save(self, plan: Plan, path: Path, ledger: tuple[LedgerRow, ...]) -> int:
        """Compiles the plan into the directory `path`, whole or not at all; returns its size in bytes."""


@dataclass(frozen=True)
class Names:
    """Who was searched, on what: for the result's head."""

    graph: str
    graph_hash: str
    target: str
    fingerprint: str
    machine: Machine
