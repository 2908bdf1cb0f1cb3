"""Gives every graph input of an ONNX model a fixed shape: the file's own, with what the user says put in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import InputError, ModelError, UnsupportedError
from .onnx_read import first_line

Shapes = Mapping[str, int | Sequence[int]]


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
    which may be empty. Raises InputError listing what is open.
    """
    values = graph_inputs(model)
    dimensions = sorted(
        {dim.dim_param for value in values for dim in value.type.tensor_type.shape.dim if dim.dim_param}
    )
    examples = examples or {}
    shapes = {**examples, **shapes}
    _refuse_unknown(shapes, [value.name for value in values], dimensions)
    for value in values:
        if not value.type.HasField("tensor_type"):
            raise UnsupportedError(f"{label}: input {value.name!r} is not a tensor")
        _fix_input(value, shapes, 0 if value.name in examples else 1)
    _refuse_open([value for value in values if value.name not in examples], label)
    _infer(model, label)


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


def _fix_input(value: Any, shapes: Shapes, least: int) -> None:
    tensor = value.type.tensor_type
    wanted = shapes.get(value.name)
    if isinstance(wanted, Sequence):
        if tensor.HasField("shape") and len(tensor.shape.dim) != len(wanted):
            raise InputError(
                f"shape of input {value.name!r} must have {len(tensor.shape.dim)} sizes, not {tuple(wanted)}"
            )
        del tensor.shape.dim[:]
        tensor.shape.SetInParent()  # a scalar's shape is present and empty
        for i, size in enumerate(wanted):
            tensor.shape.dim.add().dim_value = _size(size, f"dimension {i} of input {value.name!r}", least)
    for dim in tensor.shape.dim:
        if dim.dim_param in shapes and dim.dim_param:
            dim.dim_value = _size(shapes[dim.dim_param], f"dimension {dim.dim_param!r}")


def _size(size: Any, what: str, least: int = 1) -> int:
    whole = not isinstance(size, (str, bool, Sequence)) and hasattr(size, "__index__")
    if not whole or not least <= int(size) < 2**31:
        raise InputError(f"{what}: size {size!r} is not a whole number of {least} or more")
    return int(size)


def _refuse_open(values: Sequence[Any], label: str) -> None:
    """Raise InputError when a dimension is open, with the options that would close each."""
    lines, options, calls = [], [], []
    for value in values:
        tensor = value.type.tensor_type
        if not tensor.HasField("shape"):
            lines.append(f"  {value.name}: no shape at all")
            options.append(f"--shape {value.name}=1,3,224,224")
            calls.append(f"{value.name!r}: (1, 3, 224, 224)")
            continue
        dims = tensor.shape.dim
        empty = [
            i
            for i, dim in enumerate(dims)
            if dim.HasField("dim_value") and dim.dim_value <= 0 and dim.dim_value != -1
        ]
        if empty:
            raise ModelError(
                f"{label}: input {value.name!r} has an empty dimension {empty[0]}: it holds no data"
            )
        opened = [dim for dim in dims if not dim.HasField("dim_value") or dim.dim_value == -1]
        if not opened:
            continue
        shown = [str(dim.dim_value) if dim not in opened else dim.dim_param or "?" for dim in dims]
        lines.append(f"  {value.name}: [{', '.join(shown)}]")
        if all(dim.dim_param for dim in opened):
            options += [f"--shape {dim.dim_param}=1" for dim in opened]
            calls += [f"{dim.dim_param!r}: 1" for dim in opened]
        else:
            guess = [str(dim.dim_value) if dim not in opened else "1" for dim in dims]
            options.append(f"--shape {value.name}={','.join(guess)}")
            calls.append(f"{value.name!r}: ({', '.join(guess)},)")
    if lines:
        options, calls = list(dict.fromkeys(options)), list(dict.fromkeys(calls))
        raise InputError(
            "\n".join(
                [
                    f"{label}: input dimensions are open, and bitsmith compiles for fixed shapes:",
                    *lines,
                    f"Give their sizes, for example {' '.join(options)}",
                    f"or in Python shapes={{{', '.join(calls)}}}.",
                ]
            )
        )


def _infer(model: Any, label: str) -> None:
    """Infer all shapes anew from those of the inputs; what the file says of others may be for other sizes."""
    import onnx

    del model.graph.value_info[:]
    for value in model.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    try:
        with _broken_inference_hidden(model.graph):
            inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        sizes = "; ".join(
            f"{v.name} [{', '.join(str(d.dim_value) for d in v.type.tensor_type.shape.dim)}]"
            for v in graph_inputs(model)
        )
        what = re.sub(r"\[\w+Error\] ", "", first_line(error)).removeprefix("Inference error(s): ")
        raise ModelError(f"{label}: shapes or types do not fit, with inputs {sizes}: {what}") from None
    for node, op in zip(inferred.graph.node, [node.op_type for node in model.graph.node], strict=True):
        node.op_type = op
    model.CopyFrom(inferred)


@contextmanager
def _broken_inference_hidden(graph: Any) -> Iterator[None]:
    """onnx cannot infer the type of a MeanVarianceNormalization, which is that of its input: its definition
    as a function does not pass onnx's own checks. While types are inferred it stands as an Identity.
    """
    hidden = [node for node in graph.node if node.op_type == "MeanVarianceNormalization" and not node.domain]
    for node in hidden:
        node.op_type = "Identity"
    try:
        yield
    finally:
        for node in hidden:
            node.op_type = "MeanVarianceNormalization"
