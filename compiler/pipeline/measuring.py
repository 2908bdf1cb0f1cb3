"""run and measure: what a compiled model gives, how fast, how large and how good it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..artifact import Artifact, open
from ..errors import InputError
from ..ir import Graph
from ..measure import (
    Latency,
    Memory,
    Quality,
    measure_latency,
    measure_memory,
    quality,
)
from ..samples import Samples
from .feeds import random_feed, sample_feeds, signature

PathLike = str | os.PathLike[str]


def run(artifact: Artifact | PathLike, /, *arrays: np.ndarray, **named: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs by name of one run. Inputs in order or by name, with the exact shapes of one of
    `Artifact.entries`.

    Opens and closes the artifact when given its path. Raises ArtifactError, InputError.
    """
    if isinstance(artifact, Artifact):
        return artifact.run(*arrays, **named)
    with open(artifact) as opened:
        return opened.run(*arrays, **named)


@dataclass(frozen=True)
class Measurement:
    """One artifact, measured. `quality` is None without data to judge on."""

    latency: Latency
    size_bytes: int
    memory: Memory
    quality: Quality | None
    threads: int


def measure(
    artifact: Artifact | PathLike,
    *,
    reference: Artifact | Graph | None = None,
    evaluate: Samples | None = None,
    labels: Sequence[int] | np.ndarray | None = None,
    threads: int = 1,
    repeats: int = 50,
    seconds: float | None = None,
) -> Measurement:
    """Latency, size, peak memory and quality of a compiled model.

    reference  the float model that quality compares with: an artifact, or the graph (run by the slow
               reference executor)
    evaluate   sample inputs to judge on; needs `reference`. Without them the first entry is timed, with
               them the first that they fit
    labels     class numbers of the samples, for accuracy
    threads    threads of a run
    repeats    timed runs; `seconds` stops earlier

    Raises InputError, ArtifactError.
    """
    if (evaluate is None) != (reference is None):
        raise InputError("quality needs both: `evaluate`, the samples, and `reference`, the float model")
    with ExitStack() as stack:
        subject = artifact if isinstance(artifact, Artifact) else stack.enter_context(open(artifact))
        feeds = (
            sample_feeds(subject, evaluate)
            if evaluate is not None
            else [random_feed(signature(subject).inputs)]
        )
        judged = None if reference is None else _judge(subject, reference, feeds, labels)
        before = subject.threads
        subject.set_threads(threads)
        stack.callback(subject.set_threads, before)
        latency = measure_latency({"artifact": subject}, feeds, repeats=repeats, seconds=seconds)["artifact"]
        memory = measure_memory(subject.path, threads=threads)
        return Measurement(latency, subject.size_bytes, memory, judged, threads)


def _judge(
    subject: Artifact, reference: Artifact | Graph, feeds: Sequence[dict[str, np.ndarray]], labels: Any
) -> Quality:
    from ..reference import run_reference

    if isinstance(reference, Graph):
        expected = [run_reference(reference, feed) for feed in feeds]
    else:
        expected = [reference.run(**feed) for feed in feeds]
    return quality(expected, [subject.run(**feed) for feed in feeds], labels)
