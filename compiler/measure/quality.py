"""Quality: how far a compiled model's outputs are from the float model's, and from labels if given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import InputError

Outputs = Sequence[Mapping[str, np.ndarray]]
"""Outputs by name, one mapping for each run, all with the same names in the same order."""
SQNR_LIMIT = 200.0  # decibels; equal outputs have no noise, and float32 itself carries 150
KL_OF_BROKEN = 1e6  # nats; what outputs count that are not finite
Labels = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Quality:
    """Against the float model, on the same inputs. The first output counts for all but `outputs`.

    agreement   share (0..1) of rows whose largest entry is at the same place; None when rows have one entry
    kl          mean KL(float || compiled) of softmax over the last axis, nats; None when rows have one entry
    sqnr_db     10 log10(sum float^2 / sum (float - compiled)^2), within +-200
    accuracy    share of rows whose largest entry is the label; None without labels
    n           independent items: the leading axis of the first output, summed over the runs
    kl_error    standard error of `kl` from its spread over the items
    outputs     sqnr_db of every output by name
    score       what the caller's own function returned, higher is better; None when there is none
    cosine      mean over rows of the cosine between the float row and this one; None when rows have one entry
    cosine_error  standard error of `cosine` from its spread over the items
    """

    agreement: float | None
    kl: float | None
    sqnr_db: float
    accuracy: float | None
    n: int
    kl_error: float | None = None
    outputs: Mapping[str, float] | None = None
    score: float | None = None
    cosine: float | None = None
    cosine_error: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Quality:
        return Quality(**data)


def quality(
    reference: Outputs, outputs: Outputs, labels: Labels | None = None, *, score: float | None = None
) -> Quality:
    """Quality of `outputs` against `reference`, the float model's on the same inputs.

    `labels`: class index of every row of the first output, in order (one per picture for a classifier);
    `score`: what the caller's own function returned, kept as it is.
    Raises InputError when the runs do not match or the labels do not fit.
    """
    if not reference or len(reference) != len(outputs):
        raise InputError(f"quality compares run by run: {len(reference)} float runs, {len(outputs)} others")
    names = list(reference[0])
    _check_shapes(reference, outputs)
    sqnr = {name: sqnr_db([r[name] for r in reference], [o[name] for o in outputs]) for name in names}
    ref, out = [r[names[0]] for r in reference], [o[names[0]] for o in outputs]
    items = sum(a.shape[0] if a.ndim > 1 else 1 for a in ref)
    if ref[0].ndim == 0 or ref[0].shape[-1] < 2:
        if labels is not None:
            raise InputError(f"labels need a classifier: output {names[0]!r} has shape {ref[0].shape}")
        return Quality(None, None, sqnr[names[0]], None, items, outputs=sqnr, score=score)
    classes = ref[0].shape[-1]
    a, b = (np.concatenate([np.asarray(x, np.float64).reshape(-1, classes) for x in xs]) for xs in (ref, out))
    divergence = _kl_rows(a, b).reshape(items, -1).mean(axis=1)
    cosine = _cosine_rows(a, b).reshape(items, -1).mean(axis=1)
    return Quality(
        agreement=float(np.mean(_top1(a) == _top1(b))),
        kl=float(divergence.mean()),
        sqnr_db=sqnr[names[0]],
        accuracy=None if labels is None else float(np.mean(_top1(b) == _checked(labels, len(b), classes))),
        n=items,
        kl_error=float(divergence.std() / math.sqrt(items)),
        outputs=sqnr,
        score=score,
        cosine=float(cosine.mean()),
        cosine_error=float(cosine.std() / math.sqrt(items)),
    )


def _check_shapes(reference: Outputs, outputs: Outputs) -> None:
    for a, b in zip(reference, outputs, strict=True):
        shapes, expected = ({name: array.shape for name, array in run.items()} for run in (b, a))
        if shapes != expected:
            raise InputError(f"outputs have the shapes {shapes}, the float model's {expected}")


def sqnr_db(reference: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> float:
    """Signal to quantisation noise over all arrays together, decibels, within +-200."""
    signal = sum(float(np.sum(np.square(a, dtype=np.float64))) for a in reference)
    pairs = zip(reference, outputs, strict=True)
    noise = sum(float(np.sum((a.astype(np.float64) - b) ** 2)) for a, b in pairs)
    if not math.isfinite(noise):
        return -SQNR_LIMIT
    if noise == 0 or signal == 0:
        return SQNR_LIMIT if noise == 0 else -SQNR_LIMIT
    return max(-SQNR_LIMIT, min(SQNR_LIMIT, 10 * math.log10(signal / noise)))


def decibels(value: float) -> str:
    """As people read it: outputs that are equal to the last bit have no noise, so no number either."""
    return "exact" if value >= SQNR_LIMIT else f"{value:.1f}"


def squared_error(reference: np.ndarray, output: np.ndarray) -> float:
    """sum (reference - output)^2 / sum reference^2; the denominator is 1 when the reference is all zero."""
    signal = float(np.sum(np.square(reference, dtype=np.float64)))
    noise = float(np.sum((reference.astype(np.float64) - output) ** 2))
    return noise / signal if signal > 0 else noise


def mean_kl(reference: np.ndarray, output: np.ndarray) -> float:
    """Mean over rows of KL(softmax(reference) || softmax(output)), last axis, nats."""
    classes = reference.shape[-1]
    rows = (np.asarray(x, np.float64).reshape(-1, classes) for x in (reference, output))
    return float(_kl_rows(*rows).mean())


def _top1(rows: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(rows).all(axis=1), rows.argmax(axis=1), -1)


def log_softmax(rows: np.ndarray) -> np.ndarray:
    """Along the last axis, float64."""
    wide = rows.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)  # the largest becomes 0: exp cannot overflow
    found: np.ndarray = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return found


def _kl_rows(reference: np.ndarray, output: np.ndarray) -> np.ndarray:
    sound = np.isfinite(reference).all(axis=1) & np.isfinite(output).all(axis=1)
    result = np.full(len(reference), KL_OF_BROKEN)
    log_p, log_q = log_softmax(reference[sound]), log_softmax(output[sound])
    # Rounding can make a divergence of equal rows slightly negative.
    result[sound] = np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=1), 0.0)
    return result


def _cosine_rows(reference: np.ndarray, output: np.ndarray) -> np.ndarray:
    """The cosine of each row; 1 for two rows of zeros, 0 for one, -1 for rows that are not finite."""
    sound = np.isfinite(reference).all(axis=1) & np.isfinite(output).all(axis=1)
    result = np.full(len(reference), -1.0)
    a, b = (_of_length_one(x[sound]) for x in (reference, output))
    nothing = ~a.any(axis=1) & ~b.any(axis=1)
    result[sound] = np.where(nothing, 1.0, np.clip((a * b).sum(axis=1), -1.0, 1.0))
    return result


def _of_length_one(rows: np.ndarray) -> np.ndarray:
    """Rows of zeros stay. Divided by the largest entry first: squares of large ones would overflow."""
    top = np.abs(rows).max(axis=1, keepdims=True)
    scaled = rows / np.where(top > 0, top, 1.0)
    length = np.sqrt(np.square(scaled).sum(axis=1, keepdims=True))
    result: np.ndarray = scaled / np.where(length > 0, length, 1.0)
    return result


def _checked(labels: Labels, rows: int, classes: int) -> np.ndarray:
    array = np.asarray(labels).reshape(-1)
    if len(array) != rows or not np.issubdtype(array.dtype, np.integer):
        found = f"{len(array)} of type {array.dtype}"
        raise InputError(f"labels must be {rows} integers, one per row of the first output; got {found}")
    if len(array) and not (0 <= array.min() and array.max() < classes):
        raise InputError(f"labels must lie in 0..{classes - 1}, got {array.min()}..{array.max()}")
    return array


def wilson(share: float, n: int, z: float = 1.0) -> tuple[float, float]:
    """Wilson's interval for a share observed on n items; z = 1 covers 68 %, 1.96 covers 95 %.

    E. B. Wilson, Probable inference, Journal of the American Statistical Association 22, 1927.
    """
    if n <= 0:
        return 0.0, 1.0
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
