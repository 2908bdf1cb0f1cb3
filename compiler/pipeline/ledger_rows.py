"""The ledger of a model that was compiled as a plan asked, without a search: sizes from the graph, times from
a profile.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from ..analysis.cost import layer_storage, node_cost
from ..artifact import Artifact
from ..ir import Graph, Node
from ..ledger import LedgerRow
from ..plan import Plan, coded_choice, layers_of


def layer_times(artifact: Artifact, feed: Mapping[str, np.ndarray], repeats: int) -> dict[str, float]:
    """Microseconds that one run spends in each layer, one thread: the layer's steps together, medians over
    `repeats` runs.
    """
    threads = artifact.threads
    artifact.set_threads(1)
    times: dict[str, float] = {}
    for step in artifact.profile(repeats=repeats, **feed):
        times[step.layer] = times.get(step.layer, 0.0) + step.nanoseconds / 1e3
    artifact.set_threads(threads)
    return times


def rows_of(
    planned: Graph,
    plan: Plan,
    times: Mapping[str, float],
    reason: str,
    forms: Mapping[str, str] = MappingProxyType({}),
) -> tuple[LedgerRow, ...]:
    """One row per layer of the graph as the plan made it, in its order. `forms`: why layers of codes run as
    they do on the target (targets/select_planes.py)."""
    rows = []
    for node in layers_of(planned):
        stored = layer_storage(planned, node)
        rows.append(
            LedgerRow(
                layer=node.name,
                op=node.op,
                shape=node.type.shape,
                choice=_choice(plan, node),
                bits=stored.bits,
                weight_bytes=stored.total_bytes,
                float_bytes=stored.float_bytes,
                macs=node_cost(planned, node).macs,
                predicted_us=None,
                measured_us=times.get(node.name),
                error_share=None,
                reason="; ".join(filter(None, (reason, forms.get(node.name)))),
            )
        )
    return tuple(rows)


def _choice(plan: Plan, node: Node) -> str:
    """What the plan made of the layer, or, of one whose model came with codes, their format."""
    chosen = plan.choice(node.name)
    if node.op != "coded_linear" or coded_choice(chosen):
        return chosen
    return f"{node.attrs['format']}@{node.attrs.get('activations', 'float32')}"
