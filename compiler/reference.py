"""The reference executor: runs any graph with each operator's torch definition.

Slow and short; it is the truth that kernels and passes are tested against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .errors import InputError
from .ir import WEIGHTS_ONLY, Graph, Node
from .ops import OPS


def run_reference(
    graph: Graph, inputs: Mapping[str, np.ndarray], observe: Callable[[str, np.ndarray], None] | None = None
) -> dict[str, np.ndarray]:
    """Outputs by name. `observe(value name, array)` sees every input and node output as it is made.

    States that are not given are zeros. Values are dropped after their last use. Raises InputError when an
    input is missing or has another type.
    """
    import torch

    values: dict[str, Any] = {}
    states = {before for before, _ in graph.states}
    for name, kind in graph.inputs:
        array = inputs.get(name)
        if array is None and name in states:
            array = np.zeros(kind.shape, kind.dtype)
        if array is None or tuple(array.shape) != kind.shape or array.dtype.name != kind.dtype:
            found = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
            raise InputError(f"input {name!r} must be {kind}, got {found}")
        values[name] = torch.from_numpy(np.array(array, order="C"))
        if observe:
            observe(name, array)
    last_use = {v: i for i, node in enumerate(graph.nodes) for v in node.inputs}
    for i, node in enumerate(graph.nodes):
        results = run_node(graph, node, values)
        for value, tensor in zip(node.outputs, results, strict=True):
            values[value] = tensor
            if observe:
                observe(value, tensor.numpy())
        for v in node.inputs:
            if last_use[v] == i and v not in graph.outputs:
                values.pop(v, None)
    return {v: _value(graph, v, values).numpy() for v in graph.outputs}


def tensor_of(array: np.ndarray) -> Any:
    """A torch tensor with a copy of the numbers; of the same name where the type is one of ml_dtypes."""
    import torch

    if array.dtype.name in WEIGHTS_ONLY:
        bits = torch.from_numpy(np.array(array).reshape(-1).view(np.uint16))
        return bits.view(getattr(torch, array.dtype.name)).reshape(array.shape)
    return torch.from_numpy(np.array(array))


def _value(graph: Graph, name: str, values: Mapping[str, Any]) -> Any:
    return values[name] if name in values else tensor_of(graph.params[name])


def run_node(graph: Graph, node: Node, values: Mapping[str, Any]) -> tuple[Any, ...]:
    """The outputs of one node on torch tensors; parameters are looked up in the graph."""
    import torch

    op = OPS[node.op]
    args = [_value(graph, v, values) if v else None for v in node.inputs]
    with torch.no_grad():
        result = op.reference(args, op.complete(node.attrs))
    return tuple(t.contiguous() for t in (result if isinstance(result, tuple) else (result,)))
