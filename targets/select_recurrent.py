"""The kernel call of lstm, gru and rnn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..compiler.ir import Graph, Node
from ..compiler.ops.recurrent import FUNCTIONS
from .call import KernelCall, Weights
from .isa import Isa
from .kernels.recurrent_spec import RecurrentSpec, pack_recurrent, pad_units


def recurrent_call(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall | None:
    """None when the weights are computed at run time: no kernel reads them as they lie."""
    cell = node.op
    x, r = graph.type_of(node.inputs[0]), node.inputs[1]
    states_at = 2 if cell == "rnn" else 3
    extra = (*node.inputs, "", "")[2] if cell != "rnn" else ""
    count = 2 if cell == "lstm" else 1
    *states, lengths = (*node.inputs, "", "", "", "")[states_at : states_at + count + 1]
    if any(v and v not in graph.params for v in (r, extra)):
        return None
    spec = RecurrentSpec(
        cell=cell,
        lanes=isa.lanes,
        registers=isa.registers,
        steps=x.shape[0],
        batch=x.shape[1],
        hidden=graph.type_of(r).shape[1],
        functions=tuple(
            (a[name], a["alpha"][i], a["beta"][i]) for i, name in enumerate("fgh"[: FUNCTIONS[cell]])
        ),
        starts=tuple(bool(v) for v in states),
        extra=bool(extra),
        lengths=bool(lengths),
        reverse=a["reverse"],
        clip=a["clip"],
        after=a.get("after", False),
        coupled=a.get("coupled", False),
        rounded=a.get("rounded", False),
    )
    weights = graph.params[r]
    operands: list[Any] = [
        node.inputs[0],
        Weights(4 * spec.gates * spec.padded * spec.hidden, lambda: pack_recurrent(spec, weights)),
    ]
    if extra:
        own = graph.params[extra]
        operands.append(Weights(4 * own.size // spec.hidden * spec.padded, lambda: pad_units(spec, own)))
    return KernelCall(spec, (*operands, *filter(None, (lengths, *states)), *node.outputs), spec.tasks)


RECURRENT_RULES: dict[str, Callable[[Graph, Node, dict[str, Any], Isa], KernelCall | None]] = {
    "lstm": recurrent_call,
    "gru": recurrent_call,
    "rnn": recurrent_call,
}
