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
STRIPE = 16
"""Columns after which the others of their group hear of the changes."""


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
            gained += _group(group, slice(group * width, group * width + size), hessian, slope, state)
    return gained > ENOUGH * before


def _group(group: int, columns: slice, hessian: np.ndarray, slope: np.ndarray, state: State) -> float:
    """Better codes and a better scale for a group, slope float32 [n, k] kept up to date. The error that this
    takes off."""
    inner = hessian[columns, columns]
    local = np.ascontiguousarray(slope[:, columns].T)
    change, gained = _codes(Block(group, np.arange(columns.start, columns.stop)), inner, local.copy(), state)
    if state.free_scales:
        local -= inner @ change
        step, more = _scale(group, state.levels[columns], inner, local, state)
        change += state.levels[columns] * step
        gained += more
    slope -= change.T @ hessian[columns]
    return gained


def _codes(block: Block, inner: np.ndarray, local: np.ndarray, state: State) -> tuple[np.ndarray, float]:
    """Better codes; what they add to the decoded weights float32 [g, n], and the error that this takes off.
    local float32 [g, n] is the slope along the group's columns, and is used up."""
    gained, scale = 0.0, state.parameters[block.group].scale
    change = np.empty_like(local)
    for begin in range(0, len(local), STRIPE):
        end = min(begin + STRIPE, len(local))
        for j in range(begin, end):
            before = state.levels[block.columns[j]] * scale
            step = change[j] = state.choose(block, j, before + local[j] / inner[j, j]) - before
            gained += float(step @ (2 * local[j] - inner[j, j] * step))
            local[j + 1 : end] -= inner[j, j + 1 : end, None] * step
        local[end:] -= inner[end:, begin:end] @ change[begin:end]
    return change, gained


def _scale(
    group: int, levels: np.ndarray, inner: np.ndarray, local: np.ndarray, state: State
) -> tuple[np.ndarray, float]:
    """A better scale, where rounding it does not undo the gain: what is added to it [n], and the error that
    this takes off."""
    scale = state.parameters[group].scale
    size = np.einsum("gn,gn->n", inner @ levels, levels)
    along = np.einsum("gn,gn->n", levels, local)
    wanted = scale + np.divide(along, size, out=np.zeros_like(along), where=size > 0)
    step = state.store.real(wanted) - scale
    gain = step * (2 * along - size * step)
    step = np.where(gain > 0, step, 0)
    state.rescale(group, scale + step)
    return step, float(np.maximum(gain, 0).sum())
