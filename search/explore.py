"""The search proper: baselines, sensitivities, exact allocations, then Optuna."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from .allocation import (
    Allocation,
    Problem,
    solve,
    sweep,
)
from .belief import Belief
from .result import Candidate, Sensitivity
from .session import Session

FRONT_POINTS = 8  # exact allocations tried, from fastest to most careful
BISECTIONS = 4  # more of them, between the last that meets the constraints and the first that does not
REPEATS_IN_A_ROW = 20  # proposals of known plans after which nothing new is expected
SENSITIVITY = "sensitivity:"


def front_points(trials: int) -> int:
    """How many trials the first sweep may use: a third, the rest corrects it."""
    return max(1, min(FRONT_POINTS, trials // 3))


def measure_baselines(session: Session) -> None:
    """Uniform float32 and uniform int8: there is a result from here on, whatever stops the search."""
    for int8 in (frozenset[str](), frozenset(session.names)):
        while int8 not in session.candidates:
            session.progress("baselines", len(session.candidates), 2)
            if not session.study.waiting():
                session.study.enqueue(session.choices(int8), "baseline")
            session.run(session.study.ask())
    session.progress("baselines", 2, 2)


def measure_sensitivities(session: Session) -> dict[str, Sensitivity]:
    """Mean over the samples, each kept in the study once it is done; of fewer samples when time is up."""
    total = session.evaluator.sensitivity_samples
    tables: list[Mapping[str, Sensitivity]] = []
    for sample in range(total):
        session.progress("sensitivity", sample, total)
        stored = session.study.recall(f"{SENSITIVITY}{sample}")
        if stored is None:
            if session.time_is_up:
                break
            table = session.evaluator.sensitivity(sample)
            stored = {layer: [s.kl, s.error] for layer, s in table.items()}
            session.study.remember(f"{SENSITIVITY}{sample}", stored)
        tables.append({layer: Sensitivity(*values) for layer, values in stored.items()})
    session.progress("sensitivity", len(tables), len(tables))
    if len(tables) < total:
        session.notes.append(f"time was up: sensitivities come from {len(tables)} of {total} samples")
    return _mean(tables, session.names) if tables else {}


def _mean(tables: list[Mapping[str, Sensitivity]], names: tuple[str, ...]) -> dict[str, Sensitivity]:
    result = {}
    for name in names:
        rows = [t[name] for t in tables]
        kls = [r.kl for r in rows if r.kl is not None]
        kl = float(np.mean(kls)) if len(kls) == len(rows) else None
        result[name] = Sensitivity(kl, float(np.mean([r.error for r in rows])))
    return result


def build_problem(session: Session, sensitivity: Mapping[str, Sensitivity]) -> Problem:
    """The additive model, from the kernel table and the sensitivities."""
    costs, layers = session.evaluator.costs(session.progress), session.evaluator.layers
    return Problem(
        layers=session.names,
        float_us=costs.float_us,
        int8_us=costs.int8_us,
        loss={name: sensitivity[name].loss for name in session.names},
        float_bytes={x.name: x.float_bytes for x in layers},
        int8_bytes={x.name: x.int8_bytes for x in layers},
        edges=costs.edges,
    )


def weight_budget(session: Session) -> int | None:
    """Bytes of weights that the size constraint leaves; None without one."""
    bound = next((c for c in session.constraints if c.metric == "size"), None)
    if bound is None:
        return None
    base = session.float32.size_bytes
    code = base - sum(x.float_bytes for x in session.evaluator.layers)
    return int(bound.bound * (base if bound.relative else 1)) - code


class Explorer:
    """Spends the trials: the exact front, a bisection on it, then Optuna."""

    def __init__(self, session: Session, problem: Problem) -> None:
        self.session, self.problem = session, problem
        self.max_bytes = weight_budget(session)

    @property
    def spent(self) -> int:
        return max(0, len(self.session.candidates) - 2)

    @property
    def goes_on(self) -> bool:
        return self.spent < self.session.settings.trials and not self.session.time_is_up

    def run(self) -> None:
        self.empty_queue()
        front = self.sweep()
        self.bisect(front)
        self.propose()

    def report(self) -> None:
        self.session.progress("trials", self.spent, self.session.settings.trials)

    def empty_queue(self) -> None:
        """Plans that a killed search had begun."""
        while self.session.study.waiting() and self.goes_on:
            self.report()
            self.session.run(self.session.study.ask())

    def measure(self, allocation: Allocation) -> Candidate | None:
        """The allocation's measurement; None when there is no budget left for it."""
        if allocation.int8 not in self.session.candidates:
            if not self.goes_on:
                return None
            self.report()
            self.session.study.enqueue(self.session.choices(allocation.int8), "allocation")
            self.empty_queue()
        return self.session.candidates.get(allocation.int8)

    def sweep(self) -> list[Allocation]:
        points = front_points(self.session.settings.trials)
        front = sweep(self.problem, points, max_bytes=self.max_bytes)
        return [a for a in front if self.measure(a) is not None]

    def bisect(self, front: list[Allocation]) -> None:
        """The largest loss budget that meets the constraints: sums of losses need not say where that is."""
        fits = [a.loss for a in front if self.session.candidates[a.int8].feasible]
        fails = [a.loss for a in front if not self.session.candidates[a.int8].feasible]
        low, high = (
            max(fits, default=0.0),
            min((f for f in fails if f > max(fits, default=0.0)), default=None),
        )
        for _ in range(BISECTIONS):
            if high is None or not high > 0:
                return
            middle = math.sqrt(low * high) if low > 0 else high / 4
            found = solve(self.problem, max_loss=middle, max_bytes=self.max_bytes)
            if found is None or found.loss <= low:
                low = middle
                continue
            measured = self.measure(found)
            if measured is None:
                return
            front.append(found)
            low, high = (found.loss, high) if measured.feasible else (low, found.loss)

    def propose(self) -> None:
        """The sampler's turn, which corrects for what does not add up."""
        session, repeats = self.session, 0
        belief = self._belief()
        session.study.use(lambda: session.choices(belief.propose(session.candidates)))
        while self.goes_on and len(session.candidates) < 2 ** len(session.names):
            self.report()
            before = len(session.candidates)
            session.run(session.study.ask())
            repeats = 0 if len(session.candidates) > before else repeats + 1
            if repeats >= REPEATS_IN_A_ROW:
                session.notes.append(f"the sampler found nothing new after {self.spent} trials")
                return
        self.report()

    def _belief(self) -> Belief:
        session = self.session
        # The state of the random numbers is not stored: a resumed search must not repeat its first proposals.
        seed = (session.settings.seed, len(session.candidates))
        table = session.evaluator.predict(session.plan(frozenset()))
        rng = np.random.default_rng(seed)
        return Belief(self.problem, session.settings.objectives, self.max_bytes, table, rng)
