"""Stores weights as bfloat16, rounded to nearest even: half the bytes.

    a: linear(x, w, bias) -> y            =>    a: linear(x, w.bf16 bfloat16, bias) -> y

    e: gather(w, tokens, axis=0) -> h     =>    e: gather(w.bf16 uint16, tokens, axis=0) -> h.bf16
                                                h.u32: cast(h.bf16), h.high: shift_left(h.u32, 16)
                                                h: bitcast(h.high)

Names of layers and values stay; what shared a weight goes on sharing it.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ..compiler.ir import Graph, Node
from ..compiler.params import Stored
from ..compiler.verify import verify
from .dead_code import remove_dead_code
from .scan import Scan


def to_bfloat16(graph: Graph, layers: Collection[str]) -> Graph:
    """The graph with the weights of these layers, and the rows of these tables, in bfloat16."""
    if not layers:
        return graph
    scan = Scan(graph)
    made: dict[tuple[str, bool], str] = {}
    for node in graph.nodes:
        if node.name not in layers:
            scan.emit(node)
        elif node.op == "gather":
            _table(scan, node, _narrow(scan, made, node.inputs[0], bits=True))
        else:
            x, w, *rest = node.inputs
            weights = _narrow(scan, made, w, bits=False)
            scan.emit(scan.make(node.name, node.op, (x, weights, *rest), node.output, node.attrs))
    return verify(remove_dead_code(scan.finish()), "storing weights as bfloat16")


def _narrow(scan: Scan, made: dict[tuple[str, bool], str], weight: str, bits: bool) -> str:
    """The parameter rounded, when it is read; `bits`: as uint16, for operators that only move it."""
    import ml_dtypes

    key = weight, bits
    if key not in made:
        params = scan.graph.params

        def read() -> np.ndarray:
            rounded = np.ascontiguousarray(params[weight]).astype(ml_dtypes.bfloat16)
            return rounded.view(np.uint16) if bits else rounded

        dtype = np.dtype(np.uint16 if bits else ml_dtypes.bfloat16)
        made[key] = scan.add_param(f"{weight}.bf16", Stored(scan.types[weight].shape, dtype, read))
    return made[key]


def _table(scan: Scan, node: Node, table: str) -> None:
    rows = scan.new_value(f"{node.output}.bf16")
    scan.emit(scan.make(node.name, "gather", (table, *node.inputs[1:]), rows, node.attrs))
    words = scan.insert("cast", (rows,), f"{node.output}.u32", {"to": "uint32"})
    by = scan.add_param(f"{node.output}.half", np.full((), 16, np.uint32))
    high = scan.insert("shift_left", (words, by), f"{node.output}.high")
    scan.emit(scan.make(scan.new_node(node.output), "bitcast", (high,), node.output, {"to": "float32"}))
