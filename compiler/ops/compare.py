"""Comparisons, logic, bits, choice, and conversion between element types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..ir import DTYPES, INTEGERS, TensorType
from .elementwise import couple_broadcast, same_axes
from .numbers import by_numpy, dtype_of, infer_broadcast
from .opdef import (
    NUMBERS,
    REAL,
    Attrs,
    Coupling,
    OpDef,
    Sample,
    Types,
    broadcast_shapes,
    given,
    require,
    require_plain,
)

BITS = (*INTEGERS, "bool")


def _as_bool(function: Callable[..., Any], *tensors: Any) -> Any:
    import torch

    return torch.from_numpy(np.array(function(*(t.numpy() for t in tensors)), np.bool_))


def _compare_op(name: str, function: Callable[..., Any], plain: tuple[str, ...]) -> OpDef:
    def lower(args: Sequence[Any], attrs: Attrs) -> Any:
        from tvm import relax

        if dtype_of(args[0]) == "bool":  # LLVM compares numbers only
            return relax.op.logical_not(relax.op.bitwise_xor(args[0], args[1]))
        return getattr(relax.op, name)(args[0], args[1])

    few = np.array([[1.0, 2.0], [3.0, 2.0]], np.float32)
    return OpDef(
        name=name,
        inputs=("a", "b"),
        required=2,
        infer=lambda types, attrs: infer_broadcast(types, plain, "bool"),
        reference=lambda inputs, attrs: _as_bool(function, *inputs),
        samples=(
            Sample((TensorType((3, 1, 4)), TensorType((4,)))),
            Sample((few, few.T.copy())),
            Sample((few.astype(np.int64), few[:1].astype(np.int64))),
            *((Sample((few > 1, few > 2)),) if "bool" in plain else ()),
        ),
        couple=couple_broadcast,
        flops=lambda types, outs, attrs: outs[0].size,
        relax=lower,
        plain=plain,
    )


COMPARISONS = (
    ("equal", np.equal, (*NUMBERS, "bool")),
    ("less", np.less, NUMBERS),
    ("less_equal", np.less_equal, NUMBERS),
)


def _bit_op(name: str, relax_name: str, plain: tuple[str, ...], arity: int = 2) -> OpDef:
    function = getattr(np, relax_name)

    def infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        if arity == 2:
            return infer_broadcast(types, plain)
        require_plain(plain, given(types, 0))
        return (given(types, 0),)

    def lower(args: Sequence[Any], attrs: Attrs) -> Any:
        from tvm import relax

        boolean = name == "bit_not" and dtype_of(args[0]) == "bool"
        return relax.op.logical_not(args[0]) if boolean else getattr(relax.op, relax_name)(*args)

    small = TensorType((2, 3), "uint8"), TensorType((1, 3), "uint8")
    flags = np.array([[True, False, True]]), np.array([[True], [False]])
    samples = (*((small, flags) if "bool" in plain else ()), (TensorType((4,), "int64"),) * 2)
    if "bool" not in plain:  # shifts: by less than the width
        samples = ((TensorType((5,), "uint32"), np.array([0, 1, 8, 31, 3], np.uint32)),)
    return OpDef(
        name=name,
        inputs=("a", "b")[:arity],
        required=arity,
        infer=infer,
        reference=lambda inputs, attrs: by_numpy(function, *inputs),
        samples=tuple(Sample(inputs[:arity]) for inputs in samples),
        couple=couple_broadcast
        if arity == 2
        else lambda types, attrs: tuple(
            frozenset({("a", i), ("y", i)}) for i in range(len(given(types, 0).shape))
        ),
        flops=lambda types, outs, attrs: outs[0].size,
        relax=lower,
        plain=plain,
    )


BIT_OPS = (
    # name, relax and numpy, element types; on bool the first four are logic
    ("bit_and", "bitwise_and", BITS),
    ("bit_or", "bitwise_or", BITS),
    ("bit_xor", "bitwise_xor", BITS),
    ("bit_not", "bitwise_not", BITS, 1),
    ("shift_left", "left_shift", INTEGERS),
    ("shift_right", "right_shift", INTEGERS),
)


def _test_op(name: str, function: Callable[..., Any], value: float) -> OpDef:
    def infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        require_plain(REAL, given(types, 0))
        return (TensorType(given(types, 0).shape, "bool"),)

    def lower(args: Sequence[Any], attrs: Attrs) -> Any:
        from tvm import relax

        return getattr(relax.op, name)(args[0])

    return OpDef(
        name=name,
        inputs=("x",),
        required=1,
        infer=infer,
        reference=lambda inputs, attrs: _as_bool(function, *inputs),
        samples=(Sample((np.array([[1.0, value, -np.inf], [-value, 0.0, 3.0]], np.float32),)),),
        couple=same_axes,
        flops=lambda types, outs, attrs: outs[0].size,
        relax=lower,
        plain=REAL,
    )


def _infer_where(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    condition, a, b = (given(types, i) for i in range(3))
    require(condition.dtype == "bool", f"the condition is {condition}, must be bool")
    require(a.dtype == b.dtype, f"operands must have one element type, got {a} and {b}")
    shape = broadcast_shapes(condition.shape, broadcast_shapes(a.shape, b.shape))
    return (TensorType(shape, a.dtype),)


def _reference_where(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    return torch.from_numpy(np.where(*(t.numpy() for t in inputs)))


def _couple_where(types: Types, attrs: Attrs) -> tuple[Coupling, ...]:
    shape = _infer_where(types, attrs)[0].shape
    rules = []
    for axis in range(len(shape)):
        slots = {("y", axis)}
        for name, kind in zip(("condition", "a", "b"), types, strict=True):
            assert kind is not None
            own = axis - (len(shape) - len(kind.shape))
            if own >= 0 and kind.shape[own] == shape[axis]:
                slots.add((name, own))
        rules.append(frozenset(slots))
    return tuple(rules)


def _relax_where(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    return relax.op.where(*args)


WHERE = OpDef(
    name="where",
    inputs=("condition", "a", "b"),
    required=3,
    infer=_infer_where,
    reference=_reference_where,
    samples=(
        Sample((np.array([[True], [False]]), TensorType((2, 3)), TensorType((3,)))),
        Sample((np.array([True, False, True]), TensorType((3,), "int64"), TensorType((), "int64"))),
    ),
    couple=_couple_where,
    flops=lambda types, outs, attrs: outs[0].size,
    relax=_relax_where,
    plain=(),
)


def _infer_cast(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    require(attrs["to"] in DTYPES, f"data type {attrs['to']!r} is not one of {', '.join(DTYPES)}")
    return (TensorType(given(types, 0).shape, str(attrs["to"])),)


def _reference_cast(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    x, to = inputs[0].numpy(), np.dtype(attrs["to"])
    with np.errstate(all="ignore"):
        if x.dtype.kind == "f" and to.kind in "iu" and to.itemsize < 8:
            x = x.astype(np.int64)  # then the low bits
        return torch.from_numpy(np.array(x.astype(to)))


def _relax_cast(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    x, source, to = args[0], dtype_of(args[0]), str(attrs["to"])
    if source == to:
        return x
    if to == "bool":
        return relax.op.not_equal(x, relax.const(0, source))
    if source.startswith("float") and to in INTEGERS and to not in ("int64", "uint64"):
        x = relax.op.astype(x, "int64")  # LLVM leaves open what out-of-range numbers become
    return relax.op.astype(x, to)


CAST = OpDef(
    name="cast",  # towards zero; integers that do not fit keep their low bits
    inputs=("x",),
    required=1,
    infer=_infer_cast,
    reference=_reference_cast,
    samples=(
        Sample((TensorType((4, 5)),), {"to": "int32"}, -9.0, 9.0),
        Sample((np.array([-1.5, 0.0, 0.25, 300.7], np.float32),), {"to": "uint8"}),
        Sample((np.array([-1.5, 0.0, 0.25], np.float32),), {"to": "bool"}),
        Sample((np.array([-1.5, 0.1, 7000.3], np.float32),), {"to": "float16"}),
        Sample((np.array([-1.5, 0.1, 6e4], np.float16),), {"to": "float32"}),
        Sample((TensorType((3, 4), "int64"),), {"to": "float64"}),
        Sample((TensorType((6,), "int64"),), {"to": "uint16"}),
    ),
    attrs={"to": None},
    couple=same_axes,
    flops=lambda types, outs, attrs: outs[0].size,
    relax=_relax_cast,
    plain=(),
)


def _infer_bitcast(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, (y,) = given(types, 0), _infer_cast(types, attrs)
    require(x.nbytes == y.nbytes, f"elements of {x} are not as wide as {attrs['to']}")
    return (y,)


def _reference_bitcast(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    return torch.from_numpy(np.array(inputs[0].numpy().view(attrs["to"])))


BITCAST = OpDef(
    name="bitcast",  # the same bits as another type of equal width; an alias for every target
    inputs=("x",),
    required=1,
    infer=_infer_bitcast,
    reference=_reference_bitcast,
    samples=(
        Sample((TensorType((2, 3)),), {"to": "int32"}),
        Sample((TensorType((4,), "uint8"),), {"to": "int8"}),
    ),
    attrs={"to": None},
    couple=same_axes,
    plain=(),
)

COMPARE = (
    *(_compare_op(*row) for row in COMPARISONS),
    *(_bit_op(*row) for row in BIT_OPS),
    _test_op("isnan", np.isnan, float("nan")),
    _test_op("isinf", np.isinf, float("inf")),
    WHERE,
    CAST,
    BITCAST,
)
