"""What happens to the output when one layer alone is int8.

The reference executor runs the float network once per sample and keeps every value; for each layer it then
runs only what the change reaches. That needs no compilation, and counts rounding exactly as the kernels do.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..compiler.ir import Graph, Node
from ..compiler.measure.latency import Feed
from ..compiler.measure.quality import mean_kl, squared_error
from ..compiler.reference import run_node, run_reference
from .result import Sensitivity


def layer_effects(graph: Graph, variants: Mapping[str, Graph], feed: Feed) -> dict[str, Sensitivity]:
    """What each variant (the graph with one layer changed) does to the graph's outputs for one sample."""
    kept: dict[str, np.ndarray] = {}
    with _one_thread():
        expected = run_reference(graph, feed, kept.__setitem__)
        values = _tensors(kept)
        return {
            name: _compare(expected, _run_changed(graph, variant, values))
            for name, variant in variants.items()
        }


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch's threads spin while they wait for each other, after every operator: as soon as anything else
    uses the machine, that makes small operators ten times slower than one thread is.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(np.require(a, requirements=["C", "W"])) for name, a in arrays.items()}


def _run_changed(graph: Graph, variant: Graph, values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Outputs of the variant; what it shares with the graph is taken from `values`."""
    fresh: dict[str, Any] = {}
    for node in variant.nodes:
        if not _same(graph, variant, node, fresh):
            results = run_node(variant, node, ChainMap(fresh, dict(values)))
            fresh.update(zip(node.outputs, results, strict=True))
    return {v: (fresh[v] if v in fresh else values[v]).numpy() for v in variant.outputs}


def _same(graph: Graph, variant: Graph, node: Node, fresh: Mapping[str, Any]) -> bool:
    """The node computes what it computes in the graph, from the same values."""
    twin = graph.producer(node.output)
    return (
        twin == node
        and not any(v in fresh for v in node.inputs)
        and all(variant.stored[v] is graph.stored.get(v) for v in node.inputs if v in variant.stored)
    )


def _compare(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> Sensitivity:
    first = next(iter(expected))
    classes = expected[first].shape[-1] if expected[first].ndim else 1
    return Sensitivity(
        kl=mean_kl(expected[first], found[first]) if classes > 1 else None,
        error=float(np.mean([squared_error(expected[v], found[v]) for v in expected])),
    )
