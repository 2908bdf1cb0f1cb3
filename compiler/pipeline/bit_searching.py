"""search_bits: a weight format for each layer of a language model, chosen, coded and compiled."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifact import check_replaceable, open, read_manifest
from ..artifact.manifest import MANIFEST
from ..errors import TargetError
from ..files import write_whole
from ..formats import format_of
from ..frontends.language.model import LanguageModel
from ..plan import Plan
from .coding import TOKENS, text_runs, windows
from .decode_times import decode_times
from .models import Progress, cross_compile
from .speeds import speeds

if TYPE_CHECKING:
    from ...passes.layer_coder import EncodeOptions
    from ...search.bits.search import BitSearch
    from ...search.bits.trials import Trial
    from ...search.bits.units import Unit

FORMATS = (
    *("bcq2:192", "bitmod3:192", "bitmod3:128", "bitmod3:64", "bitmod3:32"),
    *("bitmod4:64", "int5:64", "int6:64", "int8:64"),
)
"""A ladder from 2 to 8 bits. Smaller groups take off as much error for a bit as wider codes do, and layers
need steps as fine as they differ. Most widths are multiples of 128 or 192; what the last group of a row lacks
is stored all the same: of 576 inputs bitmod3:128 takes 3.4 bits a weight, bitmod3:64 3.2. Groups of 24 would
take 3 % off the KL of a mix of 3.5 bits, by the table, but kernels pad them to 4.4 bits and decode in 1.6
times the time. Whole rows are not among them: activations would have one scale for a token, and lose more
than the weights gain.
"""
TRIALS = 4
JUDGED = 4
"""Of so many windows one judges; the others make the table and the codes."""
READ = TOKENS * JUDGED // (JUDGED - 1)
"""Tokens: so that codes rest on as many as those of `compile`."""
BEST, PLAN_FILE, RESULT_FILE = "best", "plan.json", "search.json"
LIBRARY_BYTES = 1_000_000
"""Of model.so and manifest.json, before they are known."""
ROUNDS = 3
"""Times that a plan is made again because its artifact is larger or slower than was thought."""


@dataclass(frozen=True)
class BitPoint:
    """A plan that was measured: `bits` per coded weight with all metadata; `kl` in nats per token, of codes
    as they are in an artifact."""

    name: str
    bits: float
    bytes: int
    kl: float


@dataclass(frozen=True)
class BitSearchResult:
    """`best` of `points`; `met`: whether the bound is kept; `decode`: single tokens per second of the
    artifact, one thread, None where the bound is another; `size_bytes` of the artifact; `went_on`: trials of
    an earlier run.
    """

    model: str
    bound: str
    table: str
    formats: tuple[str, ...]
    met: bool
    best: BitPoint
    size_bytes: int
    judged_tokens: int
    decode: float | None
    went_on: int
    front: tuple[BitPoint, ...]
    points: tuple[BitPoint, ...]
    plan: Plan
    artifact: str

    def to_json(self) -> dict[str, Any]:
        """Points as objects, the plan as its file."""
        made = {each.name: getattr(self, each.name) for each in fields(self)}
        for name in ("front", "points"):
            made[name] = [asdict(point) for point in made[name]]
        return made | {"best": asdict(self.best), "plan": self.plan.to_json()}


def search_bits(
    model: LanguageModel,
    out: str | os.PathLike[str],
    *,
    calibration: str,
    constraints: Sequence[str],
    formats: Sequence[str] = FORMATS,
    table: str = "curvature",
    trials: int = TRIALS,
    tokens: int = READ,
    seed: int = 0,
    target: str = "host",
    encode: EncodeOptions | None = None,
    progress: Progress | None = None,
) -> BitSearchResult:
    """Chooses a weight format for each layer (an embedding and the head that shares it have one), codes the
    weights with compensated errors, and compiles. Writes to `out`: best/ (the artifact), plan.json,
    search.json, and what a killed search goes on from.

    calibration  a text such as the model is for
    constraints  one of size<=60MB, size<=0.3x, bits<=3.5, kl<=0.02
    formats      what a layer can become
    table        curvature, output, shiftadd or measured (search/bits/tables.py)
    trials       plans that are coded and whose KL is measured, at most; the first is the exact allocation for
                 the table. Each takes as long as `compile`, and room for its codes in `out` meanwhile
    tokens       of the text that are read: three quarters from its beginning for table and codes, a quarter
                 at even steps through what is left, to judge on. The float32 weights are held in memory
    encode       how weights are coded

    Raises InputError (bounds and formats, a text that is too short, a folder of another search), OutputError.
    """
    from ...passes.layer_coder import EncodeOptions
    from ...search.bits.bounds import parse_bound
    from ...search.bits.search import BitSearch, BitSettings
    from ...search.bits.units import units_of
    from ...targets.target import resolve

    place, report = Path(out), progress or (lambda stage, done, total: None)
    settings = BitSettings(
        parse_bound(constraints),
        tuple(dict.fromkeys(map(format_of, formats))),
        table,
        trials,
        seed,
        encode or EncodeOptions(),
    )
    check_replaceable(place / BEST)
    table_runs, judge_runs = text_windows(model, calibration, tokens)
    graph = model.graph_whole(len(table_runs[0]["tokens"]))
    units, times = units_of(graph), None
    least = sum(min(map(unit.bytes, settings.formats)) for unit in units)
    settings.bound.room(least, sum(unit.weights for unit in units), *_beside(model, units))
    if settings.bound.kind == "decode":
        if not resolve(target).runs_here:
            raise TargetError(f"this machine cannot time code for {target}: give a bound on size, bits or KL")
        times = decode_times(model, units, settings.formats, place, report)
    search = BitSearch(graph, table_runs, judge_runs, settings, place, report, times)
    return _Finish(model, search, place, target, report).result()


def _beside(model: LanguageModel, units: Sequence[Unit]) -> tuple[int, int]:
    """Bytes of the weights in float32, and those of an artifact that are no codes, as far as they are known
    before it is made.
    """
    from ...search.bits.search import float_bytes_of, uncoded_bytes

    graph, tokenizer = model.graph(1, 1), len((model.tokenizer or "").encode())
    return float_bytes_of(graph), uncoded_bytes(graph, units) + LIBRARY_BYTES + tokenizer


def text_windows(
    model: LanguageModel, text: str, tokens: int
) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """The text's first tokens as runs of the whole graph, to make the table and the codes of; and runs at
    even steps through what is left, to judge on: windows between the first would flatter codes that were made
    for their neighbours. Raises InputError for a text that is too short, or a model without a tokenizer.
    """
    runs = text_runs(model, text, tokens, JUDGED)
    size, count = len(runs[0]["tokens"]), len(runs) // JUDGED
    made = runs[: len(runs) - count]
    left = windows(model.tokens_of(text)[len(made) * size :], size)
    return made, [left[i * len(left) // count] for i in range(count)]


@dataclass(frozen=True, eq=False)
class _Finish:
    """From measured plans to an artifact."""

    model: LanguageModel
    search: BitSearch
    place: Path
    target: str
    report: Progress

    def result(self) -> BitSearchResult:
        search, bound = self.search, self.search.settings.bound
        in_float, others = _beside(self.model, search.units)
        slower, decode = 1.0, None
        for _ in range(ROUNDS):
            found = search.best(others, in_float, slower)
            best = found or search.closest
            self._build(best)
            size = self._size()
            fits = bound.kind != "size" or size <= bound.limit * (in_float if bound.relative else 1)
            if search.times is not None:
                decode = self._decode()
                fits = decode >= bound.limit
                slower = max(slower, 1e9 / decode / (search.times.rest + search.explorer.cost(best.choices)))
            if fits or found is None:
                break
            others = size - best.bytes
        met = found is not None and fits and (bound.kind != "kl" or best.kl <= bound.limit)
        return self._written(best, size, met, decode)

    def _decode(self) -> float:
        """Tokens per second of the artifact, one thread."""
        with open(self.place / BEST) as artifact:
            (speed,) = speeds({BEST: artifact}, [1])
        return speed.decode_per_second

    def _plan(self, best: Trial) -> Plan:
        from ...search.bits.units import plan_of

        return plan_of(self.search.graph, self.search.units, best.choices)

    def _build(self, best: Trial) -> None:
        """Writes the artifact, of the codes that the plan was judged with."""
        plan = self._plan(best)
        coded = self.search.codes.of({layer: format for layer, (format, _) in plan.coded.items()})
        artifact = self.place / BEST
        cross_compile(self.model, artifact, target=self.target, plan=plan, coded=coded, progress=self.report)

    def _size(self) -> int:
        place = self.place / BEST
        files = read_manifest(place).files.values()
        return sum(file.bytes for file in files) + (place / MANIFEST).stat().st_size

    def _written(self, best: Trial, size: int, met: bool, decode: float | None) -> BitSearchResult:
        from ...search.bits.search import CODES
        from ...search.bits.trials import pareto

        search, plan = self.search, self._plan(best)
        point = {id(t): self._point(t) for t in search.explorer.trials}
        plan.save(self.place / PLAN_FILE)
        result = BitSearchResult(
            model=self.model.name,
            bound=search.settings.bound.text,
            table=search.settings.table,
            formats=tuple(map(str, search.settings.formats)),
            met=met,
            best=point[id(best)],
            size_bytes=size,
            judged_tokens=search.judge.tokens,
            decode=decode,
            went_on=search.went_on,
            front=tuple(point[id(t)] for t in pareto(search.explorer.trials)),
            points=tuple(point.values()),
            plan=plan,
            artifact=str(self.place / BEST),
        )
        write_whole(
            self.place / RESULT_FILE, json.dumps(result.to_json(), indent=1), "the result of the search"
        )
        shutil.rmtree(self.place / CODES, ignore_errors=True)
        return result

    def _point(self, trial: Trial) -> BitPoint:
        bits = 8 * trial.bytes / self.search.coded_weights
        return BitPoint(trial.name, bits, trial.bytes, trial.kl)
