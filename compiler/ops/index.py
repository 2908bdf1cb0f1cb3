"""Operators that read at computed places: gather, gather_elements, gather_nd. Those that write: scatter.py.

Indices count from the end when negative. What then still lies outside is moved to the nearest place inside:
no index makes a kernel touch other memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir import TensorType
from .numbers import dtype_of
from .opdef import (
    Attrs,
    Coupling,
    OpDef,
    Sample,
    Types,
    given,
    require,
)

INDEX_TYPES = ("int32", "int64")


def inside(indices: np.ndarray, size: int | np.ndarray) -> np.ndarray:
    """Indices as numpy takes them: 0 <= index < size."""
    return np.clip(np.where(indices < 0, indices + size, indices), 0, size - 1)


def check_indices(indices: TensorType) -> None:
    require(indices.dtype in INDEX_TYPES, f"indices are {indices}, must be int32 or int64")


def _check_axis(x: TensorType, axis: Any) -> None:
    require(isinstance(axis, int) and 0 <= axis < len(x.shape), f"axis {axis} is not an axis of {x}")
    require(x.shape[axis] > 0, f"nothing to choose from along axis {axis} of {x}")


def relax_inside(indices: Any, sizes: Any) -> Any:
    """The same on a relax expression; `sizes` is a number, or an array that broadcasts."""
    from tvm import relax

    dtype = dtype_of(indices)
    size, last = (relax.const(np.asarray(v, dtype), dtype) for v in (sizes, np.asarray(sizes) - 1))
    zero = relax.const(0, dtype)
    counted = relax.op.where(relax.op.less(indices, zero), relax.op.add(indices, size), indices)
    return relax.op.minimum(relax.op.maximum(counted, zero), last)


def sizes_of(variable: Any) -> list[int]:
    return [int(d) for d in variable.ty.shape]


def _infer_gather(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, indices, axis = given(types, 0), given(types, 1), attrs["axis"]
    check_indices(indices)
    _check_axis(x, axis)
    return (TensorType((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype),)


def _reference_gather(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    x, indices = (t.numpy() for t in inputs)
    axis = attrs["axis"]
    return torch.from_numpy(np.take(x, inside(indices, x.shape[axis]), axis))


def _couple_gather(types: Types, attrs: Attrs) -> tuple[Coupling, ...]:
    x, indices, axis = given(types, 0), given(types, 1), attrs["axis"]
    before = [frozenset({("x", a), ("y", a)}) for a in range(axis)]
    shift = len(indices.shape) - 1
    return (*before, *(frozenset({("x", a), ("y", a + shift)}) for a in range(axis + 1, len(x.shape))))


def _relax_gather(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    axis = attrs["axis"]
    return relax.op.take(args[0], relax_inside(args[1], sizes_of(args[0])[axis]), axis=axis, mode="clip")


GATHER = OpDef(
    name="gather",  # y[..., indices, ...]
    inputs=("x", "indices"),
    required=2,
    infer=_infer_gather,
    reference=_reference_gather,
    samples=(
        Sample((TensorType((5, 6)), np.array([[0, 4, -1], [2, 2, -5]])), {"axis": 0}),
        Sample((TensorType((2, 6, 3), "int64"), np.array([5, 1, 9, -9], np.int32)), {"axis": 1}),
        Sample((TensorType((4, 3), "uint8"), np.array(2)), {"axis": 1}),
    ),
    attrs={"axis": None},
    couple=_couple_gather,
    relax=_relax_gather,
    plain=(),
)


def infer_gather_elements(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, indices, axis = given(types, 0), given(types, 1), attrs["axis"]
    check_indices(indices)
    _check_axis(x, axis)
    fits = len(x.shape) == len(indices.shape) and all(
        i <= d for a, (d, i) in enumerate(zip(x.shape, indices.shape, strict=True)) if a != axis
    )
    require(fits, f"indices {indices} do not fit {x} along axis {axis}")
    return (TensorType(indices.shape, x.dtype),)


def _reference_gather_elements(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    x, indices = (t.numpy() for t in inputs)
    axis = attrs["axis"]
    part = x[tuple(slice(None) if a == axis else slice(n) for a, n in enumerate(indices.shape))]
    return torch.from_numpy(np.take_along_axis(part, inside(indices, x.shape[axis]).astype(np.int64), axis))


def _relax_gather_elements(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    x, axis = args[0], attrs["axis"]
    places = relax_inside(args[1], sizes_of(x)[axis])
    cut = [i if a != axis else d for a, (d, i) in enumerate(zip(sizes_of(x), sizes_of(args[1]), strict=True))]
    if cut != sizes_of(x):
        rank = len(cut)
        x = relax.op.strided_slice(x, list(range(rank)), [0] * rank, cut, assume_inbound=True)
    return relax.op.gather_elements(x, places, axis=axis)


GATHER_ELEMENTS = OpDef(
    name="gather_elements",
    inputs=("x", "indices"),
    required=2,
    infer=infer_gather_elements,
    reference=_reference_gather_elements,
    samples=(
        Sample((TensorType((3, 4)), np.array([[0, -1, 2, 1], [3, 3, 0, -4]])), {"axis": 1}),
        Sample((TensorType((3, 4), "int64"), np.array([[0, 2, -1]], np.int32)), {"axis": 0}),
    ),
    attrs={"axis": None},
    relax=_relax_gather_elements,
    plain=(),
)


def _infer_gather_nd(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, indices, batch = given(types, 0), given(types, 1), attrs["batch"]
    check_indices(indices)
    require(0 <= batch < len(indices.shape) and batch < len(x.shape), f"batch {batch} exceeds the axes")
    require(x.shape[:batch] == indices.shape[:batch], f"batch axes of {x} and {indices} differ")
    depth = indices.shape[-1]
    require(batch + depth <= len(x.shape), f"indices {indices} are too deep for {x}")
    require(all(x.shape[batch : batch + depth]), f"nothing to choose from in {x}")
    return (TensorType((*indices.shape[:-1], *x.shape[batch + depth :]), x.dtype),)


def _reference_gather_nd(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    x, indices, batch = inputs[0].numpy(), inputs[1].numpy(), attrs["batch"]
    rows = math.prod(x.shape[:batch])
    flat_x, flat_i = x.reshape(rows, *x.shape[batch:]), indices.reshape(rows, -1, indices.shape[-1])
    places = inside(flat_i, np.array(x.shape[batch : batch + indices.shape[-1]]))
    made = [part[tuple(np.moveaxis(at, -1, 0))] for part, at in zip(flat_x, places, strict=True)]
    shape = (*indices.shape[:-1], *x.shape[batch + indices.shape[-1] :])
    return torch.from_numpy(np.stack(made).reshape(shape))


def flat_place(indices: Any, sizes: Sequence[int], lead: int) -> Any:
    """The last axis of `indices` (one number per axis of `sizes`) as one number, counted row by row."""
    from tvm import relax

    places = relax_inside(indices, np.array(sizes))
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    weighted = relax.op.multiply(places, relax.const(np.array(strides, dtype_of(indices)), dtype_of(indices)))
    return relax.op.sum(weighted, axis=[lead])


def _relax_gather_nd(args: Sequence[Any], attrs: Attrs) -> Any:
    """As one gather: the indexed axes are one axis, and so are those of the batch with them."""
    from tvm import relax

    shape, at, batch = sizes_of(args[0]), sizes_of(args[1]), attrs["batch"]
    inner, rest, rows = shape[batch : batch + at[-1]], shape[batch + at[-1] :], math.prod(shape[:batch])
    places = relax.op.reshape(flat_place(args[1], inner, len(at) - 1), (rows, math.prod(at[batch:-1])))
    if rows > 1:
        starts = (np.arange(rows) * math.prod(inner)).reshape(rows, 1).astype(dtype_of(args[1]))
        places = relax.op.add(places, relax.const(starts, dtype_of(args[1])))
    table = relax.op.reshape(args[0], (rows * math.prod(inner), *rest))
    return relax.op.reshape(relax.op.take(table, places, axis=0, mode="clip"), (*at[:-1], *rest))


GATHER_ND = OpDef(
    name="gather_nd",
    inputs=("x", "indices"),
    required=2,
    infer=_infer_gather_nd,
    reference=_reference_gather_nd,
    samples=(
        Sample((TensorType((3, 4, 5)), np.array([[0, -1], [2, 1], [1, 9]]))),
        Sample((TensorType((2, 3, 4), "int64"), np.array([[[0, 3]], [[-1, 1]]])), {"batch": 1}),
        Sample((TensorType((2, 3)), np.array([[1], [0]], np.int32)), {"batch": 1}),
    ),
    attrs={"batch": 0},
    relax=_relax_gather_nd,
    plain=(),
)

GATHERS = (GATHER, GATHER_ELEMENTS, GATHER_ND)
