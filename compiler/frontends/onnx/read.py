"""Reads an ONNX file that may be damaged or hostile: a checked model with its weights, or one clear error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ModelError, UnsupportedError
from .bare import LARGE, without_weights
from .deprecated import spell_group_norms
from .parse import STAY, name_inside, parse
from .weights import bytes_of, leave_beside, mapped

OLDEST_OPSET = 7
WEIGHTS_APART = 4
"""The first version of ONNX's format in which weights need not be listed as inputs too."""
MICROSOFT = "com.microsoft"
WRITTEN_AS_ONNX = ("LayerNormalization", "SimplifiedLayerNormalization")


def read_onnx(source: Path | Any, label: str) -> Any:
    """The ModelProto of a path, or a copy of a given ModelProto; `label` is what to call it in messages.

    Raises ModelError, or UnsupportedError for operator sets that are too old or too new.
    """
    import onnx

    if isinstance(source, Path):
        model, inside = parse(source)
        _load_external(model, source)
        name_inside(model, inside, source)
    else:
        model = onnx.ModelProto()
        model.CopyFrom(source)
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors_of(model)):
            raise ModelError(
                f"{label}: weights are in another file; give the path of the model's file instead"
            )
    _name_domains(model)
    graphs = list(graphs_of(model.graph))
    spell_group_norms(graphs, _opset(model))
    for graph in graphs:
        sort_nodes(graph)
    _check(model, label)
    _check_weights(model, label)
    return model


def _load_external(model: Any, path: Path) -> None:
    """Read weights that lie beside the file, but for large ones of many. onnx itself refuses locations
    outside of its directory."""
    import onnx
    from onnx.external_data_helper import load_external_data_for_tensor

    outside = [t for t in tensors_of(model) if t.data_location == onnx.TensorProto.EXTERNAL]
    initializers = {tensor.name for tensor in model.graph.initializer}
    many = sum(map(bytes_of, outside)) >= STAY
    for tensor in outside:
        try:
            if many and bytes_of(tensor) >= LARGE and tensor.name in initializers:
                leave_beside(tensor, path.parent)
                continue
            load_external_data_for_tensor(tensor, str(path.parent))
        except (onnx.checker.ValidationError, OSError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"{path}: weights of {tensor.name!r} cannot be read from their own file: {first_line(error)}"
            ) from None
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def first_line(error: BaseException) -> str:
    """The first line of an error's message: libraries put dumps of the whole node behind it."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def graphs_of(graph: Any) -> Iterator[Any]:
    """A graph and those nested in its nodes' attributes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
                yield from graphs_of(inner)


def tensors_of(model: Any) -> Iterator[Any]:
    """Every TensorProto: initializers and tensor attributes, nested graphs and functions included."""
    for graph in graphs_of(model.graph):
        yield from graph.initializer
        for node in graph.node:
            yield from _attribute_tensors(node)
    for function in model.functions:
        for node in function.node:
            yield from _attribute_tensors(node)


def _attribute_tensors(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors


def sort_nodes(graph: Any) -> None:
    """Put nodes behind those whose outputs they read: converters to float16 leave them unsorted, and ONNX
    Runtime reads such files. Nodes in a circle keep their place, for the checker to say so."""
    maker = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    after = {
        i: {maker[name] for name in _read_by(node) if name in maker} for i, node in enumerate(graph.node)
    }
    if all(max(before, default=-1) < i for i, before in after.items()):
        return
    try:
        order = list(TopologicalSorter(after).static_order())
    except CycleError:
        return
    nodes = [type(node).FromString(node.SerializeToString()) for node in graph.node]
    del graph.node[:]
    graph.node.extend(nodes[i] for i in order)


def _read_by(node: Any) -> Iterator[str]:
    """Values that a node reads, those of outside that its nested graphs read among them."""
    yield from node.input
    for attribute in node.attribute:
        for inner in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
            for graph in graphs_of(inner):
                yield from (name for child in graph.node for name in child.input)
                yield from (value.name for value in graph.output)


def _opset(model: Any) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _name_domains(model: Any) -> None:
    """ONNX Runtime's optimiser writes operators of its own as ONNX's: norms that the operator set lacks."""
    import onnx

    version = _opset(model)
    nodes = [node for graph in graphs_of(model.graph) for node in graph.node]
    found = [node for node in nodes if node.op_type in WRITTEN_AS_ONNX and node.domain in ("", "ai.onnx")]
    missing = [node for node in found if not onnx.defs.has(node.op_type, version, "")]
    for node in missing:
        node.domain = MICROSOFT
    if missing and all(o.domain != MICROSOFT for o in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))


