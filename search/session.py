"""One search under way: measuring single plans and remembering them.

Every latency is measured as a ratio to the float baseline in the same run: between runs the machine drifts.
In microseconds it is that ratio times what the baseline takes. While the search goes on, that is what it took
in the very first run; at the end, what it takes in the one run that times all finalists (`rescale`). All that
a finished search says of plans is on this second scale: constraints, tables, pictures and headline.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType

from ..compiler.measure import Latency
from ..compiler.plan import Plan
from .evaluator import (
    SEARCH_PART,
    Built,
    Evaluator,
    Progress,
)
from .objectives import (
    Constraint,
    check_measurable,
    default_constraints,
    objective_values,
    total_excess,
)
from .result import Candidate
from .study import Proposal, Study

TRIAL_REPEATS, TRIAL_SECONDS = 40, 1.5
REFERENCE = "reference_us"  # the float baseline's time in the first run of the study
FLOAT, INT8 = "float32", "int8"


@dataclass(frozen=True)
class Settings:
    """What was asked for. `trials`: plans beside the baselines; `timeout`: seconds, None for none."""

    objectives: tuple[str, ...] = ("quality", "latency", "size")
    constraints: tuple[Constraint, ...] = ()
    trials: int = 40
    timeout: float | None = None
    threads: int = 1
    seed: int = 0


@dataclass
class Session:
    """The moving parts of a search. As a context manager it closes the baseline."""

    evaluator: Evaluator
    settings: Settings
    study: Study
    progress: Progress
    constraints: tuple[Constraint, ...] = ()
    candidates: dict[frozenset[str], Candidate] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    _baseline: Built | None = None
    _float_us: float | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._baseline is not None:
            self._baseline.close()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.evaluator.layers)

    @property
    def baseline(self) -> Built:
        """The float network, compiled; every latency is measured in turns with it."""
        if self._baseline is None:
            self._baseline = self.evaluator.build(self.plan(frozenset()))
        return self._baseline

    @property
    def float32(self) -> Candidate:
        return self.candidates[frozenset()]

    @property
    def int8(self) -> Candidate:
        return self.candidates[frozenset(self.names)]

    @property
    def time_is_up(self) -> bool:
        timeout = self.settings.timeout
        return timeout is not None and time.monotonic() - self.started >= timeout

    def choices(self, int8: frozenset[str]) -> dict[str, str]:
        """As the study has them: one of its two for each layer."""
        return {name: INT8 if name in int8 else FLOAT for name in self.names}

    def plan(self, int8: frozenset[str]) -> Plan:
        choices = {x.name: x.quantised if x.name in int8 else FLOAT for x in self.evaluator.layers}
        return replace(self.evaluator.base_plan, layers=choices)

    def load_finished(self) -> None:
        """Takes over what earlier runs of this study measured."""
        for candidate in self.study.finished():
            self.candidates.setdefault(candidate.int8_layers, candidate)
        if frozenset() in self.candidates:
            self.decide_constraints()

    def decide_constraints(self) -> None:
        """The caller's constraints; when none bounds quality, with a default that does."""
        given = self.settings.constraints
        check_measurable(given, self.float32.reading)
        if any(c.bounds_quality for c in given):
            self.constraints = given
        else:
            extra = default_constraints(self.float32.quality)
            self.constraints = (*given, *extra)
            self.notes.append(f"no constraint on quality was given: {extra[0].text} was used")
        self.candidates = {key: self.judged(c) for key, c in self.candidates.items()}

    def run(self, proposal: Proposal) -> Candidate:
        """Measures a proposed plan, or looks it up when it was measured before, and finishes its trial."""
        int8 = frozenset(x for x, choice in proposal.choices.items() if choice == INT8)
        try:
            known = self.candidates.get(int8)
            candidate = known or self._measure(int8, proposal)
        except BaseException:
            # Whatever stops it, Ctrl-C included: the study must not show it as running.
            self.study.give_up(proposal)
            raise
        self.candidates[int8] = candidate
        if not int8 and not self.constraints:
            self.decide_constraints()
            candidate = self.float32
        values = objective_values(self.settings.objectives, candidate.reading)
        self.study.tell(proposal, candidate, values, self.excess(candidate))
        return candidate

    def excess(self, candidate: Candidate) -> dict[str, float]:
        base = self.float32.reading
        return {c.text: c.excess(candidate.reading, base) for c in self.constraints}

    def total_excess(self, candidate: Candidate) -> float:
        return total_excess(self.constraints, candidate.reading, self.float32.reading)

    def judged(self, candidate: Candidate) -> Candidate:
        """The candidate with `feasible` as the constraints say, relative to the float baseline."""
        return replace(candidate, feasible=self.total_excess(candidate) <= 0)

    def _measure(self, int8: frozenset[str], proposal: Proposal) -> Candidate:
        plan = self.plan(int8)
        built = self.evaluator.build(plan) if int8 else self.baseline
        try:
            quality = self.evaluator.quality(built, SEARCH_PART)
            latency = self.latencies({"plan": built}, TRIAL_REPEATS, TRIAL_SECONDS)["plan"]
            candidate = Candidate(
                name=self._name(int8, proposal),
                plan=plan,
                quality=quality,
                latency=latency,
                latency_us=self.normalised(latency),
                size_bytes=built.size_bytes,
                predicted_us=None,
                feasible=False,
                origin=proposal.origin,
            )
        finally:
            if int8:
                built.close()
        return self.judged(candidate) if self.constraints else candidate

    def _name(self, int8: frozenset[str], proposal: Proposal) -> str:
        if not int8:
            return FLOAT
        return INT8 if int8 == frozenset(self.names) else f"trial-{proposal.number}"

    def latencies(self, builds: Mapping[str, Built], repeats: int, seconds: float) -> dict[str, Latency]:
        """Times of all, each in turns with the float baseline, ratios to it."""
        measured = self.evaluator.latency({FLOAT: self.baseline, **builds}, repeats=repeats, seconds=seconds)
        return dict(measured)

    def normalised(self, latency: Latency) -> float:
        """Microseconds on the scale that holds now."""
        reference = self._float_us or self.study.recall(REFERENCE)
        if reference is None:
            reference = latency.median_us / latency.ratio_to_first
            self.study.remember(REFERENCE, reference)
        return float(reference) * latency.ratio_to_first

    def rescale(self, float_us: float) -> None:
        """From now on the float baseline takes so many microseconds; all candidates are judged anew."""
        self._float_us = float_us
        scaled = {k: replace(c, latency_us=self.normalised(c.latency)) for k, c in self.candidates.items()}
        self.candidates = scaled  # before they are judged: a bound may be relative to the baseline among them
        self.candidates = {k: self.judged(c) for k, c in scaled.items()}


def pareto(candidates: Sequence[Candidate], objectives: Sequence[str]) -> list[Candidate]:
    """Those that no other beats in one objective while being as good in all."""
    values = [objective_values(objectives, c.reading) for c in candidates]

    def beaten(i: int) -> bool:
        return any(
            all(a <= b for a, b in zip(v, values[i], strict=True)) and (v != values[i] or k < i)
            for k, v in enumerate(values)
            if k != i
        )

    return [c for i, c in enumerate(candidates) if not beaten(i)]
