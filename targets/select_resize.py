"""The kernel calls of resize, and of pad with the data itself: both read from places that a table holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
