"""search_bits: a weight format for each layer of a language model, chosen, coded and compiled."""

from __future__ import annotations

import hashlib
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
from ..formats import decode, format_of
from ..frontends.language.model import LanguageModel
from ..plan import Plan
from .coding import TOKENS, text_runs
from .decode_times import decode_times
from .models import Progress, cross_compile
from .speeds import speeds

if TYPE_CHECKING:
    from ...passes.layer_coder import EncodeOptions
    from ...search.bits.search import BitSearch
    from ...search.bits.trials import Trial
    from ...search.bits.units import Unit

FORMATS = (
    *("int2:64", "bitmod3:192", "bitmod3:128", "bitmod3:64", "bitmod3:32"),
    *("bitmod4:64", "int5:64", "int6:64", "int8:64"),
)
"""A ladder from 2 to 8 bits. Smaller groups take off as much error for a bit as wider codes do, and layers
need steps as fine as they differ. Most widths are multiples of 128 or 192; what the last group of a row lacks
is stored all the same: of 576 inputs bitmod3:128 takes 3.4 bits a weight, bitmod3:64 3.2. Whole rows are not
among them: activations would have one scale for a token, and lose more than the weights gain.
"""
TRIALS = 8
JUDGED = 4
"""Of so many windows of the text one judges; the others make the table and the codes."""
READ = TOKENS * JUDGED // (JUDGED - 1)
"""Tokens: so that codes rest on as many as those of `compile`."""
BEST, PLAN_FILE, RESULT_FILE, CODES = "best", "plan.json", "search.json", "codes"
LIBRARY_BYTES = 1_000_000
"""Of model.so and manifest.json, before they are known."""
ROUNDS = 3
"""Times that a plan is made again because its artifact is larger or slower than was thought."""


@dataclass(frozen=True)
class BitPoint:
    """A plan that was measured: `bits` per coded weight with all metadata; `kl` in nats per token, of layers
    that were coded one by one, each for what it reads in the float model."""

    name: str
    bits: float
    bytes: int
    kl: float


@dataclass(frozen=True)
class BitSearchResult:
    """`best` of `points`; `kl`: of its codes as they are in the artifact, None where nothing was coded.
    `met`: whether the bound is kept; `decode`: single tokens per second of the artifact, one thread, None
    where the bound is another; `size_bytes` of the artifact; `went_on`: trials of an earlier run.
    """

    model: str
    bound: str
    table: str
    formats: tuple[str, ...]
    met: bool
    best: BitPoint
    kl: float
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

    calibration  a text such as the model is for; a quarter of its windows is held back to judge plans on
    constraints  one of size<=60MB, size<=0.3x, bits<=3.5, kl<=0.02
    formats      what a layer can become
    table        curvature, output, shiftadd or measured (search/bits/tables.py)
    trials       plans whose KL is measured; the first is the exact allocation for the table
    tokens       of the text that are read; the model's float32 weights are held in memory meanwhile
    encode       how the chosen plan's weights are coded

    Raises InputError (bounds and formats, a text that is too short, a folder of another search), OutputError.
    """
    from ...passes.layer_coder import EncodeOptions
    from ...search.bits.bounds import parse_bound
    from ...search.bits.search import BitSearch, BitSettings
    from ...search.bits.units import units_of
    from ...targets.target import resolve

    place, report = Path(out), progress or (lambda stage, done, total: None)
    settings = BitSettings(
        parse_bound(constraints), tuple(dict.fromkeys(map(format_of, formats))), table, trials, seed
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
    return _Finish(model, search, table_runs, encode or EncodeOptions(), place, target, report).result()


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
    """The text's first tokens as runs of the whole graph: to make tables of, and to judge on. Raises
    InputError for a text that is too short, or a model without a tokenizer.
    """
    runs = text_runs(model, text, tokens, JUDGED)
    judged = runs[JUDGED - 1 :: JUDGED]
    return [run for i, run in enumerate(runs) if i % JUDGED != JUDGED - 1], judged


@dataclass(frozen=True, eq=False)
class _Finish:
    """From measured plans to an artifact."""

    model: LanguageModel
    search: BitSearch
    runs: Sequence[dict[str, np.ndarray]]
    options: EncodeOptions
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
            kl = self._built(best)
            size = self._size()
            fits = bound.kind != "size" or size <= bound.limit * (in_float if bound.relative else 1)
            if search.times is not None:
                decode = self._decode()
                fits = decode >= bound.limit
                slower = max(slower, 1e9 / decode / (search.times.rest + search.explorer.cost(best.choices)))
            if fits or found is None:
                break
            others = size - best.bytes
        met = found is not None and fits and (bound.kind != "kl" or kl <= bound.limit)
        return self._written(best, kl, size, met, decode)

    def _decode(self) -> float:
        """Tokens per second of the artifact, one thread."""
        with open(self.place / BEST) as artifact:
            (speed,) = speeds({BEST: artifact}, [1])
        return speed.decode_per_second

    def _plan(self, best: Trial) -> Plan:
        from ...search.bits.units import plan_of

        return plan_of(self.search.graph, self.search.units, best.choices)

    def _built(self, best: Trial) -> float:
        """Codes the plan's weights and writes the artifact; the KL of these codes."""
        from ...passes.encode_layers import encode_layers

        search, plan = self.search, self._plan(best)
        formats = {layer: format for layer, (format, _) in plan.coded.items()}
        name = hashlib.sha256(
            f"{search.memory.identity} {plan.to_text()} {self.options}".encode()
        ).hexdigest()
        codes = encode_layers(
            search.graph,
            formats,
            self.runs,
            self.options,
            folder=self.place / CODES / name[:16],
            progress=lambda done, total, layer: self.report("coding weights", done, total),
        )
        coded = {layer: each.coded for layer, each in codes}
        matrices = {unit.matrix: decode(coded[unit.name]) for unit in search.units}
        kl = search.judge.kl(matrices, formats)
        del matrices
        artifact = self.place / BEST
        cross_compile(self.model, artifact, target=self.target, plan=plan, coded=coded, progress=self.report)
        return kl

    def _size(self) -> int:
        place = self.place / BEST
        files = read_manifest(place).files.values()
        return sum(file.bytes for file in files) + (place / MANIFEST).stat().st_size

    def _written(self, best: Trial, kl: float, size: int, met: bool, decode: float | None) -> BitSearchResult:
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
            kl=kl,
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
