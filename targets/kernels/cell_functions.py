"""The activation functions of recurrent cells on a float32 vector (compiler/ops/recurrent.py names them)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from . import emit


def apply(function: tuple[str, float, float], x: Any, lanes: int) -> Any:
    """`function` is (name, alpha, beta). `x` is used several times: it should be a loaded value."""
    name, alpha, beta = function

    def c(value: float) -> Any:
        return emit.splat(value, "float32", lanes)

    def tanh(x: Any) -> Any:
        return c(1.0) - c(2.0) / (c(1.0) + emit.exp(x + x, lanes))

    def soft_plus() -> Any:
        """max(x, 0) + log(1 + exp(-|x|))"""
        bent = c(1.0) + emit.exp(c(0.0) - emit.vmax(x, c(0.0) - x), lanes)
        return emit.vmax(x, c(0.0)) + emit.intrinsic("llvm.log", emit.vector("float32", lanes), bent)

    rows: dict[str, Callable[[], Any]] = {
        "sigmoid": lambda: c(1.0) / (c(1.0) + emit.exp(c(0.0) - x, lanes)),
        "tanh": lambda: tanh(x),
        "relu": lambda: emit.vmax(x, c(0.0)),
        "affine": lambda: x * c(alpha) + c(beta),
        "leakyrelu": lambda: tirx.Select(x >= c(0.0), x, x * c(alpha)),
        "thresholdedrelu": lambda: tirx.Select(x > c(alpha), x, c(0.0)),
        "scaledtanh": lambda: c(alpha) * tanh(x * c(beta)),
        "hardsigmoid": lambda: emit.vmin(emit.vmax(x * c(alpha) + c(beta), c(0.0)), c(1.0)),
        "elu": lambda: tirx.Select(
            x >= c(0.0), x, c(alpha) * (emit.exp(emit.vmin(x, c(0.0)), lanes) - c(1.0))
        ),
        "softsign": lambda: x / (c(1.0) + emit.vmax(x, c(0.0) - x)),
        "softplus": soft_plus,
    }
    return rows[name]()
