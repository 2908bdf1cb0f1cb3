"""Selection of kernels for products of computed operands: matmul, attention."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ..compiler.ir import Graph, Node
from ..compiler.ops.matmul import view_perm
from .call import STACK_BYTES, KernelCall
from .isa import Isa
from .kernels.attention import AttentionSpec
from .kernels.matmul_spec import MatmulSpec
from .kernels.product import Matrix

View = tuple[tuple[int, ...], tuple[int, ...]]
"""Shape and strides, in elements, of an operand as a product sees it."""


def view(shape: tuple[int, ...], perm: tuple[int, ...] = ()) -> View:
    """An operand that lies densely, read through a permutation."""
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    axes = view_perm(perm, len(shape))
    return tuple(shape[p] for p in axes), tuple(strides[p] for p in axes)


def written(shape: tuple[int, ...], perm: tuple[int, ...]) -> View:
    """A result of shape `shape` that is stored permuted."""
    axes = view_perm(perm, len(shape))
    back = tuple(axes.index(i) for i in range(len(axes)))
    return view(tuple(shape[p] for p in axes), back)


def matrix(operand: View, batch: tuple[int, ...]) -> Matrix:
    """The last two axes as a matrix, the leading ones broadcast to `batch`."""
    shape, strides = operand
    missing = len(batch) - (len(shape) - 2)
    steps = tuple(0 if d == 1 else s for d, s in zip(shape[:-2], strides[:-2], strict=True))
    # An axis of one element has no neighbours; calling its stride 1 lets more operands lie well.
    row, col = (1 if d == 1 else s for d, s in zip(shape[-2:], strides[-2:], strict=True))
    return Matrix((0,) * missing + steps, row, col)


def merged(batch: tuple[int, ...], *operands: Matrix) -> tuple[tuple[int, ...], tuple[Matrix, ...]]:
    """The batch with axes of one element left out and neighbouring axes merged where all operands allow."""
    sizes: list[int] = []
    steps: list[tuple[int, ...]] = []
    for size, here in zip(batch, zip(*(m.batch for m in operands), strict=True), strict=True):
        if size == 1:
            continue
        if sizes and all(outer == inner * size for outer, inner in zip(steps[-1], here, strict=True)):
            sizes[-1] *= size
            steps[-1] = here
        else:
            sizes.append(size)
            steps.append(here)
    found = tuple(Matrix(tuple(s[i] for s in steps), m.row, m.col) for i, m in enumerate(operands))
    return tuple(sizes), found


def matmul(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall | None:
    left, right = (
        view(graph.type_of(v).shape, a[f"{n}_perm"]) for v, n in zip(node.inputs, "ab", strict=True)
    )
    back = view_perm(a["y_perm"], len(node.type.shape))
    shape = tuple(node.type.shape[back.index(i)] for i in range(len(back)))
    batch, m, n = shape[:-2], shape[-2], shape[-1]
    x, w, y = (matrix(v, batch) for v in (left, right, written(shape, a["y_perm"])))
    if y.col != 1:
        return None
    batch, (x, w, y) = merged(batch, x, w, y)
    if batch and not w.batch[-1] and all(m == 1 or o.batch[-1] == m * o.row for o in (x, y)):
        # The rows of the innermost products follow each other: they are one product.
        x, y = (replace(o, row=o.batch[-1]) if m == 1 else o for o in (x, y))
        m *= batch[-1]
        batch, (x, w, y) = batch[:-1], tuple(replace(o, batch=o.batch[:-1]) for o in (x, w, y))
    spec = MatmulSpec(isa.lanes, isa.registers, batch, m, n, left[0][-1], x, w, y, a["scale"])
    return (
        KernelCall(spec, (*node.inputs, node.output), spec.tasks) if spec.stack_bytes <= STACK_BYTES else None
    )


def attention(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall | None:
    q, k, v = (
        view(graph.type_of(x).shape, a[f"{n}_perm"]) for x, n in zip(node.inputs[:3], "qkv", strict=True)
    )
    back = view_perm(a["y_perm"], len(node.type.shape))
    shape = tuple(node.type.shape[back.index(i)] for i in range(len(back)))
    batch, keys = shape[:-2], k[0][-2]
    operands = [matrix(x, batch) for x in (q, k, v, written(shape, a["y_perm"]))]
    if len(node.inputs) > 3 and node.inputs[3]:
        operands.append(_mask(graph.type_of(node.inputs[3]).shape, batch))
    if operands[3].col != 1:
        return None
    batch, found = merged(batch, *operands)
    spec = AttentionSpec(
        lanes=isa.lanes,
        registers=isa.registers,
        batch=batch,
        queries=shape[-2],
        keys=keys,
        features=q[0][-1],
        outputs=shape[-1],
        q=found[0],
        k=found[1],
        v=found[2],
        y=found[3],
        mask=found[4] if len(found) > 4 else None,
        scale=a["scale"],
        guarded=a["guarded"],
    )
    if spec.stack_bytes > STACK_BYTES:
        return None
    return KernelCall(spec, (*(x for x in node.inputs if x), node.output), spec.tasks)


def _mask(shape: tuple[int, ...], batch: tuple[int, ...]) -> Matrix:
    """A mask that broadcasts: axes of one element have stride 0."""
    full = (1,) * max(0, 2 - len(shape)) + shape
    dims, strides = view(full)
    strides = tuple(0 if d == 1 else s for d, s in zip(dims, strides, strict=True))
    found = matrix((dims, strides), batch)
    return Matrix(found.batch, strides[-2], strides[-1])
