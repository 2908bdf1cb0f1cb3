"""Recurrent layers of one direction: the loop over time.

What comes from the input is computed before, for all steps at once, by a `linear` layer
(frontends/onnx/recurrent.py).

    x [steps, batch, gates * hidden]      W x_t plus all biases that are outside of a reset gate
    r [gates * hidden, hidden]            recurrent weights
    h0, c0 [batch, hidden]                state in the beginning, zeros when absent
    lengths [batch]                       int32, steps of each sequence, all when absent
    y [steps, batch, hidden], h, c        output of every step, state in the end

lstm  gates i, o, f, g     i, o, f = F(x + R h + p c); g = G(...); c' = f c + i g; h' = o H(c')
                           with `rounded` R reads h on 256 levels between its least and largest number and 0
gru   gates z, r, n        z, r = F(x + R h); n = G(x + R (r h)), or G(x + r (R h + rb)) with `after`
                           h' = (1 - z) n + z h
rnn   gate n               h' = F(x + R h)

As ONNX defines them (Hochreiter and Schmidhuber 1997, Gers et al. 2000; Cho et al. 2014).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..ir import TensorType
from .opdef import (
    Attrs,
    OpDef,
    Sample,
    Types,
    given,
    present,
    require,
)

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
FUNCTIONS = {"lstm": 3, "gru": 2, "rnn": 1}
"""How many activation functions each has: attributes `f`, `g`, `h`."""


def _t() -> Any:
    import torch

    return torch


# name -> function of (torch tensor, alpha, beta), as ONNX's recurrent operators define it
CELL_FUNCTIONS: dict[str, Callable[[Any, float, float], Any]] = {
    "sigmoid": lambda x, a, b: _t().sigmoid(x),
    "tanh": lambda x, a, b: _t().tanh(x),
    "relu": lambda x, a, b: x.clamp(min=0),
    "affine": lambda x, a, b: a * x + b,
    "leakyrelu": lambda x, a, b: _t().where(x >= 0, x, a * x),
    "thresholdedrelu": lambda x, a, b: _t().where(x > a, x, _t().zeros_like(x)),
    "scaledtanh": lambda x, a, b: a * _t().tanh(b * x),
    "hardsigmoid": lambda x, a, b: (a * x + b).clamp(0, 1),
    "elu": lambda x, a, b: _t().where(x >= 0, x, a * (_t().exp(x.clamp(max=0)) - 1)),
    "softsign": lambda x, a, b: x / (1 + x.abs()),
    "softplus": lambda x, a, b: _t().nn.functional.softplus(x),
}


def _infer(cell: str, state: int, types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    """`state`: index of the input h0 (c0 follows)."""
    x, r = given(types, 0), given(types, 1)
    require(x.dtype == r.dtype == "float32", f"x and r must be float32, got {x} and {r}")
    require(len(x.shape) == 3 and x.size > 0, f"x is {x}, must be [steps, batch, gates * hidden]")
    require(len(r.shape) == 2, f"r is {r}, must be [gates * hidden, hidden]")
    gates, hidden = GATES[cell], r.shape[1]
    wide = x.shape[2] == r.shape[0] == gates * hidden
    require(wide, f"x {x} and r {r} do not fit {gates} gates of {hidden} units")
    steps, batch = x.shape[:2]
    for index in range(state, state + (2 if cell == "lstm" else 1)):
        kind, want = present(types, index), TensorType((batch, hidden))
        require(kind is None or kind == want, f"a state is {kind}, must be {want}")
    lengths, want = present(types, state + (2 if cell == "lstm" else 1)), TensorType((batch,), "int32")
    require(lengths is None or lengths == want, f"lengths are {lengths}, must be {want}")
    extra, want = present(types, 2), TensorType((3 * hidden if cell == "lstm" else hidden,))
    if cell != "rnn":
        require(extra is None or extra == want, f"input 2 is {extra}, must be {want}")
    require(cell != "gru" or extra is None or attrs["after"], "bias goes with `after`")
    _check_attrs(cell, attrs, batch)
    last = TensorType((batch, hidden))
    states = (last, last) if cell == "lstm" else (last,)
    return (TensorType((steps, batch, hidden)), *states)


def _check_attrs(cell: str, attrs: Attrs, batch: int) -> None:
    count = FUNCTIONS[cell]
    for name in "fgh"[:count]:
        known = attrs[name] in CELL_FUNCTIONS
        require(known, f"{name} is {attrs[name]!r}, must be one of {', '.join(CELL_FUNCTIONS)}")
    for name in ("alpha", "beta"):
        require(len(attrs[name]) == count, f"{name} must have {count} numbers, has {attrs[name]}")
    require(not attrs.get("rounded") or batch == 1, f"`rounded` is of one sequence, not {batch}")


def _loop(
    x: Any, states: list[Any], lengths: Any, attrs: Attrs, step: Callable[[Any, list[Any]], list[Any]]
) -> tuple[Any, ...]:
    """y and the last states. Steps behind a sequence's length give zeros and leave the states alone."""
    torch = _t()
    steps, batch = x.shape[:2]
    lengths = torch.full((batch,), steps) if lengths is None else lengths
    y = torch.zeros(steps, batch, states[0].shape[1])
    for t in reversed(range(steps)) if attrs["reverse"] else range(steps):
        alive = (t < lengths)[:, None]
        new = step(x[t], states)
        states = [torch.where(alive, a, b) for a, b in zip(new, states, strict=True)]
        y[t] = torch.where(alive, states[0], 0)
    return y, *states


