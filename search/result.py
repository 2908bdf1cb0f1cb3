"""What a search found, as frozen records that survive JSON (`search.json`)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..compiler.analysis.roofline import Roofline
from ..compiler.errors import InputError
from ..compiler.files import write_whole
from ..compiler.ledger import LedgerRow
from ..compiler.machine import Machine
from ..compiler.measure import Latency, Quality
from ..compiler.plan import TABLE_INT8, Plan
from .metrics import Reading

VERSION = 1
ORIGINS = ("baseline", "allocation", "optuna", "finalist")


@dataclass(frozen=True)
class Candidate:
    """One plan, compiled and measured.

    name           "float32", "int8", "trial-7", "trial-7-reverted", or one of these with "-bfloat16"
    quality        against the float baseline; of trials on the search samples, of finalists on all
                   evaluation samples
    latency        of trials and finalists, each in turns with the float baseline
    latency_us     what is compared, bounded and shown: ratio to the float baseline in the same run, times the
                   baseline's median in the run that timed all finalists (search/session.py says more)
    size_bytes     of the artifact on disk
    predicted_us   sum of the kernel table for this plan, one thread; None when it was not asked for
    feasible       meets every constraint, with the margin of objectives.py
    origin         "baseline", "allocation", "optuna", or "finalist" (another form of one)
    artifact       directory of the compiled artifact, None when it was not kept
    """

    name: str
    plan: Plan
    quality: Quality
    latency: Latency
    latency_us: float
    size_bytes: int
    predicted_us: float | None
    feasible: bool
    origin: str
    artifact: str | None = None

    @property
    def reading(self) -> Reading:
        return Reading(self.quality, self.latency_us, self.latency.noise, self.size_bytes)

    @property
    def int8_layers(self) -> frozenset[str]:
        """Layers and tables in int8."""
        return frozenset(x for x, choice in self.plan.layers.items() if choice in ("int8", TABLE_INT8))

    def to_json(self) -> dict[str, Any]:
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v.to_json() if hasattr(v, "to_json") else v for k, v in data.items()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Candidate:
        return Candidate(
            **{
                **data,
                "plan": Plan.from_json(data["plan"]),
                "quality": Quality.from_json(data["quality"]),
                "latency": Latency.from_json(data["latency"]),
            }
        )


@dataclass(frozen=True)
class Sensitivity:
    """What happens to the output when one layer alone is int8 (mean over calibration samples).

    kl      mean KL divergence of the first output, nats; None when it is no classifier
    error   relative squared error over all outputs
    """

    kl: float | None
    error: float

    @property
    def loss(self) -> float:
        return self.error if self.kl is None else self.kl


@dataclass(frozen=True)
class Additivity:
    """How far the kernel table's sum is from the time measured end to end, one thread."""

    candidate: str
    predicted_us: float
    measured_us: float

    @property
    def relative_error(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted_us / self.measured_us - 1.0


@dataclass(frozen=True)
class SearchResult:
    """Everything a search found.

    graph, graph_hash    name and content hash of the network
    target, fingerprint  the chip that was compiled for, and the exact one that was measured on
    threads              of all end-to-end times
    float32, int8        the uniform baselines
    best                 the choice among the finalists (search/finalists.py has the rule)
    front                what no other plan beats in all objectives, whether within the constraints or not,
                         and `best`; fastest first
    trials               every plan that was measured, in order
    ledger               one row per layer of `best`
    sensitivity          by layer
    additivity           of each finalist
    seconds              spent by this call
    met                  `best` meets the constraints; if not, it is the closest
    notes                what the reader should know
    roofline             the kernels of `best` beside the machine's limits; None when it was not kept
    """

    graph: str
    graph_hash: str
    target: str
    fingerprint: str
    machine: Machine
    threads: int
    objectives: tuple[str, ...]
    constraints: tuple[str, ...]
    float32: Candidate
    int8: Candidate
    best: Candidate
    front: tuple[Candidate, ...]
    trials: tuple[Candidate, ...]
    ledger: tuple[LedgerRow, ...]
    sensitivity: Mapping[str, Sensitivity]
    additivity: tuple[Additivity, ...]
    seconds: float
    met: bool
    notes: tuple[str, ...]
    roofline: Roofline | None = None

    @property
    def baselines(self) -> tuple[Candidate, Candidate]:
        return self.float32, self.int8

    @property
    def plan(self) -> Plan:
        """The best plan."""
        return self.best.plan

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {f.name: _plain(getattr(self, f.name)) for f in fields(self)}
        sensitivity = {k: {"kl": s.kl, "error": s.error} for k, s in self.sensitivity.items()}
        additivity = [{**vars(a), "relative_error": a.relative_error} for a in self.additivity]
        return {"version": VERSION, **data, "sensitivity": sensitivity, "additivity": additivity}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> SearchResult:
        """The result that `to_json` wrote. Raises InputError when it is not one."""
        if not isinstance(data, Mapping) or data.get("version") != VERSION:
            found = data.get("version") if isinstance(data, Mapping) else data
            raise InputError(f"not a search result of version {VERSION} (found {found!r})")
        try:
            return _parse({k: v for k, v in data.items() if k != "version"})
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"search result: a field is missing or of the wrong kind: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON file, whole or not at all. Raises OutputError."""
        write_whole(path, json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n", "the result")

    @staticmethod
    def load(path: str | os.PathLike[str]) -> SearchResult:
        """Reads `search.json`. Raises InputError when it is missing, no JSON or no search result."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"{path}: cannot be read as a search result: {error}") from None
        return SearchResult.from_json(data)


def _plain(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value


def _parse(data: dict[str, Any]) -> SearchResult:
    additivity = tuple(
        Additivity(a["candidate"], a["predicted_us"], a["measured_us"]) for a in data["additivity"]
    )
    candidates = {k: Candidate.from_json(data[k]) for k in ("float32", "int8", "best")}
    lists = {k: tuple(Candidate.from_json(c) for c in data[k]) for k in ("front", "trials")}
    names = {k: tuple(data[k]) for k in ("objectives", "constraints", "notes")}
    return SearchResult(
        **{
            **data,
            **candidates,
            **lists,
            **names,
            "machine": Machine.from_json(data["machine"]),
            "ledger": tuple(LedgerRow.from_json(r) for r in data["ledger"]),
            "sensitivity": {k: Sensitivity(**v) for k, v in data["sensitivity"].items()},
            "additivity": additivity,
            "roofline": None if data.get("roofline") is None else Roofline.from_json(data["roofline"]),
        }
    )


def with_artifact(candidate: Candidate, path: Path) -> Candidate:
    return replace(candidate, artifact=str(path))
