"""What a planned graph should compute, by another way: the float graph with its numbers rounded.

It knows nothing of folded scales, zero points in integer sums or rewritten nodes. Every value that is stored
in uint8 is rounded to its 256 levels as a real number; int8 layers run in float64 on rounded weights, biases
and inputs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import networkx
import numpy as np
import torch
from bitsmith.compiler.calibrate import Ranges
from bitsmith.compiler.ir import Graph, Node
from bitsmith.compiler.ops import OPS
from bitsmith.compiler.plan import Plan, layers_of
from bitsmith.compiler.reference import run_node

MOVES = ("max_pool2d", "reshape", "transpose", "slice", "concat", "depth_to_space")


def only_moves(node: Node) -> bool:
    """Whether the node's results are numbers that it read."""
    mode = node.attrs.get("mode", OPS[node.op].attrs.get("mode"))
    nearest, constant = (node.op, mode) == ("resize", "nearest"), mode == "constant"
    return node.op in MOVES or nearest or (node.op == "pad" and not constant)


def step_and_zero(low: float, high: float) -> tuple[float, float]:
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / 255
    return step, np.rint(-low / step)


def rounded(values: np.ndarray, step: float, zero: float) -> np.ndarray:
    """The nearest of the 256 levels, as real numbers."""
    levels = np.clip(np.rint(np.asarray(values, np.float64) / step) + zero, 0, 255)
    return (levels - zero) * step


def value_steps(graph: Graph, ranges: Ranges, stored: Collection[str]) -> dict[str, tuple[float, float]]:
    """Step and zero of every value: stored values that only move numbers between them share one range."""
    ties = networkx.Graph()
    ties.add_nodes_from(stored)
    for node in graph.nodes:
        if only_moves(node):
            ties.add_edges_from((v, node.output) for v in node.inputs if {v, node.output} <= set(stored))
    table = {value: step_and_zero(*pair) for value, pair in ranges.values.items() if pair[0] < pair[1]}
    for tied in networkx.connected_components(ties):
        made = [ranges[v] for v in tied if not only_moves(graph.producer(v))]
        table.update(dict.fromkeys(tied, step_and_zero(min(p[0] for p in made), max(p[1] for p in made))))
    return table


def rounded_weights(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 weights per output channel as real numbers, and the channels' steps."""
    steps = np.array([np.abs(row).max() / 127 for row in w.astype(np.float64)])
    steps[steps == 0] = 1.0
    column = steps.reshape(-1, *[1] * (w.ndim - 1))
    return np.rint(w / column) * column, steps


def expected_shift(node: Node, error: np.ndarray, means: np.ndarray) -> np.ndarray:
    """What weights that are off by `error` add to the mean of each output channel."""
    if node.op == "linear":
        return error @ means
    groups = int(node.attrs.get("groups", 1))
    total = torch.from_numpy(error.sum((2, 3)))[:, :, None, None]
    image = torch.from_numpy(means).reshape(1, -1, 1, 1)
    return torch.nn.functional.conv2d(image, total, groups=groups).numpy().ravel()


def int8_layer(
    graph: Graph, node: Node, x: np.ndarray, x_step: float, residual: torch.Tensor | None, means: np.ndarray
) -> np.ndarray:
    """One int8 layer on the rounded input, in float64 up to its sum."""
    w = graph.params[node.inputs[1]]
    bias = (*node.inputs, "")[2]
    real, steps = rounded_weights(w)
    b = graph.params[bias].astype(np.float64) if bias else np.zeros(len(w))
    b = b - expected_shift(node, real - w, means)
    b = np.rint(b / (steps * x_step)) * (steps * x_step)
    arguments = [torch.from_numpy(a) for a in (x, real, b)]
    attrs = OPS[node.op].complete(node.attrs)
    linear = node.op == "linear"
    total = torch.nn.functional.linear(*arguments) if linear else _conv(arguments, attrs)
    if residual is not None:
        total = total + residual.to(torch.float64)
    kept = OPS["add"].complete({key: attrs[key] for key in ("act", "lo", "hi", "alpha")})
    return OPS["add"].reference([total, torch.zeros((), dtype=torch.float64)], kept).numpy()


def _conv(arguments: list[torch.Tensor], attrs: Mapping[str, object]) -> torch.Tensor:
    source, _, target = str(attrs["layout"]).partition(":")
    x, w, b = arguments
    top, left, bottom, right = attrs["pads"]
    x = torch.nn.functional.pad(x.permute(0, 3, 1, 2) if source == "NHWC" else x, (left, right, top, bottom))
    y = torch.nn.functional.conv2d(x, w, b, attrs["strides"], 0, attrs["dilations"], attrs["groups"])
    return y.permute(0, 2, 3, 1) if (target or source) == "NHWC" else y


def simulate(
    graph: Graph, plan: Plan, ranges: Ranges, stored: Collection[str], inputs: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Every value of the prepared graph under the plan, as real numbers; `stored` are those kept in uint8."""
    table = value_steps(graph, ranges, stored)
    int8 = {node.name for node in layers_of(graph) if plan.choice(node.name) == "int8"}
    values = {name: np.asarray(array) for name, array in inputs.items()}
    for node in graph.nodes:
        if node.name in int8:
            x = node.inputs[0]
            residual = (*node.inputs, "", "")[3]
            other = torch.from_numpy(values[residual]) if residual else None
            means = np.array(ranges.means[node.name])
            result = int8_layer(graph, node, rounded(values[x], *table[x]), table[x][0], other, means)
        else:
            operands = {v: torch.from_numpy(_float32(values[v])) for v in node.inputs if v in values}
            result, *rest = (part.numpy() for part in run_node(graph, node, operands))
            values.update(zip(node.outputs[1:], rest, strict=True))
        values[node.output] = rounded(result, *table[node.output]) if node.output in stored else result
    return values


def _float32(array: np.ndarray) -> np.ndarray:
    """Real numbers as the float graph computes with them; integers and truths as they are."""
    return array.astype(np.float32) if array.dtype.kind == "f" else array
