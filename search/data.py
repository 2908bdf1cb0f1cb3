"""Which samples do what: calibration, search, and the held-out ones that only the finalists see."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..compiler.errors import InputError
from ..compiler.ir import Graph
from ..compiler.measure.latency import Feed
from ..compiler.measure.quality import Labels
from ..compiler.samples import Samples, iterate

SENSITIVITY_SAMPLES = 16
SEARCH_SAMPLES = 256  # at most: a trial runs all of them
LEAST_TO_SPLIT = 8

Score = Callable[[Any], float]
"""The caller's own judge: an opened artifact -> a number, higher is better."""


@dataclass(frozen=True)
class Part:
    """Samples to judge plans on, with their labels if there are any."""

    feeds: tuple[Feed, ...]
    labels: np.ndarray | None


@dataclass(frozen=True)
class Data:
    """calibration   ranges come from these
    sensitivity   some of them, on which layers are tried one by one
    search        judge the trials
    confirm       judge the finalists: the search samples and as many that no trial has seen
    score         the caller's judge, if given
    """

    calibration: tuple[Feed, ...]
    sensitivity: tuple[Feed, ...]
    search: Part
    confirm: Part
    score: Score | None
    notes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over all samples and labels."""
        labels = [] if self.confirm.labels is None else [{"labels": self.confirm.labels}]
        return _digest((*self.calibration, *self.confirm.feeds, *labels))

    @property
    def calibration_digest(self) -> str:
        """SHA-256 over the calibration samples."""
        return _digest(self.calibration)


def _digest(feeds: Sequence[Feed]) -> str:
    result = hashlib.sha256()
    for feed in feeds:
        for name, array in feed.items():
            result.update(f"{name} {array.dtype} {array.shape} ".encode())
            result.update(np.ascontiguousarray(array).data)
    return result.hexdigest()


def split(
    graph: Graph, calibration: Samples, evaluate: Samples | Score | None, labels: Labels | None
) -> Data:
    """Assigns the samples. Every second one is held out, as neighbours are often alike.

    Without evaluation samples, half of the calibration samples judge instead of calibrating. Raises
    InputError when samples do not fit the graph, or labels do not fit the samples.
    """
    score = evaluate if callable(evaluate) else None
    given = iterate(graph, calibration)
    judging = None if evaluate is None or callable(evaluate) else iterate(graph, evaluate)
    if labels is not None and judging is None:
        raise InputError("labels belong to evaluation samples: give these with evaluate=")
    classes = None if labels is None else _fit_labels(labels, len(judging or ()))
    calibrating, notes = given, []
    if judging is None:
        calibrating, judging = (given[::2], given[1::2]) if len(given) >= LEAST_TO_SPLIT else (given, given)
        notes.append(_shared_note(len(given), len(calibrating), len(judging)))
    search, held_out = _halves(len(judging))
    notes.append(
        f"{len(calibrating)} samples calibrate, {len(search)} judge the trials, the finalists are judged "
        f"on these and {len(held_out)} held-out ones"
    )
    step = max(1, len(calibrating) // SENSITIVITY_SAMPLES)
    return Data(
        tuple(calibrating),
        tuple(calibrating[::step][:SENSITIVITY_SAMPLES]),
        _part(judging, classes, search),
        _part(judging, classes, sorted((*search, *held_out))),
        score,
        tuple(notes),
    )


def _shared_note(given: int, calibrating: int, judging: int) -> str:
    if given < LEAST_TO_SPLIT:
        return f"no evaluation samples and only {given} for calibration: these judge plans too"
    return (
        f"no evaluation samples: of {given} calibration samples {calibrating} calibrate and {judging} judge"
    )


def _halves(count: int) -> tuple[list[int], list[int]]:
    """Indices that the trials see, and the others. Few samples are not split: a half would say too little."""
    everything = list(range(count))
    if count < LEAST_TO_SPLIT:
        return everything, []
    if count > 2 * SEARCH_SAMPLES:
        search = [int(i) for i in np.linspace(0, count - 1, SEARCH_SAMPLES).round()]
    else:
        search = everything[::2]
    return search, sorted(set(everything) - set(search))


def _part(feeds: Sequence[Feed], labels: np.ndarray | None, indices: Sequence[int]) -> Part:
    return Part(tuple(feeds[i] for i in indices), None if labels is None else labels[list(indices)])


def _fit_labels(labels: Labels, count: int) -> np.ndarray:
    array = np.asarray(labels)
    if array.ndim == 0 or len(array) != count:
        raise InputError(
            f"labels must be one per evaluation sample: {count} samples, labels {list(array.shape)}"
        )
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"labels must be integers (class numbers), got {array.dtype}")
    return array
