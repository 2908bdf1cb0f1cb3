"""Inputs to time a model on."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..artifact import Artifact
from ..ir import Graph, TensorType


def signature(artifact: Artifact) -> Graph:
    """The artifact's inputs as a graph without nodes: what samples are checked against."""
    inputs = tuple((spec.name, TensorType(spec.shape, spec.dtype)) for spec in artifact.inputs)
    return Graph(artifact.manifest.name, inputs, (), (), {})


def random_feed(inputs: Iterable[tuple[str, TensorType]], seed: int = 0) -> dict[str, np.ndarray]:
    """Normal noise where inputs are float, zeros elsewhere (an index must stay within its table)."""
    generator = np.random.default_rng(seed)
    return {
        name: generator.standard_normal(kind.shape, np.float32)
        if kind.dtype == "float32"
        else np.zeros(kind.shape, kind.dtype)
        for name, kind in inputs
    }
