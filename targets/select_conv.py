"""Which kernel computes a convolution or a linear layer, and how its weights are packed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from ..compiler.ir import Graph, Node
from ..compiler.ops.conv import in_layout, nchw, out_layout
from .call import (
    STACK_BYTES,
    Calls,
    KernelCall,
    Weights,
)
from .isa import Isa
from .kernels.conv.depthwise_spec import DepthwiseSpec, pack_depthwise, pack_per_channel
from .kernels.conv.gemm_spec import (
    GemmSpec,
    fold_zero_point,
    pack_channels,
    pack_weights,
    pairs_bounded,
)
from .kernels.conv.window import flat_window, window
from .kernels.epilogue import Epilogue
from .select_winograd import winograd
from .tensor_rules import long_linear


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


def _common(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> dict[str, Any]:
    """What the specs of all layers say of the instruction set, the input and the epilogue."""
    dtype = graph.type_of(node.inputs[0]).dtype
    return {
        "lanes": isa.lanes,
        "registers": isa.registers,
        "dot": isa.dot if dtype == "uint8" else isa.bf16 if _narrow_floats(graph, node) else "",
        "x_dtype": dtype,
        "x_zero": a["x_zero"],
        "epilogue": _epilogue(graph, node, a),
    }


def _narrow_floats(graph: Graph, node: Node) -> bool:
    return graph.type_of(node.inputs[1]).dtype == "bfloat16"


def _narrow(graph: Graph, node: Node, a: dict[str, Any]) -> bool:
    """Whether no result of an int8 layer leaves int32 before it is rounded to uint8 (Epilogue.narrow).
    Activations enlarge a number only up to 1, up to a bound of `clip`, or by the slope of `leaky_relu`."""
    if a["out_dtype"] != "uint8":
        return False
    w, bias, scale = (graph.params.get(_operand(node, i)) for i in (1, 2, 4))
    if w is None or (scale is None and _operand(node, 4)) or (bias is None and _operand(node, 2)):
        return False
    most = 255.0 * np.abs(w.astype(np.float64)).reshape(len(w), -1).sum(axis=1)
    most += 0.0 if bias is None else np.abs(bias.astype(np.float64))
    most *= 1.0 if scale is None else np.abs(scale.astype(np.float64))
    largest = float(most.max(initial=1.0)) + 255.0 * abs(a["r_scale"])
    if a["act"] == "clip":
        largest = max(largest, *(abs(a[bound]) for bound in ("lo", "hi") if math.isfinite(a[bound])), 0.0)
    return largest * max(1.0, abs(a["alpha"])) * abs(a["y_inv"]) < 2**31 - 256


def _known_weights(graph: Graph, node: Node) -> bool:
    return all(v in graph.params for i, v in enumerate(node.inputs) if v and i in (1, 2, 4))


def _four(graph: Graph, node: Node, spec: GemmSpec) -> np.ndarray:
    """The weights as those of a convolution."""
    return graph.params[node.inputs[1]].reshape(spec.oc, -1, *spec.kernel)


def _fastest(graph: Graph, node: Node, spec: GemmSpec, isa: Isa) -> GemmSpec:
    """Multiplying as fast as the weights allow."""
    if spec.dot == isa.dot and isa.pair_dot and pairs_bounded(spec, _four(graph, node, spec)):
        return replace(spec, dot=isa.pair_dot)
    return spec


def _gemm_call(graph: Graph, node: Node, spec: GemmSpec, x: str, isa: Isa) -> KernelCall | None:
    """Operands of an implicit matrix product; weights are packed when asked for."""
    bias, scale, residual = (_operand(node, i) for i in (2, 4, 3))

    def four() -> np.ndarray:
        return _four(graph, node, spec)

    spec = replace(spec, tiled=isa.tiles.get(spec))
    if spec.stack_bytes > STACK_BYTES:
        return None
    e = spec.epilogue
    padded = spec.groups * spec.vectors * spec.lanes
    k = spec.segments * spec.run_steps * spec.mac.group

    def pack_bias() -> np.ndarray:
        values = graph.params[bias] if bias else np.zeros(spec.oc, e.acc_dtype)
        return pack_channels(
            spec, fold_zero_point(four(), spec.x_zero, values) if e.acc_dtype == "int32" else values
        )

    operands: list[Any] = [
        x,
        Weights(padded * k * np.dtype(spec.mac.b_dtype).itemsize, lambda: pack_weights(spec, four())),
    ]
    if e.bias:
        operands.append(Weights(padded * 4, pack_bias))
    if e.scale:
        operands.append(Weights(padded * 4, lambda: pack_channels(spec, graph.params[scale])))
    if e.residual:
        operands.append(residual)
    return KernelCall(spec, (*operands, node.output), spec.tasks)


def _conv2d(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> Calls | None:
    if out_layout(a) != "NHWC" or not _known_weights(graph, node):
        return None
    x, w = graph.type_of(node.inputs[0]), graph.type_of(node.inputs[1])
    n, c, h, width = nchw(x.shape, in_layout(a))
    oc = node.type.shape[3]
    planar = in_layout(a) == "NCHW"
    depthwise = a["groups"] == c == oc and w.shape[1] == 1
    if depthwise and not planar and not _narrow_floats(graph, node):
        return _depthwise(graph, node, a, isa)
    if planar and a["groups"] > 1:
        return None
    if w.shape[2:] == (1, 1) and a["strides"] == (1, 1) and not any(a["pads"]) and not planar:
        where = flat_window(n * h * width, c)
    else:
        where = window((n, h, width, c), node.type.shape, w.shape[2:], a)
    spec = GemmSpec(**where, **_common(graph, node, a, isa), oc=oc, groups=a["groups"], nchw_in=planar)
    spec = _fastest(graph, node, spec, isa)
    if calls := winograd(graph, node, spec):
        return calls
    return _gemm_call(graph, node, spec, node.inputs[0], isa)


def _depthwise(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall:
    x, w = graph.type_of(node.inputs[0]), graph.params[node.inputs[1]]
    spec = DepthwiseSpec(**window(x.shape, node.type.shape, w.shape[2:], a), **_common(graph, node, a, isa))
    e, bias, scale = spec.epilogue, _operand(node, 2), _operand(node, 4)
    padded = spec.units * spec.unit

    def pack_bias() -> np.ndarray:
        values = graph.params[bias] if bias else np.zeros(spec.c, e.acc_dtype)
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
        **flat_window(rows, x.shape[-1]),
        **_common(graph, node, a, isa),
        oc=node.type.shape[-1],
        groups=1,
        nchw_in=False,
    )
    return _gemm_call(graph, node, _fastest(graph, node, spec, isa), node.inputs[0], isa)


CONV_RULES = {"conv2d": _conv2d, "linear": _linear}
