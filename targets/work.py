"""What each kernel call of a node has to do: operations and bytes, counted from the graph. For rooflines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..compiler.analysis.cost import node_cost
from ..compiler.analysis.roofline import Work
from ..compiler.ir import Graph, Node
from ..compiler.ops import OPS
from ..compiler.ops.conv import in_layout, nchw
from .call import (
    KernelCall,
    Operand,
    Temporary,
    Weights,
)
from .kernels.coded.gather import CodedGatherSpec
from .kernels.coded.product import CodedSpec
from .kernels.conv.depthwise_spec import DepthwiseSpec
from .kernels.conv.gemm_spec import GemmSpec
from .kernels.conv.winograd_spec import WinogradInputSpec, WinogradSpec
from .kernels.matmul_spec import MatmulSpec


def call_works(graph: Graph, node: Node, calls: Sequence[KernelCall]) -> tuple[Work | None, ...]:
    """One for each call. Where several calls share a node's operations, those count that say
    what is theirs; how much of a cache attention reads is another in every run."""
    if node.op == "cached_attention":
        return (None,) * len(calls)
    if node.op == "cache_write" and len(calls) == 1:  # in place: rows alone
        new = graph.type_of(node.inputs[1])
        return (Work(0, "", new.nbytes, new.size * np.dtype(node.type.dtype).itemsize, 0),)
    if node.op == "concat" and calls:  # parts that lie in place are not moved
        return (copy_work(sum(_nbytes(graph, part) for part in calls[0].operands[:-1])),)
    if node.op in ("coded_linear", "coded_gather"):
        return tuple(_coded(graph, node, call) for call in calls)
    if len(calls) == 1:
        whole = _whole(graph, node, calls[0])
        return (replace(whole, weight_bytes=_turns(graph, node)) if node.op == "rope" else whole,)
    return tuple(_piece(graph, call) for call in calls)


def _coded(graph: Graph, node: Node, call: KernelCall) -> Work:
    """Codes count as they lie packed, of a table those of the rows that are read; the product has all of the
    node's operations."""
    piece = _piece(graph, call)
    if isinstance(call.spec, CodedGatherSpec):
        part = call.spec.count / call.spec.packing.n
        return replace(piece, operations=0, weight_bytes=round(piece.weight_bytes * part))
    if isinstance(call.spec, CodedSpec):
        return replace(piece, operations=node_cost(graph, node).flops, rate=call.spec.rate)
    return piece


def chain_works(graph: Graph, nodes: Sequence[Node]) -> tuple[Work, ...]:
    """Of nodes that one call computes together: their operations, what enters and what leaves. () of none."""
    if not nodes:
        return ()
    made = {node.output for node in nodes}
    read = dict.fromkeys(v for node in nodes for v in node.inputs if v not in made)
    weights = sum(_nbytes(graph, v) for v in read if v in graph.params)
    total = sum(_nbytes(graph, v) for v in read)
    flops = sum(node_cost(graph, node).flops for node in nodes)
    return (Work(flops, "float32", total - weights, nodes[-1].type.nbytes, weights),)


def copy_work(nbytes: int) -> Work:
    return Work(0, "", nbytes, nbytes, 0)


def _whole(graph: Graph, node: Node, call: KernelCall) -> Work:
    cost = node_cost(graph, node)
    read, weights = cost.read_bytes - _skipped(graph, node), cost.param_bytes
    if not cost.flops:  # it only moves data: it reads no more than it writes (a slice, a gather)
        read, weights = min(read, cost.write_bytes), min(weights, max(0, cost.write_bytes - read))
    return Work(cost.flops, _rate(graph, node, call), read, cost.write_bytes, weights)


def _piece(graph: Graph, call: KernelCall) -> Work:
    *given, made = call.operands
    weights = [v for v in given if isinstance(v, Weights) or v in graph.params]
    read = sum(_nbytes(graph, v) for v in dict.fromkeys(given) if v not in weights)
    flops, rate = None, ""
    if isinstance(call.spec, WinogradInputSpec | WinogradSpec):
        flops, rate = call.spec.flops, "float32"
        if call.spec.quantised:  # 16 bits by 16; the input's whole additions have no measured limit
            rate = f"madd{32 * call.spec.lanes}" if isinstance(call.spec, WinogradSpec) else ""
    return Work(flops, rate, read, _nbytes(graph, made), sum(_nbytes(graph, v) for v in weights))


def _nbytes(graph: Graph, operand: Operand) -> int:
    return operand.nbytes if isinstance(operand, Weights | Temporary) else graph.type_of(operand).nbytes


def _turns(graph: Graph, node: Node) -> int:
    """Bytes of rope's tables, cos and sin, that its tokens need: a row for each."""
    tokens, table = node.type.shape[0], graph.type_of(node.inputs[1])
    return 2 * tokens * table.nbytes // int(table.shape[0])


def _skipped(graph: Graph, node: Node) -> int:
    """Bytes of its input that a convolution passes over, whose stride is longer than its window."""
    if node.op != "conv2d":
        return 0
    attrs: dict[str, Any] = OPS[node.op].complete(node.attrs)
    x, w = (graph.type_of(v) for v in node.inputs[:2])
    if w.shape[2:] != (1, 1) or any(attrs["pads"]):
        return 0
    _, _, height, width = nchw(x.shape, in_layout(attrs))
    rows, columns = (-(-size // s) for size, s in zip((height, width), attrs["strides"], strict=True))
    return int(x.nbytes - x.nbytes * rows * columns // (height * width))


def _rate(graph: Graph, node: Node, call: KernelCall) -> str:
    """The row of kernels/mac.py that the call multiplies with; "" where arithmetic has no measured limit."""
    match call.spec:
        case GemmSpec():
            return call.spec.mac.name
        case MatmulSpec(dot=dot) if dot:
            return dot
        case DepthwiseSpec(quantised=True, dot=dot, lanes=lanes):
            return "portable" if dot == "portable" else f"madd{32 * lanes}"
    kinds = [*(graph.type_of(v) for v in node.inputs if v), *node.types]
    return "float32" if all(kind.dtype == "float32" for kind in kinds) else ""
