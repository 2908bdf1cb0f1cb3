"""A search from beginning to end, over any `Evaluator`."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..compiler.errors import InputError, OutputError
from .allocation import Problem
from .evaluator import Evaluator, Progress
from .explore import (
    Explorer,
    build_problem,
    measure_baselines,
    measure_sensitivities,
)
from .finalists import Final, Verdict, fastest_first
from .reasons import Evidence, ledger_of
from .result import (
    Candidate,
    SearchResult,
    Sensitivity,
    with_artifact,
)
from .session import Session, Settings, pareto
from .study import open_study

STUDY_FILE, RESULT_FILE, PLAN_FILE, BEST, FRONT = "study.db", "search.json", "plan.json", "best", "front"


def run_search(
    evaluator: Evaluator,
    settings: Settings,
    *,
    study: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Searches and, with `out`, writes search.json, plan.json, best/ and front/ there.

    `study`: Optuna storage URL or path of an SQLite file; by default study.db in `out`, or memory without
    one. A search with the same study goes on where it was stopped. Ctrl-C ends the trials and goes to the
    finalists; before the baselines are measured there is nothing to end with, and it is passed on.
    """
    place = None if out is None else make_folder(Path(out))
    storage = study if study is not None or place is None else place / STUDY_FILE
    started = time.monotonic()
    _check_layers(evaluator)
    memory = open_study(
        storage,
        f"bitsmith {evaluator.names.graph}",
        {**evaluator.identity, **_question(settings)},
        [layer.name for layer in evaluator.layers],
        settings.objectives,
    )
    tell = progress or (lambda stage, done, total: None)
    with Session(evaluator, settings, memory, tell, started=started) as session:
        session.notes += evaluator.notes
        memory.recover()
        memory.register()
        session.load_finished()
        if session.candidates:
            session.notes.append(
                f"went on from {len(session.candidates)} plans that the study had measured already"
            )
        measure_baselines(session)
        sensitivity, problem = _explore(session)
        with Final(session, problem) as final:
            verdict = final.decide()
            result = _result(session, verdict, sensitivity, problem)
            return result if place is None else _write(place, final, result)


def _check_layers(evaluator: Evaluator) -> None:
    if not evaluator.layers:
        raise InputError(
            f"graph {evaluator.names.graph!r} has no convolution or linear layer: there is nothing to choose"
        )


def _question(settings: Settings) -> dict[str, str]:
    return {
        "objectives": ", ".join(settings.objectives),
        "constraints": ", ".join(sorted(c.text for c in settings.constraints)) or "none",
        "threads": str(settings.threads),
    }


def _explore(session: Session) -> tuple[dict[str, Sensitivity], Problem | None]:
    """Everything between the baselines and the finalists; Ctrl-C ends it early."""
    sensitivity: dict[str, Sensitivity] = {}
    problem = None
    try:
        sensitivity = measure_sensitivities(session)
        if sensitivity:
            problem = build_problem(session, sensitivity)
            Explorer(session, problem).run()
    except KeyboardInterrupt:
        session.notes.append("interrupted: the result is the best of what was measured until then")
    if session.time_is_up:
        session.notes.append(f"time was up after {len(session.candidates)} plans")
    return sensitivity, problem


def _result(
    session: Session, verdict: Verdict, sensitivity: Mapping[str, Sensitivity], problem: Problem | None
) -> SearchResult:
    names, texts = session.evaluator.names, tuple(c.text for c in session.constraints)
    evidence = Evidence(problem, sensitivity, verdict, texts)
    trials = tuple(session.candidates.values())
    again = {c.int8_layers for c in verdict.finalists}
    everyone = [*verdict.finalists, *(c for c in trials if c.int8_layers not in again)]
    front = pareto(everyone, session.settings.objectives)
    if all(c.name != verdict.best.name for c in front):  # beaten only by plans outside the constraints
        front.append(verdict.best)
    notes = list(session.notes)
    if not verdict.met:
        notes.append(f"no plan met {', '.join(texts)}: best is the closest")
    elif not verdict.best.feasible:
        notes.append(f"{', '.join(texts)} is met on the samples, without the usual margin for noise")
    return SearchResult(
        graph=names.graph,
        graph_hash=names.graph_hash,
        target=names.target,
        fingerprint=names.fingerprint,
        machine=names.machine,
        threads=session.settings.threads,
        objectives=session.settings.objectives,
        constraints=texts,
        float32=verdict.finalists[0],
        int8=verdict.finalists[1],
        best=verdict.best,
        front=tuple(fastest_first(session, front)),
        trials=trials,
        ledger=ledger_of(session.evaluator.layers, evidence),
        sensitivity=sensitivity,
        additivity=verdict.additivity,
        seconds=time.monotonic() - session.started,
        met=verdict.met,
        notes=tuple(notes),
    )


def _write(place: Path, final: Final, result: SearchResult) -> SearchResult:
    """Saves the winner, its plan, the front and the result; each appears complete or not at all."""
    evaluator, best = final.session.evaluator, place / BEST
    evaluator.save(result.best.plan, best, result.ledger)
    result.plan.save(place / PLAN_FILE)
    kept = _write_front(place, final, result.front)
    result = replace(
        result,
        best=with_artifact(result.best, best),
        front=tuple(with_artifact(c, kept[c.name]) if c.name in kept else c for c in result.front),
    )
    result.save(place / RESULT_FILE)
    return result


def _write_front(place: Path, final: Final, front: Sequence[Candidate]) -> dict[str, Path]:
    """Plans as front/NAME.json, artifacts of finalists as front/NAME; replaces an older front."""
    scratch, target, old = place / f".{FRONT}.{os.getpid()}", place / FRONT, place / f".{FRONT}.old"
    kept = {}
    try:
        for leftover in (scratch, old):
            shutil.rmtree(leftover, ignore_errors=True)
        scratch.mkdir()
        for candidate in front:
            candidate.plan.save(scratch / f"{candidate.name}.json")
            if candidate.name in final.builds:
                final.builds[candidate.name].save(scratch / candidate.name)
                kept[candidate.name] = target / candidate.name
        if target.exists():
            target.rename(old)
        scratch.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(scratch, ignore_errors=True)
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from None
    return kept


def make_folder(place: Path) -> Path:
    """The folder itself, made when it is missing. Raises OutputError when nothing can be written there."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        probe = place / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"output directory {place}: {error.strerror or error}") from None
    return place
