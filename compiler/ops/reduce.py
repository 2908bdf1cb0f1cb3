"""Reductions over axes, and the place of the largest or smallest along one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..ir import TensorType
from .numbers import by_numpy, dtype_of
from .opdef import (
    NUMBERS,
    REAL,
    Attrs,
    Coupling,
    OpDef,
    Sample,
    Types,
    given,
    require,
)


def reduced_shape(shape: tuple[int, ...], axes: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
    """Shape after reducing over `axes`."""
    if keepdims:
        return tuple(1 if i in axes else d for i, d in enumerate(shape))
    return tuple(d for i, d in enumerate(shape) if i not in axes)


def _infer_reduce(types: Types, attrs: Attrs, plain: tuple[str, ...]) -> tuple[TensorType, ...]:
    x = given(types, 0)
    axes: tuple[int, ...] = attrs["axes"]
    require(
        all(0 <= a < len(x.shape) for a in axes), f"axes {axes} are not within the {len(x.shape)} axes of x"
    )
    require(len(set(axes)) == len(axes), f"axes {axes} repeat")
    require(all(x.shape[a] > 0 for a in axes), f"x is {x}: an empty axis has no mean or maximum")
    require(x.dtype in (*plain, "uint8"), f"x must be of {', '.join(plain)} or uint8, got {x}")
    out = "float32" if x.dtype == "uint8" else x.dtype
    return (TensorType(reduced_shape(x.shape, axes, bool(attrs["keepdims"])), out),)


def _reference_reduce(inputs: Sequence[Any], attrs: Attrs, kind: str, function: Callable[..., Any]) -> Any:
    import torch

    x, axes, keepdims = inputs[0], tuple(attrs["axes"]), bool(attrs["keepdims"])
    if x.dtype == torch.uint8:
        x = (x.to(torch.float32) - float(attrs["x_zero"])) * torch.tensor(
            attrs["x_scale"], dtype=torch.float32
        )
    if not axes:
        return x
    if x.is_floating_point() and kind != "prod":  # torch's takes one axis only
        return getattr(x, kind)(dim=axes, keepdim=keepdims)
    return by_numpy(lambda array: function(array, axis=axes, keepdims=keepdims), x)


def _couple_reduce(types: Types, attrs: Attrs) -> tuple[Coupling, ...]:
    x = types[0]
    assert x is not None
    kept = [i for i in range(len(x.shape)) if i not in attrs["axes"]]
    return tuple(frozenset({("x", a), ("y", a if attrs["keepdims"] else i)}) for i, a in enumerate(kept))


def _reduce_op(kind: str, torch_name: str, plain: tuple[str, ...] = NUMBERS) -> OpDef:
    def lower(args: Sequence[Any], attrs: Attrs) -> Any:
        from tvm import relax

        return getattr(relax.op, kind)(args[0], axis=list(attrs["axes"]), keepdims=attrs["keepdims"])

    quantised = {"axes": (1, 2), "x_scale": 0.02, "x_zero": 4}
    return OpDef(
        name=f"reduce_{kind}",  # uint8 is quantised
        inputs=("x",),
        required=1,
        infer=lambda types, attrs: _infer_reduce(types, attrs, plain),
        reference=lambda inputs, attrs: _reference_reduce(inputs, attrs, torch_name, getattr(np, kind)),
        samples=(
            Sample((TensorType((1, 6, 5, 7)),), {"axes": (2, 3)}),
            Sample((TensorType((2, 5, 5, 37)),), {"axes": (1, 2), "keepdims": False}),
            Sample((TensorType((4, 9)),), {"axes": (1,)}),
            *([Sample((TensorType((1, 7, 7, 40), "uint8"),), quantised)] if kind == "mean" else []),
            *([Sample((TensorType((3, 4), "int64"),), {"axes": (0,)})] if plain != REAL else []),
        ),
        attrs={"axes": None, "keepdims": True, "x_scale": 1.0, "x_zero": 0},
        couple=_couple_reduce,
        flops=lambda types, outs, attrs: given(types, 0).size,
        relax=lower,
        plain=plain,
    )


def _infer_arg(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, axis = given(types, 0), attrs["axis"]
    require(x.dtype in NUMBERS, f"x must be of {', '.join(NUMBERS)}, got {x}")
    require(isinstance(axis, int) and 0 <= axis < len(x.shape), f"axis {axis} is not an axis of {x}")
    require(x.shape[axis] > 0, f"x is {x}: an empty axis has no maximum")
    return (TensorType(reduced_shape(x.shape, (axis,), bool(attrs["keepdims"])), "int64"),)


def _arg_op(kind: str) -> OpDef:
    def reference(inputs: Sequence[Any], attrs: Attrs) -> Any:
        import torch

        function = getattr(np, f"arg{kind}")
        found = function(inputs[0].numpy(), axis=attrs["axis"], keepdims=bool(attrs["keepdims"]))
        return torch.from_numpy(np.array(found, np.int64))

    def lower(args: Sequence[Any], attrs: Attrs) -> Any:
        from tvm import relax

        x = args[0]
        if dtype_of(x).startswith("uint"):  # TVM starts from the least number, which it does not know here
            raise_to = {"uint32": "int64", "uint64": "float64"}[dtype_of(x)]
            x = relax.op.astype(x, raise_to)
        return getattr(relax.op, f"arg{kind}")(x, axis=attrs["axis"], keepdims=attrs["keepdims"])

    ties = np.array([[2, 9, 9, 1], [0, 0, 7, 7]])
    return OpDef(
        name=f"arg_{kind}",  # the first of equal ones
        inputs=("x",),
        required=1,
        infer=_infer_arg,
        reference=reference,
        samples=(
            Sample((TensorType((3, 5, 4)),), {"axis": 1}),
            Sample((ties,), {"axis": 1, "keepdims": False}),
            Sample((ties.astype(np.float32),), {"axis": 0}),
        ),
        attrs={"axis": None, "keepdims": True},
        couple=lambda types, attrs: tuple(
            c for c in _couple_reduce(types, {**attrs, "axes": (attrs["axis"],)})
        ),
        flops=lambda types, outs, attrs: given(types, 0).size,
        relax=lower,
        plain=NUMBERS,
    )


REDUCES = (
    _reduce_op("mean", "mean", REAL),
    _reduce_op("sum", "sum"),
    _reduce_op("max", "amax"),
    _reduce_op("min", "amin"),
    _reduce_op("prod", "prod"),
    _arg_op("max"),
    _arg_op("min"),
)
