"""Selection of kernels for linear layers in float32 or bfloat16 whose sums or activations are long.

The others are implicit convolutions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..compiler.ir import Graph, Node
from .call import STACK_BYTES, KernelCall, Weights
from .isa import Isa
from .kernels.epilogue import Epilogue
from .kernels.matmul_spec import (
    DEPTH,
    HEAVY,
    MatmulSpec,
    pack_matrix,
)
from .kernels.product import Matrix

LONG = DEPTH * 4 // 3
"""Up to here one panel of weights stays in the caches without being cut."""


def long_linear(
    graph: Graph, node: Node, a: dict[str, Any], isa: Isa, epilogue: Epilogue
) -> KernelCall | None:
    """None where sums and activation are short, or a type is not float32."""
    x, (n, k) = graph.type_of(node.inputs[0]), graph.type_of(node.inputs[1]).shape
    rows, narrow = math.prod(x.shape[:-1]), graph.type_of(node.inputs[1]).dtype == "bfloat16"
    if x.dtype != "float32" or a["out_dtype"] != "float32":
        return None
    if k <= LONG and a["act"] not in HEAVY:
        return None
    spec = MatmulSpec(
        lanes=isa.lanes,
        registers=isa.registers,
        batch=(),
        m=rows,
        n=n,
        k=k,
        a=Matrix((), k, 1),
        b=Matrix((), n, 1),
        y=Matrix((), n, 1),
        packed=True,
        epilogue=epilogue,
        dot=isa.bf16 if narrow else "",
    )
    if spec.stack_bytes > STACK_BYTES:
        return None
    columns = spec.tiling[1].columns

    def pack() -> np.ndarray:
        return pack_matrix(spec, graph.params[node.inputs[1]].T)

    operands: list[Any] = [node.inputs[0], Weights(columns * spec.whole_k * (2 if narrow else 4), pack)]
    for index, there in ((2, epilogue.bias), (4, epilogue.scale)):
        if there:
            values = graph.params[node.inputs[index]]
            padded = np.pad(values, (0, columns - n))
            operands.append(Weights(columns * 4, lambda padded=padded: padded))  # type: ignore[misc]
    if epilogue.residual:
        operands.append(node.inputs[3])
    return KernelCall(spec, (*operands, node.output), spec.tasks)
