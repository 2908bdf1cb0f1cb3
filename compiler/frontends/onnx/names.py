"""What layers of an ONNX model are called."""

from __future__ import annotations

import re
from typing import Any

# Names that exporters and optimizers count out; a layer is better called after its weight or its output.
MACHINE_MADE = re.compile(r"(node(_.*)?|n\d+(_\d+)*|)\Z")


def weight_name(node: Any, weights: set[str]) -> str:
    """The name of a layer's weight, if the node is a layer and the weight an initializer."""
    layer = node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
    return node.input[1] if layer and len(node.input) > 1 and node.input[1] in weights else ""


def layer_names(model: Any) -> dict[str, str]:
    """What people call the layers: by the weight or the output of a node, its name in the file.

    The optimizer renames nodes that it fuses; the weight keeps its name. A weight of two nodes names none.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    named = [node for node in model.graph.node if not MACHINE_MADE.match(node.name)]
    uses = [weight_name(node, weights) for node in model.graph.node]
    table = {node.output[0]: node.name for node in named if node.output}
    table.update({w: node.name for node in named if (w := weight_name(node, weights)) and uses.count(w) == 1})
    return table


def value_names(graph: Any) -> list[str]:
    names = [value.name for value in graph.input] + [tensor.name for tensor in graph.initializer]
    return names + [out for node in graph.node for out in node.output]
