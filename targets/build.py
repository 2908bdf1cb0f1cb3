"""Graph -> Artifact: lower, compile what the cache lacks, link, write."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.artifact import ArraySpec, Artifact, Manifest, open, write_artifact
from ..compiler.errors import OutputError
from ..compiler.ir import Graph
from ..compiler.machine import installed_versions
from .link import HEADER, hash64, link_library
from .lower import lower
from .objects import Progress, default_cache, kernel_objects
from .program import Program
from .target import Target


def build(
    graph: Graph,
    target: Target,
    directory: Path | None = None,
    *,
    plan: Mapping[str, Any] | None = None,
    ledger: Sequence[Mapping[str, Any]] = (),
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Compile a prepared graph (after apply_plan) for a target.

    The artifact lies in `directory`; without one, in a temporary place that goes with the object. `plan` and `ledger` are
    kept in the manifest. `cache` is the kernel cache (default: objects.default_cache()); `progress(done, total)` counts the
    kernels compiled. Raises UnsupportedError, TargetError, OutputError. When the target does not run here, use `write` instead.
    """
    place = directory or Path(tempfile.gettempdir()) / f"bitsmith-{uuid.uuid4().hex}"
    write(graph, target, place, plan=plan, ledger=ledger, cache=cache, progress=progress)
    return open(place, temporary=directory is None)


def write(
    graph: Graph,
    target: Target,
    directory: Path,
    *,
    plan: Mapping[str, Any] | None = None,
    ledger: Sequence[Mapping[str, Any]] = (),
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """`build` without opening the result, which may be for another machine."""
    lowered = lower(graph, target)
    cache = cache or default_cache()
    objects = kernel_objects(lowered.kernels, target.isa, cache, progress)
    weights = lowered.weight_bytes()
    with tempfile.TemporaryDirectory(prefix="bitsmith-build-") as scratch:
        library = Path(scratch) / "model.so"
        try:
            link_library(library, objects, lowered.program, hash64(weights), cache=cache)
        except OSError as error:
            raise OutputError(f"cannot write the library: {error}") from None
        manifest = _manifest(lowered.program, target, plan or {}, ledger)
        return write_artifact(directory, manifest, library=library, weights=_as_bytes(weights), header=HEADER)


def _as_bytes(weights: np.ndarray) -> memoryview:
    return memoryview(weights)


def _manifest(
    program: Program, target: Target, plan: Mapping[str, Any], ledger: Sequence[Mapping[str, Any]]
) -> Manifest:
    return Manifest(
        name=program.name,
        inputs=tuple(ArraySpec(s.name, s.shape, s.dtype) for s in program.inputs),
        outputs=tuple(ArraySpec(s.name, s.shape, s.dtype) for s in program.outputs),
        target=target.name,
        features=program.features,
        arena_bytes=program.arena_bytes,
        plan=dict(plan),
        ledger=tuple(ledger),
        versions=installed_versions(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
