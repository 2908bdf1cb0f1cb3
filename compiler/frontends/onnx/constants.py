"""Inputs of an ONNX model that are fixed at import: the values that decide shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import InputError
from .shapes import graph_inputs


def bind_inputs(model: Any, constants: Mapping[str, Any]) -> None:
    """Make initializers of the named inputs, in place. Raises InputError when names or types do not fit."""
    from onnx import helper, numpy_helper

    inputs = {value.name: value for value in graph_inputs(model)}
    for name, value in constants.items():
        if name not in inputs:
            raise InputError(f"the model has no input called {name!r}. It has {', '.join(inputs) or 'none'}.")
        wanted = helper.tensor_dtype_to_np_dtype(inputs[name].type.tensor_type.elem_type)
        array = np.asarray(value)
        if array.dtype != wanted and not np.can_cast(array.dtype, wanted, "same_kind"):
            raise InputError(f"constant {name!r} is {array.dtype}, the model wants {np.dtype(wanted)}")
        model.graph.initializer.append(numpy_helper.from_array(array.astype(wanted), name))
    for name in constants:
        model.graph.input.remove(inputs[name])


def sources(graph: Any, value: str) -> set[str]:
    """The graph's inputs that `value` is computed from."""
    makers = {out: node for node in graph.node for out in node.output}
    weights = {tensor.name for tensor in graph.initializer}
    inputs = {item.name for item in graph.input} - weights
    found: set[str] = set()
    seen: set[str] = set()
    stack = [value]
    while stack:
        name = stack.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in inputs:
            found.add(name)
        elif name in makers:
            stack += makers[name].input
    return found
