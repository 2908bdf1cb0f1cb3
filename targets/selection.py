"""Which kernel computes a node: a table from operator to rule.

A rule that declines leaves the node to relax_kernels.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..compiler.ir import AttrValue, Graph, Node
from ..compiler.ops import ACTIVATIONS, OPS
from ..compiler.ops.conv import in_layout, nchw, out_layout
from .call import KernelCall, Weights
from .isa import Isa
from .kernels.depthwise_spec import DepthwiseSpec, pack_depthwise, pack_per_channel
from .kernels.epilogue import Epilogue
from .kernels.gemm_spec import GemmSpec, fold_zero_point, pack_channels, pack_weights, pairs_bounded
from .kernels.pointwise import PointwiseSpec
from .kernels.pool import MeanSpec, PoolSpec
from .select_indexed import cumulate, scatter, topk
from .select_recurrent import RECURRENT_RULES
from .select_resize import PLACE_RULES
from .tensor_rules import TENSOR_RULES, long_linear

STACK_BYTES = 2 << 20
"""What a kernel may keep on the stack: threads have 8 MiB as a rule."""

Rule = Callable[[Graph, Node, dict[str, Any], Isa], KernelCall | None]


def select(graph: Graph, node: Node, isa: Isa) -> KernelCall | None:
    """The kernel call for a node, None when no own kernel fits."""
    attrs = OPS[node.op].complete(node.attrs)
    rules = [table[node.op] for table in (RULES, TENSOR_RULES) if node.op in table]
    return next((call for rule in rules if (call := rule(graph, node, attrs, isa))), None)


def _operand(node: Node, index: int) -> str:
    return node.inputs[index] if index < len(node.inputs) else ""


def _epilogue(graph: Graph, node: Node, a: dict[str, Any]) -> Epilogue:
    residual, scale = _operand(node, 3), _operand(node, 4)
    quantised = graph.type_of(node.inputs[1]).dtype == "int8"
    return Epilogue(
        acc_dtype="int32" if quantised else "float32",
        bias=bool(_operand(node, 2)) or (quantised and a["x_zero"] != 0),
        scale=bool(scale),
        narrow=quantised and _narrow(graph, node, a),
        residual=graph.type_of(residual).dtype if residual else "",
        **{
            k: a[k] for k in ("r_scale", "r_zero", "act", "lo", "hi", "alpha", "y_inv", "y_zero", "out_dtype")
        },
    )


def _narrow(graph: Graph, node: Node, a: dict[str, Any]) -> bool:
    """Whether no result of an int8 layer leaves int32 before it is rounded to uint8 (Epilogue.narrow)."""
    if a["out_dtype"] != "uint8" or a["y_inv"] != 1.0 or a["act"] not in ("none", "clip"):
        return False
    w, bias, scale = (graph.params.get(_operand(node, i)) for i in (1, 2, 4))
    if w is None or (scale is None and _operand(node, 4)) or (bias is None and _operand(node, 2)):
        return False
    most = 255.0 * np.abs(w.astype(np.float64)).reshape(len(w), -1).sum(axis=1)
    most += 0.0 if bias is None else np.abs(bias.astype(np.float64))
    most *= 1.0 if scale is None else np.abs(scale.astype(np.float64))
    return bool(most.max(initial=0.0) + 255.0 * abs(a["r_scale"]) < 2**31 - 256)


def _known_weights(graph: Graph, node: Node) -> bool:
    return all(v in graph.params for i, v in enumerate(node.inputs) if v and i in (1, 2, 4))


def _gemm_call(graph: Graph, node: Node, spec: GemmSpec, x: str, isa: Isa) -> KernelCall | None:
    """Operands of an implicit matrix product; weights are packed when asked for."""
    w, bias, scale, residual = (_operand(node, i) for i in (1, 2, 4, 3))
    four = graph.params[w].reshape(spec.oc, -1, *spec.kernel)
    if spec.dot and isa.pair_dot and pairs_bounded(spec, four):
        spec = replace(spec, dot=isa.pair_dot)
    if spec.stack_bytes > STACK_BYTES:
        return None
    e = spec.epilogue
    padded = spec.groups * spec.vectors * spec.lanes
    k = spec.segments * spec.run_steps * spec.mac.group

    def pack_bias() -> np.ndarray:
        values = graph.params[bias] if bias else np.zeros(spec.oc, e.acc_dtype)
        return pack_channels(
            spec, fold_zero_point(four, spec.x_zero, values) if e.acc_dtype == "int32" else values
        )

    operands: list[Any] = [
        x,
        Weights(padded * k * np.dtype(spec.mac.b_dtype).itemsize, lambda: pack_weights(spec, four)),
    ]
    if e.bias:
        operands.append(Weights(padded * 4, pack_bias))
    if e.scale:
        operands.append(Weights(padded * 4, lambda: pack_channels(spec, graph.params[scale])))
    if e.residual:
        operands.append(residual)
    return KernelCall(spec, (*operands, node.output), spec.tasks)


def _conv2d(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall | None:
    if out_layout(a) != "NHWC" or not _known_weights(graph, node):
        return None
    x, w = graph.type_of(node.inputs[0]), graph.type_of(node.inputs[1])
    n, c, h, width = nchw(x.shape, in_layout(a))
    _, oc, oh, ow = nchw(node.type.shape, "NHWC")
    planar = in_layout(a) == "NCHW"
    depthwise = a["groups"] == c == oc and w.shape[1] == 1
    if depthwise and not planar:
        return _depthwise(graph, node, a, isa)
    if planar and a["groups"] > 1:
        return None
    one_by_one = w.shape[2:] == (1, 1) and a["strides"] == (1, 1) and not any(a["pads"]) and not planar
    if one_by_one:  # all pixels are one row
        n, h, width, oh, ow = 1, 1, n * h * width, 1, n * h * width
    spec = GemmSpec(
        lanes=isa.lanes,
        registers=isa.registers,
        dot=isa.dot if x.dtype == "uint8" else "",
        x_dtype=x.dtype,
        n=n,
        h=h,
        w=width,
        c=c,
        oh=oh,
        ow=ow,
        oc=oc,
        kernel=(w.shape[2], w.shape[3]),
        strides=a["strides"],
        dilations=a["dilations"],
        pads=a["pads"][:2],
        groups=a["groups"],
        nchw_in=planar,
        x_zero=a["x_zero"],
        epilogue=_epilogue(graph, node, a),
    )
    return _gemm_call(graph, node, spec, node.inputs[0], isa)


def _depthwise(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall:
    x, w = graph.type_of(node.inputs[0]), graph.params[node.inputs[1]]
    n, h, width, c = x.shape
    spec = DepthwiseSpec(
        lanes=isa.lanes,
        registers=isa.registers,
        dot=isa.dot if x.dtype == "uint8" else "",
        x_dtype=x.dtype,
        n=n,
        h=h,
        w=width,
        c=c,
        oh=node.type.shape[1],
        ow=node.type.shape[2],
        kernel=w.shape[2:],
        strides=a["strides"],
        dilations=a["dilations"],
        pads=a["pads"][:2],
        x_zero=a["x_zero"],
        epilogue=_epilogue(graph, node, a),
    )
    e, bias, scale = spec.epilogue, _operand(node, 2), _operand(node, 4)
    padded = spec.units * spec.unit

    def pack_bias() -> np.ndarray:
        values = graph.params[bias] if bias else np.zeros(c, e.acc_dtype)
        return pack_per_channel(spec, fold_zero_point(w, spec.x_zero, values) if spec.quantised else values)

    operands: list[Any] = [
        node.inputs[0],
        Weights(spec.units * spec.unit_weights * w.itemsize, lambda: pack_depthwise(spec, w)),
    ]
    if e.bias:
        operands.append(Weights(padded * 4, pack_bias))
    if e.scale:
        operands.append(Weights(padded * 4, lambda: pack_per_channel(spec, graph.params[scale])))
    if e.residual:
        operands.append(node.inputs[3])
    return KernelCall(spec, (*operands, node.output), spec.tasks)


def _linear(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall | None:
    x = graph.type_of(node.inputs[0])
    rows = math.prod(x.shape[:-1])
    if not _known_weights(graph, node) or not rows:
        return None
    if long := long_linear(graph, node, a, isa, _epilogue(graph, node, a)):
        return long
    spec = GemmSpec(
        lanes=isa.lanes,
        registers=isa.registers,
        dot=isa.dot if x.dtype == "uint8" else "",
        x_dtype=x.dtype,
        n=1,
        h=1,
        w=rows,
        c=x.shape[-1],
        oh=1,
        ow=rows,
        oc=node.type.shape[-1],
        kernel=(1, 1),
        strides=(1, 1),
        dilations=(1, 1),
        pads=(0, 0),
        groups=1,
        nchw_in=False,
        x_zero=a["x_zero"],
        epilogue=_epilogue(graph, node, a),
    )
    return _gemm_call(graph, node, spec, node.inputs[0], isa)


def _flat(node: Node, isa: Isa, inputs: tuple[tuple[str, float, int], ...], **rest: AttrValue) -> KernelCall:
    spec = PointwiseSpec(isa.lanes, node.type.size, inputs, **rest)  # type: ignore[arg-type]
    return KernelCall(spec, (*node.inputs, node.output), spec.tasks)


def _activation(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall:
    return _flat(node, isa, (("float32", 1.0, 0),), act=node.op, **a)


def _quantize(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall:
    return _flat(node, isa, (("float32", 1.0, 0),), y_inv=a["y_inv"], y_zero=a["y_zero"], out_dtype="uint8")


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
    n, h, w, c = x.shape
    top, left, bottom, right = a["pads"]
    spec = PoolSpec(
        kind,
        isa.lanes,
        x.dtype,
        n,
        h,
        w,
        c,
        node.type.shape[1],
        node.type.shape[2],
        a["kernel"],
        a["strides"],
        a["dilations"],
        (top, left),
        bool(a.get("count_pad", False)),
        (h + top + bottom, w + left + right),
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
    **PLACE_RULES,
    **RECURRENT_RULES,
    "conv2d": _conv2d,
    "linear": _linear,
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
