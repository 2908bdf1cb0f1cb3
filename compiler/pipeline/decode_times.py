"""What a single token costs in each unit of a language model's layers, by weight format, measured here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_whole
from ..formats import Format
from ..frontends.language.model import LanguageModel
from ..machine import this_machine
from ..plan import Plan
from .feeds import random_feed
from .ledger_rows import layer_times
from .models import Progress, compile

if TYPE_CHECKING:
    from ...search.bits.units import Unit

TIMES_FILE = "times.json"
REPEATS = 20


@dataclass(frozen=True)
class DecodeTimes:
    """Nanoseconds of one token, one thread: `units` by name and format; `rest`: of all that is no unit."""

    units: Mapping[str, Mapping[Format, int]]
    rest: int

    def total(self, choices: Mapping[str, Format]) -> int:
        return self.rest + sum(self.units[unit][format] for unit, format in choices.items())


def decode_times(
    model: LanguageModel,
    units: Sequence[Unit],
    formats: Sequence[Format],
    folder: Path,
    report: Progress,
) -> DecodeTimes:
    """From one compiled model for each format, uniform; kept in `folder` for this machine. What a unit takes
    hardly depends on the others' formats: each streams its own codes through the cache.
    """
    place, kept = folder / TIMES_FILE, _kept(folder / TIMES_FILE)
    names = [str(format) for format in formats]
    for done, name in enumerate(names):
        report("timing formats", done, len(names))
        if name not in kept:
            kept[name] = _measured(model, units, name)
            facts = {"machine": this_machine().to_json(), "nanoseconds": kept}
            write_whole(place, json.dumps(facts, indent=1), "the times of formats")
    report("timing formats", len(names), len(names))
    table = {
        unit.name: {f: kept[n][unit.name] for f, n in zip(formats, names, strict=True)} for unit in units
    }
    return DecodeTimes(table, round(sum(kept[name][""] for name in names) / len(names)))


def _kept(place: Path) -> dict[str, dict[str, int]]:
    """What was measured on this machine; nothing where that cannot be read."""
    try:
        found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
        fitting = found["machine"] == json.loads(json.dumps(this_machine().to_json()))
        return dict(found["nanoseconds"]) if fitting else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _measured(model: LanguageModel, units: Sequence[Unit], format: str) -> dict[str, int]:
    """By unit; "" is the rest."""
    graph = model.graph(1, 1)
    unit_of = {layer: unit.name for unit in units for layer in unit.layers}
    found = dict.fromkeys(["", *(unit.name for unit in units)], 0.0)
    with compile(graph, plan=Plan.uniform(graph, format), method="round") as artifact:
        for layer, microseconds in layer_times(artifact, random_feed(graph.fed), REPEATS).items():
            found[unit_of.get(layer, "")] += microseconds * 1e3
    return {unit: round(nanoseconds) for unit, nanoseconds in found.items()}
