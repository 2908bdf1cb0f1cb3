"""Lets products of computed operands read and write through the transposes and scalings around them, and
makes attention of two products with a softmax between.

    t: transpose(k) {p} -> t; s: matmul(q, t) -> s            =>    s: matmul(q, k) {b_perm=p} -> s
    s: matmul(q, k) -> s;     d: div(s, 8) -> d               =>    d: matmul(q, k) {scale=0.125} -> d
    s: matmul(a, b) -> s;     y: transpose(s) {p} -> y        =>    y: matmul(a, b) {y_perm=p} -> y

    s: matmul(q, k) {b_perm=(0, 1, 3, 2), scale=0.125} -> s
       m: add(s, mask) -> m; p: softmax(m) {axis=3} -> p
       y: matmul(p, v) -> y                             =>    y: attention(q, k, v, mask) {scale=0.125} -> y
       (p may be guarded: where(isnan(p), 0, p))

A transpose of the result is taken in only where its rows stay whole: kernels write rows. The mask may be
absent. What becomes superfluous is left to dead code removal.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..compiler.ir import Graph, Node
from ..compiler.ops.matmul import view_perm
from .scan import (
    Scan,
    attr,
    rewrite,
    slim,
)

PRODUCTS = ("matmul", "attention")


def fuse_products(graph: Graph) -> Graph:
    return rewrite(graph, _fuse)


def _fuse(scan: Scan, node: Node) -> Node:
    if node.op == "matmul":
        return _read_through(scan, node) or _attention(scan, node) or node
    if node.op == "transpose":
        return _write_through(scan, node) or node
    if node.op in ("mul", "div"):
        return _scaled(scan, node) or node
    return node


def _factor(scan: Scan, node: Node) -> tuple[str, float] | None:
    """(x, c) of a node that is x * c with a number c that leaves x's shape alone."""
    if node.op not in ("mul", "div") or node.type.dtype != "float32":
        return None
    a, b = node.inputs
    if node.op == "mul" and scan.scalar(a) is not None:
        a, b = b, a
    number = scan.scalar(b)
    if number is None or scan.types[a] != node.type or (node.op == "div" and number == 0):
        return None
    return a, number if node.op == "mul" else 1.0 / number


def _read_through(scan: Scan, node: Node) -> Node | None:
    """The product on what a transpose or a scaling of an operand reads."""
    for index, name in enumerate(("a_perm", "b_perm")):
        before = scan.producer(node.inputs[index])
        if before is None:
            continue
        attrs: dict[str, Any] = dict(node.attrs)
        if before.op == "transpose":
            first: Any = before.attrs["perm"]
            attrs[name] = tuple(first[p] for p in view_perm(attr(node, name), len(first)))
            source = before.inputs[0]
        elif (found := _factor(scan, before)) is not None:
            source, attrs["scale"] = found[0], attr(node, "scale") * found[1]
        else:
            continue
        inputs = tuple(source if i == index else v for i, v in enumerate(node.inputs))
        return replace(node, inputs=inputs, attrs=_plain(node.op, attrs))
    return None


def _plain(op: str, attrs: dict[str, Any]) -> dict[str, Any]:
    """The attributes without permutations that change nothing."""
    kept = {
        k: () if k.endswith("_perm") and list(v) == sorted(v) else v  # the axes as they lie
        for k, v in attrs.items()
    }
    return slim(op, kept)


def _write_through(scan: Scan, node: Node) -> Node | None:
    product = scan.sole_producer(node.inputs[0])
    if product is None or product.op not in PRODUCTS:
        return None
    perm: Any = node.attrs["perm"]
    before = view_perm(attr(product, "y_perm"), len(perm))
    both = tuple(before[p] for p in perm)
    if both[-1] != len(both) - 1:
        return None
    scan.drop(product)
    attrs = _plain(product.op, {**product.attrs, "y_perm": both})
    return replace(product, outputs=node.outputs, types=node.types, attrs=attrs)


def _scaled(scan: Scan, node: Node) -> Node | None:
    found = _factor(scan, node)
    product = scan.sole_producer(found[0]) if found else None
    if found is None or product is None or product.op != "matmul":
        return None
    scan.drop(product)
    attrs = slim("matmul", {**product.attrs, "scale": attr(product, "scale") * found[1]})
    return replace(product, outputs=node.outputs, types=node.types, attrs=attrs)


def _attention(scan: Scan, node: Node) -> Node | None:
    softmax, *guard = _guarded(scan, node.inputs[0]) or (scan.sole_producer(node.inputs[0]),)
    if attr(node, "a_perm") or attr(node, "scale") != 1.0 or softmax is None or softmax.op != "softmax":
        return None
    if attr(softmax, "axis") != len(softmax.type.shape) - 1:
        return None
    found = _scores(scan, softmax.inputs[0])
    if found is None or len(softmax.type.shape) != len(found[0].type.shape):
        return None
    scores, parts, mask = found
    *batch, features, keys = view_perm(attr(scores, "b_perm"), len(scan.types[scores.inputs[1]].shape))
    attrs = {
        "q_perm": attr(scores, "a_perm"),
        "k_perm": (*batch, keys, features),
        "v_perm": attr(node, "b_perm"),
        "y_perm": attr(node, "y_perm"),
        "scale": attr(scores, "scale"),
        "guarded": bool(guard),
    }
    for part in (*guard, softmax, *parts):
        scan.drop(part)
    inputs = (*scores.inputs, node.inputs[1], *([mask] if mask else []))
    return replace(node, op="attention", inputs=inputs, attrs=_plain("attention", attrs))


def _guarded(scan: Scan, value: str) -> tuple[Node, ...]:
    """(p's producer, the nodes where and isnan) of where(isnan(p), 0, p), if nothing else reads p."""
    where = scan.sole_producer(value)
    if where is None or where.op != "where" or scan.scalar(where.inputs[1]) != 0.0:
        return ()
    test, shares = scan.sole_producer(where.inputs[0]), where.inputs[2]
    if test is None or test.op != "isnan" or test.inputs != (shares,) or where.type.dtype != "float32":
        return ()
    softmax = scan.producer(shares)
    readers = {n.name for n in scan.graph.consumers(shares)}
    if softmax is None or shares in scan.graph.outputs or readers != {where.name, test.name}:
        return ()
    return softmax, where, test


def _scores(scan: Scan, value: str) -> tuple[Node, tuple[Node, ...], str] | None:
    """The product that makes the scores, the nodes that nothing else needs then, and the mask or ""."""
    last = scan.sole_producer(value)
    if last is None or not last.type.shape:
        return None
    if last.op == "matmul":
        return (last, (last,), "") if not attr(last, "y_perm") else None
    if last.op != "add" or last.attrs:
        return None
    for scores, mask in (last.inputs, last.inputs[::-1]):
        product = scan.sole_producer(scores)
        if product is None or product.op != "matmul" or attr(product, "y_perm"):
            continue
        if product.type == last.type and scan.types[mask].dtype == "float32":
            return product, (last, product), mask
    return None
