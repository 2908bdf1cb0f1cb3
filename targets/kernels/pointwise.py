"""Kernels over flat arrays: activations as nodes, quantize, dequantize, add of equal shapes, copies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import emit
from .epilogue import activate, quantise, real

CHUNK = 8192
"""Elements of a task."""


@dataclass(frozen=True)
class PointwiseSpec:
    """y = quantise(act(sum of real(x_i)) / y_scale) over `count` elements; `inputs` holds (dtype, scale,
    zero) of each x."""

    lanes: int
    count: int
    inputs: tuple[tuple[str, float, int], ...]
    act: str = "none"
    lo: float = -math.inf
    hi: float = math.inf
    alpha: float = 0.01
    y_inv: float = 1.0
    y_scale: float = 1.0
    y_zero: int = 0
    out_dtype: str = "float32"

    @property
    def tasks(self) -> int:
        return -(-self.count // CHUNK)


def pointwise_params(spec: PointwiseSpec) -> list[tuple[str, str]]:
    """(name, element type) of the kernel's pointers, in order."""
    return [*((f"x{i}", dtype) for i, (dtype, _, _) in enumerate(spec.inputs)), ("y", spec.out_dtype)]


def emit_pointwise(spec: PointwiseSpec, name: str) -> Any:
    """The PrimFunc."""

    def body(*args: Any) -> None:
        *xs, y, begin, end = args

        def put(at: Any, lanes: int) -> None:
            total = None
            for x, (dtype, scale, zero) in zip(xs, spec.inputs, strict=True):
                value = real(emit.load(x, at, lanes), dtype, scale, zero, lanes)
                total = value if total is None else total + value
            f = activate(total, spec, lanes)
            if spec.y_scale != 1.0:
                f = f / divisor(spec.y_scale, lanes)
            emit.store(y, at, quantise(f, spec, lanes), lanes)

        with emit.loop(begin, end) as task:
            count = emit.vmin(CHUNK, spec.count - task * CHUNK) if spec.count % CHUNK else CHUNK
            with emit.loop(0, count // spec.lanes) as i:
                put(task * CHUNK + i * spec.lanes, spec.lanes)
            if spec.count % spec.lanes:
                with emit.loop(count // spec.lanes * spec.lanes, count) as i:
                    put(task * CHUNK + i, 1)

    return emit.kernel(name, pointwise_params(spec), body)


def divisor(value: float, lanes: int) -> Any:
    """A constant to divide by, as its bits: TVM turns a division by a number into a product."""
    number = int(np.float32(value).view(np.int32))
    return emit.bits(emit.splat(number, "int32", lanes), "float32", lanes)


@dataclass(frozen=True)
class CopySpec:
    """The same bytes in another place."""

    nbytes: int

    @property
    def tasks(self) -> int:
        return -(-self.nbytes // CHUNK)


def emit_copy(spec: CopySpec, name: str) -> Any:
    """The PrimFunc; pointers x, y."""

    def body(x: Any, y: Any, begin: Any, end: Any) -> None:
        with emit.loop(begin, end) as task:
            count = emit.vmin(CHUNK, spec.nbytes - task * CHUNK)
            with emit.loop(0, count) as i:
                emit.store(y, task * CHUNK + i, emit.load(x, task * CHUNK + i))

    return emit.kernel(name, [("x", "uint8"), ("y", "uint8")], body)
