"""Helpers of operators that compute with any number type: references, safe integer division.

torch lacks most operators for unsigned integers, so integers are referred to numpy, which wraps as C does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..ir import TensorType
from .opdef import (
    Attrs,
    Types,
    broadcast_shapes,
    given,
    require_plain,
)


def by_numpy(function: Callable[..., Any], *tensors: Any) -> Any:
    """A numpy function on torch tensors; the result has the first one's element type."""
    import torch

    arrays = [t.numpy() for t in tensors]
    with np.errstate(all="ignore"):
        result = np.asarray(function(*arrays))
    return torch.from_numpy(np.array(result, order="C").astype(arrays[0].dtype, copy=False))


def elementwise(torch_name: str, numpy_function: Callable[..., Any]) -> Callable[[Sequence[Any], Attrs], Any]:
    """A reference: torch's function on real numbers, if it has a name; numpy's on integers."""

    def reference(inputs: Sequence[Any], attrs: Attrs) -> Any:
        import torch

        if torch_name and inputs[0].is_floating_point():
            return getattr(torch, torch_name)(*inputs)
        return by_numpy(numpy_function, *inputs)

    return reference


def infer_broadcast(types: Types, plain: tuple[str, ...], out: str = "") -> tuple[TensorType, ...]:
    """The type of an operator of two operands, of element type `out` or the operands' own."""
    a, b = given(types, 0), given(types, 1)
    require_plain(plain, a, b)
    return (TensorType(broadcast_shapes(a.shape, b.shape), out or a.dtype),)


def truncated_divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Integer division towards zero; x / 0 is 0."""
    safe = np.where(b == 0, np.ones_like(b), b)
    return np.where(b == 0, np.zeros_like(a), a - np.fmod(a, safe)) // safe


def floor_mod(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The remainder with the divisor's sign; x mod 0 is 0."""
    safe = np.where(b == 0, np.ones_like(b), b)
    return np.where(b == 0, np.zeros_like(a), np.mod(a, safe))


def truncated_mod(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The remainder with the dividend's sign; x mod 0 is 0."""
    safe = np.where(b == 0, np.ones_like(b), b)
    return np.where(b == 0, np.zeros_like(a), np.fmod(a, safe))


def guarded(function: Callable[[Any, Any], Any], a: Any, b: Any, for_minus_one: Any) -> Any:
    """Integer division or remainder on relax expressions that no operand can crash.

    A CPU traps on x / 0 (0 here) and on the least integer / -1 (`for_minus_one` here: -x, or 0).
    """
    from tvm import relax

    dtype = dtype_of(b)
    zero, one = relax.const(0, dtype), relax.const(1, dtype)
    none = relax.op.equal(b, zero)
    if not dtype.startswith("int"):
        return relax.op.where(none, zero, function(a, relax.op.where(none, one, b)))
    minus = relax.op.equal(b, relax.const(-1, dtype))
    safe = relax.op.where(relax.op.bitwise_or(none, minus), one, b)
    result = relax.op.where(minus, for_minus_one, function(a, safe))
    return relax.op.where(none, zero, result)


def dtype_of(variable: Any) -> str:
    """The element type of a relax variable."""
    return str(variable.ty.dtype)
