"""Coordinate descent on a layer's output error: each code, then each scale, beside all others as they are.

With E what the decoded weights lack and G = E H, the best code of weight j is the level nearest to its own
value + G[j] / H[j, j], and the best scale of a group is larger by (levels . G) / (levels H levels).
"""

from __future__ import annotations

import numpy as np

from .encode import spans
from .factor import Block
from .state import State

ENOUGH = 2e-3
"""A sweep that takes less than this share off the error is the last one."""
STRIPE = 128
"""Columns after which all others hear of the changes."""


def sweep(weight: np.ndarray, hessian: np.ndarray, state: State) -> bool:
    """One pass over all groups of weight [n, k]; hessian float32 [k, k] with a positive diagonal. False when
    it hardly helped.
    """
    lacking = weight - state.decoded()
    slope = lacking @ hessian
    before = float(np.einsum("nk,nk->", lacking, slope, dtype=np.float64))
    gained, width = 0.0, state.format.width(weight.shape[1])
    for first, count, size in spans(state.format, weight.shape[1]):
        for group in range(first, first + count):
            block = Block(group, np.arange(group * width, group * width + size))
            gained += _codes(block, hessian, slope, state)
            gained += _scale(block, hessian, slope, state) if state.free_scales else 0.0
    return gained > ENOUGH * before


def _codes(block: Block, hessian: np.ndarray, slope: np.ndarray, state: State) -> float:
    """Better codes for a group, slope float32 [n, k] kept up to date. The error that this takes off."""
    gained = 0.0
    scale = state.parameters[block.group].scale
    for begin in range(0, len(block.columns), STRIPE):
        columns = block.columns[begin : begin + STRIPE]
        inner = hessian[np.ix_(columns, columns)]
        local = np.ascontiguousarray(slope[:, columns].T)
        change = np.empty_like(local)
        for j, column in enumerate(columns):
            before = state.levels[column] * scale
            wanted = before + local[j] / inner[j, j]
            step = change[j] = state.choose(block, begin + j, wanted) - before
            gained += float(step @ (2 * local[j] - inner[j, j] * step))
            local[j:] -= inner[j, j:, None] * step
        slope -= change.T @ hessian[columns]
    return gained


def _scale(block: Block, hessian: np.ndarray, slope: np.ndarray, state: State) -> float:
    """A better scale for a group, where rounding it does not undo the gain."""
    first, last = block.columns[0], block.columns[-1] + 1
    levels, parameters = state.levels[first:last].T, state.parameters[block.group]
    size = np.einsum("ng,ng->n", levels @ hessian[first:last, first:last], levels)
    along = np.einsum("ng,ng->n", levels, slope[:, first:last])
    wanted = parameters.scale + np.divide(along, size, out=np.zeros_like(along), where=size > 0)
    step = state.store.real(wanted) - parameters.scale
    gain = step * (2 * along - size * step)
    step = np.where(gain > 0, step, 0)
    slope -= (levels * step[:, None]) @ hessian[first:last]
    state.rescale(block.group, parameters.scale + step)
    return float(np.maximum(gain, 0).sum())