def _function(attrs: Attrs, name: str) -> Callable[[Any], Any]:
    index = "fgh".index(name)
    limit = float(attrs["clip"])

    def apply(x: Any) -> Any:
        # h works on the cell's state, which is not clipped.
        x = x if name == "h" else x.clamp(-limit, limit)
        return CELL_FUNCTIONS[attrs[name]](x, attrs["alpha"][index], attrs["beta"][index])

    return apply


def _start(x: Any, r: Any, state: Any) -> Any:
    return _t().zeros(x.shape[1], r.shape[1]) if state is None else state


def _rounded(h: Any) -> Any:
    """h on the levels of ONNX's DynamicQuantizeLinear."""
    torch = _t()
    low, high = h.min().clamp(max=0), h.max().clamp(min=0)
    scale = torch.where(high > low, (high - low) / 255, 1.0)
    zero = torch.round((-low / scale).clamp(0, 255))
    return ((torch.round(h / scale) + zero).clamp(0, 255) - zero) * scale


def _reference_lstm(inputs: Sequence[Any], attrs: Attrs) -> Any:
    x, r, peephole, h0, c0, lengths = (*inputs, None, None, None, None)[:6]
    f, g, h = (_function(attrs, name) for name in "fgh")
    pi, po, pf = (0, 0, 0) if peephole is None else peephole.chunk(3)

    def step(xt: Any, states: list[Any]) -> list[Any]:
        read = _rounded(states[0]) if attrs["rounded"] else states[0]
        i, o, forget, new = (xt + read @ r.T).chunk(4, dim=1)
        c = states[1]
        i = f(i + pi * c)
        forget = 1 - i if attrs["coupled"] else f(forget + pf * c)
        c = forget * c + i * g(new)
        return [f(o + po * c) * h(c), c]

    return _loop(x, [_start(x, r, h0), _start(x, r, c0)], lengths, attrs, step)


def _reference_gru(inputs: Sequence[Any], attrs: Attrs) -> Any:
    x, r, bias, h0, lengths = (*inputs, None, None, None)[:5]
    f, g = (_function(attrs, name) for name in "fg")
    hidden = r.shape[1]

    def step(xt: Any, states: list[Any]) -> list[Any]:
        (h,) = states
        z, reset = f(xt[:, : 2 * hidden] + h @ r[: 2 * hidden].T).chunk(2, dim=1)
        if attrs["after"]:
            inner = h @ r[2 * hidden :].T
            inner = reset * (inner if bias is None else inner + bias)
        else:
            inner = (reset * h) @ r[2 * hidden :].T
        return [(1 - z) * g(xt[:, 2 * hidden :] + inner) + z * h]

    return _loop(x, [_start(x, r, h0)], lengths, attrs, step)


def _reference_rnn(inputs: Sequence[Any], attrs: Attrs) -> Any:
    x, r, h0, lengths = (*inputs, None, None)[:4]
    f = _function(attrs, "f")
    return _loop(x, [_start(x, r, h0)], lengths, attrs, lambda xt, states: [f(xt + states[0] @ r.T)])


