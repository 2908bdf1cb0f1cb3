"""What selection makes of a node: kernel calls, named by their spec, before anything has an address."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

STACK_BYTES = 2 << 20
"""What a kernel may keep on the stack: threads have 8 MiB as a rule."""


@dataclass(frozen=True)
class Weights:
    """A packed operand of a kernel. `make` packs it; `nbytes` is known without. `key`: operands of one key,
    unless it is "", are the same bytes and lie in one place."""

    nbytes: int
    make: Callable[[], np.ndarray] = field(compare=False)
    key: str = ""


@dataclass(frozen=True)
class Temporary:
    """Memory between two calls of one node."""

    name: str
    nbytes: int


Operand = str | Weights | Temporary
"""A value of the graph, packed weights, or memory of the node's own."""


@dataclass(frozen=True)
class KernelCall:
    """One call. `spec` says all about the code: equal specs are one kernel. `operands` are the pointers in
    order; the last one is written."""

    spec: Any
    operands: tuple[Operand, ...]
    tasks: int

    @property
    def symbol(self) -> str:
        return kernel_symbol(self.spec)


Calls = KernelCall | tuple[KernelCall, ...]
"""What computes a node: one call, or several in order."""


def kernel_symbol(spec: Any) -> str:
    """The C name of a spec's kernel."""
    kind = type(spec).__name__.removesuffix("Spec").lower()
    return f"{kind}_{hashlib.sha256(repr(spec).encode()).hexdigest()[:16]}"
