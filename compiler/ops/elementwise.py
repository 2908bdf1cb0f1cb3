"""Elementwise operators: activations as nodes, other functions of one value, arithmetic of two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..ir import TensorType
from .activations import (
    ACT_ATTRS,
    ACTIVATIONS,
    activate,
    activate_relax,
)
from .epilogue import store
from .numbers import (
    dtype_of,
    elementwise,
    floor_mod,
    guarded,
    infer_broadcast,
    truncated_divide,
    truncated_mod,
)
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


def same_axes(types: Types, attrs: Attrs) -> tuple[Coupling, ...]:
    """Every axis of x is the same axis of y."""
    x = types[0]
    assert x is not None
    return tuple(frozenset({("x", i), ("y", i)}) for i in range(len(x.shape)))


def _infer_unary(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x = types[0]
    assert x is not None
    require(x.dtype == "float32", f"x must be float32, got {x}")
    return (x,)


def _activation_op(name: str) -> OpDef:
    activation = ACTIVATIONS[name]
    defaults = {key: ACT_ATTRS[key] for key in activation.params}
    shown = {"lo": -0.5, "hi": 1.0, "alpha": 0.2}
    return OpDef(
        name=name,
        inputs=("x",),
        required=1,
        infer=_infer_unary,
        reference=lambda inputs, attrs: activation.torch(inputs[0], attrs),
        samples=(
            Sample((TensorType((2, 3, 5, 7)),), {k: shown[k] for k in activation.params}, -6, 6),
            Sample((TensorType((1, 130)),), {}, -9, 9),
        ),
        attrs=defaults,
        couple=same_axes,
        flops=lambda types, outs, attrs: outs[0].size,
        relax=lambda args, attrs: activation.relax(args[0], attrs),
    )


def _function_op(
    name: str, torch_name: str, relax_name: str, low: float, high: float, plain: tuple[str, ...] = REAL
) -> OpDef:
    def infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
        require_plain(plain, given(types, 0))
        return (given(types, 0),)

    def lower(args: Sequence[Any], attrs: Attrs) -> Any:
        from tvm import relax

        made = getattr(relax.op, relax_name)(args[0])
        if name == "sign" and dtype_of(args[0]).startswith("float"):  # TVM's gives 0 for what is no number
            return relax.op.where(relax.op.isnan(args[0]), args[0], made)
        return made

    integers = (TensorType((4, 9), "int64"),) if "int64" in plain else ()
    return OpDef(
        name=name,
        inputs=("x",),
        required=1,
        infer=infer,
        reference=elementwise(torch_name, getattr(np, relax_name, np.positive)),
        samples=(
            Sample((TensorType((3, 37)),), {}, low, high),
            Sample((TensorType((5,), "float64"),), {}, low, high),
            *(Sample((kind,)) for kind in integers),
        ),
        couple=same_axes,
        flops=lambda types, outs, attrs: outs[0].size,
        relax=lower,
        plain=plain,
    )


SIGNED = (*REAL, "int32", "int64")
FUNCTIONS: tuple[tuple[Any, ...], ...] = (
    # name, torch ("": numpy), relax (and numpy), range of the samples, element types if not just real
    ("exp", "exp", "exp", -4.0, 4.0),
    ("log", "log", "log", 0.1, 9.0),
    ("sqrt", "sqrt", "sqrt", 0.0, 9.0),
    ("rsqrt", "rsqrt", "rsqrt", 0.1, 9.0),
    ("neg", "neg", "negative", -4.0, 4.0, SIGNED),
    ("abs", "abs", "abs", -4.0, 4.0, SIGNED),
    ("sign", "", "sign", -4.0, 4.0, SIGNED),  # torch's gives 0 for what is no number, numpy's keeps it
    ("erf", "erf", "erf", -3.0, 3.0),
    ("floor", "floor", "floor", -9.0, 9.0),
    ("ceil", "ceil", "ceil", -9.0, 9.0),
    ("round", "round", "round", -9.0, 9.0),  # ties to even
    ("sin", "sin", "sin", -9.0, 9.0),
    ("cos", "cos", "cos", -9.0, 9.0),
    ("tan", "tan", "tan", -1.4, 1.4),
    ("asin", "asin", "asin", -1.0, 1.0),
    ("acos", "acos", "acos", -1.0, 1.0),
    ("atan", "atan", "atan", -9.0, 9.0),
    ("sinh", "sinh", "sinh", -4.0, 4.0),
    ("cosh", "cosh", "cosh", -4.0, 4.0),
    ("asinh", "asinh", "asinh", -9.0, 9.0),
    ("acosh", "acosh", "acosh", 1.1, 9.0),
    ("atanh", "atanh", "atanh", -0.9, 0.9),
)


def couple_broadcast(types: Types, attrs: Attrs) -> tuple[Coupling, ...]:
    """Axes aligned from the right; where one operand is broadcast, only the other goes with the output."""
    a, b = types[:2]
    assert a is not None and b is not None
    rank = max(len(a.shape), len(b.shape))
    out = broadcast_shapes(a.shape, b.shape)
    rules = []
    for axis in range(rank):
        slots = {("y", axis)}
        for name, kind in (("a", a), ("b", b)):
            own = axis - (rank - len(kind.shape))
            if own >= 0 and kind.shape[own] == out[axis]:
                slots.add((name, own))
        rules.append(frozenset(slots))
    return tuple(rules)


def _binary_op(
    name: str,
    torch_name: str,
    relax_name: str,
    numpy_function: Callable[..., Any],
    plain: tuple[str, ...] = NUMBERS,
) -> OpDef:
    def lower(args: Sequence[Any], attrs: Attrs) -> Any:
        from tvm import relax

        return getattr(relax.op, relax_name)(args[0], args[1])

    integers = (TensorType((3, 1, 4), "int32"), TensorType((4,), "int32"))
    low = 0.2 if name == "pow" else -2.0
    return OpDef(
        name=name,
        inputs=("a", "b"),
        required=2,
        infer=lambda types, attrs: infer_broadcast(types, plain),
        reference=elementwise(torch_name, numpy_function),
        samples=(
            Sample((TensorType((2, 5, 6)), TensorType((2, 5, 6))), {}, low),
            Sample((TensorType((1, 8, 4, 5)), TensorType((1, 8, 1, 1))), {}, low),
            Sample((TensorType((3, 1, 4)), TensorType((4,))), {}, low),
            *((Sample(integers),) if "int32" in plain else ()),
        ),
        couple=couple_broadcast,
        flops=lambda types, outs, attrs: outs[0].size,
        relax=lower,
        plain=plain,
    )


BINARIES: tuple[tuple[Any, ...], ...] = (
    # name, torch, relax, numpy for integers, element types if not all numbers
    ("sub", "sub", "subtract", np.subtract),
    ("mul", "mul", "multiply", np.multiply),
    ("maximum", "maximum", "maximum", np.maximum),
    ("minimum", "minimum", "minimum", np.minimum),
    ("pow", "pow", "power", np.power, REAL),
)


def _relax_floor_mod(a: Any, b: Any) -> Any:
    """Of real numbers, by way of fmod: TVM's a - floor(a / b) * b has no result for an infinite b."""
    from tvm import relax

    zero = relax.const(0, dtype_of(a))
    rest = relax.op.mod(a, b)
    apart = relax.op.bitwise_xor(relax.op.less(rest, zero), relax.op.less(b, zero))
    moved = relax.op.bitwise_and(relax.op.not_equal(rest, zero), apart)
    return relax.op.where(moved, relax.op.add(rest, b), rest)


