"""Many single nodes in one graph, so that kernels of all of them are compiled and linked once."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.ir import Graph, TensorType, element_type
from bitsmith.compiler.ops import OPS, Sample

WHOLE = {"uint8": (0, 256), "int8": (-127, 128), "int32": (-3000, 3000), "int64": (-9, 9), "bool": (0, 2)}
WHOLE |= {"int16": (-3000, 3000), "uint16": (0, 3000), "uint32": (0, 3000), "uint64": (0, 3000)}


def random_array(
    kind: TensorType, rng: np.random.Generator, low: float = -2.0, high: float = 2.0
) -> np.ndarray:
    """Float values in [low, high], integers over their whole range."""
    if "float" in kind.dtype:
        return rng.uniform(low, high, kind.shape).astype(element_type(kind.dtype))
    return rng.integers(*WHOLE[kind.dtype], kind.shape).astype(kind.dtype)


def disagreement(got: np.ndarray, want: np.ndarray) -> str:
    """What is wrong, or nothing: types equal; integers too but for one step at rounding ties, floats to
    rounding error."""
    if (got.dtype, got.shape) != (want.dtype, want.shape):
        return f"{got.dtype}{got.shape}, wanted {want.dtype}{want.shape}"
    difference = np.abs(got.astype(np.float64) - want.astype(np.float64))
    most = difference.max(initial=0)
    if got.dtype.kind == "f":
        fine = most <= 5e-6 * max(1.0, np.abs(want).max(initial=0))
    else:
        fine = most <= 1 and (difference > 0).mean() < 0.01
    return "" if fine else f"{(difference > 0).mean():.1%} of the numbers differ, by up to {most}"


@dataclass
class ManyNodes:
    """Collects nodes with their inputs; `graph()` and `feeds` go together."""

    builder: GraphBuilder = field(default_factory=lambda: GraphBuilder("many"))
    feeds: dict[str, np.ndarray] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    siblings: dict[str, tuple[str, ...]] = field(default_factory=dict)  # first output of a node -> all

    def add(self, op: str, sample: Sample) -> str:
        """Append the sample's node, return its (first) output. A layer's weights are parameters, the rest
        inputs."""
        name = f"{op}_{len(self.outputs)}"
        # The numbers of a sample depend on nothing but it: other samples may come and go.
        seen = [x if isinstance(x, TensorType) else None for x in sample.inputs]
        rng = np.random.default_rng(zlib.crc32(f"{op} {seen} {sorted(sample.attrs.items())}".encode()))
        inputs = [self._operand(op, name, i, x, sample, rng) for i, x in enumerate(sample.inputs)]
        made = self.builder.add_all(op, inputs, name=name, **sample.attrs)
        self.outputs += made
        self.siblings[made[0]] = made
        return made[0]

    def _operand(
        self, op: str, name: str, index: int, given: Any, sample: Sample, rng: np.random.Generator
    ) -> str:
        if given is None:
            return ""
        array = given if isinstance(given, np.ndarray) else random_array(given, rng, sample.low, sample.high)
        if isinstance(given, np.ndarray) or (OPS[op].layer and index in (1, 2, 4)):
            return self.builder.param(f"{name}.{index}", array)
        value = self.builder.input(f"{name}.in{index}", array.shape, array.dtype.name)
        self.feeds[value] = array
        return value

    def graph(self) -> Graph:
        return self.builder.finish(self.outputs)
