"""Activation functions: one table for the unary operators and for what conv2d, linear and add have fused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .opdef import Attrs


@dataclass(frozen=True)
class Activation:
    """`torch` and `relax` take (value, attributes); attributes are those of `params`."""

    torch: Callable[[Any, Attrs], Any]
    relax: Callable[[Any, Attrs], Any]
    params: tuple[str, ...] = ()


def _f() -> Any:
    import torch.nn.functional as functional

    return functional


def _t() -> Any:
    import torch

    return torch


def _r() -> Any:
    from tvm import relax

    return relax.op


def _c(value: float) -> Any:
    from tvm import relax

    return relax.const(value, "float32")


def _hard_sigmoid(x: Any) -> Any:
    return _r().clip(_r().add(_r().multiply(x, _c(1 / 6)), _c(0.5)), 0.0, 1.0)


# Infinite clip bounds are legal: relu is clip(0, inf).
ACTIVATIONS: dict[str, Activation] = {
    "none": Activation(lambda x, a: x, lambda x, a: x),
    "clip": Activation(
        lambda x, a: _t().clamp(x, a["lo"], a["hi"]),
        lambda x, a: _relax_clip(x, a["lo"], a["hi"]),
        ("lo", "hi"),
    ),
    "hard_swish": Activation(lambda x, a: _f().hardswish(x), lambda x, a: _r().multiply(x, _hard_sigmoid(x))),
    "hard_sigmoid": Activation(lambda x, a: _f().hardsigmoid(x), lambda x, a: _hard_sigmoid(x)),
    "sigmoid": Activation(lambda x, a: _t().sigmoid(x), lambda x, a: _r().sigmoid(x)),
    "silu": Activation(lambda x, a: _f().silu(x), lambda x, a: _r().multiply(x, _r().sigmoid(x))),
    "gelu": Activation(lambda x, a: _f().gelu(x), lambda x, a: _r().nn.gelu(x)),
    "tanh": Activation(lambda x, a: _t().tanh(x), lambda x, a: _r().tanh(x)),
    "leaky_relu": Activation(
        lambda x, a: _f().leaky_relu(x, a["alpha"]), lambda x, a: _r().nn.leakyrelu(x, a["alpha"]), ("alpha",)
    ),
}

ACT_ATTRS: dict[str, Any] = {"act": "none", "lo": float("-inf"), "hi": float("inf"), "alpha": 0.01}
"""Attributes of an operator with a fused activation, with their defaults."""


def _relax_clip(x: Any, lo: float, hi: float) -> Any:
    if lo > float("-inf"):
        x = _r().maximum(x, _c(lo))
    return _r().minimum(x, _c(hi)) if hi < float("inf") else x


def activate(x: Any, attrs: Attrs) -> Any:
    """The fused activation of a node on a torch tensor."""
    return ACTIVATIONS[str(attrs["act"])].torch(x, attrs)


def activate_relax(x: Any, attrs: Attrs) -> Any:
    """The fused activation of a node on a relax expression."""
    return ACTIVATIONS[str(attrs["act"])].relax(x, attrs)
