"""Plans around an additive table, judged by measured KL.

The exact allocation for the table comes first. As losses of units do not quite add up, the table is then
taken as a prior, each measured plan as a noisy sum of its entries, and the next plan is the exact allocation
for a table drawn from the posterior: Thompson sampling, as in belief.py, with several choices for each unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...compiler.formats import (
    Coded,
    Format,
    decode,
    encode,
)
from ...compiler.formats.compensate import Compensator
from ...compiler.ir import Graph
from ..allocation import Variant, choose
from ..belief import posterior
from .inputs import KeptInputs
from .judge import Judge
from .units import Unit, formats_by_layer

SPREAD, NOISE = 0.5, 0.03
"""Relative: of a table's entry, and of a measured sum."""
HEATS = (0.0, 0.5, 0.5, 1.0)
"""Of the draws in turn: 0 is the mean."""
SMALLEST = 1e-12
DRAWS = 3
"""Draws for each plan that is wanted: some lead to plans that were measured before."""

Choices = Mapping[str, Format]
"""unit -> format."""


@dataclass(frozen=True)
class Trial:
    """A measured choice. `bytes`: of all codes; `predicted`: by the table; `kl`: nats per token."""

    name: str
    choices: Choices
    bytes: int
    predicted: float
    kl: float


class CodedWeights:
    """Matrices in codes whose errors make each other good, for what a layer reads (the head of a table that
    is one too); of least squared error where none does. Made once when asked for."""

    def __init__(self, graph: Graph, inputs: KeptInputs) -> None:
        self.graph, self.inputs = graph, inputs
        self._codes: dict[tuple[str, Format], Coded] = {}
        self._coder: tuple[str, Compensator] | None = None

    def decoded(self, unit: Unit, format: Format) -> dict[str, np.ndarray]:
        """{matrix: float32 [n, k]}."""
        key = unit.matrix, format
        if key not in self._codes:
            self._codes[key] = self._coded(unit, format)
        return {unit.matrix: decode(self._codes[key])}

    def _coded(self, unit: Unit, format: Format) -> Coded:
        weight, reader = self.graph.params[unit.matrix], self.graph.node(unit.layers[-1])
        if reader.op != "linear":
            return encode(weight, format, np.ones(weight.shape[1], np.float32))
        value = reader.inputs[0]
        if self._coder is None or self._coder[0] != value:
            self._coder = value, self.inputs.coder(value)
        return self._coder[1].code(weight, format)


