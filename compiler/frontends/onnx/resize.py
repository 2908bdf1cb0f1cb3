"""Conversion rules: Resize and Upsample.

Nearest and linear become the operator `resize` over at most two neighbouring axes at a time; other modes a
product with a constant matrix along each axis (compiler/ops/resampling.py says what is in it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...ops.resampling import (
    COORDS,
    ROUNDINGS,
    Sampling,
    matrix,
)
from .converter import (
    Converter,
    OnnxNode,
    Result,
    Rule,
    UnsupportedForm,
)

MODES = {"nearest": "nearest", "linear": "linear", "bilinear": "linear", "cubic": "cubic"}


@dataclass(frozen=True)
class _Axis:
    """One axis that changes: its index, new size, the scale that positions are divided by, its sampling."""

    index: int
    out: int
    scale: float
    sampling: Sampling


def _resize(c: Converter, node: OnnxNode) -> Result:
    shape = c.type(c.value(node)).shape
    axes = _wanted_axes(node, len(shape))
    sampling = _sampling(node)
    roi = _roi(c, node, len(axes)) if sampling.coords == "tf_crop_and_resize" else None
    changes = []
    for i, (axis, (out, scale)) in enumerate(zip(axes, _targets(c, node, shape, axes), strict=True)):
        own = sampling if roi is None else replace(sampling, roi=(roi[i], roi[i + len(axes)]))
        if node.op == "Resize" and node.opset == 10 and scale < 1:
            own = replace(own, rounding="ceil")  # as ONNX Runtime does; the standard's text leaves it open
        change = _Axis(axis, out, scale, own)
        if not _is_identity(shape[axis], change):
            changes.append(change)
    return _apply(c, node, changes, node.get_float("extrapolation_value", 0.0))


def _wanted_axes(node: OnnxNode, rank: int) -> tuple[int, ...]:
    axes = tuple(a + rank if a < 0 else a for a in node.get_ints("axes", range(rank)))
    return axes or tuple(range(rank))


def _sampling(node: OnnxNode) -> Sampling:
    mode = MODES.get(node.get_str("mode", "nearest"))
    if mode is None:
        raise UnsupportedForm(f"mode {node.attrs['mode']!r}; ONNX has nearest, linear and cubic")
    if node.op == "Upsample" or node.opset == 10:
        return Sampling(mode, "asymmetric", "floor")
    sampling = Sampling(
        mode,
        node.get_str("coordinate_transformation_mode", "half_pixel"),
        node.get_str("nearest_mode", "round_prefer_floor"),
        node.get_float("cubic_coeff_a", -0.75),
        bool(node.get_int("antialias", 0)) and mode != "nearest",
        bool(node.get_int("exclude_outside", 0)),
    )
    if sampling.coords not in (*COORDS, "tf_crop_and_resize"):
        raise UnsupportedForm(f"coordinate_transformation_mode {sampling.coords!r} is not known")
    if sampling.rounding not in ROUNDINGS:
        raise UnsupportedForm(f"nearest_mode {sampling.rounding!r} is not known")
    return sampling


def _roi(c: Converter, node: OnnxNode, axes: int) -> tuple[float, ...]:
    roi = tuple(float(v) for v in c.known(node, 1, "roi").reshape(-1))
    if len(roi) != 2 * axes:
        raise UnsupportedForm(f"{len(roi)} numbers of its roi for {axes} axes")
    return roi


def _numbers(c: Converter, node: OnnxNode, index: int, what: str, axes: int) -> np.ndarray | None:
    """A constant input with a number per axis; an empty one counts as absent."""
    if not node.has_input(index):
        return None
    numbers = c.known(node, index, what).reshape(-1)
    if numbers.size not in (0, axes):
        raise UnsupportedForm(f"{numbers.size} {what} for {axes} axes")
    return numbers if numbers.size else None


def _targets(
    c: Converter, node: OnnxNode, shape: tuple[int, ...], axes: Sequence[int]
) -> list[tuple[int, float]]:
    """(new size, scale) of each axis."""
    old = [shape[a] for a in axes]
    sizes = None
    if node.op == "Upsample" and node.opset < 9:
        scales: np.ndarray | None = np.array(node.attrs.get("scales", ()), np.float32)
    elif node.op == "Upsample" or node.opset == 10:
        scales = _numbers(c, node, 1, "scales", len(axes))
    else:
        scales = _numbers(c, node, 2, "scales", len(axes))
        sizes = _numbers(c, node, 3, "sizes", len(axes))
    if sizes is not None:
        return _fitted(node, old, [int(s) for s in sizes])
    if scales is None or scales.size != len(axes) or scales.min() <= 0:
        raise UnsupportedForm("its scales are missing or not positive")
    # The product in float32, as ONNX's own shape inference has it.
    exact = [np.float32(d) * np.float32(s) for d, s in zip(old, scales, strict=True)]
    if node.get_str("coordinate_transformation_mode", "") == "align_corners" and any(e % 1 for e in exact):
        raise UnsupportedForm(
            "align_corners with scales that do not give whole sizes, for which ONNX's definition and "
            "ONNX Runtime differ: export the model with sizes"
        )
    return [(int(e), float(s)) for e, s in zip(exact, scales, strict=True)]


def _fitted(node: OnnxNode, old: list[int], sizes: list[int]) -> list[tuple[int, float]]:
    """Sizes as given, or one scale for all axes so that the picture keeps its proportions."""
    policy = node.get_str("keep_aspect_ratio_policy", "stretch")
    ratios = [new / d for d, new in zip(old, sizes, strict=True)]
    if policy == "stretch":
        return list(zip(sizes, ratios, strict=True))
    if policy not in ("not_larger", "not_smaller"):
        raise UnsupportedForm(f"keep_aspect_ratio_policy {policy!r} is not known")
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return [(math.floor(d * scale + 0.5), scale) for d in old]


def _is_identity(size: int, change: _Axis) -> bool:
    """Whether every result is the element at its own place."""
    return size == change.out and bool(
        (matrix(size, change.out, change.scale, change.sampling) == np.eye(size)).all()
    )


def _by_operator(change: _Axis) -> bool:
    """Whether `resize` has this sampling."""
    s = change.sampling
    outside = s.coords == "tf_crop_and_resize"
    return s.mode in ("nearest", "linear") and not (outside or s.antialias or s.exclude_outside)


def _apply(c: Converter, node: OnnxNode, changes: list[_Axis], outside: float) -> Result:
    """One change after the other; neighbouring axes that `resize` can do are done at once."""
    x = c.value(node)
    while changes:
        first, *rest = changes
        pair = bool(rest) and rest[0].index == first.index + 1
        if not _by_operator(first):
            group, changes = [first], rest
            step = _multiply
        elif pair and _by_operator(rest[0]) and rest[0].sampling == first.sampling:
            group, changes = [first, rest[0]], rest[1:]
            step = _operator
        else:
            group, changes = [first], rest
            step = _operator
        x = step(c, node, x, group, "" if not changes else f"axis{first.index}", outside)
    return x


def _operator(c: Converter, node: OnnxNode, x: str, group: list[_Axis], part: str, outside: float) -> str:
    """`resize` over one axis, or two that are neighbours."""
    shape = list(c.type(x).shape)
    first, last = group[0].index, group[-1].index
    sampling = group[0].sampling
    sizes = tuple(g.out for g in group)
    scales = tuple(float(np.float32(g.scale)) for g in group)
    if len(shape) == 4 and (first, last) in ((2, 3), (2, 2), (3, 3)):
        image, layout = tuple(shape), "NCHW"
        if len(group) == 1:
            sizes, scales = _both(sizes, scales, first == 3, shape[5 - first])
    elif len(shape) == 4 and (first, last) == (1, 2):
        image, layout = tuple(shape), "NHWC"
    else:  # everything before is channels; everything behind moves along, as the width or as the channels
        before, behind = math.prod(shape[:first]), math.prod(shape[last + 1 :])
        height = shape[first]
        width = shape[last] if len(group) == 2 else 1
        image, layout = (before, height, width, behind), "NHWC"
        if len(group) == 1:
            sizes, scales = _both(sizes, scales, False, 1)
    y = c.emit(
        node,
        "resize",
        [c.reshape(node, x, image, f"{part or 'last'}_image")],
        part if image == tuple(shape) else f"{part or 'last'}_resized",
        sizes=sizes,
        scales=scales,
        mode=sampling.mode,
        coords=sampling.coords,
        rounding=sampling.rounding if sampling.mode == "nearest" else "round_prefer_floor",
        layout=layout,
    )
    for g in group:
        shape[g.index] = g.out
    return c.reshape(node, y, shape, part)


def _both(
    sizes: tuple[int, ...], scales: tuple[float, ...], is_width: bool, other: int
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Sizes and scales of height and width when only one of them changes."""
    same = (other, 1.0)
    pairs = [same, (sizes[0], scales[0])] if is_width else [(sizes[0], scales[0]), same]
    return tuple(s for s, _ in pairs), tuple(s for _, s in pairs)


def _multiply(c: Converter, node: OnnxNode, x: str, group: list[_Axis], part: str, outside: float) -> str:
    """A product with the interpolation matrix along one axis."""
    (change,) = group
    shape = list(c.type(x).shape)
    size = shape[change.index]
    before, behind = math.prod(shape[: change.index]), math.prod(shape[change.index + 1 :])
    rows = matrix(size, change.out, change.scale, change.sampling)
    name = c.param(c.derived(f"{node.output}.weights{change.index}"), rows, f"axis{change.index}")
    stem = part or "last"
    flat = c.reshape(node, x, (before, size, behind), f"{stem}_flat")
    y = c.emit(node, "matmul", [name, flat], f"{stem}_product")
    empty = rows.sum(1, keepdims=True) == 0
    if outside and empty.any():
        fill = np.where(empty, np.float32(outside), np.float32(0))
        addend = c.param(c.derived(f"{node.output}.outside{change.index}"), fill, f"axis{change.index}")
        y = c.emit(node, "add", [y, addend], f"{stem}_filled")
    shape[change.index] = change.out
    return c.reshape(node, y, shape, part)


RESIZE_RULES: dict[str, Rule] = {"Resize": _resize, "Upsample": _resize}
