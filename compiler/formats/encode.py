"""Weights to codes and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..errors import FormatError
from .coded import Coded, Format, Parameters
from .families import SELECTOR_BITS, family_of
from .packing import pack, unpack
from .scales import LARGEST_FLOAT16, Store, row_scales

BLOCK = 1 << 17
"""Weights that are worked on at a time: what fits in a core's cache."""


def encode(weight: np.ndarray, format: Format, importance: np.ndarray | None = None) -> Coded:
    """The weight float32 [n, k] in codes, each the nearest level.

    Without importance [k] the range of each group is kept (round to nearest); with it, scales and tables are
    searched for the least sum of importance * error^2. Raises FormatError for a weight that is not a finite
    matrix, or too large for float16 scales, and for an importance that does not fit.
    """
    weight = checked(weight, format)
    row = None if importance is None else _checked_importance(importance, weight.shape[1])[None]
    family = family_of(format)

    def fit(groups: np.ndarray, store: Store, begin: int, count: int) -> Parameters:
        weights = None
        if row is not None:
            n, size = len(groups) // count, groups.shape[1]
            weights = np.tile(row[:, begin : begin + count * size].reshape(count, size), (n, 1))
        return family.fit(groups, format.bits, weights, store)

    return _encoded(weight, format, fit)


def encode_by(weight: np.ndarray, format: Format, fit: Callable[[np.ndarray, Store], Parameters]) -> Coded:
    """The same with parameters that `fit(groups float32 [m, g], store)` gives."""
    return _encoded(checked(weight, format), format, lambda groups, store, begin, count: fit(groups, store))


_Fit = Callable[[np.ndarray, Store, int, int], Parameters]
"""(groups [m, g], store, first column of the first group, groups in a row)."""


