"""Operators that move data (reshape, transpose, concat, slice), and softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..ir import TensorType
from .elementwise import same_axes
from .opdef import (
    Attrs,
    Coupling,
    OpDef,
    Sample,
    Types,
    given,
    require,
)


def _infer_reshape(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, shape = types[0], attrs["shape"]
    assert x is not None
    require(math.prod(shape) == x.size, f"cannot reshape {x} to {shape}")
    return (TensorType(tuple(shape), x.dtype),)


def _relax_reshape(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    return relax.op.reshape(args[0], attrs["shape"])


RESHAPE = OpDef(
    name="reshape",
    inputs=("x",),
    required=1,
    infer=_infer_reshape,
    reference=lambda inputs, attrs: inputs[0].reshape(attrs["shape"]),
    samples=(
        Sample((TensorType((2, 6, 4)),), {"shape": (4, 12)}),
        Sample((TensorType((1, 1, 1, 9), "uint8"),), {"shape": (1, 9)}),
    ),
    attrs={"shape": None},
    relax=_relax_reshape,
    plain=(),
)


def _infer_transpose(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, perm = types[0], attrs["perm"]
    assert x is not None
    require(sorted(perm) == list(range(len(x.shape))), f"perm {perm} does not permute the axes of {x}")
    return (TensorType(tuple(x.shape[p] for p in perm), x.dtype),)


def _couple_transpose(types: Types, attrs: Attrs) -> tuple[Coupling, ...]:
    return tuple(frozenset({("x", p), ("y", i)}) for i, p in enumerate(attrs["perm"]))


def _relax_transpose(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    return relax.op.permute_dims(args[0], list(attrs["perm"]))


TRANSPOSE = OpDef(
    name="transpose",
    inputs=("x",),
    required=1,
    infer=_infer_transpose,
    reference=lambda inputs, attrs: inputs[0].permute(attrs["perm"]).contiguous(),
    samples=(
        Sample((TensorType((1, 3, 8, 10)),), {"perm": (0, 2, 3, 1)}),
        Sample((TensorType((4, 6, 5), "uint8"),), {"perm": (2, 0, 1)}),
    ),
    attrs={"perm": None},
    couple=_couple_transpose,
    relax=_relax_transpose,
    plain=(),
)


def _infer_concat(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    first, axis = types[0], attrs["axis"]
    assert first is not None
    require(isinstance(axis, int) and 0 <= axis < len(first.shape), f"axis {axis} is not an axis of {first}")
    kinds = [given(types, i) for i in range(len(types))]
    for x in kinds:
        rest = [(a, b) for i, (a, b) in enumerate(zip(first.shape, x.shape, strict=False)) if i != axis]
        fits = len(x.shape) == len(first.shape) and all(a == b for a, b in rest) and x.dtype == first.dtype
        require(fits, f"{first} and {x} do not concatenate along axis {axis}")
    total = sum(x.shape[axis] for x in kinds)
    shape = (*first.shape[:axis], total, *first.shape[axis + 1 :])
    return (TensorType(shape, first.dtype),)


def _reference_concat(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    return torch.cat(list(inputs), dim=attrs["axis"])


def _couple_concat(types: Types, attrs: Attrs) -> tuple[Coupling, ...]:
    """Along the other axes all operands go together; along the joined one each has its own stretch of y."""
    rank = len(given(types, 0).shape)
    others = [a for a in range(rank) if a != attrs["axis"]]
    return tuple(frozenset({("y", a), *((f"*{i}", a) for i in range(len(types)))}) for a in others)


def _relax_concat(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    return relax.op.concat(list(args), axis=attrs["axis"])


CONCAT = OpDef(
    name="concat",
    inputs=("*",),
    required=1,
    infer=_infer_concat,
    reference=_reference_concat,
    samples=(
        Sample((TensorType((1, 4, 4, 3)), TensorType((1, 4, 4, 5)), TensorType((1, 4, 4, 1))), {"axis": 3}),
        Sample((TensorType((2, 3), "uint8"), TensorType((4, 3), "uint8")), {"axis": 0}),
    ),
    attrs={"axis": None},
    couple=_couple_concat,
    relax=_relax_concat,
    plain=(),
)


def _infer_slice(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, starts, stops, steps = types[0], attrs["starts"], attrs["stops"], attrs["steps"]
    assert x is not None
    require(
        len(starts) == len(stops) == len(steps) == len(x.shape),
        f"slice needs one start, stop and step per axis of {x}",
    )
    ranges = list(zip(x.shape, starts, stops, steps, strict=True))
    require(
        all(0 <= a <= b <= d and s > 0 for d, a, b, s in ranges), f"slice {starts}:{stops}:{steps} leaves {x}"
    )
    return (TensorType(tuple(-(-(b - a) // s) for _, a, b, s in ranges), x.dtype),)


def _reference_slice(inputs: Sequence[Any], attrs: Attrs) -> Any:
    parts = zip(attrs["starts"], attrs["stops"], attrs["steps"], strict=True)
    return inputs[0][tuple(slice(a, b, s) for a, b, s in parts)].contiguous()


def _relax_slice(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    starts, stops, steps = (list(attrs[k]) for k in ("starts", "stops", "steps"))
    return relax.op.strided_slice(
        args[0], list(range(len(starts))), starts, stops, steps, assume_inbound=True
    )


SLICE = OpDef(
    name="slice",
    inputs=("x",),
    required=1,
    infer=_infer_slice,
    reference=_reference_slice,
    samples=(
        Sample((TensorType((2, 8, 9)),), {"starts": (0, 1, 2), "stops": (2, 8, 9), "steps": (1, 2, 3)}),
    ),
    attrs={"starts": None, "stops": None, "steps": None},
    relax=_relax_slice,
    plain=(),
)


def _infer_softmax(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, axis = types[0], attrs["axis"]
    assert x is not None
    require(x.dtype == "float32", f"x must be float32, got {x}")
    require(isinstance(axis, int) and 0 <= axis < len(x.shape), f"axis {axis} is not an axis of {x}")
    return (x,)


def _reference_softmax(inputs: Sequence[Any], attrs: Attrs) -> Any:
    return inputs[0].softmax(dim=attrs["axis"])


def _couple_softmax(types: Types, attrs: Attrs) -> tuple[Coupling, ...]:
    return tuple(c for i, c in enumerate(same_axes(types, attrs)) if i != attrs["axis"])


def _relax_softmax(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    return relax.op.nn.softmax(args[0], axis=attrs["axis"])


SOFTMAX = OpDef(
    name="softmax",
    inputs=("x",),
    required=1,
    infer=_infer_softmax,
    reference=_reference_softmax,
    samples=(Sample((TensorType((3, 41)),), {"axis": 1}), Sample((TensorType((2, 5, 3)),), {"axis": 1})),
    attrs={"axis": None},
    couple=_couple_softmax,
    flops=lambda types, outs, attrs: 4 * outs[0].size,
    relax=_relax_softmax,
)

SHAPES = (RESHAPE, TRANSPOSE, CONCAT, SLICE, SOFTMAX)
