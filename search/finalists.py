"""The end of a search: the best trials are compiled again and measured together, and the winner is chosen.

1. Finalists: both baselines, the fastest trials that meet the constraints, the most careful ones.
2. The do-no-harm gate: the layers of the fastest are timed inside the compiled network. The exact
allocation is
   solved again with these times, where only layers that are int8 now may be; what it takes back makes one
   more finalist.
3. The fastest, gated or not, once more with bfloat16 where its float32 layers gain by that (on chips that
multiply it, in layers that wait for their weights, or where size is what counts).
4. All are timed in turns with the float baseline in one run, and judged on the search samples and the
held-out
   ones together. The baseline's median in this run turns all ratios into microseconds from here on. If that
   changes which trials meet a bound in milliseconds, and so the finalists, these are taken in and all are
   timed once more.
5. `choose` names the winner. The baselines take part: nothing slower than them can win.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType

from .allocation import Problem, solve, with_times
from .evaluator import CONFIRM_PART, Built
from .metrics import Reading
from .objectives import (
    Constraint,
    objective_values,
    primary,
    quality_loss,
    total_excess,
)
from .result import Additivity, Candidate
from .session import FLOAT, INT8, Session

FASTEST, CAREFUL = 3, 2
FINAL_REPEATS, FINAL_SECONDS = 300, 2.5  # seconds: for each finalist
GATED = 2  # finalists whose layers are timed one by one
MOST_TIE = 0.01


@dataclass(frozen=True)
class Verdict:
    """What the end found.

    finalists    measured together; the first two are the baselines
    best         the winner; `met`: it meets the constraints
    float_us, int8_us   microseconds of each layer inside a compiled network that has it in that type
    best_us      microseconds of each layer inside the winner
    reverted     layers of the winner that the gate took back to float32
    """

    finalists: tuple[Candidate, ...]
    best: Candidate
    met: bool
    float_us: Mapping[str, float]
    int8_us: Mapping[str, float]
    best_us: Mapping[str, float]
    reverted: frozenset[str]
    additivity: tuple[Additivity, ...]


class Final:
    """Holds the compiled finalists until they are saved. A context manager."""

    def __init__(self, session: Session, problem: Problem | None) -> None:
        self.session, self.problem = session, problem
        self.builds: dict[str, Built] = {}
        self._chosen: list[Candidate] = []
        self._reverted: dict[str, frozenset[str]] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Final:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def decide(self) -> Verdict:
        self._add(choose_finalists(self.session))
        finalists = self._measure()
        if self._add(choose_finalists(self.session)):
            finalists = self._measure()
        best, met = choose(self.session, finalists)
        # At once after that run: the ledger's times of layers are of the same minute as its times of plans.
        float_us, int8_us, best_us = (self._layer_times(name) for name in (FLOAT, INT8, best.name))
        self.session.progress("finalists", len(finalists), len(finalists))
        return Verdict(
            tuple(finalists),
            best,
            met,
            float_us,
            int8_us | {x: us for x, us in best_us.items() if x in best.int8_layers},
            best_us,
            self._reverted.get(best.name, frozenset()),
            self._additivity(finalists),
        )

    def _add(self, candidates: Sequence[Candidate]) -> int:
        """Compiles those that are not finalists yet, and what the gate makes of the fastest of them."""
        known = {c.int8_layers for c in self._chosen}
        fresh = [c for c in candidates if c.int8_layers not in known]
        for i, candidate in enumerate(fresh):
            self.session.progress("finalists", i, len(fresh))
            self._build(candidate)
        self._chosen += fresh
        gated = fastest_first(self.session, [c for c in fresh if c.feasible])[:GATED]
        float_us = self._layer_times(FLOAT) if gated else {}
        gentle = []
        for candidate in gated:
            gentler = self._gate(candidate, float_us)
            if gentler is not None and all(gentler.int8_layers != c.int8_layers for c in self._chosen):
                self._build(gentler)
                self._chosen.append(gentler)
                self._reverted[gentler.name] = candidate.int8_layers - gentler.int8_layers
                gentle.append(gentler)
        for candidate in (*gated[:1], *gentle[:1]):
            self._add_narrowed(candidate)
        return len(fresh)

    def _add_narrowed(self, candidate: Candidate) -> None:
        """The candidate with bfloat16 layers, if any pay."""
        smallest = primary(self.session.settings.objectives) == "size"
        plan = self.session.evaluator.narrowed(candidate.plan, smallest)
        if plan is not None:
            narrow = replace(candidate, name=f"{candidate.name}-bfloat16", plan=plan, origin="finalist")
            self._build(narrow)
            self._chosen.append(narrow)

    def _build(self, candidate: Candidate) -> None:
        if candidate.name == FLOAT:
            self.builds[FLOAT] = self.session.baseline
            return
        built = self.session.evaluator.build(candidate.plan)
        self._stack.callback(built.close)
        self.builds[candidate.name] = built

    def _layer_times(self, name: str) -> dict[str, float]:
        return dict(self.session.evaluator.layer_times(self.builds[name]))

    def _gate(self, candidate: Candidate, float_us: Mapping[str, float]) -> Candidate | None:
        """The candidate without the int8 layers that do not pay inside the network; None when all do."""
        if self.problem is None or not candidate.int8_layers:
            return None
        inside = self._layer_times(candidate.name)
        times = {x: inside[x] for x in candidate.int8_layers}
        found = solve(with_times(self.problem, float_us, times), allowed=candidate.int8_layers)
        if found is None or found.int8 == candidate.int8_layers:
            return None
        name = f"{candidate.name}-reverted"
        return replace(candidate, name=name, plan=self.session.plan(found.int8), origin="finalist")

    def _measure(self) -> list[Candidate]:
        """All in one run, on all samples; feasible as these numbers say. Fixes the scale of milliseconds."""
        session, evaluator, chosen = self.session, self.session.evaluator, self._chosen
        self.session.progress("finalists", len(chosen) - 1, len(chosen))
        others = {c.name: self.builds[c.name] for c in chosen if c.name != FLOAT}
        times = session.latencies(others, FINAL_REPEATS, FINAL_SECONDS * (1 + len(others)))
        session.rescale(times[FLOAT].median_us)
        measured = [
            replace(
                c,
                quality=evaluator.quality(self.builds[c.name], CONFIRM_PART),
                latency=times[c.name],
                latency_us=session.normalised(times[c.name]),
                size_bytes=self.builds[c.name].size_bytes,
                predicted_us=evaluator.predict(c.plan),
            )
            for c in chosen
        ]
        base = measured[0].reading
        return [
            replace(c, feasible=total_excess(session.constraints, c.reading, base) <= 0) for c in measured
        ]

    def _additivity(self, finalists: Sequence[Candidate]) -> tuple[Additivity, ...]:
        """The kernel table is of one thread: with more, the finalists are timed once more on one."""
        measured = {c.name: c.latency_us for c in finalists}
        if self.session.settings.threads > 1:
            builds = {c.name: self.builds[c.name] for c in finalists}
            times = self.session.evaluator.latency(builds, repeats=30, seconds=1.0 * len(builds), threads=1)
            measured = {name: t.median_us for name, t in times.items()}
        return tuple(
            Additivity(c.name, c.predicted_us, measured[c.name])
            for c in finalists
            if c.predicted_us is not None
        )


def fastest_first(session: Session, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Best in the primary objective first, then best in quality."""
    first = primary(session.settings.objectives)

    def key(c: Candidate) -> tuple[float, float]:
        return objective_values((first,), c.reading)[0], quality_loss(c.quality)

    return sorted(candidates, key=key)


