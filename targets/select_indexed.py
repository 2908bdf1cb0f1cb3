"""Which kernel computes an operator that writes at computed places or in an order of its own."""

from __future__ import annotations

import math
from typing import Any

from ..compiler.ir import Graph, Node
from .call import KernelCall
from .isa import Isa
from .kernels.cumulate import CumulateSpec
from .kernels.scatter import ScatterSpec
from .kernels.topk import TopKSpec


def scatter(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall:
    x, indices = graph.type_of(node.inputs[0]), graph.type_of(node.inputs[1])
    axis = a["axis"] if node.op == "scatter_elements" else -1
    spec = ScatterSpec(x.dtype, indices.dtype, a["reduction"], x.shape, indices.shape, axis)
    return KernelCall(spec, (*node.inputs, node.output), spec.tasks)


def _around(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """(sizes before, along, behind the axis)."""
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


def cumulate(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall:
    x = graph.type_of(node.inputs[0])
    rest = (node.op == "cumprod", a["exclusive"], a["reverse"])
    spec = CumulateSpec(x.dtype, *_around(x.shape, a["axis"]), *rest)
    return KernelCall(spec, (node.inputs[0], node.output), spec.tasks)


def topk(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall:
    x = graph.type_of(node.inputs[0])
    spec = TopKSpec(x.dtype, *_around(x.shape, a["axis"]), a["k"], a["largest"])
    return KernelCall(spec, (node.inputs[0], *node.outputs), spec.tasks)
