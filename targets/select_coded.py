"""Which kernels compute a product with a coded weight, and what they are given."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..compiler.formats import Coded, family_of, format_of
from ..compiler.ir import Graph, Node
from ..compiler.ops.coded import coded_of
from .call import (
    STACK_BYTES,
    KernelCall,
    Temporary,
    Weights,
)
from .isa import Isa
from .kernels.coded.gather import CodedGatherSpec
from .kernels.coded.input import CodedInputSpec
from .kernels.coded.pack import (
    SPARE,
    largest_level,
    pack_codes,
    pack_rows,
    pack_scale,
    pack_side,
    packing_of,
)
from .kernels.coded.product import CodedSpec
from .kernels.coded.spec import Packing
from .kernels.epilogue import Epilogue
from .select_planes import coded_form, plane_calls


def coded_linear(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> tuple[KernelCall, ...] | None:
    """Activations are brought to the form that the product reads, then comes the product. Products that read
    the same value in the same form begin with equal calls, of which one is enough."""
    rows = math.prod(node.type.shape[:-1])
    stored = [v for v in node.inputs[1:6] if v]
    if not rows or not all(v in graph.params for v in stored):
        return None
    bias, residual = (*node.inputs, "", "", "", "")[5:7]
    rest = {key: a[key] for key in ("act", "lo", "hi", "alpha")}
    epilogue = Epilogue(bias=bool(bias), residual="float32" if residual else "", **rest)
    if (
        coded_form(format_of(a["format"]), node.type.shape[-1], a["k"], a["activations"], isa).name
        == "planes"
    ):
        return plane_calls(graph, node, a, coded_weight(graph, node, a), epilogue)
    p = packing(graph, node, a, isa)
    spec = CodedSpec(p, isa.dot, rows, a["activations"], epilogue)
    if spec.stack_bytes > STACK_BYTES:
        return None
    before = _input_spec(spec)
    made = _activations(node.inputs[0], before)
    operands: list[Any] = [*made, *weights(graph, node, a, p)]
    if bias:
        operands.append(Weights(p.blocks * p.lanes * 4, lambda: pack_rows(p, graph.params[bias])))
    if residual:
        operands.append(residual)
    return (
        KernelCall(before, (node.inputs[0], *made), before.tasks),
        KernelCall(spec, (*operands, node.output), spec.tasks),
    )


def coded_weight(graph: Graph, node: Node, a: dict[str, Any]) -> Coded:
    """Reads it."""
    return coded_of([graph.params[v] if v else None for v in (*node.inputs, "", "")[1:5]], a)


def packing(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> Packing:
    """How a node's weight is packed; the same for all nodes that read it on one target."""
    format, n = format_of(a["format"]), graph.type_of(node.inputs[1]).shape[0]
    alphas = family_of(format).side == "alpha"
    largest = largest_level(graph.params[node.inputs[4]]) if alphas else 0
    return packing_of(format, n, a["k"], isa.lanes, largest)


def _input_spec(spec: CodedSpec) -> CodedInputSpec:
    p = spec.packing
    return CodedInputSpec(spec.m, p.k, p.width, p.group_atoms, p.atoms, spec.activations, spec.factor)


def _activations(x: str, made: CodedInputSpec) -> tuple[Temporary, ...]:
    form = f"{x} {made}"
    if not made.quantised:
        return (Temporary(f"q of {form}", made.q_bytes),)
    of_groups = 4 * made.m * made.groups
    return (
        Temporary(f"q of {form}", made.q_bytes),
        Temporary(f"sums of {form}", of_groups),
        Temporary(f"scale of {form}", of_groups if made.by_group else 4 * made.m),
    )


def weights(graph: Graph, node: Node, a: dict[str, Any], p: Packing) -> list[Weights]:
    """The packed operands, in the kernels' order. Nothing is read before it is packed."""
    rows = p.blocks * p.lanes

    def operand(index: int, nbytes: int, pack: Callable[[Packing, Coded], np.ndarray]) -> Weights:
        # An embedding and a head that are tied read one copy.
        return Weights(nbytes, lambda: pack(p, coded_weight(graph, node, a)), f"{node.inputs[index]} as {p}")

    found = [
        operand(1, p.blocks * p.block_bytes, pack_codes),
        operand(2, rows * p.groups * np.dtype(p.scale_dtype).itemsize, pack_scale),
    ]
    if p.two_level:
        found.append(operand(3, rows * 4, lambda p, coded: pack_rows(p, coded.arrays["row_scale"])))
    if p.has_side:
        each = {"selector": rows * p.groups // 4, "zero": rows * p.groups}
        alphas = rows * p.groups * p.bits + SPARE
        found.append(operand(4, each.get(p.kind, alphas), pack_side))
    return found


def coded_gather(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall | None:
    if not all(v in graph.params for v in node.inputs[1:] if v):
        return None
    p = packing(graph, node, a, isa)
    indices = graph.type_of(node.inputs[0])
    spec = CodedGatherSpec(p, isa.dot, indices.size, indices.dtype)
    return KernelCall(spec, (node.inputs[0], *weights(graph, node, a, p), node.output), spec.tasks)


CODED_RULES = {"coded_linear": coded_linear, "coded_gather": coded_gather}
