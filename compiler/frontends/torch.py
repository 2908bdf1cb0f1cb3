"""torch module -> Graph, by way of torch's own ONNX exporter."""

from __future__ import annotations

import contextlib
import inspect
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputError, ModelError, UnsupportedError
from ..ir import Graph
from .onnx.importer import load_onnx
from .onnx.optimise import quiet
from .onnx.read import first_line

_NOISY = ("torch", "torch.onnx", "torch.export", "torch.fx", "torch._dynamo", "onnxscript", "onnx_ir")


def load_torch(
    module: Any,
    shapes: Mapping[str, int | Sequence[int]] | None = None,
    inputs: Sequence[Any] | Mapping[str, Any] | None = None,
) -> Graph:
    """The graph of a torch.nn.Module in evaluation mode. The module is left as it was.

    inputs  arguments of `forward`: tensors or arrays, in order or by name
    shapes  instead of `inputs`: argument name -> shape; the module is traced with float32 zeros

    Raises InputError, ModelError (the module cannot be traced) and UnsupportedError.
    """
    name = type(module).__name__
    args, kwargs = _examples(module, shapes, inputs)
    with _evaluating(module), _silent():
        model = _export(module, args, kwargs, name)
    model.graph.name = name
    return load_onnx(model, label=name)


def _examples(module: Any, shapes: Any, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments of `forward`, as tensors."""
    import torch

    names = list(inspect.signature(module.forward).parameters)
    if inputs is None and not shapes:
        first = names[0] if names else "x"
        raise InputError(
            f"{type(module).__name__}: a torch module has no shapes of its own: give example inputs, "
            f"inputs=(torch.zeros(1, 3, 224, 224),), or shapes={{{first!r}: (1, 3, 224, 224)}}"
        )
    if inputs is not None and shapes:
        raise InputError(
            "give a torch module example inputs or shapes, not both: the inputs have shapes already"
        )
    if inputs is None:
        inputs = {key: torch.zeros(_whole_shape(key, shape)) for key, shape in shapes.items()}
    if hasattr(inputs, "shape"):  # one array, not a sequence of them
        inputs = (inputs,)
    if not isinstance(inputs, Mapping):
        return tuple(_tensor(value) for value in inputs), {}
    unknown = [key for key in inputs if key not in names]
    if unknown:
        wrong = ", ".join(map(repr, unknown))
        raise InputError(
            f"{type(module).__name__}.forward has no argument {wrong}; it has {', '.join(names)}"
        )
    return (), {key: _tensor(inputs[key]) for key in names if key in inputs}


def _whole_shape(name: str, shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise InputError(
            f"shape of {name!r} is {shape!r}; a torch module has no named dimensions: give the whole shape"
        )
    if any(not isinstance(size, int) or size < 1 for size in shape):
        raise InputError(f"shape of {name!r} is {tuple(shape)}; sizes are whole numbers of 1 or more")
    return tuple(shape)


def _tensor(value: Any) -> Any:
    import torch

    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value


@contextlib.contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """The module in evaluation mode; afterwards every part is in the mode that it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The exporter reports its progress, and dumps graphs when it fails; our errors say what matters."""
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink), quiet(*_NOISY):
        yield


def _export(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Any:
    import torch
    from torch.onnx._internal.exporter._errors import ConversionError

    try:
        program = torch.onnx.export(module, args, kwargs=kwargs, dynamo=True, optimize=False, verbose=False)
    except torch.onnx.OnnxExporterError as error:
        missing = _unconvertible(module, args, kwargs) if isinstance(error, ConversionError) else None
        if missing:
            lines = [f"  {op} x {count}" for op, count in missing.most_common()]
            raise UnsupportedError(
                "\n".join(
                    [
                        f"{name}: torch operators that have no ONNX form:",
                        *lines,
                        "Replace them in the module.",
                    ]
                )
            ) from None
        cause = error.__cause__ or error
        raise ModelError(f"{name}: torch cannot export the module: {first_line(cause)}") from error
    assert program is not None
    return program.model_proto


def _unconvertible(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Counter[str]:
    """All torch operators of the module without ONNX form; the exporter names only the first."""
    import torch
    from torch.onnx._internal.exporter import _core, _dispatching, _registration

    try:
        exported = torch.export.export(module, args, kwargs)
    except RuntimeError:
        # It traces only in the exporter's other ways; the exporter's own message names the first operator.
        return Counter()
    registry = _registration.ONNXRegistry.from_torchlib()
    exported = _core._prepare_exported_program_for_export(exported, registry=registry)
    calls = [node for node in exported.graph.nodes if node.op == "call_function"]
    tensors = [node for node in calls if isinstance(node.target, torch._ops.OpOverload)]
    return Counter(str(node.target) for node in tensors if _dispatching.dispatch(node, registry)[0] is None)
