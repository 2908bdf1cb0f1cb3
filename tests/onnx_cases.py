"""Models of one ONNX node, and how far what we import computes something else than ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.ir import Graph
from bitsmith.compiler.reference import run_reference
from onnx_models import model, node, onnxruntime_outputs


@dataclass(frozen=True)
class Comparison:
    """The imported graph, and in words each output that is not ONNX Runtime's."""

    graph: Graph
    differences: tuple[str, ...]


def compare(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], atol: float = 1e-5) -> Comparison:
    """Import, run, hold every output against ONNX Runtime's."""
    graph = load_model(proto)
    found = run_reference(graph, feeds)
    named = [value.name for value in proto.graph.output]
    if list(graph.outputs) != named:
        return Comparison(graph, (f"outputs {graph.outputs}, wanted {named}",))
    pairs = zip(named, onnxruntime_outputs(proto, feeds), strict=True)
    said = [difference(name, found[name], array, atol) for name, array in pairs]
    return Comparison(graph, tuple(line for line in said if line))


def difference(name: str, found: np.ndarray, wanted: np.ndarray, atol: float) -> str:
    """What is wrong with an output; empty if it is within atol + 1e-5 * |wanted| everywhere."""
    if found.shape != wanted.shape:
        return f"{name}: shape {found.shape}, wanted {wanted.shape}"
    if np.allclose(found, wanted, atol=atol, rtol=1e-5):
        return ""
    with np.errstate(invalid="ignore"):
        apart = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
    return f"{name}: up to {np.nanmax(apart)} apart\n{found}\nwanted\n{wanted}"


@dataclass(frozen=True)
class Case:
    """One ONNX node: shapes of its inputs computed at run time, constants, attributes, operator set."""

    op: str
    inputs: str
    shapes: dict[str, tuple[int, ...]]
    weights: dict[str, Any] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    opset: int = 17
    outputs: str = "y"
    low: float = -3.0
    high: float = 3.0

    def __str__(self) -> str:
        return f"{self.op}-{self.opset}-{'-'.join(f'{k}={v}' for k, v in self.attrs.items())}".replace(
            " ", ""
        )

    def proto(self) -> onnx.ModelProto:
        rng = np.random.default_rng(3)
        made = {
            k: rng.uniform(-1, 1, v).astype(np.float32) if isinstance(v, tuple) else np.array(v)
            for k, v in self.weights.items()
        }
        names = [name for name in self.outputs.split() if name != "-"]
        return model(
            [node(self.op, self.inputs, self.outputs, **self.attrs)], self.shapes, names, made, self.opset
        )

    def feeds(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(4)
        return {k: rng.uniform(self.low, self.high, v).astype(np.float32) for k, v in self.shapes.items()}


IMAGE = {"x": (2, 4, 9, 8)}
SIGNAL = {"x": (2, 4, 15)}


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def f32(value: float) -> np.ndarray:
    return np.array(value, np.float32)
