"""Conversion rules: operators that repeat, choose or lay out data by numbers known at import."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .converter import (
    Converter,
    OnnxNode,
    Result,
    Rule,
    UnsupportedForm,
)


def _shape_of(c: Converter, node: OnnxNode) -> tuple[int, ...]:
    return c.type(c.value(node)).shape


def _known_result(c: Converter, node: OnnxNode) -> Result:
    """Of known inputs it is computed before rules are asked (onnx/fold.py): one of them is not known."""
    for index in range(len(node.inputs)):
        if node.has_input(index):
            c.known(node, index, f"input {index}")
    raise UnsupportedForm("its result is too large to be a constant")


def expand(c: Converter, node: OnnxNode, x: str, shape: Sequence[int], part: str = "") -> str:
    """The value repeated along axes of size 1; a reshape where nothing is repeated."""
    own = c.type(x).shape
    if math.prod(own) == math.prod(shape):
        return c.reshape(node, x, shape, part)
    return c.emit(node, "expand", [x], part, shape=tuple(shape))


def _expand(c: Converter, node: OnnxNode) -> Result:
    wanted = tuple(int(v) for v in c.known(node, 1, "shape").reshape(-1))
    return expand(c, node, c.value(node), np.broadcast_shapes(_shape_of(c, node), wanted))


def _tile(c: Converter, node: OnnxNode) -> Result:
    """Each repeated axis gets one in front of it, which is expanded."""
    shape = _shape_of(c, node)
    repeats = [int(v) for v in c.known(node, 1, "repeats").reshape(-1)]
    pairs = list(zip(shape, repeats, strict=True))
    spread = c.reshape(
        node, c.value(node), [n for d, r in pairs for n in ((1, d) if r != 1 else (d,))], "spread"
    )
    wide = [n for d, r in pairs for n in ((r, d) if r != 1 else (d,))]
    if all(r == 1 for r in repeats):
        return spread
    tiled = expand(c, node, spread, wide, "tiled")
    return c.reshape(node, tiled, [d * r for d, r in zip(shape, repeats, strict=True)])


def _eye_like(c: Converter, node: OnnxNode) -> Result:
    from onnx import helper

    rows, columns = _shape_of(c, node)
    dtype = c.type(c.value(node)).dtype
    if "dtype" in node.attrs:
        dtype = helper.tensor_dtype_to_np_dtype(node.get_int("dtype", 1)).name
    dtype = "float32" if dtype in ("float16", "bfloat16") else dtype
    return np.eye(rows, columns, node.get_int("k", 0), dtype)


def _trilu(c: Converter, node: OnnxNode) -> Result:
    x = c.value(node)
    shape = c.type(x).shape
    k = int(c.known(node, 1, "k").reshape(-1)[0]) if node.has_input(1) else 0
    # k may be anything: numpy wants it near the matrix
    k = min(max(k, -shape[-2] - 1), shape[-1] + 1)
    ones = np.ones(shape[-2:], bool)
    kept = np.triu(ones, k) if node.get_int("upper", 1) else np.tril(ones, k)
    mask = c.param(c.derived(f"{node.output}.mask"), kept)
    return c.emit(node, "where", [mask, x, c.scalar(node, "zero", 0, x)])


def _one_hot(c: Converter, node: OnnxNode) -> Result:
    """where(indices == 0 ... depth - 1, on, off)"""
    depth = int(c.known(node, 1, "depth").reshape(-1)[0])
    indices, values = c.cast(node, c.value(node), "int64", "indices"), c.value(node, 2)
    shape = list(_shape_of(c, node))
    axis = node.get_int("axis", -1)
    axis += len(shape) + 1 if axis < 0 else 0
    zero, size = c.scalar(node, "zero", 0, indices), c.scalar(node, "depth", depth, indices)
    counted = c.emit(node, "add", [indices, size], "from_end")
    indices = c.emit(
        node, "where", [c.emit(node, "less", [indices, zero], "negative"), counted, indices], "places"
    )
    rows = c.reshape(node, indices, [*shape[:axis], 1, *shape[axis:]], "rows")
    places = np.arange(depth).reshape([-1 if i == axis else 1 for i in range(len(shape) + 1)])
    chosen = c.emit(node, "equal", [rows, c.param(c.derived(f"{node.output}.range"), places)], "chosen")
    off, on = (_element(c, node, values, i, part) for i, part in enumerate(("off", "on")))
    return c.emit(node, "where", [chosen, on, off])


def _element(c: Converter, node: OnnxNode, values: str, index: int, part: str) -> str:
    """One element of a vector, of shape (1,)."""
    return c.emit(node, "slice", [values], part, starts=(index,), stops=(index + 1,), steps=(1,))


def _depth_to_space(c: Converter, node: OnnxNode) -> Result:
    """CRD counts channels first, then places in a block: they are put in the order of the operator."""
    x, channels, b = c.value(node), _shape_of(c, node)[1], node.get_int("blocksize", 1)
    if node.get_str("mode", "DCR") != "DCR":
        order = np.arange(channels).reshape(-1, b * b).T.reshape(-1)
        places = c.param(c.derived(f"{node.output}.order"), order, "order")
        x = c.emit(node, "gather", [x, places], "ordered", axis=1)
    return c.emit(node, "depth_to_space", [x], block=(b, b))


def _space_to_depth(c: Converter, node: OnnxNode) -> Result:
    n, channels, h, w = _shape_of(c, node)
    b = node.get_int("blocksize", 1)
    perm = (0, 3, 5, 1, 2, 4) if node.get_str("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    parted = c.reshape(node, c.value(node), (n, channels, h // b, b, w // b, b), "split")
    moved = c.emit(node, "transpose", [parted], "moved", perm=perm)
    return c.reshape(node, moved, (n, channels * b * b, h // b, w // b))


def _compress(c: Converter, node: OnnxNode) -> Result:
    chosen = np.flatnonzero(c.known(node, 1, "condition (it decides the output's size)"))
    x, axis = c.value(node), 0
    if "axis" in node.attrs:
        axis = node.get_int("axis", 0)
        axis += len(_shape_of(c, node)) if axis < 0 else 0
    else:
        x = c.reshape(node, x, (math.prod(_shape_of(c, node)),), "flat")
    return c.emit(node, "gather", [x, c.param(c.derived(f"{node.output}.places"), chosen)], axis=axis)


def _reverse_sequence(c: Converter, node: OnnxNode) -> Result:
    """Element t of a sequence of n comes from n - 1 - t when t < n."""
    x = c.value(node)
    shape = c.type(x).shape
    time, batch = node.get_int("time_axis", 0), node.get_int("batch_axis", 1)
    lengths = c.reshape(
        node, c.value(node, 1), [shape[batch] if i == batch else 1 for i in range(len(shape))], "lengths"
    )
    steps = np.arange(shape[time]).reshape([-1 if i == time else 1 for i in range(len(shape))])
    step = c.param(c.derived(f"{node.output}.steps"), steps)
    last = c.emit(node, "sub", [lengths, c.scalar(node, "one", 1, lengths)], "last")
    mirrored = c.emit(node, "sub", [last, step], "mirrored")
    inside = c.emit(node, "less", [step, lengths], "inside")
    places = expand(c, node, c.emit(node, "where", [inside, mirrored, step], "from"), shape, "places")
    return c.emit(node, "gather_elements", [x, places], axis=time)


def _col2im(c: Converter, node: OnnxNode) -> Result:
    """Each column is written to the places of its window; what meets is added."""
    image = [int(v) for v in c.known(node, 1, "image_shape").reshape(-1)]
    block = [int(v) for v in c.known(node, 2, "block_shape").reshape(-1)]
    rank, x = len(image), c.value(node)
    strides, dilations = (node.get_ints(key, (1,) * rank) for key in ("strides", "dilations"))
    pads = node.get_ints("pads", (0,) * (2 * rank))
    padded = [d + pads[i] + pads[i + rank] for i, d in enumerate(image)]
    places: np.ndarray = np.zeros((), np.int64)
    for i, size in enumerate(padded):
        windows = (size - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1
        taps = np.arange(block[i])[:, None] * dilations[i] + np.arange(windows) * strides[i]
        places = places[..., None, None] * size + taps  # (block, windows) pairs in turn
    places = places.transpose([*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)]).reshape(-1)
    n, rows, _ = c.type(x).shape
    channels = rows // math.prod(block)
    flat = c.reshape(node, x, (n * channels, len(places)), "flat")
    at = np.broadcast_to(places, (n * channels, len(places)))
    zeros = np.zeros((n * channels, math.prod(padded)), c.type(x).dtype)
    operands = [
        c.param(c.derived(f"{node.output}.zeros"), zeros),
        c.param(c.derived(f"{node.output}.at"), at),
    ]
    y = c.emit(node, "scatter_elements", [*operands, flat], "sums", axis=1, reduction="add")
    y = c.reshape(node, y, (n, channels, *padded), "padded")
    starts = (0, 0, *pads[:rank])
    if padded == image:
        return y
    stops = (n, channels, *(pads[i] + d for i, d in enumerate(image)))
    return c.emit(node, "slice", [y], starts=starts, stops=stops, steps=(1,) * (rank + 2))


GENERATE_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("BlackmanWindow", "ConstantOfShape", "HammingWindow", "HannWindow", "MelWeightMatrix", "Range"),
        _known_result,
    ),
    "Col2Im": _col2im,
    "Compress": _compress,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "EyeLike": _eye_like,
    "OneHot": _one_hot,
    "ReverseSequence": _reverse_sequence,
    "SpaceToDepth": _space_to_depth,
    "Tile": _tile,
    "Trilu": _trilu,
}
