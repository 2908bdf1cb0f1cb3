"""`compile --tune`: register tiles that measure faster on this machine, kept if the whole model does too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..artifact import Artifact
from ..database import Database
from ..ir import Graph
from ..measure import measure_latency

if TYPE_CHECKING:
    from ...targets.target import Target

SECONDS = 3.0
"""For the comparison of the two whole models, in turns."""


def tuned(
    graphs: Sequence[Graph],
    chip: Target,
    artifact: Artifact,
    made: Callable[[Target], Artifact],
    feed: Mapping[str, np.ndarray],
    progress: Callable[[int, int], None],
) -> tuple[Artifact, dict[str, str]]:
    """The artifact of these planned graphs with the tiles that measured faster, and layer -> what changed;
    the given one, and nothing, if that is faster in turns. The loser is closed.

    A kernel that is faster among others of its kind need not be so among its neighbours.
    """
    from ...targets.tune import tile_reasons, tuned_target

    better = chip
    for graph in graphs:
        better = tuned_target(graph, better, Database(), progress=progress)
    reasons = tile_reasons(graphs[0], better)
    if not reasons:
        return artifact, {}
    other = made(better)
    both = measure_latency({"model": artifact, "tuned": other}, [feed], seconds=SECONDS)
    if both["tuned"].ratio_to_first < 1:
        artifact.close()
        return other, reasons
    other.close()
    return artifact, {}
