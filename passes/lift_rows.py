"""Does arithmetic on rows [n, c, l] as on images of height one [n, c, 1, l], as the convolutions beside it.

    c: conv2d(x) -> c: [1, 8, 1, 99]                      c: conv2d(x) -> c: [1, 8, 1, 99]
    r: reshape(c) -> r: [1, 8, 99]                  =>    s.image: silu(c) -> s.image: [1, 8, 1, 99]
    s: silu(r) -> s: [1, 8, 99]                           s: reshape(s.image) -> s: [1, 8, 99]

Convolutions of one dimension come between such reshapes, which would keep batch norms, activations and the
next convolution from them, and the layout of channels last from everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..compiler.ir import AttrValue, Graph, Node
from .layout import (
    BINARY,
    ONE_AXIS,
    PER_AXIS,
    POINTWISE,
    REDUCTIONS,
)
from .scan import Scan, attr, rewrite

HEIGHT = 2
"""The axis that images have more than rows."""
FILLERS = {"before": 0, "after": 0, "starts": 0, "stops": 1, "steps": 1}
"""What that axis has of attributes with an entry for each."""


def lift_rows(graph: Graph) -> Graph:
    return rewrite(graph, _lift)


def _lift(scan: Scan, node: Node) -> Node:
    if len(node.type.shape) != 3 or len(node.outputs) != 1 or not _works_on_images(node):
        return node
    operands = node.inputs[:1] if node.op == "batch_norm" else node.inputs
    if not all(operands) or not any(_image_of(scan, value) for value in operands):
        return node
    images = [_as_image(scan, value) for value in operands]
    if not all(images):
        return node
    inputs = (*images, *node.inputs[len(operands) :])
    image = scan.insert(node.op, inputs, f"{node.output}.image", _attrs(node))
    return scan.make(node.name, "reshape", (image,), node.output, {"shape": node.type.shape})


def _works_on_images(node: Node) -> bool:
    if node.op in REDUCTIONS:
        return bool(attr(node, "keepdims"))
    if node.op == "pad" and attr(node, "mode") != "constant":  # of which only neighbouring axes are padded
        return not any((*attr(node, "before")[:HEIGHT], *attr(node, "after")[:HEIGHT]))
    return node.op in (*POINTWISE, *BINARY, *PER_AXIS, *ONE_AXIS, "batch_norm")


def _image_of(scan: Scan, value: str) -> str:
    """The image that a value is the only row of; "" of others."""
    node = scan.producer(value)
    if node is None or node.op != "reshape":
        return ""
    shape = scan.types[node.inputs[0]].shape
    is_row = len(shape) == 4 and shape[HEIGHT] == 1 and (*shape[:HEIGHT], shape[3]) == node.type.shape
    return node.inputs[0] if is_row else ""


def _as_image(scan: Scan, value: str) -> str:
    """The value with one more axis, which is the same to broadcasting; "" where it cannot be."""
    shape = scan.types[value].shape
    if len(shape) < 2:
        return value
    found = _image_of(scan, value)
    if found or len(shape) > 3:
        return found
    wanted = (*shape[:-1], 1, shape[-1])
    if value in scan.params:
        return scan.add_param(f"{value}.image", scan.params[value].reshape(wanted))
    return scan.insert("reshape", (value,), f"{value}.image", {"shape": wanted})


def _attrs(node: Node) -> Mapping[str, AttrValue]:
    attrs: dict[str, Any] = dict(node.attrs)
    for key, filler in FILLERS.items() if node.op in PER_AXIS else ():
        if key in attrs:
            attrs[key] = (*attrs[key][:HEIGHT], filler, *attrs[key][HEIGHT:])
    if node.op in ONE_AXIS:
        attrs["axis"] = _moved(attrs["axis"])
    if node.op in REDUCTIONS:
        attrs["axes"] = tuple(_moved(axis) for axis in attrs["axes"])
    return attrs


def _moved(axis: int) -> int:
    return axis + (axis >= HEIGHT)
