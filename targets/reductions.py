"""Selection of kernels that gather along an axis: softmax, norms, reductions."""

from __future__ import annotations

import math
from typing import Any

from ..compiler.ir import Graph, Node
from .call import KernelCall
from .isa import Isa
from .kernels.columns import ColumnSpec
from .kernels.rows import RowSpec


def softmax(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall | None:
    return _along("softmax", graph, node, (a["axis"],), isa)


def reduction(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall | None:
    if a["x_scale"] != 1.0 or a["x_zero"]:
        return None
    return _along(node.op.removeprefix("reduce_"), graph, node, tuple(sorted(a["axes"])), isa)


def norm(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall | None:
    shape = node.type.shape
    gamma, beta = (bool(v) for v in (*node.inputs[1:], "", "")[:2])
    spec = RowSpec(node.op, isa.lanes, math.prod(shape[:-1]), shape[-1], gamma, beta, a["eps"])
    return KernelCall(spec, (*(v for v in node.inputs if v), node.output), spec.tasks)


def _along(kind: str, graph: Graph, node: Node, axes: tuple[int, ...], isa: Isa) -> KernelCall | None:
    """None where the axes are no neighbours, but for axes of one element, or the values not float32."""
    x = graph.type_of(node.inputs[0])
    real = [axis for axis in axes if x.shape[axis] > 1]
    if x.dtype != "float32" or not real:
        return None
    first, last = real[0], real[-1]
    if any(x.shape[i] > 1 and i not in axes for i in range(first, last + 1)):
        return None
    outer, n, inner = (
        math.prod(part) for part in (x.shape[:first], x.shape[first : last + 1], x.shape[last + 1 :])
    )
    spec: Any = (
        RowSpec(kind, isa.lanes, outer, n) if inner == 1 else ColumnSpec(kind, isa.lanes, outer, n, inner)
    )
    return KernelCall(spec, (node.inputs[0], node.output), spec.tasks)