def choose_finalists(session: Session) -> list[Candidate]:
    """Trials worth measuring again: the baselines, the fastest that meet the constraints, those with
    quality to spare.

    When few meet them with their margin, the fastest that meet them without it, and the closest.
    """
    everyone = list(session.candidates.values())
    base = session.float32.reading
    feasible = fastest_first(session, [c for c in everyone if c.feasible])
    picked = [session.float32, session.int8, *feasible[:FASTEST]]
    # The held-out samples may refuse the fastest: the next ones have half their loss, then half of that.
    if feasible:
        loss = quality_loss(feasible[0].quality)
        for candidate in feasible[FASTEST:]:
            if len(picked) < 2 + FASTEST + CAREFUL and quality_loss(candidate.quality) <= loss / 2:
                picked.append(candidate)
                loss = quality_loss(candidate.quality)
    nominal = [c for c in everyone if not c.feasible and _excess(session.constraints, c, base, 0.0) <= 0]
    picked += fastest_first(session, nominal)[:1]
    if not feasible:
        picked += sorted(everyone, key=lambda c: _excess(session.constraints, c, base, 0.0))[:FASTEST]
    return list({c.int8_layers: c for c in picked}.values())


def choose(session: Session, finalists: Sequence[Candidate]) -> tuple[Candidate, bool]:
    """The winner, and whether it meets the constraints.

    The best in the primary objective among those that meet the constraints with the margin of
    objectives.py; else among those that meet them without it; else the closest. What is within the noise
    of the winner (1 % at most) and better in quality takes its place.
    """
    base = finalists[0].reading
    constraints = session.constraints
    nominal = [c for c in finalists if _excess(constraints, c, base, 0.0) <= 0]
    pool = [c for c in finalists if c.feasible] or nominal
    if not pool:
        return min(finalists, key=lambda c: _excess(constraints, c, base, 0.0)), False
    winner = fastest_first(session, pool)[0]
    first = primary(session.settings.objectives)
    value = objective_values((first,), winner.reading)[0]
    ties = [
        c for c in pool if objective_values((first,), c.reading)[0] <= value * (1 + _tie(first, c, winner))
    ]
    return min(ties, key=lambda c: quality_loss(c.quality)), True


def _tie(objective: str, a: Candidate, b: Candidate) -> float:
    """Relative difference that may be noise; sizes have none."""
    return min(MOST_TIE, max(a.latency.noise, b.latency.noise)) if objective == "latency" else 0.0


def _excess(constraints: Sequence[Constraint], candidate: Candidate, base: Reading, z: float) -> float:
    return total_excess(constraints, candidate.reading, base, z)
