"""How fast language models read and write: tokens per second, artifacts in turns."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..artifact import Artifact
from .reading import Reader

PROMPT, STEPS, ROUNDS = 128, 32, 5
"""Tokens that are read at once, then one by one; how often."""


@dataclass(frozen=True)
class Speed:
    """Tokens per second of one artifact at one number of threads, by medians: of reading `prompt` random
    tokens at the beginning of a text, and of the `steps` single ones behind them.
    """

    name: str
    threads: int
    prompt: int
    steps: int
    prefill_per_second: float
    decode_per_second: float


def speeds(artifacts: Mapping[str, Artifact], threads: Sequence[int]) -> tuple[Speed, ...]:
    """Of the language models among the artifacts, all in turns."""
    speaking = {name: a for name, a in artifacts.items() if a.manifest.language is not None}
    return tuple(row for count in threads for row in _in_turns(speaking, count))


def _in_turns(artifacts: Mapping[str, Artifact], threads: int) -> list[Speed]:
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in artifacts}
    sizes = {}
    for turn in range(ROUNDS + 1):
        for name, artifact in artifacts.items():
            artifact.set_threads(threads)
            reader = Reader(artifact)
            prompt = min(PROMPT, reader.language.context // 2)
            sizes[name] = prompt, min(STEPS, reader.room - prompt)
            read, written = _one(reader, *sizes[name], turn)
            if turn:  # the first warms up
                times[name][0].append(read)
                times[name][1].extend(written)
    rows = []
    for name, found in times.items():
        prefill, decode = (float(np.median(seconds)) for seconds in found)
        rows.append(Speed(name, threads, *sizes[name], sizes[name][0] / prefill, 1 / decode))
    return rows


def _one(reader: Reader, prompt: int, steps: int, seed: int) -> tuple[float, list[float]]:
    """Seconds of the prompt, and of each step."""
    tokens = np.random.default_rng(seed).integers(0, reader.language.vocabulary, prompt + steps).tolist()
    begin = time.perf_counter()
    reader.read(tokens[:prompt])
    read = time.perf_counter() - begin
    written = []
    for token in tokens[prompt:]:
        begin = time.perf_counter()
        reader.read([token])
        written.append(time.perf_counter() - begin)
    return read, written
