"""Computes nodes whose inputs are all constant, with onnx's own reference implementation, within bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from ...errors import ModelError
from ...ir import TensorType
from .read import first_line

MAX_ELEMENTS = 1 << 26
"""The most elements a folded constant may have (256 MiB of float32): more is a hostile file, not a weight."""

# Their output's size is not bounded by that of their inputs, or is only known by running them.
_GROWING = {
    "ConstantOfShape",
    "Expand",
    "Tile",
    "Range",
    "OneHot",
    "Pad",
    "Resize",
    "Upsample",
    "EyeLike",
    "Loop",
    "Scan",
}
_BROADCASTING = {
    *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max", "Sum", "Mean", "Where", "PRelu"),
    *("And", "Or", "Xor", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
    *("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift"),
}
_RANDOM = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
    "Dropout",
}


def stays(node: Any) -> bool:
    """Whether the optimizer must not compute an onnx_ir node: its result is too large, or its operands say
    how weights were quantised.
    """
    return node.op_type == "DequantizeLinear" or too_large(node)


def too_large(node: Any) -> bool:
    """Whether the optimizer must not compute an onnx_ir node: the result is huge, or of unknown size."""
    shapes = [out.shape for out in node.outputs]
    if any(shape is None or not shape.is_static() for shape in shapes):
        return node.op_type in _GROWING
    return any(int(np.prod([int(d) for d in shape], dtype=object)) > MAX_ELEMENTS for shape in shapes)


def foldable(proto: Any, constants: Mapping[str, np.ndarray]) -> bool:
    """Whether all inputs are known and the operator is a pure function."""
    nested = any(a.HasField("g") or a.graphs for a in proto.attribute)
    pure = proto.domain in ("", "ai.onnx") and proto.op_type not in _RANDOM and not nested
    return pure and all(name in constants for name in proto.input if name)


def fold(
    proto: Any, opset: int, constants: Mapping[str, np.ndarray], known: Sequence[TensorType], label: str
) -> list[np.ndarray]:
    """The outputs of a foldable node; `known` are types of them that were inferred.

    Raises ModelError when they cannot be computed, or would be huge.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator

    inputs = {name: constants[name] for name in proto.input if name}
    where = f"{label}: constant node {proto.name or proto.output[0]!r} ({proto.op_type})"
    size = max((kind.size for kind in known), default=_most_elements(proto, inputs))
    if not size <= MAX_ELEMENTS:
        raise ModelError(f"{where} makes a constant of more than {MAX_ELEMENTS} numbers, or of unknown size")
    graph = onnx.helper.make_graph(
        [proto],
        "constant",
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in inputs],
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in proto.output if name],
    )
    try:
        with np.errstate(all="ignore"):
            model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
            results = iter(ReferenceEvaluator(model, new_ops=_better()).run(None, inputs))
    except Exception as error:
        # The evaluator raises whatever numpy or its operators do; the model asked for the impossible.
        raise ModelError(f"{where} cannot be computed: {first_line(error)}") from error
    return [_plain(next(results)) if name else np.zeros(0, np.float32) for name in proto.output]


@cache
def _better() -> list[Any]:
    """Operators that onnx's reference implementation gets wrong.

    Its GatherElements (1.23) fails for data larger than the indices along other axes, and for more than 31
    numbers along its own axis in all but the simplest cases.
    """
    from onnx.reference.op_run import OpRun

    class GatherElements(OpRun):
        op_domain = ""

        def _run(self, data: np.ndarray, indices: np.ndarray, axis: int = 0) -> tuple[np.ndarray]:
            axis %= data.ndim
            same = tuple(slice(0, d) for d in indices.shape)
            near = data[(*same[:axis], slice(None), *same[axis + 1 :])]
            return (np.take_along_axis(near, indices.astype(np.int64), axis),)

    return [GatherElements]


def _plain(array: Any) -> np.ndarray:
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype.name in ("float16", "bfloat16") else array


def _most_elements(proto: Any, inputs: Mapping[str, np.ndarray]) -> float:
    """A bound on the elements of a node's output whose type is not known."""
    arrays = [inputs[name] for name in proto.input if name]
    factors = {
        "ConstantOfShape": lambda: _product(arrays[0]),
        "Expand": lambda: arrays[0].size * _product(np.maximum(arrays[1], 1)),
        "Tile": lambda: arrays[0].size * _product(arrays[1]),
        "Range": lambda: _range_length(*(float(array.reshape(-1)[0]) for array in arrays[:3])),
    }
    if proto.op_type in factors:
        return factors[proto.op_type]()
    if proto.op_type == "Concat":
        return float(sum(array.size for array in arrays))
    if proto.op_type in _BROADCASTING:
        rank = max(array.ndim for array in arrays)
        shapes = [(1,) * (rank - array.ndim) + array.shape for array in arrays]
        return _product(np.array(shapes).max(0))
    # The others at most combine each element of one input with each of another (broadcasts, products).
    sizes = sorted(max(array.size, 1) for array in arrays)
    return float("inf") if proto.op_type in _GROWING else _product(np.array(sizes[-2:]))


def _range_length(start: float, limit: float, delta: float) -> float:
    return abs(limit - start) / max(abs(delta), 1e-30)


def _product(sizes: np.ndarray) -> float:
    return float(np.prod(sizes.astype(np.float64)))
