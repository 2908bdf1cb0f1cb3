"""Models without the numbers of their large weights, for onnx's checker and shape inference.

Both take a model through bytes and back, several times its size, and look at no weight but small ones.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

LARGE = 1 << 16
"""Bytes from which on a weight is left out."""
BYTES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}
"""TensorProto.DataType -> bytes of an element, for types whose elements are whole bytes."""


def without_weights(model: Any, *, empty: bool = False) -> Any:
    """A copy without the numbers of large initializers. `empty`: these have no elements either, since the
    checker wants as many numbers as there are elements."""
    bare = _copied(model, {"graph"})
    bare.graph.CopyFrom(_copied(model.graph, {"initializer"}))
    for tensor in model.graph.initializer:
        made = bare.graph.initializer.add()
        if not _is_large(tensor):
            made.CopyFrom(tensor)
            continue
        made.name, made.data_type = tensor.name, tensor.data_type
        made.dims.extend([0] if empty else tensor.dims)
    return bare


def _is_large(tensor: Any) -> bool:
    """Whether it has many bytes, and exactly those that its shape and type need; or lies elsewhere."""
    if tensor.data_location == tensor.EXTERNAL:
        return True
    size = len(tensor.raw_data)
    return size >= LARGE and size == BYTES.get(tensor.data_type, 0) * math.prod(tensor.dims)


def _copied(message: Any, skip: Collection[str]) -> Any:
    """The message without some of its fields."""
    made = type(message)()
    for field, value in message.ListFields():
        if field.name in skip:
            continue
        if field.is_repeated:
            getattr(made, field.name).extend(value)
        elif field.message_type is not None:
            getattr(made, field.name).CopyFrom(value)
        else:
            setattr(made, field.name, value)
    return made


def infer(model: Any, *, strict: bool = False) -> None:
    """Note the types that follow from those of the inputs, in place. Raises what onnx raises."""
    import onnx

    found = onnx.shape_inference.infer_shapes(without_weights(model), strict_mode=strict).graph
    for name in ("node", "value_info", "output"):
        field = getattr(model.graph, name)
        del field[:]
        field.extend(getattr(found, name))
