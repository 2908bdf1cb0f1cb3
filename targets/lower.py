"""Graph -> Program: kernels chosen, values placed, weights laid out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..compiler.analysis.roofline import Work
from ..compiler.errors import UnsupportedError
from ..compiler.ir import Graph, Node
from ..compiler.ops import OPS
from .arena import ALIGN, Lifetime, plan_arena
from .call import (
    KernelCall,
    Operand,
    Temporary,
    Weights,
    kernel_symbol,
)
from .elementwise import chain_call, chains
from .kernels.pointwise import CopySpec
from .program import (
    Place,
    Program,
    Space,
    Step,
    TensorSpec,
)
from .relax_kernels import relax_calls
from .selection import select
from .states import limits, state_layout
from .target import Target
from .views import View, Views
from .work import call_works, chain_works, copy_work


@dataclass(frozen=True)
class Lowered:
    """A program, the spec behind each kernel symbol, and what goes into weights.bin as (offset, packer)."""

    program: Program
    kernels: Mapping[str, Any]
    weights: tuple[tuple[int, Callable[[], np.ndarray]], ...]

    def packed(self) -> Iterator[tuple[int, np.ndarray]]:
        """(offset, bytes) of what weights.bin holds, one after the other."""
        for offset, make in self.weights:
            yield offset, np.ascontiguousarray(make()).reshape(-1).view(np.uint8)

    def weight_bytes(self) -> np.ndarray:
        """The contents of weights.bin."""
        data = np.zeros(self.program.weights_bytes, np.uint8)
        for offset, packed in self.packed():
            data[offset : offset + packed.size] = packed
        return data


def node_calls(graph: Graph, node: Node, target: Target, views: Views) -> tuple[KernelCall, ...]:
    """The kernel calls of one node; none for an empty result or one that lies within another. Raises
    UnsupportedError."""
    if views.needs_no_kernel(node) or not node.type.size:
        return ()
    if not all(graph.type_of(v).size for v in node.inputs if v):
        raise UnsupportedError(f"{node.op} reads an empty tensor: take out of the model what makes it")
    own = select(graph, node, target.isa)
    if isinstance(own, tuple):
        return own
    if own and node.op == "concat":
        own = _missing_parts(own, node, views)
        return (own,) if own.spec.blocks else ()
    return (own,) if own else relax_calls(graph, node)


def _missing_parts(call: KernelCall, node: Node, views: Views) -> KernelCall:
    """The call that moves those parts of a concat that do not lie where they belong."""
    to = views.of(node.output)

    def missing(value: str, at: int) -> bool:
        return views.of(value) != View(to.whole, to.offset + at * call.spec.item)

    pairs = zip(node.inputs, call.spec.blocks, strict=True)
    left = [(value, block) for value, block in pairs if missing(value, block.y_start)]
    spec = replace(call.spec, blocks=tuple(block for _, block in left))
    return KernelCall(spec, (*(value for value, _ in left), node.output), spec.tasks)


def lower(graph: Graph, target: Target) -> Lowered:
    """Raises UnsupportedError naming every node that the target cannot compute."""
    views = Views(graph)
    calls = _all_calls(graph, target, views)
    placer = _Placer(graph, views, [call for _, call, _ in calls])
    kernels = {call.symbol: call.spec for _, call, _ in calls}
    steps = [
        Step(layer, call.symbol, tuple(placer.place(op) for op in call.operands), call.tasks, work)
        for layer, call, work in calls
    ]
    before = [_copy(graph, value, *places, kernels) for value, places in placer.copies_in()]
    after = [_copy(graph, value, *places, kernels) for value, places in placer.copies_out()]
    program = Program(
        name=graph.name,
        inputs=_specs(graph, [n for n, _ in graph.fed]),
        outputs=_specs(graph, graph.returned),
        steps=(*before, *steps, *after),
        arena_bytes=placer.arena_bytes,
        weights_bytes=placer.weights_bytes,
        features=target.features,
        states=_specs(graph, [before for before, _ in graph.states]),
        state_bytes=placer.states.nbytes,
        limits=limits(graph),
    )
    return Lowered(program, kernels, tuple(placer.weights))


def _specs(graph: Graph, values: Sequence[str]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(v, graph.type_of(v).shape, graph.type_of(v).dtype) for v in values)


def _all_calls(graph: Graph, target: Target, views: Views) -> list[tuple[str, KernelCall, Work | None]]:
    calls, missing = [], []
    prepared: set[KernelCall] = set()
    together = chains(graph)
    for node in graph.nodes:
        parts = together.get(node.name, (node,))
        try:
            alone = parts == (node,)
            of_node = node_calls(graph, node, target, views) if alone else _chain(graph, parts, target)
            works = call_works(graph, node, of_node) if alone else chain_works(graph, parts)
            new = [pair for pair in zip(of_node, works, strict=True) if pair[0] not in prepared]
            calls += [(node.name, call, work) for call, work in new]
            prepared |= {call for call, _ in new if _prepares(call)}
        except UnsupportedError as error:
            missing.append(f"{node.name}: {error}")
    if missing:
        listed = "\n  ".join(missing)
        raise UnsupportedError(
            f"{len(missing)} of {len(graph.nodes)} layers cannot be computed on {target.name}:\n  {listed}"
        )
    return calls


def _prepares(call: KernelCall) -> bool:
    """It brings values of the graph to another form: where another node needs the same, once is enough."""
    *given, made = call.operands
    return isinstance(made, Temporary) and not any(isinstance(operand, Weights) for operand in given)


def _chain(graph: Graph, nodes: Sequence[Node], target: Target) -> tuple[KernelCall, ...]:
    """The call for nodes that are computed together; none for those computed with a later one."""
    return (chain_call(graph, nodes, target.isa),) if nodes else ()


def _copy(graph: Graph, value: str, source: Place, to: Place, kernels: dict[str, Any]) -> Step:
    """The step that copies a value, on the account of its producer; its kernel is added to `kernels`."""
    node = graph.producer(value)
    spec = CopySpec(graph.type_of(value).nbytes)
    symbol = kernel_symbol(spec)
    kernels[symbol] = spec
    return Step(node.name if node else value, symbol, (source, to), spec.tasks, copy_work(spec.nbytes))


class _Placer:
    """Gives every operand its address.

    A value lives where the caller has it if it is a graph input or output (one that is both, or is returned
    twice, is copied to its other places in the end), in weights.bin if it is a parameter, in the instance's
    own memory if it is a state, else in the arena. What a state becomes is written there, or copied in the
    end.
    int8 layers may read a few bytes beyond a buffer (arena.SLACK), which must not be the caller's: what they
    read lives in the arena and is copied.
    """

    def __init__(self, graph: Graph, views: Views, calls: Sequence[KernelCall]) -> None:
        self.graph = graph
        self.views = views
        self.weights: list[tuple[int, Callable[[], np.ndarray]]] = []
        self.weights_bytes = 0
        self.params: dict[str, Place] = {}
        self.shared: dict[str, Place] = {}
        self.states = state_layout(graph)
        self.inputs = {name: Place(Space.INPUT, i) for i, (name, _) in enumerate(graph.fed)}
        self.overread = {self._root(n.inputs[0]) for n in graph.nodes if OPS[n.op].layer} & {
            v for v, kind in graph.types.items() if kind.dtype == "uint8"
        }
        self.fixed = {v: place for v, place in self.inputs.items() if v not in self.overread}
        self.fixed |= {v: Place(Space.STATE, offset) for v, offset in self.states.offsets.items()}
        for i, output in enumerate(graph.returned):
            root = self._root(output)
            if root not in self.inputs and root not in graph.params and root not in self.overread:
                self.fixed.setdefault(root, Place(Space.OUTPUT, i))
        self.offsets, self.arena_bytes = plan_arena(self._lifetimes(calls))

    def _root(self, value: str) -> str:
        return self.views.of(value).whole

    def _lifetimes(self, calls: Sequence[KernelCall]) -> dict[str | Temporary, Lifetime]:
        """Of all that lives in the arena; steps are counted from 1, copies from inputs happen in step 0."""
        kept = {self._root(v) for v in self.graph.outputs}
        lives: dict[str | Temporary, Lifetime] = {
            v: Lifetime(self.graph.type_of(v).nbytes, 0, 0) for v in self.inputs if v not in self.fixed
        }
        for step, call in enumerate(calls, 1):
            for operand in call.operands:
                key = self._root(operand) if isinstance(operand, str) else operand
                if isinstance(key, Weights) or key in self.fixed or key in self.graph.params:
                    continue
                nbytes = key.nbytes if isinstance(key, Temporary) else self.graph.type_of(key).nbytes
                first = lives[key].first if key in lives else step
                lives[key] = Lifetime(nbytes, first, len(calls) + 1 if key in kept else step)
        return lives

    def place(self, operand: Operand) -> Place:
        if isinstance(operand, Weights):
            return self._weights(operand)
        if isinstance(operand, Temporary):
            return Place(Space.ARENA, self.offsets[operand])
        root, offset = self.views.of(operand).whole, self.views.of(operand).offset
        if root in self.graph.params:
            return self._param(root)
        return self.fixed.get(root) or Place(Space.ARENA, self.offsets[root] + offset)

    def copies_in(self) -> list[tuple[str, tuple[Place, Place]]]:
        """(value, (from, to)) of inputs that are read from the arena."""
        moved = [
            (v, at) for v, at in self.inputs.items() if v not in self.fixed and self.graph.type_of(v).size
        ]
        return [(v, (place, self.place(v))) for v, place in moved]

    def copies_out(self) -> list[tuple[str, tuple[Place, Place]]]:
        """(value, (from, to)) of outputs and states that no kernel writes to where they are wanted. States
        come last: an output may be what a state was before."""
        copies = []
        wanted = [(v, Place(Space.OUTPUT, i)) for i, v in enumerate(self.graph.returned)]
        wanted += [(after, self.fixed[before]) for before, after in self.graph.states]
        for value, to in wanted:
            if self.graph.type_of(value).size and (source := self.place(value)) != to:
                if source.space is to.space is Space.STATE:
                    raise UnsupportedError(f"{value} is one state before and another after a run")
                copies.append((value, (source, to)))
        return copies

    def _weights(self, operand: Weights) -> Place:
        if operand.key in self.shared:
            return self.shared[operand.key]
        offset = self.weights_bytes
        self.weights.append((offset, operand.make))
        self.weights_bytes = offset + -(-operand.nbytes // ALIGN) * ALIGN
        place = Place(Space.WEIGHTS, offset)
        if operand.key:
            self.shared[operand.key] = place
        return place

    def _param(self, name: str) -> Place:
        if name not in self.params:
            nbytes = self.graph.type_of(name).nbytes
            self.params[name] = self._weights(Weights(nbytes, lambda: self.graph.params[name]))
        return self.params[name]