class Explorer:
    """Measures choices. `costs`: what a bound is on, by unit and format, instead of bytes. `known`: trials of
    a search that goes on; `tell(trial)` hears of each new one.
    """

    def __init__(
        self,
        judge: Judge,
        units: Sequence[Unit],
        table: Mapping[str, Mapping[Format, float]],
        weights: CodedWeights,
        *,
        costs: Mapping[str, Mapping[Format, int]] | None = None,
        known: Sequence[Trial] = (),
        tell: Callable[[Trial], None] = lambda trial: None,
        seed: int = 0,
    ) -> None:
        self.judge, self.units, self.table, self.weights = judge, units, table, weights
        self.trials, self.tell, self.seed = list(known), tell, seed
        self._sizes = {unit.name: {f: unit.bytes(f) for f in table[unit.name]} for unit in units}
        self._costs = self._sizes if costs is None else costs
        self._pairs = [(unit.name, f) for unit in units for f in table[unit.name]]

    def bytes(self, choices: Choices) -> int:
        return sum(self._sizes[unit][format] for unit, format in choices.items())

    def cost(self, choices: Choices) -> int:
        """What a bound is on: bytes, or another sum."""
        return sum(self._costs[unit][format] for unit, format in choices.items())

    def predicted(self, choices: Choices) -> float:
        return sum(self.table[unit][format] for unit, format in choices.items())

    def measure(self, name: str, choices: Choices) -> Trial:
        """The trial of these choices; measured before, it is that."""
        for trial in self.trials:
            if trial.choices == dict(choices):
                return trial
        replaced: dict[str, np.ndarray] = {}
        for unit in self.units:
            replaced |= self.weights.decoded(unit, choices[unit.name])
        kl = self.judge.kl(replaced, formats_by_layer(self.units, choices))
        made = Trial(name, dict(choices), self.bytes(choices), self.predicted(choices), kl)
        self.trials.append(made)
        self.tell(made)
        return made

    def allocate(
        self, losses: np.ndarray, *, max_cost: int | None = None, max_loss: float | None = None
    ) -> dict[str, Format] | None:
        """The exact choices for losses in the order of the table's entries."""
        menu: dict[str, list[Variant]] = {unit.name: [] for unit in self.units}
        formats = {str(format): format for _, format in self._pairs}
        for (unit, format), loss in zip(self._pairs, losses, strict=True):
            menu[unit].append(Variant(str(format), float(loss), self._costs[unit][format]))
        found = choose(menu, max_bytes=max_cost, max_loss=max_loss)
        return None if found is None else {unit: formats[each.name] for unit, each in found.items()}

    @property
    def prior(self) -> np.ndarray:
        return np.array([max(self.table[unit][format], SMALLEST) for unit, format in self._pairs])

    def within(self, max_cost: int, count: int) -> Trial | None:
        """The best of `count` measured choices of at most so much cost; those known before are among them.
        None where not even the cheapest formats fit.
        """
        first = self.allocate(self.prior, max_cost=max_cost)
        if first is None:
            return None
        self.measure("table", first)
        for i in range(1, DRAWS * count):
            fitting = [trial for trial in self.trials if self.cost(trial.choices) <= max_cost]
            if len(fitting) >= count:
                break
            choices = self.allocate(self.drawn(i), max_cost=max_cost)
            assert choices is not None, "the first allocation fitted"
            self.measure(f"draw {len(self.trials)}", choices)
        return min((t for t in self.trials if self.cost(t.choices) <= max_cost), key=lambda t: t.kl)

    @property
    def cheapest(self) -> dict[str, Format]:
        """The choices of least cost."""
        return {unit: min(costs, key=costs.__getitem__) for unit, costs in self._costs.items()}

    def below(self, max_kl: float, count: int) -> Trial | None:
        """The smallest of `count` measured choices with at most this KL, None when none has: the bound on the
        table's sum follows what was measured.
        """
        ratio = 1.0
        for i in range(count):
            choices = self.allocate(self.drawn(i) if i else self.prior, max_loss=max_kl / ratio)
            if choices is None:
                choices = {unit: max(sizes, key=sizes.__getitem__) for unit, sizes in self._sizes.items()}
            trial = self.measure(f"bound {i}", choices)
            believed = dict(zip(self._pairs, self.drawn(i) if i else self.prior, strict=True))
            ratio = max(trial.kl, SMALLEST) / max(sum(believed[pair] for pair in choices.items()), SMALLEST)
        return min((t for t in self.trials if t.kl <= max_kl), key=lambda t: t.bytes, default=None)

    def drawn(self, number: int) -> np.ndarray:
        """The table given all that was measured; of every few draws one is the mean."""
        rng = np.random.default_rng((self.seed, number))
        ratios = [math.log(max(t.kl, SMALLEST) / max(t.predicted, SMALLEST)) for t in self.trials]
        prior = self.prior * math.exp(float(np.median(ratios))) if ratios else self.prior
        place = {pair: i for i, pair in enumerate(self._pairs)}
        x = np.zeros((len(self.trials), len(self._pairs)))
        for row, trial in zip(x, self.trials, strict=True):
            row[[place[pair] for pair in trial.choices.items()]] = 1
        y = np.array([trial.kl for trial in self.trials])
        mean, covariance = posterior(prior, np.square(SPREAD * prior), x, y, NOISE * y + SMALLEST)
        heat = HEATS[number % len(HEATS)]
        if heat:
            values, vectors = np.linalg.eigh(covariance)
            shocks = rng.standard_normal(len(values)) * np.sqrt(values.clip(min=0))
            mean = mean + heat * (vectors @ shocks)
        found: np.ndarray = np.maximum(mean, 0.05 * prior)
        return found


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """Those that no other beats in both size and KL, smallest first."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.bytes, t.kl)):
        if not front or trial.kl < front[-1].kl:
            front.append(trial)
    return front
