"""Graph -> Program: kernels chosen, values placed, weights laid out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..compiler.errors import UnsupportedError
from ..compiler.ir import Graph, Node
from .arena import ALIGN, Lifetime, plan_arena
from .call import KernelCall, Operand, Temporary, Weights
from .kernels.pointwise import CopySpec
from .program import Place, Program, Space, Step, TensorSpec
from .relax_kernels import relax_calls
from .selection import select
from .target import Target

ALIASES = ("reshape",)
"""Operators that only give the same bytes another shape: no kernel runs."""


@dataclass(frozen=True)
class Lowered:
    """A program, the spec behind each kernel symbol, and what goes into weights.bin as (offset, packer)."""

    program: Program
    kernels: Mapping[str, Any]
    weights: tuple[tuple[int, Callable[[], np.ndarray]], ...]

    def weight_bytes(self) -> np.ndarray:
        """The contents of weights.bin."""
        data = np.zeros(self.program.weights_bytes, np.uint8)
        for offset, make in self.weights:
            packed = np.ascontiguousarray(make()).reshape(-1).view(np.uint8)
            data[offset : offset + packed.size] = packed
        return data


def node_calls(graph: Graph, node: Node, target: Target) -> tuple[KernelCall, ...]:
    """The kernel calls of one node; none for an alias. Raises UnsupportedError."""
    if node.op in ALIASES:
        return ()
    own = select(graph, node, target.isa)
    return (own,) if own else relax_calls(graph, node)


def lower(graph: Graph, target: Target) -> Lowered:
    """Raises UnsupportedError naming every node that the target cannot compute."""
    calls = _all_calls(graph, target)
    owner = _alias_owners(graph)
    calls = [(layer, _resolve(call, owner)) for layer, call in calls]
    calls += _copies(graph, owner)
    placer = _Placer(graph, owner, calls)
    steps = tuple(
        Step(layer, call.symbol, tuple(placer.place(op) for op in call.operands), call.tasks)
        for layer, call in calls
    )
    program = Program(
        name=graph.name,
        inputs=tuple(TensorSpec(n, t.shape, t.dtype) for n, t in graph.inputs),
        outputs=tuple(TensorSpec(n, graph.type_of(n).shape, graph.type_of(n).dtype) for n in graph.outputs),
        steps=steps,
        arena_bytes=placer.arena_bytes,
        weights_bytes=placer.weights_bytes,
        features=target.features,
    )
    return Lowered(program, {call.symbol: call.spec for _, call in calls}, tuple(placer.weights))


def _all_calls(graph: Graph, target: Target) -> list[tuple[str, KernelCall]]:
    calls, missing = [], []
    for node in graph.nodes:
        try:
            calls += [(node.name, call) for call in node_calls(graph, node, target)]
        except UnsupportedError as error:
            missing.append(f"{node.name}: {error}")
    if missing:
        listed = "\n  ".join(missing)
        raise UnsupportedError(
            f"{len(missing)} of {len(graph.nodes)} layers cannot be computed on {target.name}:\n  {listed}"
        )
    return calls


def _alias_owners(graph: Graph) -> dict[str, str]:
    """Value -> the value whose memory it shares. A graph output's own memory wins over an intermediate's."""
    root: dict[str, str] = {}
    for node in graph.nodes:
        if node.op in ALIASES:
            root[node.output] = root.get(node.inputs[0], node.inputs[0])
    given = {name for name, _ in graph.inputs} | set(graph.params)
    owner = dict(root)
    for output in graph.outputs:
        source = root.get(output)
        taken = source is None or source in given or source in graph.outputs or source in owner
        if not taken:
            assert source is not None
            owner[source] = output
            owner.update({v: output for v, r in root.items() if r == source})
            del owner[output]
        elif source is not None:
            owner.pop(output)  # filled by a copy
    return owner


def _resolve(call: KernelCall, owner: Mapping[str, str]) -> KernelCall:
    operands = tuple(owner.get(op, op) if isinstance(op, str) else op for op in call.operands)
    return KernelCall(call.spec, operands, call.tasks)


def _copies(graph: Graph, owner: Mapping[str, str]) -> list[tuple[str, KernelCall]]:
    """Copies for outputs that nothing writes: an input, a parameter, or one value returned under two names."""
    written = {
        v for node in graph.nodes if node.op not in ALIASES for v in (owner.get(node.output, node.output),)
    }
    copies = []
    for output in graph.outputs:
        if output in written:
            continue
        node = graph.producer(output)
        source = output
        while node is not None and node.op in ALIASES:
            source = node.inputs[0]
            node = graph.producer(source)
        spec = CopySpec(graph.type_of(output).nbytes)
        operands = (_Given(owner.get(source, source)), _Output(output))
        copies.append((node.name if node else output, KernelCall(spec, operands, spec.tasks)))
    return copies


class _Given(str):
    """A copy's source: when the name is also an output's, the graph input or parameter is meant."""


class _Output(str):
    """A copy's destination: the output of that name, though an input may have it too."""


class _Placer:
    """Gives every operand its address."""

    def __init__(
        self, graph: Graph, owner: Mapping[str, str], calls: Sequence[tuple[str, KernelCall]]
    ) -> None:
        self.graph = graph
        self.inputs = {name: i for i, (name, _) in enumerate(graph.inputs)}
        self.outputs = {name: i for i, name in enumerate(graph.outputs)}
        self.weights: list[tuple[int, Callable[[], np.ndarray]]] = []
        self.weights_bytes = 0
        self.params: dict[str, Place] = {}
        self.offsets, self.arena_bytes = plan_arena(self._lifetimes(calls))

    def _lifetimes(self, calls: Sequence[tuple[str, KernelCall]]) -> dict[str, Lifetime]:
        lives: dict[str, Lifetime] = {}
        for step, (_, call) in enumerate(calls):
            for operand in call.operands:
                if (key := self._arena_key(operand)) is not None:
                    nbytes = (
                        operand.nbytes if isinstance(operand, Temporary) else self.graph.type_of(key).nbytes
                    )
                    first = lives[key].first if key in lives else step
                    lives[key] = Lifetime(nbytes, first, step)
        return lives

    def _arena_key(self, operand: Operand) -> str | None:
        if isinstance(operand, Temporary):
            return operand.name
        if isinstance(operand, Weights) or operand in self.graph.params:
            return None
        return None if operand in self.inputs or operand in self.outputs else operand

    def place(self, operand: Operand) -> Place:
        if isinstance(operand, Weights):
            return self._weights(operand)
        if isinstance(operand, Temporary):
            return Place(Space.ARENA, self.offsets[operand.name])
        if isinstance(operand, _Output) or (operand in self.outputs and not isinstance(operand, _Given)):
            return Place(Space.OUTPUT, self.outputs[operand])
        if operand in self.inputs:
            return Place(Space.INPUT, self.inputs[operand])
        if operand in self.graph.params:
            return self._param(operand)
        if operand in self.outputs:
            return Place(Space.OUTPUT, self.outputs[operand])
        return Place(Space.ARENA, self.offsets[operand])

    def _weights(self, operand: Weights) -> Place:
        offset = self.weights_bytes
        self.weights.append((offset, operand.make))
        self.weights_bytes = offset + -(-operand.nbytes // ALIGN) * ALIGN
        return Place(Space.WEIGHTS, offset)

    def _param(self, name: str) -> Place:
        if name not in self.params:
            array = self.graph.params[name]
            self.params[name] = self._weights(Weights(array.nbytes, lambda: array))
        return self.params[name]
