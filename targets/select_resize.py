"""The kernel calls of operators that read from places which a table holds: resize, depth_to_space, and pad
with the data itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..compiler.ir import Graph, Node
from ..compiler.ops.conv import nchw
from ..compiler.ops.pad import border, padded_axes
from ..compiler.ops.resampling import linear, nearest
from ..compiler.ops.resize import sampling_of
from .call import KernelCall, Weights
from .isa import Isa
from .kernels.resize import ResizeSpec

MOVED = {1: "uint8", 2: "uint16", 4: "float32", 8: "int64"}
"""As what elements of that many bytes are copied."""


def resize_call(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall:
    x = graph.type_of(node.inputs[0])
    n, c, h, w = nchw(x.shape, a["layout"])
    image = (n, h, w, c) if a["layout"] == "NHWC" else (n * c, h, w, 1)
    spec = _spec(isa, x.dtype, image, a["sizes"], a["mode"] == "linear")
    axes = list(zip((h, w), a["sizes"], a["scales"], strict=True))
    if not spec.linear:
        tables = [(found, found) for found in (nearest(*axis, sampling_of(a)) for axis in axes)]
        return _call(node, spec, tables, [])
    found = [linear(*axis, sampling_of(a)) for axis in axes]
    return _call(node, spec, [(left, right) for left, right, _ in found], [share for *_, share in found])


def pad_call(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall | None:
    """Seen as [everything before, first padded axis, second one, everything behind]."""
    axes = padded_axes(a)
    if a["mode"] == "constant" or not axes:
        return None
    x = graph.type_of(node.inputs[0])
    places = [border(x.shape[i], a["before"][i], a["after"][i], a["mode"]) for i in axes]
    sizes = [x.shape[i] for i in axes]
    if len(axes) == 1:
        places, sizes = [*places, np.zeros(1, np.int64)], [*sizes, 1]
    image = (math.prod(x.shape[: axes[0]]), *sizes, math.prod(x.shape[axes[-1] + 1 :]))
    spec = _spec(isa, x.dtype, image, [p.size for p in places], False)
    return _call(node, spec, [(p, p) for p in places], [])


def depth_call(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall | None:
    """A pixel's channels lie together before and after, so each row and column has its place in the input."""
    if a["layout"] != "NHWC":
        return None
    n, h, w, c = graph.type_of(node.inputs[0]).shape
    (bh, bw), (top, left, _, _) = a["block"], a["crop"]
    _, oh, ow, c_out = node.type.shape
    y, x = np.arange(oh) + top, np.arange(ow) + left
    rows = y // bh * (w * c) + y % bh * (bw * c_out)
    cols = x // bw * c + x % bw * c_out
    kind = graph.type_of(node.inputs[0]).dtype
    spec = _spec(isa, kind, (n, h * bh, w * bw, c_out), (oh, ow), False)
    tables = [np.concatenate([t, t]).astype(np.int32) for t in (rows, cols)]
    return KernelCall(spec, (node.inputs[0], *map(_weights, tables), node.output), spec.tasks)


def _spec(isa: Isa, dtype: str, image: Sequence[int], sizes: Sequence[int], linear: bool) -> ResizeSpec:
    n, h, w, c = image
    width = np.dtype(dtype).itemsize
    lanes = 1 if c == 1 else isa.lanes * 4 // width
    return ResizeSpec(lanes, MOVED[width], linear, n, h, w, c, oh=sizes[0], ow=sizes[1])


def _call(
    node: Node,
    spec: ResizeSpec,
    places: Sequence[tuple[np.ndarray, np.ndarray]],
    shares: Sequence[np.ndarray],
) -> KernelCall:
    """`places`: first and second neighbour along height, then width; `shares`: weights of the second ones."""
    strides = (spec.w * spec.c, spec.c)
    tables = [
        (np.concatenate(pair) * stride).astype(np.int32) for pair, stride in zip(places, strides, strict=True)
    ]
    tables += [np.concatenate(shares)] if shares else []
    return KernelCall(spec, (node.inputs[0], *map(_weights, tables), node.output), spec.tasks)


def _weights(array: np.ndarray) -> Weights:
    return Weights(array.nbytes, lambda: array)


PLACE_RULES: dict[str, Callable[[Graph, Node, dict[str, Any], Isa], KernelCall | None]] = {
    "depth_to_space": depth_call,
    "pad": pad_call,
    "resize": resize_call,
}
