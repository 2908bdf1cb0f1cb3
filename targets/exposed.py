"""A compiled model whose every stored value can be looked at: what `bitsmith diff` runs.

`expose` makes every value that a kernel stores an output. Kernels depend on nodes and on which of them are
computed together alone, so the exposed program is made of the same kernels, on weights at the same places:
the weights of an artifact fit it, and with them it computes what the artifact computes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..compiler.errors import InternalError
from ..compiler.ir import Graph
from .elementwise import chains
from .lower import Lowered
from .program import Space


def expose(graph: Graph) -> Graph:
    """The graph with all results of its nodes as outputs, after its own; states are inputs and outputs.

    Left out are empty results, and those of nodes that are computed together with a later one: as outputs
    they would be computed alone, by another kernel.
    """
    own, together = set(graph.outputs), chains(graph)
    stored = (node for node in graph.nodes if together.get(node.name) != ())
    made = (v for node in stored for v in node.outputs if v not in own and graph.type_of(v).size)
    exposed = graph.with_nodes(graph.nodes, outputs=(*graph.outputs, *made), states=())
    if chains(exposed) != together:
        raise InternalError(f"{graph.name}: with all values as outputs other nodes are computed together")
    return exposed


def changed_weights(lowered: Lowered, weights: np.ndarray) -> Mapping[str, tuple[int, int]]:
    """Layer -> (bytes of its part of `weights` that are not the program's own, bytes of that part).

    Layers in the order of a run; one without weights is not listed, and a weight that several layers read
    counts for each. `weights` must have the program's `weights_bytes`.
    """
    differs = weights != lowered.weight_bytes()
    starts = [offset for offset, _ in lowered.weights]
    ends = dict(zip(starts, [*starts[1:], lowered.program.weights_bytes], strict=True))
    counts: dict[str, tuple[int, int]] = {}
    for step in lowered.program.steps:
        for place in step.places:
            if place.space is Space.WEIGHTS:
                part = differs[place.offset : ends[place.offset]]
                changed, size = counts.get(step.layer, (0, 0))
                counts[step.layer] = (changed + int(part.sum()), size + part.size)
    return counts
