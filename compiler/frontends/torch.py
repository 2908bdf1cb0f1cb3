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
from ..reference import run_reference
from .onnx.converter import numbered
from .onnx.importer import load_onnx
from .onnx.optimise import quiet
from .onnx.read import first_line

_NOISY = ("torch", "torch.onnx", "torch.export", "torch.fx", "torch._dynamo", "onnxscript", "onnx_ir")
DEPARTS = 0.01
"""Of an output's range: more is not rounding."""


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
        _part_outputs(model.graph)
        graph = load_onnx(model, label=name)
        _compare(module, args, kwargs, graph, name)
    return graph


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
        given = tuple(_tensor(value) for value in inputs)
        if given and isinstance(given[-1], dict):  # the exporter takes it for the named arguments
            return (), dict(zip(names, given, strict=False))
        return given, {}
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
        said = first_line(error.__cause__ or error)
        hint = "; what it runs depends on numbers that it computes" if "data-dependent" in said else ""
        raise ModelError(f"{name}: torch cannot export the module: {said}{hint}") from error
    assert program is not None and program.exported_program is not None
    kept = program.exported_program.graph_signature.buffers_to_mutate
    if kept:
        raise UnsupportedError(
            f"{name}: the module changes its buffers as it runs: {', '.join(sorted(set(kept.values())))}; "
            "make them inputs and outputs, and hand them on from call to call"
        )
    return program.model_proto


def _part_outputs(graph: Any) -> None:
    """A value that is returned several times gets a name for each: ONNX wants them apart."""
    import onnx

    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    seen: set[str] = set()
    for value in graph.output:
        if value.name in seen:
            copy = numbered(value.name, taken)
            graph.node.append(onnx.helper.make_node("Identity", [value.name], [copy]))
            value.name = copy
            taken.add(copy)
        seen.add(value.name)


def _compare(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], graph: Graph, name: str) -> None:
    """Hold the graph against the module: the exporter writes some operators as others, without a word."""
    import torch

    leaves = torch.utils._pytree.tree_leaves
    given = [value for value in leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    with torch.no_grad():
        wanted = [value for value in leaves(module(*args, **kwargs)) if isinstance(value, torch.Tensor)]
    if len(given) != len(graph.inputs) or len(wanted) != len(graph.outputs):
        return
    if any(tuple(v.shape) != kind.shape for v, (_, kind) in zip(given, graph.inputs, strict=True)):
        return
    feeds = {key: value.numpy(force=True) for (key, _), value in zip(graph.inputs, given, strict=True)}
    found = run_reference(graph, feeds)
    for want, key in zip(wanted, graph.outputs, strict=True):
        apart = _departure(found[key], want.numpy(force=True))
        if apart > DEPARTS:
            raise UnsupportedError(
                f"{name}: torch's exporter to ONNX writes something else than the module computes (output "
                f"{key!r} departs by {apart:.0%} of its range), as it does for scatter_reduce with 'mean'; "
                "replace the operator"
            )


def _departure(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference of numbers that are finite in both, by the range of the wanted ones."""
    if found.shape != wanted.shape or wanted.dtype.kind != "f":
        return 0.0
    known = np.isfinite(found) & np.isfinite(wanted)
    if not known.any():
        return 0.0
    a, b = found[known].astype(np.float64), wanted[known].astype(np.float64)
    return float(np.abs(a - b).max() / (np.ptp(b) or np.abs(b).max() or 1.0))


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
