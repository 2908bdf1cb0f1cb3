"""A weight format for each unit of a language model's layers, for a bound on size, bits or KL.

    table      what each format costs in each unit            (tables.py; kept in the folder)
    codes      of a plan, as `compile` makes them             (codes.py; kept in the folder)
    trials     exact allocations, judged by measured KL       (trials.py; kept in the folder)

The texts that plans are judged on are not those that the table and the codes were made of.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from ...compiler.errors import InputError
from ...compiler.formats import Format
from ...compiler.ir import Graph
from ...passes.layer_coder import EncodeOptions
from .bounds import BitBound
from .codes import PlanCodes
from .judge import Judge, Runs
from .memory import BitMemory
from .tables import (
    KINDS,
    losses,
    measured,
)
from .trials import Explorer, Trial
from .units import Unit, units_of

CODES = "codes"
PROBE_BITS = 4
"""A table of measured KL is measured in the format that has about so many bits."""

Report = Callable[[str, int, int], None]


class Times(Protocol):
    """Nanoseconds of one token: of each unit in each format, and of the rest."""

    @property
    def units(self) -> Mapping[str, Mapping[Format, int]]: ...

    @property
    def rest(self) -> int: ...


@dataclass(frozen=True)
class BitSettings:
    """`table`: one of bit_tables.KINDS; `encode`: how weights are coded. Raises InputError for what is not
    known."""

    bound: BitBound
    formats: tuple[Format, ...]
    table: str
    trials: int
    seed: int
    encode: EncodeOptions = EncodeOptions()

    def __post_init__(self) -> None:
        if self.table not in KINDS:
            raise InputError(f"tables of losses are {', '.join(KINDS)}, not {self.table!r}")
        if not self.formats:
            raise InputError("give at least one weight format")
        if self.trials < 1:
            raise InputError(f"a search measures at least one plan, not {self.trials}")

    @property
    def identity(self) -> str:
        """What its table and trials depend on, beside the model and the texts. Not the bound: trials of one
        help another."""
        return f"{sorted(map(str, self.formats))} {self.table} {self.seed} {self.encode}"


class BitSearch:
    """`graph` (one output, logits) runs on `table_runs` for the table and the codes, on `judge_runs` for KL.
    `times` of one token, for a bound on its speed.
    """

    def __init__(
        self,
        graph: Graph,
        table_runs: Runs,
        judge_runs: Runs,
        settings: BitSettings,
        folder: Path,
        report: Report,
        times: Times | None = None,
    ) -> None:
        self.graph, self.settings, self.report = graph, settings, report
        self.units: tuple[Unit, ...] = units_of(graph)
        self.memory = BitMemory(folder, _identity(graph, (table_runs, judge_runs), settings))
        self.went_on = len(self.memory.trials)
        self.times = times
        self.judge = Judge(graph, judge_runs)
        self.codes = PlanCodes(
            graph, table_runs, settings.encode, folder / CODES, partial(report, "coding weights")
        )
        self.table = self._table(table_runs)
        self.explorer = Explorer(
            self.judge,
            self.units,
            self.table,
            self.codes.decoded,
            costs=None if times is None else times.units,
            known=self.memory.trials,
            tell=self._heard,
        )

    @property
    def coded_weights(self) -> int:
        return sum(unit.weights for unit in self.units)

    def best(self, other_bytes: int, float_bytes: int, slower: float = 1.0) -> Trial | None:
        """The best plan within the bound, None when none is. `other_bytes`: of all that is not codes;
        `slower`: how many times as long as its layers together a token takes. Raises InputError for room that
        no formats fit in.
        """
        bound, count = self.settings.bound, self.settings.trials
        if bound.kind == "kl":
            return self.explorer.below(bound.limit, count)
        if self.times is not None:
            room = math.floor(1e9 / bound.limit / slower) - self.times.rest
            return self.explorer.within(room, count)
        least = self.explorer.cost(self.explorer.cheapest)
        most = bound.room(least, self.coded_weights, float_bytes, other_bytes)
        assert most is not None, "bounds on size and bits are left"
        return self.explorer.within(most, count)

    @property
    def closest(self) -> Trial:
        """Where no plan keeps the bound."""
        if self.times is not None:
            return self.explorer.measure(self.explorer.cheapest)
        return min(self.explorer.trials, key=lambda t: t.kl)

    def _heard(self, trial: Trial) -> None:
        self.memory.add(trial)
        self.report("measuring plans", len(self.memory.trials) - self.went_on, self.settings.trials)

    def _table(self, runs: Runs) -> Mapping[str, Mapping[Format, float]]:
        kept = self.memory.table()
        if kept is not None:
            return kept
        kind = self.settings.table
        layers = [layer for unit in self.units for layer in unit.layers]
        slopes = None
        if kind == "curvature":
            step = partial(self.report, "curvature of layers")
            slopes = Judge(self.graph, runs).curvature(layers, self.settings.seed, step=step)
        found = losses(
            self.graph,
            runs,
            self.units,
            self.settings.formats,
            slopes,
            "output" if kind == "measured" else kind,
            partial(self.report, "losses of layers"),
        )
        if kind == "measured":
            probe, step = probe_of(self.settings.formats), partial(self.report, "KL of units")
            decoded = self._alone(runs).decoded(dict.fromkeys(layers, probe))
            found = measured(self.judge, self.units, found, probe, decoded, step)
        self.memory.keep_table(found)
        return found

    def _alone(self, runs: Runs) -> PlanCodes:
        """Codes of layers that make nothing good but their own errors."""
        encode = self.settings.encode
        encode = replace(encode, compensation=replace(encode.compensation, regain=0.0))
        return PlanCodes(self.graph, runs, encode, self.codes.folder)


def probe_of(formats: Sequence[Format]) -> Format:
    """The one that a table of measured KL is measured in."""
    return min(formats, key=lambda f: (abs(f.bits - PROBE_BITS), str(f)))


def _identity(graph: Graph, texts: Sequence[Runs], settings: BitSettings) -> str:
    digest = hashlib.sha256(f"{graph.content_hash} {settings.identity}".encode())
    for runs in texts:
        for run in runs:
            for name in sorted(run):
                digest.update(name.encode())
                digest.update(np.ascontiguousarray(run[name]).data)
    return digest.hexdigest()


def uncoded_bytes(graph: Graph, units: Sequence[Unit]) -> int:
    """Of the parameters that no unit codes."""
    coded = {unit.matrix for unit in units}
    return sum(graph.type_of(name).nbytes for name in graph.used_params() if name not in coded)


def float_bytes_of(graph: Graph) -> int:
    """Of all parameters, each once."""
    return sum(math.prod(graph.type_of(name).shape) * 4 for name in graph.used_params())
