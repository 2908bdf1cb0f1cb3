"""Inputs to time a model on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..artifact import Artifact
from ..errors import InputError
from ..ir import Graph, TensorType
from ..samples import Samples, iterate


def signature(artifact: Artifact, entry: int = 0) -> Graph:
    """The inputs of an entry as a graph without nodes: what samples are checked against."""
    specs = artifact.entries[entry].inputs
    inputs = tuple((spec.name, TensorType(spec.shape, spec.dtype)) for spec in specs)
    return Graph(artifact.manifest.name, inputs, (), (), {})


def sample_feeds(artifact: Artifact, data: Samples) -> list[dict[str, np.ndarray]]:
    """The samples as runs of the first entry whose shapes they have. Raises InputError when none fits."""
    problem = None
    for entry in range(len(artifact.entries)):
        try:
            return iterate(signature(artifact, entry), data)
        except InputError as error:
            problem = problem or error
    assert problem is not None, "an artifact has an entry"
    if len(artifact.entries) == 1:
        raise problem
    listed = "\n".join(f"  entry {i}: {entry}" for i, entry in enumerate(artifact.entries))
    raise InputError(f"{problem}\nThe samples fit no other entry of {artifact.path} either:\n{listed}")


def random_feed(inputs: Iterable[tuple[str, TensorType]], seed: int = 0) -> dict[str, np.ndarray]:
    """Normal noise where inputs are float, zeros elsewhere (an index must stay within its table)."""
    generator = np.random.default_rng(seed)
    return {
        name: generator.standard_normal(kind.shape, np.float32)
        if kind.dtype == "float32"
        else np.zeros(kind.shape, kind.dtype)
        for name, kind in inputs
    }


def entry_used(
    artifact: Artifact, feed: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """JSON data: which entry a run on `feed` uses (`entry`, of `entries`), its inputs' `shapes`, and the
    shapes in `given` of those that were `padded` to them.
    """
    entry = artifact.entry_for(**feed)
    shapes = {spec.name: spec.shape for spec in artifact.entries[entry].inputs}
    padded = {name: np.shape(a) for name, a in given.items() if np.shape(a) != shapes[name]}
    return {"entry": entry, "entries": len(artifact.entries), "shapes": shapes, "padded": padded}
