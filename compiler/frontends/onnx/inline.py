"""Operators that ONNX defines by others: the definition takes their place where bitsmith has no rule."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from .bare import infer
from .read import graphs_of

MOST_ROUNDS = 8
"""Definitions use operators that have definitions; ONNX nests them three deep."""
_DOMAIN = "bitsmith.definition"


def inline_definitions(model: Any, known: Collection[str]) -> Any:
    """The model without operators that are not `known` but that ONNX defines by a function.

    The types of all values must have been inferred: some definitions depend on them.
    """
    import onnx
    from onnx import inliner

    for _ in range(MOST_ROUNDS):
        types = _types(model)
        functions = [_defined(model, node, types, i) for i, node in enumerate(_candidates(model, known))]
        made = [function for function in functions if function is not None]
        if not made:
            break
        model.functions.extend(made)
        model.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
        model = inliner.inline_local_functions(model)
        kept = [entry for entry in model.opset_import if entry.domain != _DOMAIN]
        del model.opset_import[:]
        model.opset_import.extend(kept)
        infer(model)
    return model


def _candidates(model: Any, known: Collection[str]) -> list[Any]:
    """Nodes without a rule."""
    nodes = [node for graph in graphs_of(model.graph) for node in graph.node]
    return [node for node in nodes if node.domain not in ("", "ai.onnx") or node.op_type not in known]


def _types(model: Any) -> dict[str, Any]:
    """Types of the values of all graphs by name, as far as they are known."""
    import onnx

    found: dict[str, Any] = {}
    for graph in graphs_of(model.graph):
        for tensor in graph.initializer:
            found[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
        found.update((v.name, v.type) for v in (*graph.input, *graph.value_info, *graph.output))
    return found


def _defined(model: Any, node: Any, types: Mapping[str, Any], number: int) -> Any:
    """The node's definition as a function of the model, which the node then calls; None if it has none."""
    import onnx

    version = next((entry.version for entry in model.opset_import if entry.domain == node.domain), 0)
    if not onnx.defs.has(node.op_type, version, node.domain):
        return None
    schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    main = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    function = onnx.FunctionProto()
    if schema.has_context_dependent_function:
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= main]
        given = [types.get(name, onnx.TypeProto()).SerializeToString() for name in node.input]
        if not versions:
            return None
        made = schema.get_context_dependent_function_with_opset_version(
            max(versions), node.SerializeToString(), given
        )
    else:
        versions = [v for v in schema.function_opset_versions if v <= main] if schema.has_function else []
        if not versions:
            return None
        made = schema.get_function_with_opset_version(max(versions))
    function.ParseFromString(made)
    function.domain, function.name = _DOMAIN, f"{node.op_type}_{number}"
    for entry in function.opset_import:  # a definition holds until the operators it uses change
        entry.version = main if entry.domain in ("", "ai.onnx") else entry.version
    node.domain, node.op_type = function.domain, function.name
    return function
