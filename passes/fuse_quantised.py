"""Lets the operators of a model that came quantised read and write uint8 themselves.

    c: conv2d(x8, w8, b32, _, s) -> c                 c: conv2d(x8, w8, b32, _, s') {uint8, y_zero} -> q
    q: quantize(c) -> q                           =>
    a: add(dequantize(x8), dequantize(z8))        =>  a: add(x8, z8) {a_scale, a_zero, b_scale, b_zero}
    m: max_pool2d(dequantize(x8) {s, z})          =>  m8: max_pool2d(x8); m: dequantize(m8) {s, z}
    r: reduce_mean(dequantize(x8) {s, z})         =>  r: reduce_mean(x8) {x_scale=s, x_zero=z}
    q: quantize(dequantize(x8) {s, z}) {s, z}     =>  (x8)

In a float32 network there is nothing to do. ARCHITECTURE.md has the formulas.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from ..compiler.ir import AttrValue, Graph, Node
from .scan import (
    Scan,
    attr,
    rewrite,
    slim,
)
from .storage import alike, moves

LAYERS = ("conv2d", "linear")
PIXELS = ((1, 2), (2, 3))
"""The axes of an image, in either layout, whose mean is taken from codes."""


def fuse_quantised(graph: Graph) -> Graph:
    return rewrite(graph, _fuse)


def _fuse(scan: Scan, node: Node) -> Node | None:
    if node.op == "quantize":
        return _undone(scan, node) if _same_codes(scan, node) else _stored(scan, node)
    if node.op == "add":
        return _real_operands(scan, node)
    if node.op == "reduce_mean":
        return _real_mean(scan, node)
    return _moved(scan, node) if moves(node) else node


def _source(scan: Scan, value: str) -> Node | None:
    """The `dequantize` that makes a value."""
    made = scan.producer(value)
    return made if made is not None and made.op == "dequantize" else None


def _same_codes(scan: Scan, node: Node) -> bool:
    """Whether a quantize undoes the dequantize before it."""
    source = _source(scan, node.inputs[0])
    if source is None or source.attrs["x_zero"] != node.attrs["y_zero"]:
        return False
    ratio: Any = float(source.attrs["x_scale"]) / float(node.attrs["y_scale"])  # type: ignore[arg-type]
    return bool(abs(ratio - 1) < 1e-6)


def _undone(scan: Scan, node: Node) -> Node | None:
    source = _source(scan, node.inputs[0])
    assert source is not None
    if node.output in scan.graph.outputs:
        shape = node.type.shape
        return scan.make(node.name, "reshape", source.inputs, node.output, {"shape": shape})
    scan.rename(node.output, source.inputs[0])
    return None


def _stored(scan: Scan, node: Node) -> Node:
    """A layer or sum that writes the codes which are made of its result."""
    producer = scan.sole_producer(node.inputs[0])
    if producer is None or producer.op not in (*LAYERS, "add") or producer.type.dtype != "float32":
        return node
    if producer.op == "add" and not alike(producer, scan.types):
        return node
    inverse = _f32(1.0 / float(node.attrs["y_scale"]))  # type: ignore[arg-type]
    attrs: dict[str, AttrValue] = {**producer.attrs, "out_dtype": "uint8", "y_zero": node.attrs["y_zero"]}
    inputs = producer.inputs
    if attr(producer, "act") in ("none", "clip") and _scaled(scan, producer):
        inputs, folded = _in_units(scan, producer, inverse)
        attrs |= folded
    else:
        attrs["y_inv"] = inverse
    scan.drop(producer)
    kept = slim(producer.op, attrs)
    return replace(producer, inputs=inputs, outputs=node.outputs, types=node.types, attrs=kept)


def _scaled(scan: Scan, producer: Node) -> bool:
    """Whether a factor behind the sum can join factors before it."""
    scale = (*producer.inputs, "", "", "", "")[4]
    return producer.op == "add" or scale in scan.params


def _in_units(scan: Scan, producer: Node, inverse: float) -> tuple[tuple[str, ...], dict[str, AttrValue]]:
    """Inputs and attributes of the producer whose result is in units of its codes."""
    attrs: dict[str, AttrValue] = {}
    inputs = producer.inputs
    if producer.op == "add":
        for key in ("a_scale", "b_scale"):
            attrs[key] = _f32(attr(producer, key) * inverse)
    else:
        scale = scan.params[inputs[4]].astype(np.float64) * inverse
        inputs = (*inputs[:4], scan.add_param(f"{inputs[4]}.out", scale.astype(np.float32)))
        if inputs[3]:
            attrs["r_scale"] = _f32(attr(producer, "r_scale") * inverse)
    for key in ("lo", "hi"):
        bound = float(attr(producer, key))
        if not math.isinf(bound):
            attrs[key] = _f32(bound * inverse)
    return inputs, attrs


def _real_operands(scan: Scan, node: Node) -> Node:
    """A sum that reads codes."""
    inputs, attrs = list(node.inputs), dict(node.attrs)
    for i, which in enumerate("ab") if alike(node, scan.types) else ():
        source = _source(scan, inputs[i])
        if source is None:
            continue
        inputs[i] = source.inputs[0]
        factor = float(attr(node, f"{which}_scale"))
        attrs[f"{which}_scale"] = _f32(float(source.attrs["x_scale"]) * factor)  # type: ignore[arg-type]
        attrs[f"{which}_zero"] = source.attrs["x_zero"]
    if tuple(inputs) == node.inputs:
        return node
    return scan.make(node.name, "add", inputs, node.output, attrs)


def _real_mean(scan: Scan, node: Node) -> Node:
    source = _source(scan, node.inputs[0])
    pixels = len(scan.types[node.inputs[0]].shape) == 4 and tuple(sorted(attr(node, "axes"))) in PIXELS
    if source is None or not pixels:
        return node
    attrs = {**node.attrs, **{key: source.attrs[key] for key in ("x_scale", "x_zero")}}
    return scan.make(node.name, "reduce_mean", source.inputs, node.output, attrs)


def _moved(scan: Scan, node: Node) -> Node:
    """What only moves numbers moves codes, if all that it reads have one scale."""
    sources = [_source(scan, v) for v in node.inputs]
    known = [s for s in sources if s is not None]
    if len(known) != len(sources) or len({tuple(s.attrs.items()) for s in known}) != 1:
        return node
    codes = scan.new_value(f"{node.output}.codes")
    scan.emit(scan.make(node.name, node.op, [s.inputs[0] for s in known], codes, node.attrs))
    name = scan.new_node(f"{node.name}.real")
    return scan.make(name, "dequantize", (codes,), node.output, known[0].attrs)


def _f32(number: float) -> float:
    """The nearest float32 number: what kernels compute with and what the text form shows."""
    return float(np.float32(number))
