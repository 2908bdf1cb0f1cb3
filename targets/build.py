"""Graph -> Artifact: lower, compile what the cache lacks, link, write."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.artifact import (
    ArraySpec,
    Artifact,
    Entry,
    Language,
    Manifest,
    open,
    write_artifact,
)
from ..compiler.artifact.manifest import WEIGHTS
from ..compiler.calibrate import Ranges
from ..compiler.errors import ArtifactError, OutputError
from ..compiler.ir import Graph
from ..compiler.machine import installed_versions
from .entries import all_kernels, share_weights
from .link import HEADER, hash64, link_library
from .lower import lower
from .objects import Progress, default_cache, kernel_objects
from .program import Program, TensorSpec
from .scratch import scratch_folder, scratch_place
from .target import Target

LINKING = threading.Lock()
"""Held while linking: the runtime's objects are compiled under names that only differ between processes."""


def build(
    graph: Graph,
    target: Target,
    directory: Path | None = None,
    *,
    others: Sequence[Graph] = (),
    plan: Mapping[str, Any] | None = None,
    ledger: Sequence[Mapping[str, Any]] = (),
    ranges: Ranges | None = None,
    weights: np.ndarray | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    language: Language | None = None,
    tokenizer: bytes | Path | None = None,
) -> Artifact:
    """Compile a prepared graph (after apply_plan) for a target.

    `others` are the same network for other shapes: entries 1 and on of the artifact. It lies in `directory`;
    without one, in a temporary place that goes with the object. `plan` and `ledger` are kept in the manifest,
    `ranges` beside it. `weights`, the bytes of weights.bin, take the place of the graph's own, and must be
    laid out as these. `language` and `tokenizer` (tokenizer.json) are a language model's. `cache` is the
    kernel cache (default: objects.default_cache()); `progress(done, total)` counts the kernels compiled.
    Raises UnsupportedError, TargetError, OutputError. When the target does not run here, use `write` instead.
    """
    place = directory or scratch_place()
    write(
        graph,
        target,
        place,
        others=others,
        plan=plan,
        ledger=ledger,
        ranges=ranges,
        weights=weights,
        cache=cache,
        progress=progress,
        language=language,
        tokenizer=tokenizer,
    )
    try:
        return open(place, temporary=directory is None)
    except ArtifactError:
        if directory is None:
            shutil.rmtree(place, ignore_errors=True)
        raise


def write(
    graph: Graph,
    target: Target,
    directory: Path,
    *,
    others: Sequence[Graph] = (),
    plan: Mapping[str, Any] | None = None,
    ledger: Sequence[Mapping[str, Any]] = (),
    ranges: Ranges | None = None,
    weights: np.ndarray | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    language: Language | None = None,
    tokenizer: bytes | Path | None = None,
) -> Path:
    """`build` without opening the result, which may be for another machine."""
    parts = [lower(each, target) for each in (graph, *others)]
    cache = cache or default_cache()
    objects = kernel_objects(all_kernels(parts), target.isa, cache, progress)
    with scratch_folder() as scratch:
        try:
            programs = share_weights(parts, scratch / WEIGHTS)
        except OSError as error:
            raise OutputError(f"cannot write the weights: {error}") from None
        manifest = replace(_manifest(programs, target, plan or {}, ledger), language=language)
        data = scratch / WEIGHTS if weights is None else weights
        return assemble(
            programs[0], manifest, objects, data, directory, cache, ranges, programs[1:], tokenizer
        )


def assemble(
    program: Program,
    manifest: Manifest,
    objects: Sequence[Path],
    weights: np.ndarray | Path,
    directory: Path,
    cache: Path,
    ranges: Ranges | None = None,
    others: Sequence[Program] = (),
    tokenizer: bytes | Path | None = None,
) -> Path:
    """Link the library and write the artifact. Raises TargetError, OutputError."""
    try:
        with LINKING, scratch_folder() as scratch:
            library = scratch / "model.so"
            link_library(library, objects, program, hash64(weights), others=others, cache=cache)
            kept = None if ranges is None else json.dumps(ranges.to_json()).encode()
            return write_artifact(
                directory,
                manifest,
                library=library,
                weights=weights,
                header=HEADER,
                ranges=kept,
                tokenizer=tokenizer,
            )
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write the library: {error}") from None


def _manifest(
    programs: Sequence[Program],
    target: Target,
    plan: Mapping[str, Any],
    ledger: Sequence[Mapping[str, Any]],
) -> Manifest:
    first, *others = map(_entry, programs)
    return Manifest(
        name=programs[0].name,
        inputs=first.inputs,
        outputs=first.outputs,
        target=target.name,
        features=programs[0].features,
        arena_bytes=max(program.arena_bytes for program in programs),
        plan=dict(plan),
        ledger=tuple(ledger),
        steps=first.steps,
        others=tuple(others),
        states=_array_specs(programs[0].states),
        versions=installed_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _array_specs(specs: Sequence[TensorSpec]) -> tuple[ArraySpec, ...]:
    return tuple(ArraySpec(s.name, s.shape, s.dtype) for s in specs)


def _entry(program: Program) -> Entry:
    return Entry(
        inputs=_array_specs(program.inputs),
        outputs=_array_specs(program.outputs),
        steps=tuple(None if step.work is None else step.work.to_json() for step in program.steps),
    )
