"""Codes whose errors make each other good: GPTQ's column loop for every format, then sweeps.

    for each group               fit scale and table on its weights as they are now, weighted by 1 / U[j, j]^2
      for each of its columns    code = nearest level; subtract error * U[j, j:] / U[j, j] from what follows
    for each sweep               each code, then each scale, to the value of least error beside all others

The first part is GPTQ (Frantar et al., ICLR 2023, arXiv 2210.17323), for grouped tables of any kind: only fit
and nearest level are the format's own. For binary codes the alternation of ShiftAddLLM (You et al., NeurIPS
2024) is that fit. The sweeps are coordinate descent (as in QuantEase, Behdin et al., 2023): none makes the
error larger. The error is tr(E H E^T), of the layer's outputs on the calibration inputs; no row ends with
more of it than rounding leaves.

Where layers before are coded, inputs are no longer those of the float network. With D the sum of (input there
- input here) x input, W + W D H^-1 gives the float network's outputs as well as a matrix can (QEP, Arai and
Ichikawa, NeurIPS 2025; GPTAQ, Li et al., ICML 2025). Samples are few, so that codes go a part of that way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .coded import Coded, Format
from .encode import (
    checked,
    decode,
    encode,
    row_scale_of,
)
from .factor import (
    DAMPING,
    Block,
    blocks_of,
    checked_hessian,
    factor_of,
)
from .state import State
from .sweep import sweep

ROWS = 2048
"""Rows of a weight that are worked on at a time."""
STRIPE, STEP = 128, 16
"""Columns after which all later ones hear of the errors, and after which those of the stripe do."""
SWEEPS = 3
REGAIN = 0.5
"""SmolLM2-135M, layers in bitmod3:64 for 8192 tokens of Wikipedia, KL on other articles and on a book: none
0.535 and 0.507, half 0.390 and 0.431. Of the first six blocks alone: none 0.189 and 0.114, half 0.170 and
0.094, all 0.192 and 0.122.
"""


@dataclass(frozen=True)
class Compensation:
    """`damping`: share of the mean diagonal that is added to it. `sweeps` of coordinate descent. `regain`:
    share of what earlier layers cost that is made good."""

    damping: float = DAMPING
    sweeps: int = SWEEPS
    regain: float = REGAIN


USUAL = Compensation()


def compensate(
    weight: np.ndarray, hessian: np.ndarray, format: Format, options: Compensation = USUAL
) -> Coded:
    """The weight float32 [n, k] in codes, for inputs with hessian = X^T X [k, k] (float64 or float32, any
    factor). Takes 16 bytes * k * k beside the arguments. Raises FormatError as `encode` does, and for a
    Hessian that is none.
    """
    return Compensator(hessian, options).code(weight, format)


class Compensator:
    """`compensate` for several weights that read the same inputs: the factor is computed once for each group
    size.
    """

    def __init__(self, hessian: np.ndarray, options: Compensation = USUAL) -> None:
        self.hessian, self.options = hessian, options
        self._shared: dict[int, _Shared] = {}

    def code(self, weight: np.ndarray, format: Format, drift: np.ndarray | None = None) -> Coded:
        """`drift` [k, k]: D, None where inputs are those of the float network."""
        weight = checked(weight, format)
        if format.group not in self._shared:
            hessian = checked_hessian(self.hessian, weight.shape[1])
            self._shared = {format.group: _Shared.of(hessian, format, self.options)}
        walk, parts = _Walk(format, self.options, self._shared[format.group]), []
        for begin in range(0, len(weight), ROWS):
            rows = weight[begin : begin + ROWS]
            parts.append(walk.rows(rows if drift is None else walk.aimed(rows, drift)))
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return Coded(format, (weight.shape[0], weight.shape[1]), joined)


def output_error(weight: np.ndarray, decoded: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """float64 [n]: e H e^T of each row, the squared error of the outputs on the inputs behind H."""
    result = np.empty(len(weight))
    for begin in range(0, len(weight), ROWS):
        error = (weight[begin : begin + ROWS] - decoded[begin : begin + ROWS]).astype(hessian.dtype)
        result[begin : begin + ROWS] = np.einsum("nk,nk->n", error @ hessian, error)
    return result


@dataclass(frozen=True)
class _Shared:
    """What weights share. `hessian` float32, with its damping; `factor` in the order of `blocks`."""

    hessian: np.ndarray
    factor: np.ndarray
    blocks: list[Block]

    @staticmethod
    def of(hessian: np.ndarray, format: Format, options: Compensation) -> _Shared:
        diagonal = np.diagonal(hessian)
        blocks = blocks_of(format, diagonal)
        order = np.concatenate([block.columns for block in blocks])
        factor = factor_of(hessian, order, options.damping)
        scale = float(diagonal.mean()) or 1.0
        damped = np.divide(hessian, scale, dtype=np.float32, casting="unsafe")
        damped[np.diag_indices_from(damped)] += np.float32(options.damping)
        return _Shared(damped, factor, blocks)

    @property
    def order(self) -> np.ndarray:
        return np.concatenate([block.columns for block in self.blocks])


@dataclass(frozen=True)
class _Walk:
    format: Format
    options: Compensation
    shared: _Shared

    def rows(self, weight: np.ndarray) -> dict[str, np.ndarray]:
        """Arrays of Coded for some rows."""
        row = row_scale_of(weight, self.format)
        state = State.empty(self.format, weight, self.format.store(row))
        self.walk(weight, state)
        for _ in range(self.options.sweeps):
            if not sweep(weight, self.shared.hessian, state):
                break
        best = state.arrays(row)
        rounded = encode(weight, self.format)
        found = Coded(self.format, rounded.shape, best)
        worse = output_error(weight, decode(found), self.shared.hessian) > output_error(
            weight, decode(rounded), self.shared.hessian
        )
        if not worse.any():
            return best
        return {name: _rows(worse, rounded.arrays[name], best[name]) for name in best}

    def aimed(self, weight: np.ndarray, drift: np.ndarray) -> np.ndarray:
        """Weights that make good a share of what earlier layers cost."""
        order, factor = self.shared.order, self.shared.factor
        change = np.empty_like(weight)
        change[:, order] = (weight @ drift)[:, order] @ factor.T @ factor
        return weight + self.options.regain * change

    def walk(self, weight: np.ndarray, state: State) -> None:
        left = weight[:, self.shared.order]
        begin = 0
        for block in self.shared.blocks:
            end = begin + len(block.columns)
            importance = 1 / np.square(np.diagonal(self.shared.factor)[begin:end])
            state.fit(block, left[:, begin:end], importance / importance.max())
            for first in range(begin, end, STRIPE):
                last = min(first + STRIPE, end)
                errors = self.stripe(block, first - begin, left[:, first:last], first, state)
                left[:, last:] -= errors @ self.shared.factor[first:last, last:]
            begin = end

    def stripe(self, block: Block, at: int, left: np.ndarray, first: int, state: State) -> np.ndarray:
        """Codes the columns left [n, c], in place; their errors / U[j, j], float32 [n, c]."""
        width = left.shape[1]
        factor = self.shared.factor[first : first + width, first : first + width]
        columns = np.ascontiguousarray(left.T)
        errors = np.empty_like(columns)
        for begin in range(0, width, STEP):
            end = min(begin + STEP, width)
            for j in range(begin, end):
                decoded = state.choose(block, at + j, columns[j])
                errors[j] = (columns[j] - decoded) / factor[j, j]
                columns[j + 1 : end] -= factor[j, j + 1 : end, None] * errors[j]
            columns[end:] -= factor[begin:end, end:].T @ errors[begin:end]
        return errors.T


def _rows(where: np.ndarray, these: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.where(where.reshape(-1, *(1,) * (these.ndim - 1)), these, others)
