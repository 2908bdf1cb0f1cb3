"""What the kernel of a recurrent layer is: sizes, gates, functions, and how its weights are packed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

MOST_ROWS = 4
"""Sequences of a batch that share each load of a weight."""


@dataclass(frozen=True)
class RecurrentSpec:
    """One direction of a layer; compiler/ops/recurrent.py has the formulas.

    `functions`: (name, alpha, beta) of f, g, h. `starts`: which states have a value given. `extra`: peepholes
    of an lstm, the inner bias of a gru. `lengths`: an input says how many steps each sequence has.
    """

    cell: str
    lanes: int
    registers: int
    steps: int
    batch: int
    hidden: int
    functions: tuple[tuple[str, float, float], ...]
    starts: tuple[bool, ...]
    extra: bool = False
    lengths: bool = False
    reverse: bool = False
    clip: float = math.inf
    after: bool = False
    coupled: bool = False
    rounded: bool = False

    @property
    def rows(self) -> int:
        """Sequences that a task computes side by side, as many as have their sums in registers."""
        if self.lengths:
            return 1
        widest = max(map(len, self.products))
        return max(1, min(MOST_ROWS, self.batch, self.registers * 3 // 4 // widest))

    @property
    def tasks(self) -> int:
        """The last one takes some sequences that the one before it has too, where they do not divide."""
        return -(-self.batch // self.rows)

    @property
    def gates(self) -> int:
        return {"lstm": 4, "gru": 3, "rnn": 1}[self.cell]

    @property
    def products(self) -> tuple[tuple[int, ...], ...]:
        """Gates whose products are summed together, one tuple for each pass over the units.

        A gru whose reset gate works on the state needs all of that gate before the gate n.
        """
        if self.cell == "gru" and not self.after:
            return (0, 1), (2,)
        return (tuple(range(self.gates)),)

    @property
    def padded(self) -> int:
        """Units in whole vectors."""
        return -(-self.hidden // self.lanes) * self.lanes

    @property
    def stack_bytes(self) -> int:
        return 4 * 4 * self.rows * self.padded

    def width(self, gates: int) -> int:
        """Vectors of units of a block: sums take three quarters of the registers, and at least hide the
        latency of a multiply-add where there are units enough."""
        room = self.registers * 3 // 4
        return max(1, min(8, room // (gates * self.rows)))

    def blocks(self, gates: int) -> tuple[int, int, int]:
        """(whole blocks, vectors of the last block or 0, lanes of its last vector): the vector that is not
        full is in a block of its own kind."""
        width, full = self.width(gates), self.hidden // self.lanes
        whole = full // width
        rest = -(-self.hidden // self.lanes) - whole * width
        return whole, rest, self.hidden % self.lanes or self.lanes

    def block_list(self, gates: int) -> Iterator[tuple[int, int]]:
        """(first vector, vectors) of every block."""
        width = self.width(gates)
        whole, rest, _ = self.blocks(gates)
        yield from ((b * width, width) for b in range(whole))
        if rest:
            yield whole * width, rest


def pack_recurrent(spec: RecurrentSpec, r: np.ndarray) -> np.ndarray:
    """`r` [gates * hidden, hidden] in the order of reading: [pass][block of units][k][gate][unit]."""
    per_gate = np.zeros((spec.gates, spec.padded, spec.hidden), np.float32)
    per_gate[:, : spec.hidden] = r.reshape(spec.gates, spec.hidden, spec.hidden)
    parts = []
    for gates in spec.products:
        for first, vectors in spec.block_list(len(gates)):
            units = slice(first * spec.lanes, (first + vectors) * spec.lanes)
            parts.append(per_gate[list(gates), units].transpose(2, 0, 1).ravel())
    return np.concatenate(parts)


def pad_units(spec: RecurrentSpec, values: np.ndarray) -> np.ndarray:
    """`values` [n * hidden] with each run of units in whole vectors."""
    rows = values.reshape(-1, spec.hidden)
    return np.pad(rows, ((0, 0), (0, spec.padded - spec.hidden))).ravel()
