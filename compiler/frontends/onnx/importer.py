"""ONNX model -> Graph: read, fix shapes, run onnxscript's optimizer, convert node by node.

Everything that cannot be converted is collected on the way and reported in one UnsupportedError.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InternalError, ModelError, UnsupportedError
from ...ir import DTYPES, Graph, TensorType
from ...ops import OPS, TypeRuleError
from ...params import Entry
from .constants import bind_inputs, sources
from .control import Host, expand
from .converter import (
    Converter,
    OnnxNode,
    UnsupportedForm,
    ValueNeeded,
    numbered,
)
from .fold import fold, foldable
from .inline import inline_definitions
from .names import MACHINE_MADE, layer_names, value_names, weight_name
from .ops import KNOWN, RULES, hint_of
from .optimise import optimized
from .read import graphs_of, read_onnx, to_array
from .sequences import on_sequences
from .shapes import (
    Shapes,
    example_shapes,
    fix_shapes,
    graph_inputs,
)

MOST_ELEMENTS = 2**31 - 1  # of one value: 8 GiB as float32
COLLECTED = 64 << 20  # bytes of weights whose copies are worth a garbage collection: 0.1 to 0.5 s


def load_onnx(
    source: Path | Any,
    shapes: Shapes | None = None,
    inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    label: str = "",
    constants: Mapping[str, Any] | None = None,
) -> Graph:
    """The graph of an ONNX file or ModelProto; see `load_model` for arguments and errors.

    `label` is what messages call the model, by default its path or its name.
    """
    label = label or (str(source) if isinstance(source, Path) else f"ONNX model {source.graph.name!r}")
    model = read_onnx(source, label)
    bind_inputs(model, constants or {})
    names = layer_names(model)
    _copy_passed_inputs(model)
    given = dict(example_shapes(model, inputs)) if inputs is not None else {}
    fix_shapes(model, shapes or {}, label, given)
    model = inline_definitions(model, KNOWN)
    model, weights = optimized(model, label)
    held = sum(array.nbytes for array in weights.values() if isinstance(array, np.ndarray))
    large = model.ByteSize() + held > COLLECTED
    if large:
        gc.collect()  # the optimizer's graph is full of circles, and holds a copy of all weights
    title = source.stem if isinstance(source, Path) else model.graph.name
    graph = _convert(model, title or "model", label, names, weights)
    del model, weights
    if large:
        _give_back()
    return graph


def _give_back() -> None:
    """Has glibc return to the system what is free: it would keep the memory of a copy of all weights."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _convert(
    model: Any, title: str, label: str, names: Mapping[str, str], large: Mapping[str, Entry]
) -> Graph:
    work = _Import(model, label, names, Converter(title, value_names(model.graph), RULES))
    work.add_inputs(large)
    for proto in model.graph.node:
        work.add_node(proto)
    work.raise_unsupported()
    graph = work.converter.finish(work.outputs())
    _check_sizes(graph, label)
    used = set(graph.used_params())
    weights = {v for node in graph.nodes if OPS[node.op].layer for v in node.inputs if v in used}
    broken = [name for name in weights if not np.isfinite(graph.params[name]).all()]
    if broken:
        raise ModelError(
            f"{label}: constants computed in the model are NaN or infinite: {', '.join(sorted(broken))}"
        )
    return graph.with_nodes(graph.nodes, params={k: v for k, v in graph.stored.items() if k in used})


def _check_sizes(graph: Graph, label: str) -> None:
    """Compiling for a size that no memory holds would take minutes to fail, or not end."""
    values = [*graph.inputs, *(pair for n in graph.nodes for pair in zip(n.outputs, n.types, strict=True))]
    large = [f"  {name}: {kind}" for name, kind in values if kind.size > MOST_ELEMENTS]
    if large:
        more = [f"  and {len(large) - 5} more"] if len(large) > 5 else []
        raise UnsupportedError(
            "\n".join([f"{label}: values of more than 2^31 - 1 elements:", *large[:5], *more])
            + "\nFix smaller sizes with --shape, or in Python with shapes=."
        )


