"""Which kernel computes a node: a table from operator to rule.

A rule that declines leaves the node to relax_kernels.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..compiler.ir import AttrValue, Graph, Node
from ..compiler.ops import ACTIVATIONS, OPS
from .call import Calls, KernelCall
from .isa import Isa
from .kernels.conv.pool import MeanSpec, PoolSpec
from .kernels.conv.window import window
from .kernels.pointwise import PointwiseSpec
from .select_cached import CACHED_RULES
from .select_coded import CODED_RULES
from .select_conv import CONV_RULES
from .select_indexed import cumulate, scatter, topk
from .select_recurrent import RECURRENT_RULES
from .select_resize import PLACE_RULES
from .tensor_rules import TENSOR_RULES

Rule = Callable[[Graph, Node, dict[str, Any], Isa], Calls | None]


def select(graph: Graph, node: Node, isa: Isa) -> Calls | None:
    """The kernel call for a node, or several, in order; None when no own kernel fits."""
    attrs = OPS[node.op].complete(node.attrs)
    rules = [table[node.op] for table in (RULES, TENSOR_RULES) if node.op in table]
    return next((call for rule in rules if (call := rule(graph, node, attrs, isa))), None)


def _flat(node: Node, isa: Isa, inputs: tuple[tuple[str, float, int], ...], **rest: AttrValue) -> KernelCall:
    spec = PointwiseSpec(isa.lanes, node.type.size, inputs, **rest)  # type: ignore[arg-type]
    return KernelCall(spec, (*node.inputs, node.output), spec.tasks)


def _activation(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall:
    return _flat(node, isa, (("float32", 1.0, 0),), act=node.op, **a)


def _quantize(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall:
    return _flat(
        node, isa, (("float32", 1.0, 0),), y_scale=a["y_scale"], y_zero=a["y_zero"], out_dtype="uint8"
    )


def _dequantize(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall:
    return _flat(node, isa, (("uint8", a["x_scale"], a["x_zero"]),))


def _add(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall | None:
    kinds = [graph.type_of(v) for v in node.inputs]
    if kinds[0].shape != kinds[1].shape or not {k.dtype for k in kinds} <= {"float32", "uint8"}:
        return None
    inputs = tuple((k.dtype, a[f"{w}_scale"], a[f"{w}_zero"]) for k, w in zip(kinds, "ab", strict=True))
    rest = {k: a[k] for k in ("act", "lo", "hi", "alpha", "y_inv", "y_zero", "out_dtype")}
    return _flat(node, isa, inputs, **rest)


def _pool(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall | None:
    x = graph.type_of(node.inputs[0])
    kind = node.op.removesuffix("_pool2d")
    if a["layout"] != "NHWC" or (kind == "avg" and x.dtype != "float32"):
        return None
    top, left, bottom, right = a["pads"]
    spec = PoolSpec(
        **window(x.shape, node.type.shape, a["kernel"], a),
        kind=kind,
        lanes=isa.lanes,
        dtype=x.dtype,
        count_pad=bool(a.get("count_pad", False)),
        padded=(x.shape[1] + top + bottom, x.shape[2] + left + right),
    )
    return KernelCall(spec, (node.inputs[0], node.output), spec.tasks)


def _mean(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall | None:
    x = graph.type_of(node.inputs[0])
    if len(x.shape) != 4 or tuple(sorted(a["axes"])) != (1, 2) or x.dtype not in ("float32", "uint8"):
        return None
    spec = MeanSpec(
        isa.lanes, x.dtype, x.shape[0], x.shape[1] * x.shape[2], x.shape[3], a["x_scale"], a["x_zero"]
    )
    return KernelCall(spec, (node.inputs[0], node.output), spec.tasks)


RULES: dict[str, Rule] = {
    **CONV_RULES,
    **PLACE_RULES,
    **RECURRENT_RULES,
    **CACHED_RULES,
    **CODED_RULES,
    **{name: _activation for name in ACTIVATIONS if name != "none"},
    "quantize": _quantize,
    "dequantize": _dequantize,
    "add": _add,
    "max_pool2d": _pool,
    "avg_pool2d": _pool,
    "reduce_mean": _mean,
    **dict.fromkeys(("scatter_elements", "scatter_nd"), scatter),
    **dict.fromkeys(("cumsum", "cumprod"), cumulate),
    "topk": topk,
}
