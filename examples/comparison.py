"""The table that examples end with: the same model several times, how large, how fast, and how good."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import bitsmith
import numpy as np
from bitsmith.compiler.measure import measure_latency
from bitsmith.compiler.pipeline.onnx_peer import OnnxPeer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""Inputs by name -> outputs by name."""


@dataclass(frozen=True)
class Subject:
    """One form of the model; `size_bytes` is 0 where it is no file."""

    size_bytes: int
    run: Run


def subject(
    model: bitsmith.Artifact | OnnxPeer, constants: Mapping[str, np.ndarray] | None = None
) -> Subject:
    """`constants`: inputs that are the same in every run."""
    fixed = dict(constants or {})
    return Subject(model.size_bytes, lambda feed: model.run(**feed, **fixed))


def compared(
    subjects: Mapping[str, Subject],
    feed: Mapping[str, np.ndarray],
    columns: Mapping[str, Sequence[str]],
    repeats: int = 60,
) -> Table:
    """Sizes, latencies on one thread, in turns, and the given columns: title -> a text for each subject."""
    calls = {name: each.run for name, each in subjects.items()}
    latencies = measure_latency(calls, [dict(feed)], repeats=repeats)
    table = Table(box=SIMPLE)
    for head in ("", "MB", "ms", *columns):
        table.add_column(head)
    for i, (name, each) in enumerate(subjects.items()):
        size = f"{each.size_bytes / 1e6:.1f}" if each.size_bytes else ""
        ms = f"{latencies[name].median_us / 1e3:.3g}"
        table.add_row(name, size, ms, *(texts[i] for texts in columns.values()))
    return table
