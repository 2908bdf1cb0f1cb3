"""Lets a convolution or pooling window do its own padding.

    p: pad(x) {before=(0, 0, 1, 1), after=(0, 0, 1, 1)} -> p
    c: conv2d(p, w) -> y                                     =>    c: conv2d(x, w) {pads=(1, 1, 1, 1)} -> y

Only where it is exact:
    conv2d        the pad's value is 0 and it pads rows and columns only
    avg_pool2d    the same; the padding then counts in the mean
    max_pool2d    the value is -inf, or it is 0 and nothing that is pooled is negative
"""

from __future__ import annotations

from typing import Any

from ..compiler.ir import Graph, Node
from ..compiler.ops.conv import in_layout
from .scan import Scan, attr, rewrite

NEVER_NEGATIVE = ("hard_sigmoid", "sigmoid", "abs", "exp", "sqrt")


def fold_pads(graph: Graph) -> Graph:
    return rewrite(graph, _fold)


def _fold(scan: Scan, node: Node) -> Node:
    if node.op not in ("conv2d", "avg_pool2d", "max_pool2d"):
        return node
    pad = scan.producer(node.inputs[0])
    if pad is None or pad.op != "pad" or attr(pad, "mode") != "constant":
        return node
    spatial = (2, 3) if in_layout({"layout": attr(node, "layout")}) == "NCHW" else (1, 2)
    before, after, value = _amounts(pad)
    if any(n for amounts in (before, after) for axis, n in enumerate(amounts) if axis not in spatial):
        return node
    extra = (*(before[a] for a in spatial), *(after[a] for a in spatial))
    pads = tuple(a + b for a, b in zip(attr(node, "pads"), extra, strict=True))
    changes: dict[str, Any] = {"pads": pads}
    if node.op == "avg_pool2d":
        # Its own padding, unless it is counted too, would have to be told apart from this one.
        if (
            value != 0
            or not _fits_window(node, pads)
            or (any(attr(node, "pads")) and not attr(node, "count_pad"))
        ):
            return node
        changes["count_pad"] = True
    elif node.op == "max_pool2d":
        harmless = value == float("-inf") or (value == 0 and _never_negative(scan, pad.inputs[0]))
        if not harmless or not _fits_window(node, pads):
            return node
    elif value != 0:
        return node
    return scan.make(
        node.name, node.op, (pad.inputs[0], *node.inputs[1:]), node.output, {**node.attrs, **changes}
    )


def _amounts(pad: Node) -> tuple[Any, Any, float]:
    return attr(pad, "before"), attr(pad, "after"), float(attr(pad, "value"))


def _fits_window(node: Node, pads: tuple[int, ...]) -> bool:
    """No window may lie wholly in the padding: it would have no maximum."""
    kernel: Any = attr(node, "kernel")
    dilations: Any = attr(node, "dilations")
    sizes = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    return max(pads[0], pads[2]) < sizes[0] and max(pads[1], pads[3]) < sizes[1]


def _never_negative(scan: Scan, value: str) -> bool:
    node = scan.producer(value)
    if node is None:
        return False
    if node.op == "clip":
        return float(attr(node, "lo")) >= 0
    if node.op in ("conv2d", "linear", "add"):
        return attr(node, "act") == "clip" and float(attr(node, "lo")) >= 0
    if node.op in ("max_pool2d", "avg_pool2d", "reshape", "transpose"):
        return _never_negative(scan, node.inputs[0])
    return node.op in NEVER_NEGATIVE
