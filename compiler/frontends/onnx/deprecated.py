"""The group normalisation of operator sets 18 to 20, written by exporters before ONNX withdrew it.

Its scale and bias are of groups, not of channels as from operator set 21 on, which onnx's checker insists on:

    GroupNormalization(x, scale, bias)  =>  Reshape to [batch, groups, rest], InstanceNormalization, Reshape
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

WITHDRAWN = range(18, 21)


def spell_group_norms(graphs: Iterable[Any], opset: int) -> None:
    """Replace them in GraphProtos, in place; their nodes are then unsorted."""
    if opset not in WITHDRAWN:
        return
    for graph in graphs:
        for node in [node for node in graph.node if _is_whole(node)]:
            graph.node.extend(_spelled(node))
            graph.node.remove(node)


def _is_whole(node: Any) -> bool:
    """Others are left for the checker to refuse."""
    named = [a.name for a in node.attribute if a.type == a.INT]
    mine = node.op_type == "GroupNormalization" and node.domain in ("", "ai.onnx")
    return mine and len(node.input) == 3 and len(node.output) == 1 and "num_groups" in named


def _spelled(node: Any) -> list[Any]:
    import onnx

    attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    x, scale, bias = node.input
    form, rows, normal, shape = (f"{node.output[0]}.{part}" for part in ("form", "rows", "normal", "shape"))
    made = onnx.helper.make_node
    return [
        made("Constant", [], [form], value_ints=[0, int(attrs["num_groups"]), -1]),
        made("Reshape", [x, form], [rows]),
        made("InstanceNormalization", [rows, scale, bias], [normal], epsilon=attrs.get("epsilon", 1e-5)),
        made("Shape", [x], [shape]),
        made("Reshape", [normal, shape], [node.output[0]], name=node.name),
    ]
