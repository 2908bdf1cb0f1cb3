"""The evaluator of real searches: plans are compiled for the chip and measured on it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compiler.analysis.cost import int8_storage, layer_storage, node_cost
from ..compiler.artifact import Artifact
from ..compiler.calibrate import Ranges
from ..compiler.database import Database
from ..compiler.errors import InputError
from ..compiler.formats import Coded
from ..compiler.ir import Graph, Node
from ..compiler.ledger import LedgerRow
from ..compiler.measure import (
    Latency,
    Quality,
    measure_latency,
    quality,
)
from ..compiler.plan import TABLE_INT8, Plan, fits, free_layers_of, large_tables_of
from ..passes.apply_plan import apply_plan
from ..passes.code_layers import round_layers
from ..passes.quantise import Memo
from .costs import cost_table
from .data import Data
from .evaluator import (
    CONFIRM_PART,
    SEARCH_PART,
    CostTable,
    Layer,
    Names,
    Progress,
)
from .result import Sensitivity
from .sensitivity import layer_effects

if TYPE_CHECKING:
    from ..targets.target import Target

LATENCY_FEEDS = 4  # inputs that timed runs take in turn
ENOUGH_NOISE = 0.002  # relative standard error at which timing stops early
PROFILE_REPEATS = 30
PLANS_KEPT = 4
MUST_TAKE = 0.97  # of its time in float32, at most, for a layer to become bfloat16
SMALLEST_MAY_TAKE = 1.25  # the same where size is what counts
STREAMED_BYTES = 1 << 19  # of float32 weights that no cache near the core keeps
FEW_USES = 4  # of each weight in a run: fetching it takes longer than multiplying


@dataclass
class CompiledPlan:
    """An artifact, opened."""

    artifact: Artifact
    plan: Plan

    @property
    def size_bytes(self) -> int:
        return self.artifact.size_bytes

    def save(self, path: Path) -> None:
        self.artifact.save(path)

    def close(self) -> None:
        self.artifact.close()


@dataclass
class CompiledEvaluator:
    """See search/evaluator.py for what the methods promise.

    graph    the prepared graph
    ranges   of its values, from the calibration samples
    """

    graph: Graph
    ranges: Ranges
    target: Target
    data: Data
    names: Names
    identity: Mapping[str, str]
    database: Database
    threads: int = 1
    _planned: OrderedDict[Plan, Graph] = field(default_factory=OrderedDict)
    _quantised: Memo = field(default_factory=dict)
    _expected: dict[str, list[Mapping[str, np.ndarray]]] = field(default_factory=dict)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        layers = tuple(_describe(self.graph, node) for node in free_layers_of(self.graph))
        return (*(_describe_table(self.graph, node) for node in large_tables_of(self.graph)), *layers)

    @cached_property
    def base_plan(self) -> Plan:
        return Plan.uniform(self.graph, "float32", self.ranges.calibration)

    @property
    def sensitivity_samples(self) -> int:
        return len(self.data.sensitivity)

    @property
    def notes(self) -> tuple[str, ...]:
        return self.data.notes

    def sensitivity(self, sample: int) -> Mapping[str, Sensitivity]:
        return layer_effects(self.graph, self._one_layer_plans, self.data.sensitivity[sample])

    @cached_property
    def _one_layer_plans(self) -> dict[str, Graph]:
        plans = {x.name: self.base_plan.with_choice(x.name, x.quantised) for x in self.layers}
        return {name: self._apply(plan) for name, plan in plans.items()}

    def _apply(self, plan: Plan) -> Graph:
        bound, codes = self.target.pair_bound, {name: self._codes[name] for name in plan.coded}
        return apply_plan(self.graph, plan, self.ranges, pair_bound=bound, memo=self._quantised, coded=codes)

    @cached_property
    def _codes(self) -> Mapping[str, Coded]:
        """Of the large tables: made once, as many plans have them."""
        tables = {x.name: x.quantised for x in self.layers if x.op == "gather"}
        return round_layers(self.graph, Plan(self.graph.name, tables))

    def costs(self, progress: Progress) -> CostTable:
        done = 0

        def measure(int8: frozenset[str]) -> tuple[Graph, Mapping[str, float]]:
            nonlocal done
            progress("kernel times", done, 2 + done)
            done += 1
            chosen = {x.name: x.quantised for x in self.layers if x.name in int8}
            planned = self.planned(replace(self.base_plan, layers={**self.base_plan.layers, **chosen}))
            return planned, self._kernel_times(planned)

        table = cost_table(self.graph, measure)
        progress("kernel times", done, done)
        return table

    def predict(self, plan: Plan) -> float:
        return sum(self._kernel_times(self.planned(plan)).values())

    def narrowed(self, plan: Plan, smallest: bool) -> Plan | None:
        hopeful = {
            x.name: "bfloat16"
            for x in self.layers
            if plan.choice(x.name) == "float32"
            and fits(self.graph, self.graph.node(x.name), "bfloat16")
            and (smallest or self.target.multiplies_bfloat16 or _streams_weights(x))
        }
        if not hopeful:
            return None
        before = self._kernel_times(self.planned(plan))
        after = self._kernel_times(self.planned(replace(plan, layers={**plan.layers, **hopeful})))
        most = SMALLEST_MAY_TAKE if smallest else MUST_TAKE
        gained = {x: choice for x, choice in hopeful.items() if after[x] <= most * before[x]}
        return replace(plan, layers={**plan.layers, **gained}) if gained else None

    def _kernel_times(self, planned: Graph) -> Mapping[str, float]:
        from ..targets.latency import kernel_times

        return kernel_times(planned, self.target, self.database)

    def planned(self, plan: Plan) -> Graph:
        """The graph as the plan makes it; the last few are kept."""
        if plan not in self._planned:
            self._planned[plan] = self._apply(plan)
        self._planned.move_to_end(plan)
        while len(self._planned) > PLANS_KEPT:
            self._planned.popitem(last=False)
        return self._planned[plan]

    def build(self, plan: Plan) -> CompiledPlan:
        return CompiledPlan(self._compile(plan, None, ()), plan)

    def _compile(self, plan: Plan, directory: Path | None, ledger: tuple[LedgerRow, ...]) -> Artifact:
        from ..targets.build import build

        rows = [row.to_json() for row in ledger]
        kept, stated = self.ranges.for_plan(plan), plan.to_json()
        return build(self.planned(plan), self.target, directory, plan=stated, ledger=rows, ranges=kept)

    def quality(self, built: Any, part: str) -> Quality:
        samples = self.data.confirm if part == CONFIRM_PART else self.data.search
        outputs = [built.artifact.run(**feed) for feed in samples.feeds]
        return quality(self._float_outputs(part), outputs, samples.labels, score=self._score(built))

    def _score(self, built: CompiledPlan) -> float | None:
        if self.data.score is None:
            return None
        score = float(self.data.score(built.artifact))
        if not np.isfinite(score):
            raise InputError(
                f"the function given as evaluate= returned {score}: it must return a finite number"
            )
        return score

    def _float_outputs(self, part: str) -> list[Mapping[str, np.ndarray]]:
        """The compiled float network's outputs on the samples of a part."""
        if part not in self._expected:
            samples = {SEARCH_PART: self.data.search, CONFIRM_PART: self.data.confirm}[part]
            artifact = self._compile(self.base_plan, None, ())
            self._expected[part] = [artifact.run(**feed) for feed in samples.feeds]
            artifact.close()
        return self._expected[part]

    def latency(
        self, builds: Mapping[str, Any], *, repeats: int, seconds: float, threads: int | None = None
    ) -> Mapping[str, Latency]:
        artifacts = {name: built.artifact for name, built in builds.items()}
        for artifact in artifacts.values():
            artifact.set_threads(threads or self.threads)
        feeds = self.data.search.feeds[:LATENCY_FEEDS]
        return measure_latency(artifacts, feeds, repeats=repeats, seconds=seconds, target_noise=ENOUGH_NOISE)

    def layer_times(self, built: Any) -> Mapping[str, float]:
        artifact: Artifact = built.artifact
        artifact.set_threads(1)
        times = dict.fromkeys((x.name for x in self.layers), 0.0)
        for step in artifact.profile(repeats=PROFILE_REPEATS, **self.data.search.feeds[0]):
            if step.layer in times:
                times[step.layer] += step.nanoseconds / 1e3
        return times

    def save(self, plan: Plan, path: Path, ledger: tuple[LedgerRow, ...]) -> int:
        with self._compile(plan, path, ledger) as artifact:
            return artifact.size_bytes


def _streams_weights(layer: Layer) -> bool:
    """Whether fetching its weights binds it, so that half the bytes take less time on any chip."""
    return 4 * layer.weights >= STREAMED_BYTES and layer.macs <= FEW_USES * layer.weights


def _describe(graph: Graph, node: Node) -> Layer:
    storage = layer_storage(graph, node)
    return Layer(
        name=node.name,
        op=node.op,
        shape=node.type.shape,
        macs=node_cost(graph, node).macs,
        weights=storage.weights,
        float_bytes=storage.total_bytes,
        int8_bytes=int8_storage(graph.type_of(node.inputs[1])).total_bytes,
    )


def _describe_table(graph: Graph, node: Node) -> Layer:
    """Rows of float32, or of int8 with a scale for each."""
    kind, users = graph.type_of(node.inputs[0]), len(graph.consumers(node.inputs[0]))
    small = kind.size + 4 * kind.shape[0]
    return Layer(node.name, node.op, node.type.shape, 0, kind.size, kind.nbytes // users, small, TABLE_INT8)
