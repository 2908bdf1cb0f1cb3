"""Codes for layers that read one value, by the method that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..compiler.analysis.smoothing import foldable
from ..compiler.errors import InputError
from ..compiler.formats import (
    Coded,
    Format,
    decode,
    encode,
)
from ..compiler.formats.compensate import Compensation, Compensator, output_error
from ..compiler.formats.half_quadratic import half_quadratic
from ..compiler.formats.scaling import choose_factors
from ..compiler.ir import Graph, Node
from .kept_codes import LayerCodes
from .layer_inputs import LayerInputs
from .live_values import MEMORY

DAMPING = 0.7
"""Times inputs / rows: the damping below which codes fit what is chance in the samples. SmolLM2-135M, 4096
rows, error of bitmod4 on other text: damping 0.01 / 0.1 / 0.4 gives 0.00053 / 0.00041 / 0.00042 for a down
projection (1536 inputs), 0.0051 / 0.0045 / 0.0042 for an output projection (576).
"""
METHODS = ("round", "search", "hqq", "compensate")


def damping_of(k: int, rows: int, least: float = Compensation().damping) -> float:
    """What codes for k inputs need, of which so many rows are known."""
    return max(least, DAMPING * k / max(rows, 1))


@dataclass(frozen=True)
class EncodeOptions:
    """`scale_inputs`: also divide inputs by channel where a norm can do it (AWQ). `memory`: bytes of values
    that are held at a time; the rest is on disk. The damping of `compensation` is a least value: few samples
    raise it. Raises InputError for what is not known.
    """

    method: str = "compensate"
    scale_inputs: bool = False
    compensation: Compensation = Compensation()
    memory: int = MEMORY

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"codes are made by {', '.join(METHODS)}, not by {self.method!r}")

    @property
    def looks_at_inputs(self) -> bool:
        """Whether codes depend on what a layer reads."""
        return self.method in ("search", "compensate")


def matrix_of(graph: Graph, node: Node) -> str | None:
    """The parameter [outputs, inputs] of a linear layer, or the one [rows, width] that a gather reads rows
    of; None for other nodes and types.
    """
    place = {"linear": 1, "gather": 0}.get(node.op)
    if place is None or node.inputs[place] not in graph.params:
        return None
    if node.op == "gather" and node.attrs.get("axis", 0) != 0:
        return None
    kind = graph.type_of(node.inputs[place])
    return node.inputs[place] if len(kind.shape) == 2 and kind.dtype == "float32" else None


@dataclass(frozen=True)
class LayerCoder:
    graph: Graph
    formats: Mapping[str, Format]
    options: EncodeOptions

    def code(self, group: Sequence[Node], inputs: LayerInputs | None) -> dict[str, LayerCodes]:
        """Codes of layers that read one value; `inputs` tells about it, None when nothing is known."""
        if inputs is None:
            return {node.name: self._blind(node) for node in group}
        return self.damped(inputs)._code(group, inputs)

    def _code(self, group: Sequence[Node], inputs: LayerInputs) -> dict[str, LayerCodes]:
        hessian = inputs.hessian
        factors = self._factors(group, inputs)
        if factors is not None:
            hessian = hessian / np.outer(factors, factors).astype(np.float32)
        drift = inputs.drift
        if factors is not None and drift is not None:
            drift = drift / np.outer(factors, factors).astype(np.float32)
        code = self._coder(hessian, drift)
        made = {}
        for node in group:
            weight = self.weight(node) if factors is None else self.weight(node) * factors
            coded = code(weight, self.formats[node.name])
            size = output_error(weight, np.zeros_like(weight), hessian).sum()
            error = output_error(weight, decode(coded), hessian).sum() / (size or 1.0)
            made[node.name] = LayerCodes(coded, factors, float(error))
        return made

    def damped(self, inputs: LayerInputs) -> LayerCoder:
        """With the damping that so few rows need."""
        usual = self.options.compensation
        damping = damping_of(len(inputs.magnitude), inputs.rows, usual.damping)
        compensation = replace(usual, damping=damping)
        return replace(self, options=replace(self.options, compensation=compensation))

    def unscaled(self) -> LayerCoder:
        """Without factors for inputs: a table that shares its matrix with a layer cannot have them."""
        return replace(self, options=replace(self.options, scale_inputs=False))

    def weight(self, node: Node) -> np.ndarray:
        matrix = matrix_of(self.graph, node)
        assert matrix is not None
        return self.graph.params[matrix]

    def _blind(self, node: Node) -> LayerCodes:
        """Without calibration. Every column counts alike."""
        weight, format = self.weight(node), self.formats[node.name]
        if self.options.method == "hqq":
            coded = half_quadratic(weight, format)
        elif self.options.method == "round":
            coded = encode(weight, format)
        else:
            coded = encode(weight, format, np.ones(weight.shape[1], np.float32))
        lacking, size = np.square(weight - decode(coded)).sum(), np.square(weight).sum()
        return LayerCodes(coded, None, float(lacking / (size or 1.0)))

    def _coder(
        self, hessian: np.ndarray, drift: np.ndarray | None = None
    ) -> Callable[[np.ndarray, Format], Coded]:
        diagonal = np.diagonal(hessian) / (np.diagonal(hessian).max() or 1.0)
        compensator = Compensator(hessian, self.options.compensation)
        return {
            "round": encode,
            "hqq": half_quadratic,
            "search": lambda weight, format: encode(weight, format, diagonal),
            "compensate": lambda weight, format: compensator.code(weight, format, drift),
        }[self.options.method]

    def _factors(self, group: Sequence[Node], inputs: LayerInputs) -> np.ndarray | None:
        names = [node.name for node in group]
        value = group[0].inputs[0]
        producer = self.graph.producer(value)
        if not self.options.scale_inputs or producer is None or "norm" not in producer.op:
            return None
        if not foldable(self.graph, value, names):
            return None
        weights, formats = [self.weight(node) for node in group], [self.formats[name] for name in names]
        return choose_factors(
            weights,
            inputs.hessian,
            inputs.magnitude,
            lambda i, weight, hessian: encode(weight, formats[i], np.diagonal(hessian)),
            lambda i, weight, hessian: self._coder(hessian)(weight, formats[i]),
        )
