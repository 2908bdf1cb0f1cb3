"""Times every kernel of a compiled model and sets it beside the machine's limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ..compiler.analysis.roofline import (
    KernelRow,
    Roofline,
    Work,
    kernel_row,
    roofline,
)
from ..compiler.artifact import Artifact, Entry
from ..compiler.artifact.manifest import WEIGHTS
from ..compiler.database import Database
from ..compiler.errors import ArtifactError
from .peaks import machine_peaks, speedometer
from .target import TARGETS, Target, resolve

ROUNDS = 40
SECONDS = 6.0
FEWEST_ROUNDS = 5


def artifact_roofline(
    artifact: Artifact,
    feed: Mapping[str, np.ndarray],
    database: Database,
    *,
    cache: Path | None = None,
    rounds: int = ROUNDS,
) -> Roofline:
    """The roofline of an opened artifact on these inputs, one thread: medians over so many runs, fewer when
    they take long.

    Raises ArtifactError when its manifest counts the work of other steps than the library has, TargetError
    when the machine's limits are not known and cannot be measured.
    """
    chip = _chip(artifact)
    peaks = machine_peaks(chip, database, cache=cache)
    before = artifact.threads
    artifact.set_threads(1)
    try:
        with speedometer(chip, peaks, cache) as share:
            times, outside, speed = _timed(artifact, feed, rounds, share)
    finally:
        artifact.set_threads(before)
    at = artifact.entry_for(**feed)
    names, entry = artifact.steps(at), artifact.entries[at]
    works = _works(artifact, entry, len(names))
    spread = sum(s.nbytes for s in (*entry.inputs, *entry.outputs))
    footprint = artifact.arena_bytes + artifact.manifest.files[WEIGHTS].bytes + spread
    rows: list[KernelRow] = [
        kernel_row(layer, kernel, us, work, peaks, footprint)
        for (layer, kernel), us, work in zip(names, times, works, strict=True)
    ]
    return roofline(rows, peaks, outside, speed)


def _chip(artifact: Artifact) -> Target:
    """What it was compiled for; this machine's target for one that this bitsmith does not know."""
    return TARGETS.get(artifact.manifest.target) or resolve("host")


def _timed(
    artifact: Artifact, feed: Mapping[str, np.ndarray], rounds: int, share: Callable[[], float]
) -> tuple[list[float], float, float]:
    """Median microseconds of each step, and of what a call takes beside its steps; the median of `share`,
    which is called in turns with them."""
    artifact.run(**feed)
    calls: list[float] = []
    speeds: list[float] = []
    times: list[np.ndarray] = []
    end = time.perf_counter() + SECONDS
    while len(calls) < rounds and (len(calls) < FEWEST_ROUNDS or time.perf_counter() < end):
        whole, steps = artifact.trace(**feed)
        times.append(steps / 1e3)
        calls.append(whole / 1e3 - float(times[-1].sum()))
        speeds.append(share())
    return [float(t) for t in np.median(times, axis=0)], float(np.median(calls)), float(np.median(speeds))


def _works(artifact: Artifact, entry: Entry, count: int) -> list[Work | None]:
    """The work of each step; all unknown in an artifact from before it was counted."""
    told = entry.steps or (None,) * count
    try:
        works = [None if work is None else Work.from_json(work) for work in told]
    except TypeError as error:
        raise ArtifactError(
            f"{artifact.path} is damaged: its manifest's steps cannot be read: {error}"
        ) from None
    if len(works) != count:
        raise ArtifactError(
            f"{artifact.path} is damaged: its manifest counts {len(works)} steps, its library has {count}: "
            "compile it again"
        )
    return works
