"""bench: compiled models beside each other and beside ONNX Runtime, in turns."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from ..artifact import Artifact, open
from ..errors import InputError
from ..machine import Machine, this_machine
from ..measure import Latency, measure_latency
from ..samples import Samples, iterate
from .feeds import random_feed, signature
from .measuring import PathLike
from .onnx_peer import OnnxPeer

ONNXRUNTIME = "onnxruntime"
PROFILE_REPEATS = 50


@dataclass(frozen=True)
class StepCost:
    """One kernel call of a run: the layer it belongs to, the kernel, its median time."""

    layer: str
    kernel: str
    microseconds: float


@dataclass(frozen=True)
class BenchRow:
    """One subject at one number of threads. `latency.ratio_to_first` compares with the report's
    `baseline`.
    """

    name: str
    engine: str
    threads: int
    latency: Latency
    size_bytes: int


@dataclass(frozen=True)
class BenchReport:
    """Rows of a benchmark; within one number of threads all were run in turns.

    baseline  the name that ratios compare with
    inputs    "random" or "given"
    profiles  steps of each artifact in order, one thread, when a profile was asked for
    """

    baseline: str
    rows: tuple[BenchRow, ...]
    inputs: str
    machine: Machine
    profiles: Mapping[str, tuple[StepCost, ...]]


def bench(
    artifacts: Artifact | PathLike | Iterable[Artifact | PathLike],
    *,
    against: Iterable[str | PathLike] | PathLike = (),
    model: PathLike | None = None,
    inputs: Samples | None = None,
    threads: Sequence[int] = (1,),
    repeats: int = 100,
    seconds: float | None = None,
    profile: bool = False,
) -> BenchReport:
    """Latency of compiled models and peers on the same inputs, run in turns so that the machine's drift hits
    all alike.

    artifacts  what to measure: opened, or paths
    against    what to compare with: "onnxruntime" (needs `model`, the .onnx file) or paths of artifacts; the
               first one is
               the baseline of the ratios, without any it is the first artifact
    inputs     sample inputs; random ones when None
    threads    numbers of threads, measured one after the other
    repeats    rounds for each number of threads; `seconds` stops a number earlier
    profile    add the time of every step of the artifacts

    Raises InputError, ArtifactError, ModelError.
    """
    own, peers = _listed(artifacts), _listed(against)
    if not own:
        raise InputError("bench needs at least one artifact")
    if ONNXRUNTIME in peers and model is None:
        raise InputError(
            f"to compare with {ONNXRUNTIME}, give the .onnx file as `model` (command line: --model FILE)"
        )
    with ExitStack() as stack:
        subjects = _opened([*peers, *own], stack)
        ours = {name: a for name, a in subjects.items() if a is not None}
        shown = ours[_name_of(own[0])]
        feeds = (
            [random_feed(signature(shown).inputs)] if inputs is None else iterate(signature(shown), inputs)
        )
        rows = [row for n in threads for row in _rounds(n, subjects, model, feeds, repeats, seconds)]
        profiles = {_name_of(a): _profile(ours[_name_of(a)], feeds[0]) for a in own} if profile else {}
        given = "random" if inputs is None else "given"
        return BenchReport(rows[0].name, tuple(rows), given, this_machine(), profiles)


def _listed(given: Artifact | PathLike | Iterable[Artifact | PathLike]) -> list[Artifact | PathLike]:
    return [given] if isinstance(given, Artifact | str | os.PathLike) else list(given)


def _name_of(subject: Artifact | PathLike) -> str:
    return str(subject.path if isinstance(subject, Artifact) else subject)


def _opened(subjects: Sequence[Artifact | PathLike], stack: ExitStack) -> dict[str, Artifact | None]:
    """Opened artifacts by name, each once; None stands for ONNX Runtime, which is loaded anew for each number
    of threads.
    """
    table: dict[str, Artifact | None] = {}
    for subject in subjects:
        name = _name_of(subject)
        if name in table:
            continue
        if subject == ONNXRUNTIME:
            table[name] = None
        elif isinstance(subject, Artifact):
            stack.callback(subject.set_threads, subject.threads)
            table[name] = subject
        else:
            table[name] = stack.enter_context(open(subject))
    return table


def _rounds(
    threads: int,
    subjects: Mapping[str, Artifact | None],
    model: PathLike | None,
    feeds: Sequence[Mapping[str, np.ndarray]],
    repeats: int,
    seconds: float | None,
) -> list[BenchRow]:
    """One row per subject, all run in turns with this number of threads; the first is the baseline."""
    running: dict[str, Artifact | OnnxPeer] = {}
    for name, artifact in subjects.items():
        if artifact is None:
            assert model is not None, "bench checks this first"
            running[name] = OnnxPeer(model, threads)
        else:
            artifact.set_threads(threads)
            running[name] = artifact
    latencies = measure_latency(running, feeds, repeats=repeats, seconds=seconds)
    return [
        BenchRow(
            name, "bitsmith" if subjects[name] else ONNXRUNTIME, threads, latencies[name], subject.size_bytes
        )
        for name, subject in running.items()
    ]


def _profile(artifact: Artifact, feed: Mapping[str, np.ndarray]) -> tuple[StepCost, ...]:
    artifact.set_threads(1)
    steps = artifact.profile(repeats=PROFILE_REPEATS, **feed)
    return tuple(StepCost(step.layer, step.kernel, step.nanoseconds / 1e3) for step in steps)