def _quotient_op(name: str, torch_name: str, relax_name: str, numpy_function: Callable[..., Any]) -> OpDef:
    """Division and its remainders: on integers no operand may crash."""

    def lower(args: Sequence[Any], attrs: Attrs) -> Any:
        from tvm import relax

        function = getattr(relax.op, relax_name)
        if dtype_of(args[0]) in REAL:
            return _relax_floor_mod(*args) if name == "floor_mod" else function(*args)
        minus = relax.op.negative(args[0]) if name == "div" else relax.const(0, dtype_of(args[0]))
        return guarded(function, args[0], args[1], minus)

    a, b = (np.array(v, np.int32) for v in ([7, -7, 7, -7, -(2**31), 5], [[2], [-2], [-1], [0]]))
    base = _binary_op(name, torch_name, relax_name, numpy_function)
    return replace(
        base, samples=(*base.samples[:3], Sample((a, b)), Sample((np.abs(a), np.abs(b)))), relax=lower
    )


QUOTIENTS = (
    ("div", "div", "divide", truncated_divide),
    ("floor_mod", "remainder", "floor_mod", floor_mod),
    ("fmod", "fmod", "mod", truncated_mod),
)


def _infer_add(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    a, b = types
    assert a is not None and b is not None
    if a.dtype not in ("float32", "uint8"):
        used = {key for key, value in attrs.items() if value != ADD_ATTRS[key]}
        require(not used, f"operands are {a} and {b}: {', '.join(sorted(used))} are for float32 and uint8")
        return infer_broadcast(types, NUMBERS)
    require({a.dtype, b.dtype} <= {"float32", "uint8"}, f"operands must be float32 or uint8, got {a} and {b}")
    require(
        attrs["act"] in ACTIVATIONS, f"activation {attrs['act']!r} is not one of {', '.join(ACTIVATIONS)}"
    )
    return (TensorType(broadcast_shapes(a.shape, b.shape), str(attrs["out_dtype"])),)


def _reference_add(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    if not all(x.is_floating_point() or x.dtype == torch.uint8 for x in inputs):
        return elementwise("add", np.add)(inputs, attrs)

    def real(x: Any, which: str) -> Any:
        if x.is_floating_point() and attrs[f"{which}_scale"] == 1.0:
            return x
        return (x.to(torch.float32) - float(attrs[f"{which}_zero"])) * torch.tensor(
            attrs[f"{which}_scale"], dtype=torch.float32
        )

    return store(activate(real(inputs[0], "a") + real(inputs[1], "b"), attrs), attrs)


def _relax_add(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    return activate_relax(relax.op.add(args[0], args[1]), attrs)


_Q8 = {"a_scale": 0.7137, "a_zero": 3, "b_scale": 1.2911, "b_zero": 128, "y_zero": 10, "out_dtype": "uint8"}

ADD_ATTRS: dict[str, Any] = {
    **ACT_ATTRS,
    "a_scale": 1.0,
    "a_zero": 0,
    "b_scale": 1.0,
    "b_zero": 0,
    "y_inv": 1.0,
    "y_zero": 0,
    "out_dtype": "float32",
}

ADD = OpDef(
    name="add",  # uint8 operands are quantised; other integers are what they are
    inputs=("a", "b"),
    required=2,
    infer=_infer_add,
    reference=_reference_add,
    samples=(
        Sample((TensorType((2, 5, 6)), TensorType((2, 5, 6))), {"act": "clip", "lo": 0.0}),
        Sample((TensorType((1, 8, 4, 5)), TensorType((8, 1, 1)))),
        Sample((TensorType((1, 4, 5, 9), "uint8"), TensorType((1, 4, 5, 9), "uint8")), _Q8),
        Sample(
            (TensorType((1, 4, 5, 9), "uint8"), TensorType((1, 4, 5, 9))), {"a_scale": 0.1, "a_zero": 100}
        ),
        Sample((TensorType((3, 1, 4), "int64"), TensorType((4,), "int64"))),
    ),
    attrs=ADD_ATTRS,
    couple=couple_broadcast,
    flops=lambda types, outs, attrs: outs[0].size,
    relax=_relax_add,
    plain=NUMBERS,
)

ELEMENTWISE = (
    *(_activation_op(name) for name in ACTIVATIONS if name != "none"),
    *(_function_op(*row) for row in FUNCTIONS),
    *(_binary_op(*row) for row in BINARIES),
    *(_quotient_op(*row) for row in QUOTIENTS),
    ADD,
)
