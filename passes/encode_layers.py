"""Weights of linear and embedding layers to codes, layer by layer, each for what the coded layers before it
give.

    round        nearest levels, ranges kept                      no samples
    search       scales and tables of least squared error         no samples: by weights; with: by inputs'
    hqq          the same with less care for outliers             no samples
    compensate   errors make each other good                      samples

With samples the graph runs node by node over all of them (live_values.py): a layer's X^T X is that of inputs
which the coded layers before it make. Compensation runs the float network beside it, so that later layers
also make up for earlier ones. In memory are one layer, its X^T X, and values that are still to be read, of
which most lie on disk.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from ..compiler.errors import InputError
from ..compiler.formats import Format, decode
from ..compiler.ir import Graph, Node
from ..compiler.samples import Samples, iterate
from .kept_codes import KeptCodes, LayerCodes
from .layer_coder import EncodeOptions, LayerCoder, matrix_of
from .layer_inputs import float_inputs, layer_inputs
from .live_values import LiveValues, needed_nodes

Progress = Callable[[int, int, str], None]
Found = Iterator[tuple[str, LayerCodes]]


def encode_layers(
    graph: Graph,
    formats: Mapping[str, Format],
    samples: Samples | None = None,
    options: EncodeOptions | None = None,
    *,
    known: Mapping[str, LayerCodes] | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Found:
    """(layer name, its codes) for each layer in `formats`, in the graph's order.

    Layers are `linear` and `gather` nodes with a float32 matrix; a gather gets codes of least squared error.
    Layers that share a matrix get codes for what the linear ones among them read in the float network: a
    head's errors reach the logits, those of a row of embeddings hardly do. So their codes do not depend on
    other layers' formats: those `known` from another run, by layer, are not made again. Finished layers are
    kept in `folder`; a run with the same arguments goes on there. `progress(done, all, layer)` is called
    after each layer. Raises InputError for formats of what is no layer, shared matrices with different
    formats, samples that do not fit, and for a folder of another run.
    """
    options = options or EncodeOptions()
    layers = coded_layers(graph, formats)
    if samples is None and (options.method == "compensate" or options.scale_inputs):
        raise InputError("error compensation and scaled inputs need calibration samples")
    runs = [] if samples is None else iterate(graph, samples)
    names = [node.name for node in layers]
    kept = KeptCodes(folder, "" if folder is None else identity(graph, formats, runs, options), names)
    if all(name in kept for name in names):
        found = _all_kept(graph, layers, kept)
    else:
        found = _Walk(LayerCoder(graph, formats, options), layers, runs, kept, known or {}).codes()
    for done, (layer, codes) in enumerate(found, 1):
        if progress:
            progress(done, len(layers), layer)
        yield layer, codes


def _all_kept(graph: Graph, layers: Sequence[Node], kept: KeptCodes) -> Found:
    """Layers that share a matrix get one object, of which an artifact holds one copy."""
    uses = Counter(matrix_of(graph, node) for node in layers)
    shared: dict[str | None, LayerCodes] = {}
    for node in layers:
        matrix = matrix_of(graph, node)
        codes = shared.get(matrix) or kept.get(node.name)
        if uses[matrix] > 1:
            shared[matrix] = codes
        yield node.name, codes


def coded_layers(graph: Graph, formats: Mapping[str, Format]) -> list[Node]:
    """The nodes that `formats` names, in order. Raises InputError where they cannot be coded so."""
    nodes = [node for node in graph.nodes if node.name in formats]
    unknown = sorted(set(formats) - {node.name for node in nodes})
    if unknown:
        raise InputError(f"graph {graph.name!r} has no layer {unknown[0]!r}, for which a format is given")
    by_matrix: dict[str, Format] = {}
    for node in nodes:
        matrix = matrix_of(graph, node)
        if matrix is None:
            raise InputError(f"{node.name!r} ({node.op}) has no float32 matrix of weights to code")
        if by_matrix.setdefault(matrix, formats[node.name]) != formats[node.name]:
            raise InputError(
                f"layers that share the matrix {matrix!r} have one format, but {node.name!r} is to be "
                f"{formats[node.name]} and another one {by_matrix[matrix]}"
            )
    return nodes


def identity(
    graph: Graph,
    formats: Mapping[str, Format],
    runs: Sequence[Mapping[str, np.ndarray]],
    options: EncodeOptions,
) -> str:
    """SHA-256 of all that codes depend on."""
    digest = hashlib.sha256(graph.content_hash.encode())
    facts = (options.method, options.scale_inputs, options.compensation)
    digest.update(repr((sorted((name, str(format)) for name, format in formats.items()), facts)).encode())
    for run in runs:
        for name in sorted(run):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(run[name]).data)
    return digest.hexdigest()


class _Walk:
    """One run over the graph, as far as some layer's inputs need it."""

    def __init__(
        self,
        coder: LayerCoder,
        layers: Sequence[Node],
        runs: Sequence[Mapping[str, np.ndarray]],
        kept: KeptCodes,
        known: Mapping[str, LayerCodes],
    ) -> None:
        self.known = known
        self.coder, self.graph, self.layers, self.runs, self.kept = coder, coder.graph, layers, runs, kept
        self._uses = Counter(matrix_of(self.graph, node) for node in layers)
        self._shared: dict[str | None, LayerCodes] = {}
        self._made: dict[str, LayerCodes] = {}

    def codes(self) -> Found:
        wanted = {node.inputs[0] for node in self.layers if self._calibrated(node)}
        running = needed_nodes(self.graph, wanted)
        names = {node.name for node in running}
        with self._values(running, wanted) as values, self._values(running, wanted) as in_float:
            for node in self.graph.nodes:
                codes = None
                if node.name in self.coder.formats:
                    codes = self._codes_of(node, values, in_float)
                    yield node.name, codes
                if node.name in names:
                    values.step(node, self._decoded(node, codes))
                    if self._regains:
                        in_float.step(node, {})

    def _values(self, running: Sequence[Node], wanted: Collection[str]) -> LiveValues:
        return LiveValues(self.graph, self.runs, running, wanted, self.coder.options.memory // 2)

    @property
    def _regains(self) -> bool:
        """Whether codes depend on what inputs are in the float network too."""
        return self.coder.options.method == "compensate"

    def _calibrated(self, node: Node) -> bool:
        """Whether the layer's codes depend on its inputs."""
        return bool(self.runs) and node.op == "linear" and self._uses[matrix_of(self.graph, node)] == 1

    def _decoded(self, node: Node, codes: LayerCodes | None) -> dict[str, np.ndarray]:
        matrix = matrix_of(self.graph, node)
        if codes is None or matrix is None:
            return {}
        weight = decode(codes.coded)
        return {matrix: weight if codes.factors is None else weight / codes.factors}

    def _codes_of(self, node: Node, values: LiveValues, in_float: LiveValues) -> LayerCodes:
        if self._calibrated(node):
            if node.name not in self._made:
                group = [n for n in self.layers if self._calibrated(n) and n.inputs[0] == node.inputs[0]]
                self._made |= self._coded_together(group, values, in_float)
                values.release(node.inputs[0])
                if self._regains:
                    in_float.release(node.inputs[0])
            return self._made.pop(node.name)
        matrix = matrix_of(self.graph, node)
        if self._uses[matrix] == 1:
            return self._coded_together([node])[node.name]
        if matrix not in self._shared:
            self._shared[matrix] = self.known.get(node.name) or self._coded_for_all(node)
        codes = self._shared[matrix]
        self.kept.put(node.name, codes)
        return codes

    def _coded_for_all(self, node: Node) -> LayerCodes:
        """Codes of a matrix that several layers share: for what the linear ones among them read."""
        if node.name in self.kept:
            return self.kept.get(node.name)
        matrix, coder = matrix_of(self.graph, node), self.coder.unscaled()
        readers = [n for n in self.layers if n.op == "linear" and matrix_of(self.graph, n) == matrix]
        if not self.runs or not readers or not coder.options.looks_at_inputs:
            return coder.code([node], None)[node.name]
        inputs = float_inputs(self.graph, self.runs, readers, coder.options.memory)
        return coder.code(readers[:1], inputs)[readers[0].name]

    def _coded_together(
        self, group: Sequence[Node], values: LiveValues | None = None, in_float: LiveValues | None = None
    ) -> dict[str, LayerCodes]:
        """Codes of layers that read one value; those that are kept already are read."""
        if all(node.name in self.kept for node in group):
            return {node.name: self.kept.get(node.name) for node in group}
        read = group[0].inputs[0]
        inputs = layer_inputs(values, read, in_float if self._regains else None) if values else None
        made = self.coder.code(group, inputs)
        for layer, codes in made.items():
            self.kept.put(layer, codes)
        return made
