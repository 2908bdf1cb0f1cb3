"""inspect and targets: what is in a model or an artifact, and what can be compiled for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from ..analysis.cost import layer_storage, node_cost
from ..artifact import (
    ArraySpec,
    Artifact,
    Language,
    Manifest,
    check_files,
    read_manifest,
)
from ..artifact.manifest import MANIFEST
from ..errors import ArtifactError, InputError
from ..frontends.language.model import LanguageModel
from ..ir import Graph, Node
from ..ledger import LedgerRow
from ..plan import FORMATS, fits, layers_of
from .buckets import one_graph
from .language_models import LanguageInfo, language_info


@dataclass(frozen=True)
class LayerInfo:
    """A layer that a plan decides about.

    shape, weights   of its output and its weights
    macs             multiply-adds of one run
    weight_bytes     weights and bias in float32
    formats          what a plan can make of it
    """

    layer: str
    op: str
    shape: tuple[int, ...]
    weights: tuple[int, ...]
    macs: int
    weight_bytes: int
    formats: tuple[str, ...]


@dataclass(frozen=True)
class ModelInfo:
    """A model as bitsmith sees it after preparing it: constants and batch norms folded, activations fused.

    operators   operator -> how many nodes
    fallback    nodes that the target has no kernel of its own for: they go through TVM's generic lowering;
                what costs nothing, such as a reshape, is not among them
    language    of a checkpoint; the rest is what it does for one token then, and `hash`, which would need all
                weights, is ""
    """

    name: str
    hash: str
    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]
    macs: int
    param_bytes: int
    operators: Mapping[str, int]
    layers: tuple[LayerInfo, ...]
    target: str
    fallback: tuple[str, ...]
    language: LanguageInfo | None = None


@dataclass(frozen=True)
class EntryInfo:
    """One of the shapes that an artifact was compiled for."""

    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]


@dataclass(frozen=True)
class ArtifactInfo:
    """What an artifact's manifest says, and its size. `ledger` and `plan` as in manifest.json.

    entries   the shapes that it was compiled for; `inputs` and `outputs` are those of the first
    language  of a language model: what generating text needs
    states    what an opened instance keeps from run to run
    """

    name: str
    path: str
    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]
    entries: tuple[EntryInfo, ...]
    target: str
    features: tuple[str, ...]
    size_bytes: int
    arena_bytes: int
    created: str
    versions: Mapping[str, str]
    plan: Mapping[str, Any]
    ledger: tuple[Mapping[str, Any], ...]
    language: Language | None = None
    states: tuple[ArraySpec, ...] = ()


@dataclass(frozen=True)
class TargetInfo:
    """Something to compile for. `runs_here`: this machine can run and measure it; `host`: its default."""

    name: str
    description: str
    features: tuple[str, ...]
    runs_here: bool
    host: bool


@overload
def inspect(subject: Graph | LanguageModel, *, target: str | None = None) -> ModelInfo: ...
@overload
def inspect(subject: Artifact | str | os.PathLike[str], *, target: str | None = None) -> ArtifactInfo: ...
def inspect(
    subject: Graph | LanguageModel | Artifact | str | os.PathLike[str], *, target: str | None = None
) -> ModelInfo | ArtifactInfo:
    """What is in a model (and which of it `target` has kernels for), or what an artifact's manifest says.

    `target` is this machine's when it is None; an artifact has its own, so that it takes none. An artifact
    may be given by its path; it need not run on this machine. Raises TargetError, ArtifactError, and
    InputError for an artifact with a target.
    """
    if isinstance(subject, LanguageModel):
        info = _model_info(subject.graph(1, 1), target or "host", hashed=False)
        return replace(info, language=language_info(subject))
    if isinstance(subject, Graph | tuple | list):
        return _model_info(one_graph(subject, "inspect"), target or "host")
    if isinstance(subject, Artifact):
        path, manifest = subject.path, subject.manifest
    else:
        path, manifest = Path(subject), read_manifest(Path(subject))
        check_files(path, manifest)
    if target is not None:
        raise InputError(
            f"{path} is an artifact, compiled for {manifest.target} already: a target is for a model, to see "
            "what the chip has kernels for. Leave it out, or inspect the model"
        )
    return _artifact_info(path, manifest)


def _model_info(graph: Graph, target: str, hashed: bool = True) -> ModelInfo:
    from ...passes.prepare import prepare
    from ...targets.selection import select
    from ...targets.target import resolve
    from ...targets.views import ALIASES

    chip = resolve(target)
    prepared = prepare(graph)
    return ModelInfo(
        name=graph.name,
        hash=graph.content_hash if hashed else "",
        inputs=tuple(ArraySpec(name, kind.shape, kind.dtype) for name, kind in prepared.fed),
        outputs=tuple(
            ArraySpec(v, prepared.type_of(v).shape, prepared.type_of(v).dtype) for v in prepared.returned
        ),
        macs=sum(node_cost(prepared, node).macs for node in prepared.nodes),
        param_bytes=prepared.param_bytes,
        operators=dict(Counter(node.op for node in prepared.nodes).most_common()),
        layers=tuple(_layer_info(prepared, node) for node in layers_of(prepared)),
        target=chip.name,
        fallback=tuple(
            node.name
            for node in prepared.nodes
            if node.op not in ALIASES and node.type.size and select(prepared, node, chip.isa) is None
        ),
    )


def _layer_info(graph: Graph, node: Node) -> LayerInfo:
    return LayerInfo(
        layer=node.name,
        op=node.op,
        shape=node.type.shape,
        weights=graph.type_of(node.inputs[1]).shape,
        macs=node_cost(graph, node).macs,
        weight_bytes=layer_storage(graph, node).float_bytes,
        formats=tuple(choice for choice in FORMATS if fits(graph, node, choice)),
    )


def _artifact_info(path: Path, m: Manifest) -> ArtifactInfo:
    try:
        for row in m.ledger:
            LedgerRow.from_json(row)
    except (InputError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path} is damaged: the ledger in its manifest cannot be read: {error}"
        ) from None
    return ArtifactInfo(
        name=m.name,
        path=str(path),
        inputs=m.inputs,
        outputs=m.outputs,
        entries=tuple(EntryInfo(e.inputs, e.outputs) for e in m.entries),
        target=m.target,
        features=m.features,
        size_bytes=sum(record.bytes for record in m.files.values()) + (path / MANIFEST).stat().st_size,
        arena_bytes=m.arena_bytes,
        created=m.created,
        versions=m.versions,
        plan=m.plan,
        ledger=m.ledger,
        language=m.language,
        states=m.states,
    )


def targets() -> tuple[TargetInfo, ...]:
    """All targets, best first."""
    from ...targets.isa import host_isa
    from ...targets.target import TARGETS

    return tuple(
        TargetInfo(t.name, t.description, t.features, t.runs_here, t.isa is host_isa())
        for t in TARGETS.values()
    )


def runs_here(target: str) -> bool:
    """Whether this machine runs what is compiled for the target. Raises TargetError for an unknown one."""
    from ...targets.target import resolve

    return resolve(target).runs_here
