"""Gives every graph input of an ONNX model a fixed shape: the file's own, with what the user says put in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ...errors import InputError, ModelError, UnsupportedError
from .bare import infer
from .dimensions import (
    dimension_names,
    named_sizes,
    refuse_open,
    size_of,
)
from .ops import is_foreign
from .read import first_line

Shapes = Mapping[str, int | Sequence[int]]
UNTYPED = ("MeanVarianceNormalization", "GroupNormalization")


def graph_inputs(model: Any) -> list[Any]:
    """ValueInfos of the inputs that a user feeds (old files list the weights as inputs too)."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def example_shapes(model: Any, inputs: Sequence[Any] | Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of example inputs, by input name. Raises InputError when they are not the model's inputs."""
    names = [value.name for value in graph_inputs(model)]
    if isinstance(inputs, Mapping):
        _refuse_unknown(inputs, names, [])
        pairs = list(inputs.items())
    else:
        if len(inputs) != len(names):
            raise InputError(
                f"{len(inputs)} example inputs for a model with {len(names)}: {', '.join(names)}"
            )
        pairs = list(zip(names, inputs, strict=True))
    for name, value in pairs:
        if not hasattr(value, "shape"):
            raise InputError(f"example input {name!r} is a {type(value).__name__}, must be an array")
    return {name: tuple(int(d) for d in value.shape) for name, value in pairs}


def fix_shapes(model: Any, shapes: Shapes, label: str, examples: Shapes | None = None) -> None:
    """Put fixed shapes on all inputs of `model`, in place, and infer the rest.

    `shapes`: input name -> whole shape, or dimension name -> size; `examples`: shapes of example inputs,
    which may be empty. A whole shape also closes the dimensions of other inputs that have its names. Raises
    InputError listing what is open.
    """
    values, examples = graph_inputs(model), examples or {}
    names = dimension_names(values)
    given = {**examples, **shapes}
    _refuse_unknown(given, [value.name for value in values], names)
    for value in values:
        if not value.type.HasField("tensor_type"):
            raise UnsupportedError(f"{label}: input {value.name!r} is not a tensor")
    shaped = {v.name: _whole_shape(v, given, names, examples) for v in values if v.name in given}
    whole = {name: shape for name, shape in shaped.items() if shape is not None}
    named = {n: _size(given[n], f"dimension {n!r}") for n in names if n in given and n not in whole}
    sizes = named_sizes(values, named, whole)
    for value in values:
        _fix_input(value, whole.get(value.name), sizes)
    refuse_open([value for value in values if value.name not in examples], label)
    _infer(model, label)


def _whole_shape(value: Any, given: Shapes, names: Sequence[str], examples: Shapes) -> tuple[int, ...] | None:
    """What was given for an input by its name; None for a number that a dimension of that name takes."""
    wanted, dims = given[value.name], value.type.tensor_type.shape.dim
    known = value.type.tensor_type.HasField("shape")
    if not isinstance(wanted, Sequence):
        if value.name in names:
            return None
        wanted = (wanted,)
    if known and len(dims) != len(wanted):
        raise InputError(
            f"shape of input {value.name!r} must have {len(dims)} sizes, not {tuple(wanted)} (on the command "
            f"line with x between: --shape {value.name}=1x3x224x224)"
        )
    least = 0 if value.name in examples else 1
    return tuple(_size(n, f"dimension {i} of input {value.name!r}", least) for i, n in enumerate(wanted))


def _refuse_unknown(given: Mapping[str, Any], names: Sequence[str], dimensions: Sequence[str]) -> None:
    text = [key for key, value in given.items() if isinstance(value, str)]
    if text:
        raise InputError(f"the shape of {text[0]!r} is the text {given[text[0]]!r}, must be numbers")
    unknown = [key for key in given if key not in names and key not in dimensions]
    if unknown:
        has = f"inputs {', '.join(names) or 'none'}" + (
            f"; dimensions {', '.join(dimensions)}" if dimensions else ""
        )
        raise InputError(
            f"the model has no input or dimension called {', '.join(map(repr, unknown))}. It has {has}."
        )


def _fix_input(value: Any, whole: Sequence[int] | None, sizes: Mapping[str, int]) -> None:
    tensor = value.type.tensor_type
    if whole is not None:
        del tensor.shape.dim[:]
        tensor.shape.SetInParent()  # a scalar's shape is present and empty
        for size in whole:
            tensor.shape.dim.add().dim_value = size
    for dim in tensor.shape.dim:
        found = size_of(dim.dim_param, sizes) if dim.dim_param else None
        if found is not None:
            dim.dim_value = _size(found, f"dimension {dim.dim_param!r}")


def _size(size: Any, what: str, least: int = 1) -> int:
    whole = not isinstance(size, (str, bool, Sequence)) and hasattr(size, "__index__")
    if not whole or not least <= int(size) < 2**31:
        raise InputError(f"{what}: size {size!r} is not a whole number of {least} or more")
    return int(size)


def _infer(model: Any, label: str) -> None:
    """Infer all shapes anew from those of the inputs; what the file says of others may be for other sizes."""
    import onnx

    del model.graph.value_info[:]
    for value in model.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    try:
        with _broken_inference_hidden(model.graph):
            # After an operator that is not known here types are unknown; it is reported with all others.
            own = {(function.domain, function.name) for function in model.functions}
            others = (node for node in model.graph.node if (node.domain, node.op_type) not in own)
            strict = not any(map(is_foreign, others))
            infer(model, strict=strict)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        sizes = "; ".join(
            f"{v.name} [{', '.join(str(d.dim_value) for d in v.type.tensor_type.shape.dim)}]"
            for v in graph_inputs(model)
        )
        what = re.sub(r"\[\w+Error\] ", "", first_line(error)).removeprefix("Inference error(s): ")
        raise ModelError(f"{label}: shapes or types do not fit, with inputs {sizes}: {what}") from None


@contextmanager
def _broken_inference_hidden(graph: Any) -> Iterator[None]:
    """onnx cannot infer the types of UNTYPED, which are those of their first inputs: their definitions as
    functions do not pass onnx's own checks, or are none. While types are inferred they stand as Identity.
    """
    import onnx

    hidden = {}
    for i, node in enumerate(graph.node):
        if node.op_type in UNTYPED and node.domain in ("", "ai.onnx"):
            hidden[i] = onnx.NodeProto.FromString(node.SerializeToString())
            node.CopyFrom(onnx.helper.make_node("Identity", node.input[:1], node.output[:1], name=node.name))
    try:
        yield
    finally:
        for i, node in hidden.items():
            graph.node[i].CopyFrom(node)
