"""linear: the product with known weights, float or int8 (matmul.py has those of computed operands)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..ir import TensorType
from .activations import activate_relax
from .epilogue import (
    EPILOGUE_ATTRS,
    check_epilogue,
    check_residual,
    finish,
    operands,
)
from .opdef import (
    Attrs,
    Coupling,
    OpDef,
    Sample,
    Types,
    given,
    present,
    require,
)


def _infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, w = types[0], types[1]
    assert x is not None and w is not None
    require(len(x.shape) >= 1, "x must have at least one dimension")
    require(len(w.shape) == 2 and w.shape[1] == x.shape[-1], f"w is {w}, must be [out, {x.shape[-1]}]")
    check_epilogue(x, w, present(types, 2), present(types, 4), w.shape[0], attrs)
    shape = (*x.shape[:-1], w.shape[0])
    check_residual(present(types, 3), shape)
    return (TensorType(shape, str(attrs["out_dtype"])),)


def _reference(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    x, w, bias, residual, scale = (*inputs, None, None, None)[:5]
    x, w = operands(x, w, attrs)
    acc = torch.nn.functional.linear(x, w, None if bias is None else bias.to(w.dtype))
    return finish(acc, residual, scale, attrs)


def _couple(types: Types, attrs: Attrs) -> tuple[Coupling, ...]:
    x = types[0]
    assert x is not None
    last = len(x.shape) - 1
    out = {("w", 0), ("y", last)}
    out |= {(name, 0) for name, i in (("bias", 2), ("scale", 4)) if present(types, i) is not None}
    out |= {("residual", last)} if present(types, 3) is not None else set()
    return frozenset(out), frozenset({("x", last), ("w", 1)})


def _relax(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    x, w, bias, residual, scale = (*args, None, None, None)[:5]
    y = relax.op.matmul(x, relax.op.permute_dims(w))
    for extra, op in ((bias, relax.op.add), (scale, relax.op.multiply), (residual, relax.op.add)):
        if extra is not None:
            y = op(y, extra)
    return activate_relax(y, attrs)


def _samples() -> tuple[Sample, ...]:
    def sample(
        rows: tuple[int, ...],
        k: int,
        n: int,
        res: str | None = None,
        q: bool = False,
        b: bool = False,
        **attrs: Any,
    ) -> Sample:
        import numpy as np

        step = np.linspace(0.5, 1.5, n, dtype=np.float32) * np.float32(0.004 / k**0.5)
        residual = None if res is None else TensorType((*rows, n), res)
        kinds = ("uint8", "int8", "int32") if q else ("float32", "bfloat16" if b else "float32", "float32")
        shapes = ((*rows, k), (n, k), (n,))
        operands = tuple(TensorType(s, d) for s, d in zip(shapes, kinds, strict=True))
        return Sample((*operands, residual, step if q else None), attrs)

    return (
        sample((1,), 40, 33),
        sample((5, 7), 17, 24, act="clip", lo=0.0),
        sample((3,), 64, 48, res="float32", act="gelu"),
        sample((1,), 1280, 1000),
        sample((4,), 31, 16, q=True, out_dtype="uint8", x_zero=12, y_zero=120),
        sample((1,), 128, 100, q=True, x_zero=3),
        sample((9,), 20, 40, q=True, res="uint8", out_dtype="uint8", r_scale=1.3, r_zero=8, y_zero=90),
        sample((2,), 24, 32, out_dtype="uint8", y_inv=25.0, y_zero=99),
        sample((1,), 41, 33, b=True),
        sample((5, 7), 18, 24, b=True, act="clip", lo=0.0),
        sample((3,), 645, 40, b=True, res="float32", act="gelu"),
        sample((9,), 520, 50, b=True, act="silu"),
    )


LINEAR = OpDef(
    name="linear",
    inputs=("x", "w", "bias", "residual", "scale"),
    required=2,
    infer=_infer,
    reference=_reference,
    samples=_samples(),
    attrs=EPILOGUE_ATTRS,
    couple=_couple,
    flops=lambda types, outs, attrs: 2 * outs[0].size * given(types, 1).shape[1],
    relax=_relax,
    layer=True,
)
