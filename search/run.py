"""`bitsmith.search`: a network, a chip and samples in; the best plan, the front and the reasons out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..compiler.artifact import open
from ..compiler.database import Database
from ..compiler.errors import InputError, TargetError
from ..compiler.ir import Graph
from ..compiler.machine import this_machine
from ..compiler.measure.latency import Feed
from ..compiler.measure.quality import Labels
from ..compiler.plan import Calibration
from ..compiler.samples import Samples
from ..passes.prepare import prepare
from .compiled import CompiledEvaluator
from .data import Data, Score, split
from .engine import (
    BEST,
    RESULT_FILE,
    make_folder,
    run_search,
)
from .evaluator import Names, Progress
from .objectives import (
    OBJECTIVES,
    check_given,
    check_objectives,
    parse_constraints,
)
from .ranges import stored_ranges
from .result import SearchResult
from .session import Settings

MOST_THREADS = 256


def search(
    graph: Graph,
    *,
    target: str = "host",
    calibration: Samples,
    evaluate: Samples | Score | None = None,
    labels: Labels | None = None,
    objectives: Sequence[str] = OBJECTIVES,
    constraints: Sequence[str] = (),
    trials: int = 40,
    timeout: float | None = None,
    study: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    threads: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
    database: Database | None = None,
) -> SearchResult:
    """Chooses float32 or int8 for each layer, by measured time and quality. compiler/pipeline/searching.py
    has the arguments; `database` holds the kernel times (the shared one by default).

    Raises InputError for arguments that do not fit, TargetError when the target's code cannot run here,
    OutputError.
    """
    from ..targets.target import resolve

    settings = _settings(objectives, constraints, trials, timeout, threads, seed)
    check_given(settings.constraints, labels=labels is not None, score=callable(evaluate))
    chip = resolve(target)
    if not chip.runs_here:
        raise TargetError(
            f"target {chip.name} needs CPU features that this machine lacks: a search measures, so run "
            "it on such a machine, or compile with a plan instead"
        )
    data = split(graph, calibration, evaluate, labels)
    tell = progress or (lambda stage, done, total: None)
    prepared = prepare(graph)
    ranges = stored_ranges(prepared, data, None if out is None else make_folder(Path(out)), tell)
    names = Names(graph.name, graph.content_hash, chip.name, chip.fingerprint, this_machine())
    times = database or Database()
    evaluator = CompiledEvaluator(
        graph=prepared,
        ranges=ranges,
        target=chip,
        data=data,
        names=names,
        identity=_identity(names, data, ranges.calibration),
        database=times,
        threads=threads,
    )
    result = run_search(evaluator, settings, study=study, out=out, progress=tell)
    return result if out is None else _with_roofline(result, Path(out), data.search.feeds[0], times)


def _with_roofline(result: SearchResult, place: Path, feed: Feed, database: Database) -> SearchResult:
    """The result, saved again, with the kernels of its best plan beside the machine's limits."""
    from ..targets.profile import artifact_roofline

    with open(place / BEST) as best:
        found = replace(result, roofline=artifact_roofline(best, feed, database))
    found.save(place / RESULT_FILE)
    return found


def _settings(
    objectives: Sequence[str],
    constraints: Sequence[str],
    trials: int,
    timeout: float | None,
    threads: int,
    seed: int,
) -> Settings:
    """Checked before anything slow begins."""
    if not isinstance(trials, int) or isinstance(trials, bool) or trials < 0:
        raise InputError(f"trials must be an integer >= 0, got {trials!r}")
    if timeout is not None and not timeout >= 0:
        raise InputError(f"timeout must be seconds >= 0 or None, got {timeout!r}")
    if not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
        raise InputError(f"threads must be an integer from 1 to {MOST_THREADS}, got {threads!r}")
    return Settings(
        check_objectives(objectives), parse_constraints(constraints), trials, timeout, threads, seed
    )


def _identity(names: Names, data: Data, calibration: Calibration) -> dict[str, str]:
    """What trials of one study share. The fingerprint is of the very CPU: times of two do not compare."""
    score = getattr(data.score, "__qualname__", type(data.score).__name__) if data.score else "none"
    return {
        "graph": f"{names.graph} {names.graph_hash[:16]}",
        "target": f"{names.target} {names.fingerprint}",
        "samples": data.digest[:16],
        "score": score,
        "calibration": f"{calibration.method} {calibration.percentile}",
    }
