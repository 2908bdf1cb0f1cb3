"""diff: the first layer of an artifact that computes something else than it should, and by how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis.difference import LayerDifference, Spread, worst
from ..artifact import Artifact, open, read_manifest
from ..errors import InputError
from ..ir import Graph, Node
from ..plan import LAYER_OPS
from ..reference import run_node, run_reference
from ..samples import Samples, iterate
from .buckets import one_or_more
from .exposing import Exposed, expose_artifact
from .feeds import random_feed
from .models import PathLike, Progress, load

TOLERANCE = 1e-4


@dataclass(frozen=True)
class DiffReport:
    """An artifact beside the model that it was compiled from.

    ok          nothing departs, no weight has changed, the artifact's outputs could be reproduced, and
                nothing is below `least_sqnr`
    departs     the first layer beyond `tolerance` of its reference (compiler/analysis/difference.py); or None
    noisy       the first layer whose `sqnr_db` is below `least_sqnr`; None: none, or no bound was given
    noisiest    the layer that adds most noise to what it reads, of an artifact with int8 or bfloat16 layers;
                else None
    changed     layers whose weights in the artifact are not what the model compiles to
    reproduced  whether the build whose values are compared gave the artifact's outputs, to the last bit
    entry       of an artifact for several shapes, the one that was compared
    inputs      "random" or "given"; `samples`: how many
    layers      the nodes of the planned graph whose results are stored, in the order of a run; a node that is
                computed together with a later one is compared as a part of that
    """

    artifact: str
    model: str
    ok: bool
    departs: str | None
    noisy: str | None
    noisiest: str | None
    changed: tuple[str, ...]
    reproduced: bool
    tolerance: float
    least_sqnr: float | None
    entry: int
    inputs: str
    samples: int
    layers: tuple[LayerDifference, ...]

    def layer(self, name: str) -> LayerDifference:
        """Raises KeyError."""
        found = {row.layer: row for row in self.layers}
        return found[name]


def load_like(model: Any, artifact: PathLike, entry: int = 0) -> tuple[Graph, ...]:
    """The model with the input shapes that the artifact was compiled with, up to this entry, as `diff` takes
    it. Errors as `load` and `open`.
    """
    entries = read_manifest(Path(artifact)).entries
    _check_entry(artifact, entry, len(entries))
    shapes = [{spec.name: spec.shape for spec in each.inputs} for each in entries[: entry + 1]]
    try:
        return load(model, shapes=shapes)
    except InputError as error:
        raise InputError(
            f"{model} is not what {artifact} was compiled from, whose inputs are "
            f"{', '.join(map(str, entries[0].inputs))}: {error}"
        ) from None


def _check_entry(artifact: PathLike, entry: int, count: int) -> None:
    if not 0 <= entry < count:
        last = f"it has entries 0 to {count - 1}" if count > 1 else "it has entry 0 only"
        raise InputError(f"{artifact} has no entry {entry}: {last}")


def diff(
    graph: Graph | Sequence[Graph],
    artifact: Artifact | PathLike,
    *,
    inputs: Samples | None = None,
    tolerance: float = TOLERANCE,
    least_sqnr: float | None = None,
    progress: Progress | None = None,
) -> DiffReport:
    """Compares every layer of a compiled model with its reference, and with the float model.

    graph       the model that it was compiled from, with the same shapes; of an artifact for several shapes
                that of the first, or the graphs of the first few, in the order of `Artifact.entries`: the
                last of them is compared
    artifact    opened, or its path; for this machine
    inputs      sample inputs; one random one when None
    tolerance   largest error of a layer that computes floats, relative to the range of its values; uint8
                results may be one step off at ties in rounding, other integers not at all
    least_sqnr  decibels that every value must have against the float model; None: no bound
    progress    called as `progress(stage, done, total)`

    The model is planned as the artifact was and compiled again with all values as outputs, on the artifact's
    own weights; that keeps all values of a run in memory. Every sample begins with states of zeros. Raises
    InputError (samples or model do not fit), ArtifactError (damaged, for another machine, or compiled by
    another version), TargetError.
    """
    if not tolerance > 0:
        raise InputError(f"tolerance must be above 0, got {tolerance}")
    report = progress or (lambda stage, done, total: None)
    graphs = one_or_more(graph)
    last = graphs[-1]
    feeds = [random_feed(last.fed)] if inputs is None else iterate(last, inputs)
    with ExitStack() as stack:
        subject = artifact if isinstance(artifact, Artifact) else stack.enter_context(open(artifact))
        _check_entry(subject.path, len(graphs) - 1, len(subject.entries))
        exposed = expose_artifact(graphs, subject, lambda d, n: report("compiling kernels", d, n))
        stack.enter_context(exposed.twin)
        comparison = _Comparison(exposed)
        for i, feed in enumerate(feeds):
            report("comparing layers", i, len(feeds))
            subject.reset()
            comparison.add(feed, subject.run(**feed))
        report("comparing layers", len(feeds), len(feeds))
        given = "random" if inputs is None else "given"
        return _report(subject, graphs, comparison, tolerance, least_sqnr, given, len(feeds))


def _report(
    subject: Artifact,
    graphs: Sequence[Graph],
    comparison: _Comparison,
    tolerance: float,
    least_sqnr: float | None,
    inputs: str,
    samples: int,
) -> DiffReport:
    rows = comparison.rows(tolerance)
    known = [(row.sqnr_db, row.layer) for row in rows if row.sqnr_db is not None]
    departs = next((row.layer for row in rows if row.departs), None)
    noisy = None if least_sqnr is None else next((name for db, name in known if db < least_sqnr), None)
    rounded = any(row.choice in ("int8", "bfloat16") for row in rows)
    changed = tuple(comparison.exposed.changed)
    return DiffReport(
        artifact=str(subject.path),
        model=graphs[-1].name,
        ok=departs is None and noisy is None and not changed and comparison.reproduced,
        departs=departs,
        noisy=noisy,
        noisiest=max(rows, key=lambda row: row.added_noise or 0.0).layer if rounded else None,
        changed=changed,
        reproduced=comparison.reproduced,
        tolerance=tolerance,
        least_sqnr=least_sqnr,
        entry=len(graphs) - 1,
        inputs=inputs,
        samples=samples,
        layers=rows,
    )


class _Comparison:
    """Runs the twin, the reference of each node, and the float model; keeps what they differ by."""

    def __init__(self, exposed: Exposed) -> None:
        self.exposed = exposed
        self.reproduced = True
        planned = exposed.planned
        shown = {spec.name for spec in exposed.twin.outputs}
        self.reference = {v: Spread() for node in planned.nodes for v in node.outputs if v in shown}
        floats = exposed.prepared.types
        counterparts = ((v, self._float_name(v)) for v in self.reference)
        self.real = {v: Spread() for v, name in counterparts if name in floats}

    def _float_name(self, value: str) -> str:
        return self.exposed.stored[value][0] if value in self.exposed.stored else value

    def add(self, feed: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
        """One sample; `outputs`: what the artifact itself gives, from states of zeros."""
        kinds = self.exposed.planned.types
        empty = {v: np.zeros(kinds[v].shape, kinds[v].dtype) for v, _ in self.exposed.planned.states}
        feed = {**empty, **feed}
        values = {**feed, **self.exposed.twin.run(**feed)}
        for name, array in outputs.items():
            self.reproduced &= np.array_equal(array, values[name], equal_nan=array.dtype.kind == "f")
        self._against_reference(values)
        self._against_float(feed, values)

    def _against_reference(self, values: Mapping[str, np.ndarray]) -> None:
        import torch

        planned = self.exposed.planned
        tensors = {v: torch.from_numpy(np.array(array)) for v, array in values.items()}
        for node in planned.nodes:
            if not all(v in tensors or v in planned.params for v in node.inputs if v):
                continue  # it reads a value without elements
            for value, right in zip(node.outputs, run_node(planned, node, tensors), strict=True):
                if value in self.reference:
                    self.reference[value].add(right.numpy(), values[value])
                else:
                    tensors[value] = right

    def _against_float(self, feed: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]) -> None:
        waiting: dict[str, list[str]] = {}
        for value in self.real:
            waiting.setdefault(self._float_name(value), []).append(value)

        def see(name: str, right: np.ndarray) -> None:
            for value in waiting.get(name, ()):
                self.real[value].add(right, self._in_real_numbers(value, values[value]))

        run_reference(self.exposed.prepared, feed, see)

    def _in_real_numbers(self, value: str, array: np.ndarray) -> np.ndarray:
        if array.dtype != np.uint8 or value not in self.exposed.stored:
            return array
        _, scale, zero = self.exposed.stored[value]
        return (array.astype(np.float64) - zero) * scale

    def _noise_read(self, node: Node) -> float:
        """The noise of its noisiest input; of one that is not stored, of what that is computed from."""
        shares = [0.0]
        for value in node.inputs:
            producer = self.exposed.planned.producer(value)
            if value in self.real:
                shares.append(self.real[value].noise_share)
            elif producer is not None:
                shares.append(self._noise_read(producer))
        return max(shares)

    def rows(self, tolerance: float) -> tuple[LayerDifference, ...]:
        nodes = (n for n in self.exposed.planned.nodes if any(v in self.reference for v in n.outputs))
        return tuple(self._row(node, tolerance) for node in nodes)

    def _row(self, node: Node, tolerance: float) -> LayerDifference:
        exposed = self.exposed
        kinds = dict(zip(node.outputs, (t.dtype for t in node.types), strict=True))
        of_reference = {v: self.reference[v] for v in node.outputs if v in self.reference}
        local = worst(of_reference)
        real = worst({v: self.real[v] for v in node.outputs if v in self.real})
        assert local is not None, "rows asks for nodes with compared values"
        read = self._noise_read(node)
        return LayerDifference(
            layer=node.name,
            op=node.op,
            choice=exposed.plan.choice(node.name) if node.op in LAYER_OPS else "",
            dtype=node.type.dtype,
            shape=node.type.shape,
            error=local.error,
            relative=local.relative,
            unequal=local.share_unequal,
            float_error=None if real is None else real.error,
            float_relative=None if real is None else real.relative,
            sqnr_db=None if real is None else real.sqnr_db,
            added_noise=None if real is None else _added(real.noise_share, read),
            weight_bytes_changed=exposed.changed.get(node.name, 0),
            departs=any(s.departs(kinds[v], tolerance) for v, s in of_reference.items()),
        )


def _added(own: float, read: float) -> float:
    """What a node adds to the noise that it reads; nothing is known, so 0, where that is infinite already."""
    return own - read if read < np.inf else 0.0