def _copy_passed_inputs(model: Any) -> None:
    """An output that is an input becomes a copy called `<name>_output`: one name cannot be both."""
    import onnx

    inputs = {value.name for value in model.graph.input}
    taken = inputs | set(value_names(model.graph))
    for value in model.graph.output:
        if value.name in inputs:
            copy = numbered(f"{value.name}_output", taken)
            model.graph.node.append(onnx.helper.make_node("Identity", [value.name], [copy]))
            value.name = copy


def _dtype(value: Any) -> str:
    """The element type that a ValueInfo states of a tensor or of a sequence's, by numpy's name (ONNX's for
    those that numpy lacks)."""
    import onnx

    kind = value.type.sequence_type.elem_type if value.type.HasField("sequence_type") else value.type
    name = onnx.TensorProto.DataType.Name(kind.tensor_type.elem_type).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _type(value: Any) -> TensorType | None:
    """The type that a ValueInfo states, if it is whole and of a kind that the IR has."""
    tensor, dtype = value.type.tensor_type, _dtype(value)
    sizes = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
    if dtype not in DTYPES or not tensor.HasField("shape") or min(sizes, default=0) < 0:
        return None
    return TensorType(sizes, dtype)


@dataclass
class _Import:
    """One pass over the nodes. `lost`: values that could not be made and have no known type; `sequences`: the
    elements of each."""

    model: Any
    label: str
    names: Mapping[str, str]
    converter: Converter
    lost: set[str] = field(default_factory=set)
    sequences: dict[str, tuple[str, ...]] = field(default_factory=dict)
    problems: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # (operator, hint) -> node names
    taken: set[str] = field(default_factory=set)
    weights: set[str] = field(default_factory=set)
    types: Mapping[str, TensorType] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)  # values that a node reads or the model returns
    needed: set[str] = field(default_factory=set)  # inputs that decide what must be known at import

    def add_inputs(self, large: Mapping[str, Entry]) -> None:
        """`large`: weights whose numbers the model lacks."""
        graph = self.model.graph
        if graph.sparse_initializer:
            raise UnsupportedError(f"{self.label}: sparse weights are not supported; export dense ones")
        self.weights = {tensor.name for tensor in graph.initializer}
        for tensor in graph.initializer:
            found = large.get(tensor.name)
            self.converter.constants[tensor.name] = to_array(tensor, self.label) if found is None else found
        for value in graph_inputs(self.model):
            kind = _type(value)
            if kind is None:
                raise UnsupportedError(
                    f"{self.label}: input {value.name!r} is of type {_dtype(value)}; bitsmith takes "
                    f"{', '.join(DTYPES)}"
                )
            self.converter.add_input(value.name, kind)
        for value in graph.output:
            if _dtype(value) not in DTYPES:
                raise UnsupportedError(
                    f"{self.label}: output {value.name!r} is of type {_dtype(value)}; bitsmith makes "
                    f"{', '.join(DTYPES)}"
                )
        self.read = {value.name for value in graph.output}
        self.read.update(name for inner in graphs_of(graph) for node in inner.node for name in node.input)
        known = {value.name: _type(value) for value in (*graph.value_info, *graph.output)}
        self.types = {name: kind for name, kind in known.items() if kind is not None}

    def outputs(self) -> dict[str, str]:
        """Name -> element type of what the graph returns. Elements of a sequence are outputs of their own,
        called after it."""
        found = {}
        for value in self.model.graph.output:
            dtype = _dtype(value)
            if value.name not in self.sequences:
                found[value.name] = dtype
                continue
            for i, element in enumerate(self.sequences[value.name]):
                name = f"{value.name}.{i}"
                if name != element:
                    name = self.converter.derived(name)
                    self.converter.alias(name, element)
                found[name] = dtype
        return found

    def add_node(self, proto: Any) -> None:
        node = self._plain(proto)
        if not any(node.outputs):
            return
        if self._expand(on_sequences, node, proto) or self._fold(node, proto):
            return
        if not self._expand(expand, node, proto) and not self._apply(node):
            for name in filter(None, node.outputs):
                self._replace(name)

    def _expand(self, rule: Callable[[Host, Any, int], bool], node: OnnxNode, proto: Any) -> bool:
        """Convert control flow whose way is known, or sequences. False when it is none."""
        try:
            with self._sensible(node):
                return rule(self, proto, node.opset)
        except UnsupportedForm as problem:
            self._refuse(node, problem)
            self.lost.update(filter(None, proto.output))
            return True

    @contextmanager
    def _sensible(self, node: OnnxNode) -> Iterator[None]:
        """The checker knows names and types of attributes, not whether their numbers make sense together."""
        try:
            yield
        except (UnsupportedForm, TypeRuleError):
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError, InternalError) as error:
            raise ModelError(
                f"{self.label}: node {node.name!r} ({node.op}) makes no sense: {error}"
            ) from error

    def _replace(self, name: str) -> None:
        """An input stands in for a value that could not be made, so that later nodes are looked at too."""
        kind = self.types.get(name)
        if kind is None:
            self.lost.add(name)
        else:
            self.converter.add_input(name, kind)

    def _plain(self, proto: Any) -> OnnxNode:
        import onnx

        attrs: dict[str, object] = {}
        for attribute in proto.attribute:
            value = onnx.helper.get_attribute_value(attribute)
            if isinstance(value, onnx.TensorProto):
                value = to_array(value, self.label)
            attrs[attribute.name] = value.decode(errors="replace") if isinstance(value, bytes) else value
        domain = "" if proto.domain in ("", "ai.onnx") else f"{proto.domain}::"
        opset = next((o.version for o in self.model.opset_import if o.domain == proto.domain), 0)
        outputs = tuple(name if name in self.read else "" for name in proto.output)
        return OnnxNode(self._name(proto), domain + proto.op_type, tuple(proto.input), outputs, attrs, opset)

    def _name(self, proto: Any) -> str:
        """The node's name in the file, or else after its weight, or else after its output; unique."""
        output = next((name for name in proto.output if name), proto.op_type)
        weight = weight_name(proto, self.weights)
        if not MACHINE_MADE.match(proto.name):
            wanted = proto.name
        else:
            wanted = (
                self.names.get(weight) or self.names.get(output) or weight.removesuffix(".weight") or output
            )
        name = numbered(wanted, self.taken)
        self.taken.add(name)
        return name

    def _fold(self, node: OnnxNode, proto: Any) -> bool:
        """Compute a node whose inputs are all known. False when it is left to its rule."""
        constants = self.converter.constants
        if node.op in ("Constant", "DequantizeLinear") or not foldable(proto, constants):
            return False
        known = [self.types[name] for name in node.outputs if name in self.types]
        results = fold(proto, node.opset, constants, known, self.label)
        constants.update((name, array) for name, array in zip(node.outputs, results, strict=False) if name)
        self.converter.quantised.moved(node.op, node.inputs, node.outputs)
        return True

    def _apply(self, node: OnnxNode) -> bool:
        if node.op not in RULES:
            computed = [name for name in node.inputs if name and name not in self.converter.constants]
            self._report(node, hint_of(node.op, computed))
            return False
        if any(name in self.lost for name in node.inputs):
            return False
        try:
            with self._sensible(node):
                results = self.converter.apply(node)
        except (UnsupportedForm, TypeRuleError) as problem:
            self._refuse(node, problem)
            return False
        for name, result in zip(node.outputs, results, strict=False):
            if name:
                self.converter.define(name, result)
        return True

    def _refuse(self, node: OnnxNode, problem: Exception) -> None:
        self._report(node, str(problem))
        if isinstance(problem, ValueNeeded):
            self.needed |= sources(self.model.graph, problem.value)

    def _report(self, node: OnnxNode, hint: str) -> None:
        self.problems.setdefault((node.op, hint), []).append(node.name)

    def raise_unsupported(self) -> None:
        """Raise UnsupportedError listing all problems, the most frequent first."""
        if not self.problems:
            return
        lines = []
        for (op, hint), nodes in sorted(self.problems.items(), key=lambda item: (-len(item[1]), item[0])):
            examples = ", ".join(nodes[:3]) + (", ..." if len(nodes) > 3 else "")
            lines.append(f"  {op} x {len(nodes)}: {hint} (nodes: {examples})")
        if self.needed:
            wanted = ", ".join(f"{name!r}: ..." for name in sorted(self.needed))
            lines.append(
                f"If these inputs are always the same, compile their values in: constants={{{wanted}}}"
            )
        error = UnsupportedError(
            "\n".join([f"{self.label}: bitsmith cannot compile these operators:", *lines])
        )
        error.inputs = tuple(sorted(self.needed))
        raise error