def _flops(types: Types, outs: Sequence[TensorType], attrs: Attrs) -> int:
    x, r = given(types, 0), given(types, 1)
    return 2 * x.shape[0] * x.shape[1] * r.size + 10 * outs[0].size


def _attrs(cell: str) -> dict[str, Any]:
    count = FUNCTIONS[cell]
    defaults = {"f": "tanh" if cell == "rnn" else "sigmoid", "g": "tanh", "h": "tanh"}
    return {
        **{name: defaults[name] for name in "fgh"[:count]},
        "alpha": (0.0,) * count,
        "beta": (0.0,) * count,
        "clip": float("inf"),  # of what the gates' functions f and g read
        "reverse": False,  # from the last step to the first
    }


def _waves(*shape: int) -> np.ndarray:
    """Numbers between -1 and 1 without a pattern that a permutation could keep."""
    return np.sin(np.arange(math.prod(shape), dtype=np.float32) ** 1.3).reshape(shape).astype(np.float32)


def _samples(cell: str) -> tuple[Sample, ...]:
    gates = GATES[cell]

    def sample(
        steps: int,
        batch: int,
        hidden: int,
        extra: bool = False,
        states: bool = False,
        lengths: tuple[int, ...] = (),
        **attrs: Any,
    ) -> Sample:
        """`extra`: with the cell's own input, peepholes or a bias. Weights are arrays: kernels pack them."""
        x, first = TensorType((steps, batch, gates * hidden)), TensorType((batch, hidden))
        r = _waves(gates * hidden, hidden) * np.float32(2 / hidden**0.5)
        own = _waves(3 * hidden if cell == "lstm" else hidden)
        more: list[Any] = [own if extra else None] if cell != "rnn" else []
        more += [first if states else None] * (2 if cell == "lstm" else 1)
        ends = [np.array(lengths, np.int32)] if lengths else []
        return Sample((x, r, *more, *ends) if extra or states or lengths else (x, r), attrs)

    own: dict[str, Any] = {"lstm": {"coupled": True}, "gru": {"after": True}, "rnn": {}}[cell]
    count = FUNCTIONS[cell]
    others: dict[str, Any] = {
        "f": "hardsigmoid",
        **({"g": "softsign"} if count > 1 else {}),
        **({"h": "scaledtanh"} if count > 2 else {}),
        "alpha": (0.2, 0.0, 0.9)[:count],
        "beta": (0.5, 0.0, 0.7)[:count],
    }
    return (
        sample(1, 1, 40, states=True),
        sample(5, 1, 128, reverse=True),
        sample(4, 3, 37, extra=True, states=True, **own),
        sample(3, 8, 16, clip=0.3),
        sample(6, 4, 21, extra=True, lengths=(6, 0, 3, 4), **own),
        sample(6, 2, 9, states=True, reverse=True, lengths=(2, 5), **own),
        sample(2, 2, 11, **others),
        *([sample(3, 1, 21, states=True, rounded=True)] if cell == "lstm" else []),
    )


LSTM = OpDef(
    name="lstm",
    inputs=("x", "r", "peephole", "h0", "c0", "lengths"),  # peephole: of i, o, f, [3 * hidden]
    required=2,
    infer=lambda types, attrs: _infer("lstm", 3, types, attrs),
    reference=_reference_lstm,
    samples=_samples("lstm"),
    attrs={**_attrs("lstm"), "coupled": False, "rounded": False},  # coupled: the forget gate is 1 - i
    flops=_flops,
)

GRU = OpDef(
    name="gru",
    inputs=("x", "r", "bias", "h0", "lengths"),  # bias: of R h in the gate n, where `after` sets it apart
    required=2,
    infer=lambda types, attrs: _infer("gru", 3, types, attrs),
    reference=_reference_gru,
    samples=_samples("gru"),
    attrs={**_attrs("gru"), "after": False},  # the reset gate works on R h, not on h
    flops=_flops,
)

RNN = OpDef(
    name="rnn",
    inputs=("x", "r", "h0", "lengths"),
    required=2,
    infer=lambda types, attrs: _infer("rnn", 2, types, attrs),
    reference=_reference_rnn,
    samples=_samples("rnn"),
    attrs=_attrs("rnn"),
    flops=_flops,
)

RECURRENT = (LSTM, GRU, RNN)
