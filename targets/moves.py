"""Selection of kernels for operators that only move values: transpose, slice, concat."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compiler.ir import Graph, Node
from .call import KernelCall
from .isa import Isa
from .kernels.move import (
    Axis,
    Block,
    MoveSpec,
    block,
)
from .products import view


def transpose(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall | None:
    sizes, strides = view(graph.type_of(node.inputs[0]).shape, a["perm"])
    _, to = view(node.type.shape)
    axes = [Axis(*each) for each in zip(sizes, strides, to, strict=True)]
    return _call(graph, node, isa, (block(0, 0, axes),))


def slice_of(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall | None:
    _, strides = view(graph.type_of(node.inputs[0]).shape)
    sizes, to = view(node.type.shape)
    start = sum(begin * stride for begin, stride in zip(a["starts"], strides, strict=True))
    steps = [stride * step for stride, step in zip(strides, a["steps"], strict=True)]
    axes = [Axis(*each) for each in zip(sizes, steps, to, strict=True)]
    return _call(graph, node, isa, (block(start, 0, axes),))


def concat(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall | None:
    _, to = view(node.type.shape)
    blocks, place = [], 0
    for value in node.inputs:
        sizes, strides = view(graph.type_of(value).shape)
        axes = [Axis(*each) for each in zip(sizes, strides, to, strict=True)]
        blocks.append(block(0, place * to[a["axis"]], axes))
        place += sizes[a["axis"]]
    return _call(graph, node, isa, tuple(blocks))


def _call(graph: Graph, node: Node, isa: Isa, blocks: tuple[Block, ...]) -> KernelCall | None:
    spec = MoveSpec(np.dtype(node.type.dtype).itemsize, 4 * isa.lanes, blocks)
    return KernelCall(spec, (*node.inputs, node.output), spec.tasks)
