"""Operators that write at computed places, by the rules of index.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir import TensorType
from .index import check_indices, infer_gather_elements, inside
from .opdef import (
    Attrs,
    OpDef,
    Sample,
    Types,
    given,
    require,
)

REDUCTIONS = ("none", "add", "mul", "max", "min")


def _check_reduction(attrs: Attrs) -> None:
    reduction = attrs["reduction"]
    require(reduction in REDUCTIONS, f"reduction {reduction!r} is not one of {', '.join(REDUCTIONS)}")


def _combine(y: np.ndarray, places: tuple[np.ndarray, ...], updates: np.ndarray, reduction: str) -> None:
    """y[places] = updates, in place; of equal places the last one counts, or all are combined."""
    if reduction == "none":
        y[places] = updates
    else:
        ufuncs = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}
        ufuncs[reduction].at(y, places, updates)


def _infer_scatter_elements(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, indices, updates = (given(types, i) for i in range(3))
    infer_gather_elements(types[:2], attrs)
    _check_reduction(attrs)
    wanted = TensorType(indices.shape, x.dtype)
    require(updates == wanted, f"updates are {updates}, must be {wanted}")
    return (x,)


def _reference_scatter_elements(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    x, indices, updates = (t.numpy() for t in inputs)
    y, places = x.copy(), list(np.indices(indices.shape))
    places[attrs["axis"]] = inside(indices, x.shape[attrs["axis"]])
    _combine(y, tuple(places), updates, str(attrs["reduction"]))
    return torch.from_numpy(y)


SCATTER_ELEMENTS = OpDef(
    name="scatter_elements",
    inputs=("x", "indices", "updates"),
    required=3,
    infer=_infer_scatter_elements,
    reference=_reference_scatter_elements,
    samples=(
        Sample((TensorType((3, 4)), np.array([[0, -1], [2, 1]]), TensorType((2, 2))), {"axis": 1}),
        *(
            Sample(
                (TensorType((3, 4)), np.array([[0, 1, 0, 2], [1, 1, 0, 2]]), TensorType((2, 4))),
                {"axis": 0, "reduction": reduction},
            )
            for reduction in REDUCTIONS[1:]
        ),
    ),
    attrs={"axis": None, "reduction": "none"},
    plain=(),
)


def _infer_scatter_nd(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, indices, updates = (given(types, i) for i in range(3))
    check_indices(indices)
    _check_reduction(attrs)
    depth = indices.shape[-1] if indices.shape else 0
    require(0 < depth <= len(x.shape) and all(x.shape), f"indices {indices} do not fit {x}")
    wanted = TensorType((*indices.shape[:-1], *x.shape[depth:]), x.dtype)
    require(updates == wanted, f"updates are {updates}, must be {wanted}")
    return (x,)


def _reference_scatter_nd(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    x, indices, updates = (t.numpy() for t in inputs)
    y, places = x.copy(), inside(indices, np.array(x.shape[: indices.shape[-1]]))
    _combine(y, tuple(np.moveaxis(places, -1, 0)), updates, str(attrs["reduction"]))
    return torch.from_numpy(y)


SCATTER_ND = OpDef(
    name="scatter_nd",
    inputs=("x", "indices", "updates"),
    required=3,
    infer=_infer_scatter_nd,
    reference=_reference_scatter_nd,
    samples=(
        Sample((TensorType((4, 3)), np.array([[1], [-1]]), TensorType((2, 3)))),
        Sample((TensorType((2, 3, 2), "int64"), np.array([[0, 2], [1, -3]]), TensorType((2, 2), "int64"))),
        *(
            Sample(
                (TensorType((4, 3)), np.array([[1], [1], [0]], np.int32), TensorType((3, 3))),
                {"reduction": reduction},
            )
            for reduction in REDUCTIONS[1:]
        ),
    ),
    attrs={"reduction": "none"},
    plain=(),
)

SCATTERS = (SCATTER_ELEMENTS, SCATTER_ND)
