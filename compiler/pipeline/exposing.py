"""An artifact's graph, found again from its model, and a build of it that shows every value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..artifact import ArraySpec, Artifact, read_ranges
from ..artifact.manifest import WEIGHTS
from ..errors import ArtifactError, InputError, PlanError
from ..ir import Graph
from ..machine import installed_versions
from ..plan import Plan, layers_of, tables_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ...passes.quantise import QParams
    from ...targets.lower import Lowered
    from ..calibrate import Ranges


@dataclass(frozen=True)
class Exposed:
    """What an artifact was made from, and its twin.

    prepared  the float32 graph; `planned`: the same as the artifact's plan has it
    plan      the artifact's
    stored    uint8 value of the planned graph -> (float value that it stands for, scale, zero point)
    changed   layers whose bytes in weights.bin are not what the model compiles to -> how many bytes
    twin      the planned graph, compiled again with all values as outputs, on the artifact's own weights
    """

    prepared: Graph
    planned: Graph
    plan: Plan
    stored: Mapping[str, tuple[str, float, int]]
    changed: Mapping[str, int]
    twin: Artifact


def expose_artifact(
    graphs: Sequence[Graph], artifact: Artifact, progress: Callable[[int, int], None]
) -> Exposed:
    """`graphs`: the model with the shapes of the artifact's first entries; the last of them is exposed. Where
    its weights lie depends on those before it.

    Raises InputError for a model that the artifact was not compiled from, ArtifactError for one that other
    versions compiled or that keeps too little.
    """
    from ...passes.apply_plan import apply_plan
    from ...passes.prepare import prepare
    from ...passes.smooth import smooth
    from ...targets.build import build
    from ...targets.entries import own_weights
    from ...targets.exposed import expose
    from ...targets.lower import lower
    from ...targets.target import resolve

    chip = resolve(artifact.manifest.target)
    parts = []
    for entry, graph in enumerate(graphs):
        _check_interface(graph, artifact, entry)
        prepared = prepare(graph)
        plan = _plan_of(artifact, prepared)
        ranges = _ranges_of(artifact, plan)
        if ranges is not None:
            prepared, ranges = smooth(
                prepared, plan, ranges
            )  # values compare in the form in which they are made
        planned = apply_plan(prepared, plan, ranges, pair_bound=chip.pair_bound)
        parts.append(lower(planned, chip))
        _check_steps(artifact, parts[-1], entry)
    # The weights of the first entry lie as they do without others.
    first = parts[0].program.weights_bytes if len(parts) == 1 else -1
    weights = np.fromfile(artifact.path / WEIGHTS, np.uint8, count=first)
    own = weights if len(parts) == 1 else own_weights(parts, weights)
    changed = _changed(artifact, parts[-1], own)
    twin = build(expose(planned), chip, weights=own, progress=progress)
    return Exposed(prepared, planned, plan, _stored(prepared, planned, plan, ranges), changed, twin)


def _check_interface(graph: Graph, artifact: Artifact, entry: int) -> None:
    inputs = tuple(ArraySpec(name, kind.shape, kind.dtype) for name, kind in graph.fed)
    kinds = [(v, graph.type_of(v)) for v in graph.returned]
    outputs = tuple(ArraySpec(v, kind.shape, kind.dtype) for v, kind in kinds)
    wanted = artifact.entries[entry]
    for what, own, theirs in (("inputs", inputs, wanted.inputs), ("outputs", outputs, wanted.outputs)):
        if own != theirs:
            whose = f"those of its entry {entry}" if len(artifact.entries) > 1 else "the artifact's"
            raise _foreign(graph, artifact, f"its {what} are {_listed(own)}, {whose} {_listed(theirs)}")


def _listed(specs: tuple[ArraySpec, ...]) -> str:
    return ", ".join(map(str, specs)) or "none"


def _foreign(graph: Graph, artifact: Artifact, why: str) -> InputError:
    return InputError(
        f"model {graph.name!r} is not what {artifact.path} was compiled from: {why}. Give the model, and the "
        "shapes, that the artifact was compiled with"
    )


def _plan_of(artifact: Artifact, prepared: Graph) -> Plan:
    try:
        plan = Plan.from_json(artifact.plan)
    except PlanError as error:
        raise ArtifactError(f"{artifact.path}: its manifest has no plan to go by: {error}") from None
    names = {node.name for node in (*layers_of(prepared), *tables_of(prepared))}
    if strange := [layer for layer in plan.layers if layer not in names]:
        raise _foreign(prepared, artifact, f"it has no layer {strange[0]!r}, which the artifact's plan names")
    return plan


def _ranges_of(artifact: Artifact, plan: Plan) -> Ranges | None:
    from ..calibrate import Ranges

    if "int8" not in plan.layers.values():
        return None
    data = read_ranges(artifact.path)
    if data is None:
        raise ArtifactError(
            f"{artifact.path} has int8 layers and no ranges.json, from which their numbers are computed: it "
            "was compiled before artifacts kept it, or lost it. Compile it again"
        )
    try:
        return Ranges.from_json(data)
    except InputError as error:
        raise ArtifactError(f"{artifact.path} is damaged: ranges.json: {error}") from None


def _check_steps(artifact: Artifact, lowered: Lowered, entry: int) -> None:
    """The artifact runs the kernels that its model is lowered to here and now."""
    own = tuple((step.layer, step.symbol) for step in lowered.program.steps)
    theirs = artifact.steps(entry)
    if own == theirs and (artifact.path / WEIGHTS).stat().st_size >= lowered.program.weights_bytes:
        return
    pairs = zip(own, theirs, strict=False)
    at = next((mine[0] for mine, other in pairs if mine != other), "the end")
    made = ", ".join(_other_versions(artifact)) or "this version of bitsmith"
    raise ArtifactError(
        f"{artifact.path}: from {at!r} on its kernels are not those that this model is compiled to: either "
        f"the model is another one, or bitsmith has changed since (the artifact was made with {made}). "
        "Compile it again, or give the model that it was compiled from"
    )


def _other_versions(artifact: Artifact) -> list[str]:
    here = installed_versions()
    return [f"{name} {v}" for name, v in artifact.manifest.versions.items() if here.get(name) != v]


def _changed(artifact: Artifact, lowered: Lowered, weights: np.ndarray) -> dict[str, int]:
    """Raises InputError where the weights of all layers differ: damage would not reach so far."""
    from ...targets.exposed import changed_weights

    counts = changed_weights(lowered, weights)
    changed = {layer: bytes_ for layer, (bytes_, _) in counts.items() if bytes_}
    if len(changed) == len(counts) > 1:
        made = ", ".join(_other_versions(artifact))
        raise InputError(
            f"{artifact.path} holds other weights in all {len(counts)} layers than the model compiles to: it "
            "was compiled from another training of this network"
            + (f", or by a version that quantises otherwise ({made})" if made else "")
        )
    return changed


def _stored(
    prepared: Graph, planned: Graph, plan: Plan, ranges: Ranges | None
) -> dict[str, tuple[str, float, int]]:
    if ranges is None:
        return {}
    from ...passes.quantise import qparams
    from ...passes.storage import choose_storage

    kept: Mapping[str, QParams] = choose_storage(prepared, plan, ranges)
    table = {value: (value, p.scale, p.zero) for value, p in kept.items()}
    for node in planned.nodes:
        if node.op == "quantize" and node.inputs[0] in ranges.values and node.output not in table:
            params = qparams(*ranges[node.inputs[0]])
            table[node.output] = (node.inputs[0], params.scale, params.zero)
    return table