def _encoded(weight: np.ndarray, format: Format, fit: _Fit) -> Coded:
    n, k = weight.shape
    step = max(1, BLOCK // k)
    parts = [_encode_rows(weight[begin : begin + step], format, fit) for begin in range(0, n, step)]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Coded(format, (n, k), joined)


def checked(weight: np.ndarray, format: Format) -> np.ndarray:
    """The weight as float32. Raises FormatError where it cannot be encoded."""
    if weight.ndim != 2 or 0 in weight.shape:
        raise FormatError(f"a weight of shape {list(weight.shape)} is no matrix [outputs, inputs]")
    weight = np.asarray(weight, np.float32)
    largest = float(np.abs(weight).max())
    if not np.isfinite(largest):
        raise FormatError(
            "the weight holds values that are not finite (NaN or infinity): look at where it is from"
        )
    if format.scale == "float16" and largest > LARGEST_FLOAT16:
        raise FormatError(
            f"the weight's largest value {largest:.3g} is beyond float16 scales; use {format.name}:"
            f"{format.group or 128}:two-level"
        )
    return weight


def _checked_importance(importance: np.ndarray, k: int) -> np.ndarray:
    importance = np.asarray(importance, np.float32)
    if importance.shape != (k,) or not np.isfinite(importance).all() or (importance < 0).any():
        raise FormatError(f"importance must be {k} finite numbers >= 0, one for each input channel")
    largest = importance.max()
    return importance / largest if largest > 0 else np.ones_like(importance)


def spans(format: Format, k: int) -> Iterator[tuple[int, int, int]]:
    """(first group, groups, width) of the groups of one width: the full ones, then a shorter last one."""
    width = format.width(k)
    full, rest = divmod(k, width)
    if full:
        yield 0, full, width
    if rest:
        yield full, 1, rest


def row_scale_of(weight: np.ndarray, format: Format) -> np.ndarray | None:
    """float32 [n] for two-level scales, else None."""
    if format.scale != "two-level":
        return None
    family, width = family_of(format), format.width(weight.shape[1])
    widest = [
        family.widest(_grouped(weight, first, count, width, size), format.bits).reshape(len(weight), count)
        for first, count, size in spans(format, weight.shape[1])
    ]
    return row_scales(np.concatenate(widest, 1))


def _grouped(weight: np.ndarray, first: int, count: int, width: int, size: int) -> np.ndarray:
    """float32 [n * count, size]: the groups first..first+count-1 of every row."""
    part = weight[:, first * width : first * width + count * size]
    return part.reshape(-1, size)


def _encode_rows(weight: np.ndarray, format: Format, fit: _Fit) -> dict[str, np.ndarray]:
    chooser, bits, n = family_of(format).chooser, format.bits, len(weight)
    width = format.width(weight.shape[1])
    row = row_scale_of(weight, format)
    codes, found = [], []
    for first, count, size in spans(format, weight.shape[1]):
        groups = _grouped(weight, first, count, width, size)
        store = format.store(None if row is None else np.repeat(row, count))
        parameters = fit(groups, store, first * width, count)
        codes.append(chooser(bits, parameters)(groups).reshape(n, count, size))
        found.append(parameters)
    return assemble(format, codes, found, row)


def assemble(
    format: Format, codes: list[np.ndarray], parameters: list[Parameters], row: np.ndarray | None
) -> dict[str, np.ndarray]:
    """What Coded stores, from codes [n, groups, size] and parameters of each [n * groups], span by span."""
    family, n = family_of(format), len(codes[0])
    width = max(part.shape[2] for part in codes)
    arrays = {"codes": [], "scale": [], "side": []}  # type: dict[str, list[np.ndarray]]
    for part, each in zip(codes, parameters, strict=True):
        store = format.store(None if row is None else np.repeat(row, part.shape[1]))
        filled = _filled(format, part, each, format.group or width)
        arrays["codes"].append(pack(filled, format.bits))
        arrays["scale"].append(store.stored(each.scale).reshape(n, -1))
        if each.side is not None:
            arrays["side"].append(each.side.reshape(n, part.shape[1], *each.side.shape[1:]))
    result = {name: np.concatenate(found, 1) for name, found in arrays.items() if found}
    if row is not None:
        result["row_scale"] = row
    if family.side:
        side = result.pop("side")
        result[family.side] = pack(side, SELECTOR_BITS) if family.side == "selector" else side
    return result


def _filled(format: Format, codes: np.ndarray, parameters: Parameters, width: int) -> np.ndarray:
    """Codes [n, groups, size] made `width` wide with the level of least magnitude."""
    n, count, size = codes.shape
    if size == width:
        return codes
    levels = family_of(format).levels(format.bits, parameters.side, n * count)
    least = np.abs(levels.astype(np.int16)).argmin(1).astype(np.uint8).reshape(n, count, 1)
    return np.concatenate([codes, np.broadcast_to(least, (n, count, width - size))], 2)


def side_of(coded: Coded) -> np.ndarray | None:
    """The family's own numbers, uint8 [n, G] or int8 [n, G, bits]; selectors unpacked."""
    name = family_of(coded.format).side
    if not name:
        return None
    found = coded.arrays[name]
    return unpack(found, SELECTOR_BITS, coded.groups) if name == "selector" else found


def levels(coded: Coded) -> np.ndarray:
    """int8 [n, G, 2^bits]: the table of each group."""
    n, groups = coded.arrays["scale"].shape
    side = side_of(coded)
    flat = None if side is None else side.reshape(n * groups, *side.shape[2:])
    found = family_of(coded.format).levels(coded.format.bits, flat, n * groups)
    return found.reshape(n, groups, -1)


def scales(coded: Coded) -> np.ndarray:
    """float32 [n, G]."""
    scale = coded.arrays["scale"].astype(np.float32)
    if "row_scale" in coded.arrays:
        scale *= coded.arrays["row_scale"][:, None]
    return scale


def tables(format: Format) -> np.ndarray | None:
    """int8 [T, 2^bits]: the tables of a family that has fixed ones; None for others."""
    found = family_of(format).tables
    return None if found is None else found(format.bits)


def codes_of(coded: Coded) -> np.ndarray:
    """uint8 [n, G, group]: the codes, one in a byte, with those that fill the last group."""
    return unpack(coded.arrays["codes"], coded.format.bits, coded.format.width(coded.shape[1]))


def decode(coded: Coded) -> np.ndarray:
    """float32 [n, k]: scale * level."""
    n, k = coded.shape
    result = np.empty((n, k), np.float32)
    step = max(1, BLOCK // k)
    for begin in range(0, n, step):
        part = coded.rows(begin, min(n, begin + step))
        result[begin : begin + step] = _decode_rows(part)
    return result


def _decode_rows(coded: Coded) -> np.ndarray:
    found = codes_of(coded)
    n, groups, width = found.shape
    fixed, side = tables(coded.format), side_of(coded)
    if fixed is not None:
        table = fixed.astype(np.float32).reshape(-1)
        places = found if side is None else found + side.astype(np.intp)[:, :, None] * fixed.shape[1]
        chosen = np.take(table, places)
    elif side is not None and side.ndim == 2:
        chosen = found.astype(np.float32) - side[:, :, None]
    else:
        chosen = np.take_along_axis(levels(coded), found.astype(np.intp), 2).astype(np.float32)
    chosen *= scales(coded)[:, :, None]
    decoded: np.ndarray = chosen.reshape(n, groups * width)[:, : coded.shape[1]]
    return decoded
