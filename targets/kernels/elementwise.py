"""Elementwise arithmetic on operands that broadcast: one operator, or an expression of several in one pass.

An expression is a list of terms. The values that terms name are the inputs in order, then the terms before.
The last term is stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import emit
from .epilogue import Epilogue, activate, quantise, real
from .gelu import erfs
from .partial import load_part, store_part
from .pointwise import divisor

TASK = 8192
"""Elements of a task."""


@dataclass(frozen=True)
class Term:
    """An operator and the numbers of its operands; an activation's attributes; a conversion's scale and zero
    point."""

    op: str
    args: tuple[int, ...]
    act: str = "none"
    lo: float = -math.inf
    hi: float = math.inf
    alpha: float = 0.01
    scale: float = 1.0
    zero: int = 0


@dataclass(frozen=True)
class ElementwiseSpec:
    """y[dims] = expression over inputs; `strides` of each input along `dims`, 0 where it broadcasts; `kinds`,
    the element types of the inputs and of y: a `dequantize` reads uint8, a `quantize` makes it."""

    lanes: int
    dims: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    terms: tuple[Term, ...]
    kinds: tuple[str, ...]

    @property
    def rows(self) -> int:
        return math.prod(self.dims[:-1])

    @property
    def chunk(self) -> int:
        """Rows of a task."""
        return max(1, TASK // self.dims[-1])

    @property
    def tasks(self) -> int:
        return -(-self.rows // self.chunk) if self.rows > 1 else -(-self.dims[-1] // TASK)


def elementwise_params(spec: ElementwiseSpec) -> list[tuple[str, str]]:
    """(name, element type) of the kernel's pointers, in order."""
    names = [*(f"x{i}" for i in range(len(spec.strides))), "y"]
    return list(zip(names, spec.kinds, strict=True))


def emit_elementwise(spec: ElementwiseSpec, name: str) -> Any:
    """The PrimFunc."""

    def body(*args: Any) -> None:
        *xs, y, begin, end = args
        if spec.rows > 1:
            last = emit.vmin(end * spec.chunk, spec.rows)
            with emit.loop(begin * spec.chunk, last) as row:
                _row(spec, xs, y, row, 0, spec.dims[-1])
            return
        with emit.loop(begin, end) as task:
            _row(spec, xs, y, 0, task * TASK, emit.vmin(spec.dims[-1] - task * TASK, TASK))

    return emit.kernel(name, elementwise_params(spec), body)


def _row(spec: ElementwiseSpec, xs: list[Any], y: Any, row: Any, first: Any, count: Any) -> None:
    """Elements [first, first + count) of one index of all dimensions but the last."""
    lanes, last = spec.lanes, spec.dims[-1]
    starts = [_start(spec.dims[:-1], strides[:-1], row) for strides in spec.strides]

    def put(at: Any, valid: int) -> None:
        values = [
            load_part(x, kind, start + at, lanes, valid)
            if strides[-1]
            else emit.splat(emit.load(x, start), kind, lanes)
            for x, kind, start, strides in zip(xs, spec.kinds, starts, spec.strides, strict=False)
        ]
        store_part(y, spec.kinds[-1], row * last + at, _value(spec, values), lanes, valid)

    whole = last // lanes if isinstance(count, int) else count // lanes
    emit.over(0, whole, lambda j: put(first + j * lanes, lanes))
    if not last % lanes:
        return
    if isinstance(count, int):
        put(last // lanes * lanes, last % lanes)
        return
    with emit.when(first + count == last):
        put(last // lanes * lanes, last % lanes)


def _start(dims: tuple[int, ...], strides: tuple[int, ...], row: Any) -> Any:
    """Offset of an input's row."""
    offset: Any = 0
    for axis in reversed(range(len(dims))):
        if strides[axis]:
            offset = offset + (row % dims[axis] if axis else row) * strides[axis]
        row = row // dims[axis]
    return offset


def _value(spec: ElementwiseSpec, inputs: list[Any]) -> Any:
    """The expression on vectors; every value is kept, because terms may use it several times."""
    lanes, count = spec.lanes, len(inputs)
    kept = emit.local(count + len(spec.terms), emit.vector("float32", lanes))
    for i, (value, kind) in enumerate(zip(inputs, spec.kinds, strict=False)):
        emit.store(kept, i, real(value, kind, 1.0, 0, lanes))
    for i, term in enumerate(spec.terms):
        args = [emit.load(kept, a) for a in term.args]
        if term.op == "quantize":
            steps = args[0] / divisor(term.scale, lanes)
            return quantise(steps, Epilogue(y_zero=term.zero, out_dtype="uint8"), lanes)
        emit.store(kept, count + i, _term(term, args, lanes))
    return emit.load(kept, count + len(spec.terms) - 1)


def _term(term: Term, args: list[Any], lanes: int) -> Any:
    if term.op == "dequantize":
        return real(args[0], "float32", term.scale, term.zero, lanes)
    return activate(OPERATORS[term.op](lanes, *args) if term.op else args[0], term, lanes)


def _exp(lanes: int, x: Any) -> Any:
    """e**x with overflow to infinity and underflow to zero."""

    def c(value: float) -> Any:
        return emit.splat(value, "float32", lanes)

    # emit.exp ends at 88; beyond, a quarter of the result still fits, and four times that overflows in time.
    high = x > c(88.0)
    inside = emit.exp(emit.select(high, x - c(2 * math.log(2)), x), lanes)
    return emit.select(x < c(-87.0), c(0.0), inside * emit.select(high, c(4.0), c(1.0)))


OPERATORS: dict[str, Callable[..., Any]] = {
    "add": lambda lanes, a, b: a + b,
    "sub": lambda lanes, a, b: a - b,
    "mul": lambda lanes, a, b: a * b,
    "div": lambda lanes, a, b: a / b,
    "maximum": lambda lanes, a, b: emit.larger(a, b),
    "minimum": lambda lanes, a, b: emit.smaller(a, b),
    "neg": lambda lanes, x: emit.splat(0.0, "float32", lanes) - x,
    "abs": lambda lanes, x: emit.vmax(x, emit.splat(0.0, "float32", lanes) - x),
    "sqrt": lambda lanes, x: emit.intrinsic("llvm.sqrt", emit.vector("float32", lanes), x),
    "rsqrt": lambda lanes, x: (
        emit.splat(1.0, "float32", lanes) / emit.intrinsic("llvm.sqrt", emit.vector("float32", lanes), x)
    ),
    "exp": _exp,
    "erf": lambda lanes, x: erfs([x], lanes)[0],
}
"""What is computed beside activations; a term without operator is an activation alone."""

CONVERSIONS = ("quantize", "dequantize")
"""The last term, and one that reads an input."""
