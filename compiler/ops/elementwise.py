"""Elementwise operators: activations as nodes, other functions of one value, binary arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..ir import TensorType
from .activations import ACT_ATTRS, ACTIVATIONS, activate, activate_relax
from .epilogue import store
from .opdef import Attrs, Coupling, OpDef, Sample, Types, broadcast_shapes, require


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


def _function_op(name: str, torch_name: str, relax_name: str, low: float, high: float) -> OpDef:
    def reference(inputs: Sequence[Any], attrs: Attrs) -> Any:
        import torch

        return getattr(torch, torch_name)(inputs[0])

    def lower(args: Sequence[Any], attrs: Attrs) -> Any:
        from tvm import relax

        return getattr(relax.op, relax_name)(args[0])

    return OpDef(
        name=name,
        inputs=("x",),
        required=1,
        infer=_infer_unary,
        reference=reference,
        samples=(Sample((TensorType((3, 37)),), {}, low, high),),
        couple=same_axes,
        flops=lambda types, outs, attrs: outs[0].size,
        relax=lower,
    )


FUNCTIONS = (
    # name, torch, relax, range of the samples
    ("exp", "exp", "exp", -4.0, 4.0),
    ("log", "log", "log", 0.1, 9.0),
    ("sqrt", "sqrt", "sqrt", 0.0, 9.0),
    ("rsqrt", "rsqrt", "rsqrt", 0.1, 9.0),
    ("neg", "neg", "negative", -4.0, 4.0),
    ("abs", "abs", "abs", -4.0, 4.0),
    ("erf", "erf", "erf", -3.0, 3.0),
)


def _infer_binary(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    a, b = types
    assert a is not None and b is not None
    require(a.dtype == b.dtype == "float32", f"operands must be float32, got {a} and {b}")
    return (TensorType(broadcast_shapes(a.shape, b.shape)),)


def _couple_binary(types: Types, attrs: Attrs) -> tuple[Coupling, ...]:
    """Axes aligned from the right; where one operand is broadcast, only the other goes with the output."""
    a, b = types
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


def _binary_op(name: str, torch_name: str, relax_name: str) -> OpDef:
    def reference(inputs: Sequence[Any], attrs: Attrs) -> Any:
        import torch

        return getattr(torch, torch_name)(inputs[0], inputs[1])

    def lower(args: Sequence[Any], attrs: Attrs) -> Any:
        from tvm import relax

        return getattr(relax.op, relax_name)(args[0], args[1])

    return OpDef(
        name=name,
        inputs=("a", "b"),
        required=2,
        infer=_infer_binary,
        reference=reference,
        samples=(
            Sample((TensorType((2, 5, 6)), TensorType((2, 5, 6)))),
            Sample((TensorType((1, 8, 4, 5)), TensorType((1, 8, 1, 1)))),
            Sample((TensorType((3, 1, 4)), TensorType((4,)))),
        ),
        couple=_couple_binary,
        flops=lambda types, outs, attrs: outs[0].size,
        relax=lower,
    )


BINARIES = (
    ("sub", "sub", "subtract"),
    ("mul", "mul", "multiply"),
    ("div", "div", "divide"),
    ("maximum", "maximum", "maximum"),
    ("minimum", "minimum", "minimum"),
)


def _infer_add(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    a, b = types
    assert a is not None and b is not None
    require({a.dtype, b.dtype} <= {"float32", "uint8"}, f"operands must be float32 or uint8, got {a} and {b}")
    require(
        attrs["act"] in ACTIVATIONS, f"activation {attrs['act']!r} is not one of {', '.join(ACTIVATIONS)}"
    )
    return (TensorType(broadcast_shapes(a.shape, b.shape), str(attrs["out_dtype"])),)


def _reference_add(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    def real(x: Any, which: str) -> Any:
        if x.dtype == torch.float32 and attrs[f"{which}_scale"] == 1.0:
            return x
        return (x.to(torch.float32) - float(attrs[f"{which}_zero"])) * torch.tensor(
            attrs[f"{which}_scale"], dtype=torch.float32
        )

    return store(activate(real(inputs[0], "a") + real(inputs[1], "b"), attrs), attrs)


def _relax_add(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    return activate_relax(relax.op.add(args[0], args[1]), attrs)


_Q8 = {"a_scale": 0.7137, "a_zero": 3, "b_scale": 1.2911, "b_zero": 128, "y_zero": 10, "out_dtype": "uint8"}

ADD = OpDef(
    name="add",
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
    ),
    attrs={
        **ACT_ATTRS,
        "a_scale": 1.0,
        "a_zero": 0,
        "b_scale": 1.0,
        "b_zero": 0,
        "y_inv": 1.0,
        "y_zero": 0,
        "out_dtype": "float32",
    },
    couple=_couple_binary,
    flops=lambda types, outs, attrs: outs[0].size,
    relax=_relax_add,
)

ELEMENTWISE = (
    *(_activation_op(name) for name in ACTIVATIONS if name != "none"),
    *(_function_op(*row) for row in FUNCTIONS),
    *(_binary_op(*row) for row in BINARIES),
    ADD,
)