def _check(model: Any, label: str) -> None:
    import onnx

    _check_opset(model, label)
    try:
        with _shapes_present(model.graph):
            bare = without_weights(model, empty=True)
            bare.ir_version = max(bare.ir_version, WEIGHTS_APART)  # runtimes do not mind in older ones either
            onnx.checker.check_model(bare)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        unknown = _unknown_operators(model)
        if unknown:
            raise UnsupportedError(
                f"{label}: operators that ONNX {onnx.__version__} does not define: {', '.join(unknown)}"
            ) from None
        raise ModelError(f"{label}: not a valid ONNX model: {first_line(error)}") from None
    if not model.graph.node:
        raise ModelError(f"{label}: the graph has no nodes")
    if not model.graph.output:
        raise ModelError(f"{label}: the graph has no outputs")
    _check_outputs(model.graph, label)
    _check_kinds(model.graph, label)


def _check_kinds(graph: Any, label: str) -> None:
    """Sequences that a model makes are known by their elements (sequences.py); those that it is fed, not."""
    for what, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            kind = value.type.WhichOneof("value")
            inner = value.type.sequence_type.elem_type.WhichOneof("value") if what == "output" else None
            if kind not in (None, "tensor_type") and inner != "tensor_type":
                name = kind.removesuffix("_type").replace("_", " ")
                raise UnsupportedError(
                    f"{label}: {what} {value.name!r} is not a tensor but of the kind {name}"
                )


@contextmanager
def _shapes_present(graph: Any) -> Iterator[None]:
    """The checker wants a shape on all inputs and outputs; the user may give one, and others are inferred."""
    bare = [
        value.type.tensor_type
        for value in (*graph.input, *graph.output)
        if value.type.HasField("tensor_type")
    ]
    bare = [kind for kind in bare if not kind.HasField("shape")]
    for kind in bare:
        kind.shape.SetInParent()
    try:
        yield
    finally:
        for kind in bare:
            kind.ClearField("shape")


def _check_opset(model: Any, label: str) -> None:
    import onnx

    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    newest = onnx.defs.onnx_opset_version()
    if not versions:
        raise ModelError(f"{label}: not a valid ONNX model: it names no operator set")
    if not OLDEST_OPSET <= versions[0] <= newest:
        raise UnsupportedError(
            f"{label}: operator set {versions[0]}; bitsmith reads {OLDEST_OPSET} to {newest}: export it again"
        )


def _unknown_operators(model: Any) -> list[str]:
    """Operators of the default domain that have no schema and no function in the model."""
    import onnx

    local = {(f.domain, f.name) for f in model.functions}
    nodes = (node for graph in graphs_of(model.graph) for node in graph.node)
    used = {
        node.op_type for node in nodes if node.domain in ("", "ai.onnx") and ("", node.op_type) not in local
    }
    return sorted(op for op in used if not onnx.defs.has(op))


def _check_outputs(graph: Any, label: str) -> None:
    """What the checker leaves out: outputs that nobody makes, or that share a name."""
    names = [value.name for value in graph.output]
    made = {out for node in graph.node for out in node.output}
    made |= {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    missing = [name for name in names if name not in made]
    if missing:
        raise ModelError(
            f"{label}: not a valid ONNX model: no node makes its output {', '.join(map(repr, missing))}"
        )
    if len(set(names)) != len(names):
        raise ModelError(f"{label}: not a valid ONNX model: two outputs have one name")


def _check_weights(model: Any, label: str) -> None:
    """NaN nowhere; infinity not in weights of layers (elsewhere it is a mask, or an open bound of a Clip)."""
    weights = {v for graph in graphs_of(model.graph) for node in graph.node for v in _weights_of(node)}
    broken = []
    for tensor in tensors_of(model):
        array = to_array(tensor, label)
        if array.dtype.kind != "f":
            continue
        with np.errstate(over="ignore"):
            finite = np.isfinite(array.astype(np.float32, copy=False))
        if np.isnan(array).any() or (tensor.name in weights and not finite.all()):
            bad = int(array.size - finite.sum())
            broken.append(f"  {tensor.name or '(unnamed constant)'}: {bad} of {array.size} values")
    if broken:
        raise ModelError(
            "\n".join(
                [
                    f"{label}: weights with NaN or infinity:",
                    *broken,
                    "The model's training or export is at fault.",
                ]
            )
        )


def _weights_of(node: Any) -> Sequence[str]:
    """What a node multiplies its data with."""
    layers = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LSTM", "GRU", "RNN")
    return [name for name in node.input if name] if node.op_type in layers else []


def to_array(tensor: Any, label: str = "ONNX model") -> np.ndarray:
    """A tensor as numpy array; numbers stored in 16 bits become float32. Raises ModelError."""
    from onnx import TensorProto, numpy_helper

    try:
        outside = tensor.data_location == TensorProto.EXTERNAL
        array = mapped(tensor) if outside else numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ModelError(f"{label}: tensor {tensor.name!r} is damaged: {first_line(error)}") from None
    if tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        return array.astype(np.float32)
    return np.asarray(array)
