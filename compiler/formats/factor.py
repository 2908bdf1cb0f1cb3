"""The triangular factor that error compensation walks along, and in which order.

With H = X^T X of a layer's inputs, U upper triangular and H^-1 = U^T U, an error e made in column j is best
made good in the columns behind it by subtracting e * U[j, j:] / U[j, j] (Frantar et al., "GPTQ", ICLR 2023).
U comes from one Cholesky factorisation and one triangular inverse, both in float64 and in place: with rows
and columns reversed, H = L L^T, and U is the inverse of L reversed again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import FormatError
from .coded import Format
from .encode import spans

DAMPING = 0.01
LARGEST_DAMPING = 10.0


@dataclass(frozen=True)
class Block:
    """Columns that share groups: `columns` in the order of the walk; the group's number in the row."""

    group: int
    columns: np.ndarray


def blocks_of(format: Format, diagonal: np.ndarray) -> list[Block]:
    """The groups, those of large inputs first, and so the columns within each: errors that are made early can
    be made good in more columns (the act-order of GPTQ, kept within groups so that codes stay in place).
    """
    k, found = len(diagonal), []
    width = format.width(k)
    for first, count, size in spans(format, k):
        for group in range(first, first + count):
            columns = np.arange(group * width, group * width + size)
            found.append(Block(group, columns[np.argsort(-diagonal[columns], kind="stable")]))
    return sorted(found, key=lambda block: -float(diagonal[block.columns].mean()))


def checked_hessian(hessian: np.ndarray, k: int) -> np.ndarray:
    """Raises FormatError where it cannot be the X^T X of k inputs."""
    if hessian.shape != (k, k):
        raise FormatError(f"a layer with {k} inputs needs a Hessian [{k}, {k}], not {list(hessian.shape)}")
    diagonal = np.diagonal(hessian)
    if not np.isfinite(diagonal).all() or (diagonal < 0).any() or not np.isfinite(float(hessian.sum())):
        raise FormatError("the Hessian of a layer is not finite: the calibration samples overflow in it")
    return hessian


def factor_of(hessian: np.ndarray, order: np.ndarray, damping: float) -> np.ndarray:
    """U float32 [k, k], upper, for the columns in that order. `damping` times the mean of the diagonal is
    added to the diagonal, more where the result is not positive definite. Raises FormatError when nothing
    helps.
    """
    from scipy.linalg import lapack

    mean = float(np.diagonal(hessian).mean()) or 1.0
    while damping <= LARGEST_DAMPING:
        reverse = order[::-1]
        matrix = np.asarray(hessian[np.ix_(reverse, reverse)].T, np.float64, order="F")
        matrix[np.diag_indices_from(matrix)] += damping * mean
        lower, failed = lapack.dpotrf(matrix, lower=1, clean=1, overwrite_a=1)
        if not failed:
            inverse, failed = lapack.dtrtri(lower, lower=1, overwrite_c=1)
        if not failed:
            found: np.ndarray = np.ascontiguousarray(inverse[::-1, ::-1], np.float32)
            return found
        damping *= 10
    raise FormatError("the Hessian of a layer is not positive: it is no X^T X of samples")
