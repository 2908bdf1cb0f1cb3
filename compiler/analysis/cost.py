"""What each node costs, counted from its types: arithmetic, memory traffic, stored bits.

Nothing here is measured. Stored sizes count everything a layer brings along: weights, bias and scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..ir import Graph, Node, TensorType
from ..ops import OPS


@dataclass(frozen=True)
class Cost:
    """Cost of one node in one run.

    macs          multiply-adds; 0 for ops that do not multiply weights or matrices
    flops         arithmetic operations (a multiply-add counts 2)
    read_bytes    activations read
    write_bytes   activations written
    param_bytes   parameters read: weights, bias, scales
    """

    macs: int
    flops: int
    read_bytes: int
    write_bytes: int
    param_bytes: int

    @property
    def intensity(self) -> float:
        """Operations per byte moved, each byte moved once."""
        return self.flops / max(1, self.read_bytes + self.write_bytes + self.param_bytes)


MULTIPLYING = ("conv2d", "linear", "coded_linear", "matmul", "attention", "cached_attention")


def node_cost(graph: Graph, node: Node) -> Cost:
    """Cost of one node of the graph."""
    op = OPS[node.op]
    types = [graph.type_of(v) if v else None for v in node.inputs]
    flops = int(op.flops(types, node.types, op.complete(node.attrs)))
    inputs = dict.fromkeys(v for v in node.inputs if v)
    return Cost(
        macs=flops // 2 if node.op in MULTIPLYING else 0,
        flops=flops,
        read_bytes=sum(graph.type_of(v).nbytes for v in inputs if v not in graph.params),
        write_bytes=sum(t.nbytes for t in node.types),
        param_bytes=sum(graph.type_of(v).nbytes for v in inputs if v in graph.params),
    )


def graph_costs(graph: Graph) -> dict[str, Cost]:
    """Cost of every node, by node name."""
    return {node.name: node_cost(graph, node) for node in graph.nodes}


@dataclass(frozen=True)
class Storage:
    """What a layer stores.

    weights        number of weights (bias and scales are not weights, they are overhead)
    total_bytes    stored bytes of weights, bias and scales
    float_bytes    the same layer in float32: weights and bias
    """

    weights: int
    total_bytes: int
    float_bytes: int

    @property
    def bits(self) -> float:
        """Stored bits per weight, all overheads counted."""
        return 8 * self.total_bytes / max(1, self.weights)


def layer_storage(graph: Graph, node: Node) -> Storage:
    """Storage of a layer as it stands; a parameter shared by several nodes is split among them."""
    names = dict(zip(OPS[node.op].inputs, node.inputs, strict=False))
    stored = {k: v for k, v in names.items() if v in graph.params}
    if node.op == "coded_linear":
        weights = TensorType((graph.type_of(names["codes"]).shape[0], int(str(node.attrs["k"]))))
    else:
        weights = graph.type_of(names["w"])
    bias = graph.type_of(stored["bias"]).size if "bias" in stored else 0
    return Storage(
        weights=weights.size,
        total_bytes=sum(graph.type_of(v).nbytes // len(graph.consumers(v)) for v in set(stored.values())),
        float_bytes=4 * (weights.size + bias),
    )


def int8_storage(weights: TensorType) -> Storage:
    """Storage in int8 of weights `[out, ...]`: with an int32 bias and a float32 scale per output channel."""
    channels = weights.shape[0]
    return Storage(weights.size, weights.size + 8 * channels, 4 * (weights.size + channels))


def shares(values: Mapping[str, float]) -> dict[str, float]:
    """Each value's share of the sum, 0..1; all 0 when the sum is 0."""
    total = sum(values.values())
    return {k: (v / total if total > 0 else 0.0) for k, v in values.items()}
