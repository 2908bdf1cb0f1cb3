"""Conversion rule: Pad in all modes. Negative pads cut before the others pad."""

from __future__ import annotations

from collections.abc import Sequence

from ...ops.pad import MODES
from .converter import (
    Converter,
    OnnxNode,
    Result,
    Rule,
    UnsupportedForm,
)


def _pad(c: Converter, node: OnnxNode) -> Result:
    mode = node.get_str("mode", "constant")
    if mode not in MODES:
        raise UnsupportedForm(f"mode {mode!r} is not known")
    x = c.value(node)
    shape = c.type(x).shape
    before, after = _amounts(c, node, len(shape))
    starts = tuple(max(-b, 0) for b in before)
    stops = tuple(d - max(-a, 0) for d, a in zip(shape, after, strict=True))
    before, after = tuple(max(b, 0) for b in before), tuple(max(a, 0) for a in after)
    last = not any(before + after)
    if starts != (0,) * len(shape) or stops != shape:
        if any(stop <= start for start, stop in zip(starts, stops, strict=True)):
            raise UnsupportedForm("negative pads that leave nothing")
        ones = (1,) * len(shape)
        x = c.emit(node, "slice", [x], "" if last else "cut", starts=starts, stops=stops, steps=ones)
    if last:
        return x
    if mode == "constant":
        return c.emit(node, "pad", [x], before=before, after=after, value=_value(c, node))
    return _with_itself(c, node, x, mode, before, after)


def _amounts(c: Converter, node: OnnxNode, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How much each axis grows in front and behind."""
    if node.has_input(1):
        pads = [int(v) for v in c.known(node, 1, "pads").reshape(-1)]
    else:
        pads = list(node.get_ints("pads", ()))
    axes: Sequence[int] = range(rank)
    if node.has_input(3):
        axes = [int(a) % rank for a in c.known(node, 3, "axes").reshape(-1)]
    if len(pads) != 2 * len(axes):
        raise UnsupportedForm(f"{len(pads)} pads for {len(axes)} axes")
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[i + len(axes)]
    return tuple(before), tuple(after)


def _value(c: Converter, node: OnnxNode) -> float:
    if node.has_input(2):
        return float(c.known(node, 2, "value").reshape(-1)[0])
    return node.get_float("value", 0.0)


def _with_itself(
    c: Converter, node: OnnxNode, x: str, mode: str, before: tuple[int, ...], after: tuple[int, ...]
) -> str:
    """One node per padded axis; height and width of an image in one."""
    rank = len(before)
    axes = [a for a in range(rank) if before[a] or after[a]]
    groups = [[a] for a in axes if rank != 4 or a < 2 or axes[-2:] != [2, 3]]
    groups += [[2, 3]] if rank == 4 and axes[-2:] == [2, 3] else []
    for group in groups:
        only = [tuple(n if a in group else 0 for a, n in enumerate(amounts)) for amounts in (before, after)]
        part = "" if group is groups[-1] else f"axis{group[0]}"
        x = c.emit(node, "pad", [x], part, before=only[0], after=only[1], mode=mode)
    return x


PAD_RULES: dict[str, Rule] = {"Pad": _pad}
