"""search and report."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..artifact import Artifact
from ..ir import Graph
from ..samples import Samples
from .buckets import one_graph
from .models import Progress

if TYPE_CHECKING:
    from ...search.result import SearchResult

RESULT_FILE = "search.json"


def search(
    graph: Graph,
    *,
    target: str = "host",
    calibration: Samples,
    evaluate: Samples | Callable[[Artifact], float] | None = None,
    labels: Sequence[int] | np.ndarray | None = None,
    objectives: Sequence[str] = ("quality", "latency", "size"),
    constraints: Sequence[str] = (),
    trials: int = 40,
    timeout: float | None = None,
    study: str | None = None,
    out: str | os.PathLike[str] | None = None,
    threads: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> SearchResult:
    """Chooses for each layer between float32 and int8, by what the choice costs in quality and saves in
    measured time.

    calibration  sample inputs (compiler/samples.py says in which forms)
    evaluate     other sample inputs, to judge plans on; or a function of an opened artifact, higher is
                 better; None judges
                 on a part of the calibration samples
    labels       class numbers of the samples judged on: quality is then accuracy too
    objectives   some of "quality", "latency", "size"
    constraints  bounds such as "agreement>=0.98", "latency<=3ms", "size<=0.3x" (search/objectives.py lists
                 them)
    trials       plans to measure beside the two uniform ones; `timeout`: seconds after which none is started
    study        Optuna storage URL; by default an SQLite file in `out`. A search that was stopped continues
                 there
    out          directory for the study, the best artifact and search.json; None keeps nothing
    threads      of all end-to-end times

    The result always has a best plan; `met` says whether it is within the constraints. Raises InputError,
    TargetError,
    OutputError.
    """
    from ...search.run import search as run_search

    return run_search(
        one_graph(graph, "search"),
        target=target,
        calibration=calibration,
        evaluate=evaluate,
        labels=labels,
        objectives=tuple(objectives),
        constraints=tuple(constraints),
        trials=trials,
        timeout=timeout,
        study=study,
        out=out,
        threads=threads,
        seed=seed,
        progress=progress,
    )


def report(result: SearchResult | str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Writes a search's result as one HTML page that needs no network, and returns the page's path.

    `result` is what `search` returned, its search.json, or the directory that holds one. Raises InputError
    when that
    cannot be read, OutputError when the page cannot be written.
    """
    from ...search.result import SearchResult
    from ..report import write_page

    if not isinstance(result, SearchResult):
        place = Path(result)
        result = SearchResult.load(place / RESULT_FILE if place.is_dir() else place)
    return write_page(result, out)
