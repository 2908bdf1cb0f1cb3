"""bench: compiled models beside each other and beside ONNX Runtime, in turns."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..analysis.roofline import Roofline
from ..artifact import Artifact, open
from ..database import Database
from ..errors import InputError
from ..machine import Machine, this_machine
from ..measure import Latency, measure_latency
from ..samples import Samples
from .feeds import random_feed, sample_feeds, signature
from .measuring import PathLike
from .models import compile, load
from .onnx_peer import OnnxPeer
from .speeds import Speed, speeds

ONNXRUNTIME = "onnxruntime"


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
    profiles  of each artifact, one thread, every kernel beside the machine's limits, when that was asked for
    entries   of each artifact with several, the one that was timed
    speeds    of each language model, at each number of threads: tokens per second
    """

    baseline: str
    rows: tuple[BenchRow, ...]
    inputs: str
    machine: Machine
    profiles: Mapping[str, Roofline]
    entries: Mapping[str, int] = field(default_factory=dict)
    speeds: tuple[Speed, ...] = ()


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
    shapes: Mapping[str, int | Sequence[int]] | None = None,
) -> BenchReport:
    """Latency of compiled models and peers on the same inputs, run in turns so that the machine's drift hits
    all alike; of language models also tokens per second.

    artifacts  what to measure: opened, or paths; a path of a .onnx file is compiled first, in float32
    against    what to compare with: "onnxruntime" (needs `model`, the .onnx file) or paths of artifacts; the
               first one is
               the baseline of the ratios, without any it is the first artifact
    inputs     sample inputs, for the first entry of `artifacts[0]` that they fit; random ones for its entry 0
               when None
    threads    numbers of threads, measured one after the other
    repeats    rounds for each number of threads; `seconds` stops a number earlier
    profile    add the time of every kernel of the artifacts, and how far it is from the machine's limit; the
               limits are measured once (a second) and kept
    shapes     sizes that a model to compile leaves open, as for `load`

    Raises InputError, ArtifactError, ModelError, TargetError; UnsupportedError for a model that cannot be
    compiled.
    """
    own, peers = _listed(artifacts), _listed(against)
    if not own:
        raise InputError("bench needs at least one artifact")
    if ONNXRUNTIME in peers and model is None:
        raise InputError(
            f"to compare with {ONNXRUNTIME}, give the .onnx file as `model` (command line: --model FILE)"
        )
    with ExitStack() as stack:
        subjects = _opened([*peers, *own], shapes, stack)
        ours = {name: a for name, a in subjects.items() if a is not None}
        shown = ours[_name_of(own[0])]
        feeds = [random_feed(signature(shown).inputs)] if inputs is None else sample_feeds(shown, inputs)
        rows = [row for n in threads for row in _rounds(n, subjects, model, feeds, repeats, seconds)]
        profiles = {_name_of(a): _profile(ours[_name_of(a)], feeds[0]) for a in own if profile}
        given = "random" if inputs is None else "given"
        used = {name: a.entry_for(**feeds[0]) for name, a in ours.items() if len(a.entries) > 1}
        spoken = speeds(ours, threads)
        return BenchReport(rows[0].name, tuple(rows), given, this_machine(), profiles, used, spoken)


def _listed(given: Artifact | PathLike | Iterable[Artifact | PathLike]) -> list[Artifact | PathLike]:
    return [given] if isinstance(given, Artifact | str | os.PathLike) else list(given)


def _name_of(subject: Artifact | PathLike) -> str:
    return str(subject.path if isinstance(subject, Artifact) else subject)


def _opened(
    subjects: Sequence[Artifact | PathLike],
    shapes: Mapping[str, int | Sequence[int]] | None,
    stack: ExitStack,
) -> dict[str, Artifact | None]:
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
            made = compile(load(subject, shapes=shapes)) if _is_model(subject) else open(subject)
            table[name] = stack.enter_context(made)
    return table


def _is_model(subject: PathLike) -> bool:
    return Path(subject).suffix == ".onnx" and not Path(subject).is_dir()


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


def _profile(artifact: Artifact, feed: Mapping[str, np.ndarray]) -> Roofline:
    from ...targets.profile import artifact_roofline

    return artifact_roofline(artifact, feed, Database())
