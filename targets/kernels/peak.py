"""Kernels that do nothing useful as fast as the machine can: what rooflines are measured with.

They multiply with the same rows of mac.py, and move memory through the same kind of code, as the real ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import emit
from .mac import Mac, mac_named

ROWS, VECTORS = 5, 2
"""Accumulators: ten hide the latency of a multiply-add (4 cycles, two a cycle), and with two vectors of B and
one of A leave three of 16 registers to the steps of the integer rows."""
STEPS = 64
UNROLL = 4
STREAM_VECTORS = 16
"""Vectors that a round of a stream moves."""


@dataclass(frozen=True)
class RateSpec:
    """`mac` (a row's name) over and over. A task is STEPS steps of k on ROWS x VECTORS accumulators."""

    mac: str
    lanes: int

    @property
    def row(self) -> Mac:
        return mac_named(self.mac, self.lanes)

    @property
    def operations(self) -> int:
        """Of a task; a multiply-add counts 2."""
        return 2 * STEPS * ROWS * VECTORS * self.row.group * self.row.lanes


@dataclass(frozen=True)
class StreamSpec:
    """Reads a working set from end to end, or copies it to another. A task is one pass.

    Pointers x, the number of blocks of `block_bytes` (one int32), y. A copy adds one to every int32, or the
    compiler would call memcpy, which other kernels do not do.
    """

    kind: str  # "read" or "copy"
    lanes: int

    @property
    def block_bytes(self) -> int:
        return 4 * self.lanes * STREAM_VECTORS


def emit_rate(spec: RateSpec, name: str) -> Any:
    """The PrimFunc; pointers a [STEPS * ROWS * group], b [VECTORS vectors], y [ROWS * VECTORS vectors]."""
    mac = spec.row

    def body(a: Any, b: Any, y: Any, begin: Any, end: Any) -> None:
        acc = emit.local(ROWS * VECTORS, emit.vector(mac.acc_dtype, mac.lanes))
        for i in range(ROWS * VECTORS):
            emit.store(acc, i, mac.zero())
        columns = [mac.load_b(b, v * mac.lanes * mac.group) for v in range(VECTORS)]

        def step(k: Any) -> None:
            for r in range(ROWS):
                # A comes anew each time, as in a product; B stays, so that no widening is measured.
                value = mac.load_a(a, (k * ROWS + r) * mac.group)
                for v in range(VECTORS):
                    at = r * VECTORS + v
                    emit.store(acc, at, mac.step(emit.load(acc, at), value, columns[v]))

        with emit.loop(begin, end), emit.loop(0, STEPS // UNROLL) as k:
            for u in range(UNROLL):
                step(k * UNROLL + u)
        for i in range(ROWS * VECTORS):
            emit.store(y, i * mac.lanes, emit.load(acc, i), mac.lanes)

    params = [("a", mac.a_dtype), ("b", mac.b_dtype), ("y", mac.acc_dtype)]
    return emit.kernel(name, params, body, wrapped=mac.wrapped)


def emit_stream(spec: StreamSpec, name: str) -> Any:
    """The PrimFunc; pointers x, blocks, y."""
    lanes, count = spec.lanes, STREAM_VECTORS

    def read(x: Any, blocks: Any, y: Any, begin: Any, end: Any) -> None:
        sums = emit.local(count // 2, emit.vector("int32", lanes))
        for i in range(count // 2):
            emit.store(sums, i, emit.splat(0, "int32", lanes))
        with emit.loop(begin, end), emit.loop(0, emit.cast(emit.load(blocks, 0), "int64", 1)) as block:
            for i in range(count):
                at = i % (count // 2)
                part = emit.load(x, (block * count + i) * lanes, lanes)
                emit.store(sums, at, emit.load(sums, at) + part)
        for i in range(count // 2):
            emit.store(y, i * lanes, emit.load(sums, i), lanes)

    def copy(x: Any, blocks: Any, y: Any, begin: Any, end: Any) -> None:
        with emit.loop(begin, end), emit.loop(0, emit.cast(emit.load(blocks, 0), "int64", 1)) as block:
            for i in range(count):
                at = (block * count + i) * lanes
                emit.store(y, at, emit.load(x, at, lanes) + emit.splat(1, "int32", lanes), lanes)

    body = {"read": read, "copy": copy}[spec.kind]
    return emit.kernel(name, [("x", "int32"), ("blocks", "int32"), ("y", "int32")], body)
