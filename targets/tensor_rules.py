"""The rows of selection.py for operators of networks on sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..compiler.ir import Graph, Node
from .call import KernelCall
from .elementwise import elementwise
from .isa import Isa
from .kernels.elementwise import OPERATORS
from .linears import long_linear
from .moves import concat, slice_of, transpose
from .products import attention, matmul
from .reductions import norm, reduction, softmax

__all__ = ["TENSOR_RULES", "long_linear"]

TENSOR_RULES: dict[str, Callable[[Graph, Node, dict[str, Any], Isa], KernelCall | None]] = {
    **dict.fromkeys(OPERATORS, elementwise),
    "matmul": matmul,
    "attention": attention,
    "transpose": transpose,
    "slice": slice_of,
    "concat": concat,
    "softmax": softmax,
    "layer_norm": norm,
    "rms_norm": norm,
    "reduce_mean": reduction,
    "reduce_sum": reduction,
    "reduce_max": reduction,
    "reduce_min": reduction,
}
