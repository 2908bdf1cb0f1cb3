"""Moves transposes behind slices and behind reshapes that only add or drop axes of one element, towards the
products that read through them (passes/fuse_products.py).

    t: transpose(x) {p} -> t; s: slice(t) -> s        =>    s.kept: slice(x); s: transpose(s.kept) {p} -> s
    t: transpose(x) {p} -> t; r: reshape(t) -> r      =>    r.kept: reshape(x); r: transpose(r.kept) {q} -> r
    t: transpose(x) {p} -> t; u: transpose(t) {q}     =>    u: transpose(x) {q after p}

So attention whose queries, keys and values are three slices of one transposed tensor reads slices of the
tensor as it lies, and transposes of three axes between reshapes join those of four.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..compiler.ir import Graph, Node
from .scan import Scan, rewrite

PER_AXIS = ("starts", "stops", "steps")


def sink_transposes(graph: Graph) -> Graph:
    return rewrite(graph, _sink)


def _sink(scan: Scan, node: Node) -> Node:
    if node.op not in ("slice", "reshape", "transpose"):
        return node
    before = scan.producer(node.inputs[0])
    if before is None or before.op != "transpose":
        return node
    perm: Any = before.attrs["perm"]
    if node.op == "transpose":
        own: Any = node.attrs["perm"]
        return replace(node, inputs=before.inputs, attrs={"perm": tuple(perm[p] for p in own)})
    if node.op == "slice":
        back = [perm.index(axis) for axis in range(len(perm))]
        attrs: dict[str, Any] = {key: tuple(node.attrs[key][b] for b in back) for key in PER_AXIS}  # type: ignore[index]
        return _behind(scan, node, before.inputs[0], attrs, perm)
    found = _without_units(before.type.shape, node.type.shape, perm)
    if found is None:
        return node
    shape, order = found
    return _behind(scan, node, before.inputs[0], {"shape": shape}, order)


def _behind(scan: Scan, node: Node, source: str, attrs: dict[str, Any], perm: tuple[int, ...]) -> Node:
    kept = scan.insert(node.op, (source,), f"{node.output}.kept", attrs)
    return scan.make(node.name, "transpose", (kept,), node.output, {"perm": perm})


def _without_units(
    before: tuple[int, ...], after: tuple[int, ...], perm: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Shape of x, and a permutation from it to `after`. `before` is x permuted by `perm`, and `after` is it
    but for axes of one element. None where longer axes change."""
    real = [axis for axis, size in enumerate(before) if size > 1]
    kept = [axis for axis, size in enumerate(after) if size > 1]
    if [before[a] for a in real] != [after[a] for a in kept]:
        return None
    # The long axes in x's order; axes of one element come first.
    order = sorted(range(len(real)), key=lambda i: perm[real[i]])
    units = [axis for axis, size in enumerate(after) if size == 1]
    shape = (*(1 for _ in units), *(before[real[i]] for i in order))
    places = {axis: i for i, axis in enumerate(units)}
    places |= {kept[i]: len(units) + place for place, i in enumerate(order)}
    return shape, tuple(places[axis] for axis in range(len(after)))
