"""The form in which a target multiplies with a coded weight; the calls of the one without multiplications."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..compiler.analysis.coded_forms import plane_operations, table_operations
from ..compiler.formats import (
    Coded,
    Format,
    family_of,
    format_of,
)
from ..compiler.ir import Graph, Node
from ..compiler.ops import OPS
from .call import KernelCall, Temporary, Weights
from .isa import Isa
from .kernels.coded.input import CodedInputSpec
from .kernels.coded.planes import (
    EIGHT,
    PlaneScaleSpec,
    PlaneSpec,
    SignTableSpec,
    pack_planes,
    padded_width,
)
from .kernels.coded.spec import ATOM
from .kernels.epilogue import Epilogue

NO_MULTIPLIER = "shift"
"""`Isa.dot` of a chip that has none."""


@dataclass(frozen=True)
class Form:
    """`name`: "table" or "planes" (compiler/analysis/coded_forms.py); `reason`: why this target runs it."""

    name: str
    reason: str


def coded_form(format: Format, n: int, k: int, activations: str, isa: Isa) -> Form:
    """How the target computes a weight [n, k] in that format times activations of that type."""
    signed_sums = family_of(format).side == "alpha"
    if isa.dot == NO_MULTIPLIER and signed_sums and activations != "float32":
        planes, table = plane_operations(format, n, k), table_operations(format, n, k)
        return Form(
            "planes",
            f"{isa.name} has no multiplier: {planes.adds / (n * k):.2f} additions a weight instead of "
            f"{table.multiplies / (n * k):.0f} multiplication and {table.adds / (n * k):.2f} additions",
        )
    if isa.dot == NO_MULTIPLIER:
        return Form(
            "table", f"{isa.name} has no multiplier, but {format} with {activations} has no planes form"
        )
    if not signed_sums:
        return Form("table", f"levels of {format} are no signed sums: only the table form computes them")
    return Form(
        "table",
        f"{isa.name} multiplies {4 * isa.lanes} weights of any format in two instructions, a look-up and a "
        f"dot product; planes would take a look-up and an addition for 8 bits of codes",
    )


def form_reasons(graph: Graph, isa: Isa) -> dict[str, str]:
    """Layer -> the form it runs in and why, of all layers whose weights are codes."""
    found = {}
    for node in graph.nodes:
        if node.op == "coded_linear":
            a: dict[str, Any] = OPS[node.op].complete(node.attrs)
            form = coded_form(format_of(a["format"]), node.type.shape[-1], a["k"], a["activations"], isa)
            found[node.name] = f"{form.name} form: {form.reason}"
    return found


def plane_calls(
    graph: Graph, node: Node, a: dict[str, Any], coded: Coded, epilogue: Epilogue
) -> tuple[KernelCall, ...]:
    """Activations to int8, their sign tables, sums without multiplications, scales."""
    (n, k), rows, groups = coded.shape, math.prod(node.type.shape[:-1]), coded.groups
    width = padded_width(coded)
    atoms = (groups - 1) * width // ATOM + -(-(k - (groups - 1) * min(coded.format.width(k), k)) // ATOM)
    by_group = a["activations"] == "int8:group"
    x, bias, residual = node.inputs[0], *(*node.inputs, "", "", "", "")[5:7]
    before = CodedInputSpec(rows, k, min(coded.format.width(k), k), width // ATOM, atoms, a["activations"], 1)
    signs = SignTableSpec(rows * atoms * ATOM // EIGHT)
    planes = PlaneSpec(rows, n, groups, width, atoms, coded.format.bits)
    scale = coded.arrays["scale"]
    last = PlaneScaleSpec(rows, n, groups, by_group, scale.dtype.name, epilogue)
    q, unused, x_scale = (
        Temporary(f"{part} of {x} {before}", size)
        for part, size in (
            ("q", before.q_bytes),
            ("sums", 4 * rows * groups),
            ("scale", 4 * rows * (groups if by_group else 1)),
        )
    )
    made = Temporary(f"signs of {x} {before}", signs.nbytes)
    sums = Temporary(f"sums of {node.name}", planes.sums_bytes)
    stored = (
        Weights(planes.plane_bytes, lambda: pack_planes(coded), f"{node.inputs[1]} as planes"),
        Weights(coded.arrays["alpha"].nbytes, lambda: coded.arrays["alpha"], f"{node.inputs[4]} as alphas"),
    )
    factors = [Weights(scale.nbytes, lambda: scale)]
    for array in (coded.arrays.get("row_scale"), graph.params[bias] if bias else None):
        factors += [] if array is None else [_plain(array)]
    rest = [residual] if residual else []
    return (
        KernelCall(before, (x, q, unused, x_scale), before.tasks),
        KernelCall(signs, (q, made), signs.tasks),
        KernelCall(planes, (made, *stored, sums), planes.tasks),
        KernelCall(last, (sums, x_scale, *factors, *rest, node.output), last.tasks),
    )


def _plain(array: np.ndarray) -> Weights:
    return Weights(array.nbytes, lambda: array)
