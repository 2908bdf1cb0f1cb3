"""Running sums and products along an axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import emit


@dataclass(frozen=True)
class CumulateSpec:
    """x is [outer, n, inner]; `exclusive` leaves an element out of its own result."""

    dtype: str
    outer: int
    n: int
    inner: int
    product: bool
    exclusive: bool
    reverse: bool

    @property
    def tasks(self) -> int:
        return self.outer


def emit_cumulate(spec: CumulateSpec, name: str) -> Any:
    """The PrimFunc; pointers x, y."""

    def body(x: Any, y: Any, begin: Any, end: Any) -> None:
        total = emit.local(1, spec.dtype)
        with emit.loop(begin, end) as outer, emit.loop(0, spec.inner) as inner:
            emit.store(total, 0, emit.splat(1 if spec.product else 0, spec.dtype, 1))
            with emit.loop(0, spec.n) as step:
                i = spec.n - 1 - step if spec.reverse else step
                at = (outer * spec.n + i) * spec.inner + inner
                if spec.exclusive:
                    before = emit.local(1, spec.dtype)
                    emit.store(before, 0, emit.load(total, 0))
                emit.store(total, 0, _next(spec, emit.load(total, 0), emit.load(x, at)))
                emit.store(y, at, emit.load(before if spec.exclusive else total, 0))

    return emit.kernel(name, [("x", spec.dtype), ("y", spec.dtype)], body)


def _next(spec: CumulateSpec, total: Any, value: Any) -> Any:
    return total * value if spec.product else total + value
