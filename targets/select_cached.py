"""Kernels of what works on a cache of keys and values: rope, cache_write, cached_attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..compiler.ir import Graph, Node
from .call import KernelCall, Temporary
from .isa import Isa
from .kernels.cache.spec import (
    CacheWriteSpec,
    CombineSpec,
    DecodeSpec,
    PrefillSpec,
    RopeSpec,
)
from .kernels.pointwise import CopySpec
from .states import in_place, written_pairs


def rope(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> KernelCall:
    (tokens, heads, features), (positions, pairs) = (graph.type_of(v).shape for v in node.inputs[:2])
    index = graph.type_of(node.inputs[3]).dtype
    spec = RopeSpec(isa.lanes, tokens, heads, features, positions, pairs, a["interleaved"], index)
    return KernelCall(spec, (*node.inputs, node.output), spec.tasks)


def cache_write(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> tuple[KernelCall, ...]:
    """Where the cache is no state that can be written in place, it is copied first."""
    _, new, position = node.inputs[:3]
    tokens, heads, features = graph.type_of(new).shape
    spec = CacheWriteSpec(
        isa.lanes, node.type.dtype, tokens, heads, node.type.shape[1], features, graph.type_of(position).dtype
    )
    write = KernelCall(spec, (new, position, *node.outputs), spec.tasks)
    if node.output in in_place(graph):
        return (write,)
    copies = []
    for before, after in written_pairs(node):
        copy = CopySpec(graph.type_of(before).nbytes)
        copies.append(KernelCall(copy, (before, after), copy.tasks))
    return (*copies, write)


def cached_attention(graph: Graph, node: Node, a: dict[str, Any], isa: Isa) -> tuple[KernelCall, ...]:
    """One kernel for several tokens; for one, a second that puts parts together."""
    q, k, v, position = (graph.type_of(value) for value in node.inputs[:4])
    facts: dict[str, Any] = {
        "lanes": isa.lanes,
        "registers": isa.registers,
        "dtype": k.dtype,
        "half": "f16c" in isa.features,
        "tokens": q.shape[0],
        "heads": q.shape[1],
        "shared": k.shape[0],
        "capacity": k.shape[1],
        "features": k.shape[2],
        "outputs": v.shape[2],
        **{name: a[name] for name in ("scale", "soft_cap", "window")},
        "index_dtype": position.dtype,
    }
    if q.shape[0] > 1:
        spec = PrefillSpec(**facts)
        return (KernelCall(spec, (*node.inputs, node.output), spec.tasks),)
    decode = DecodeSpec(**facts)
    sums = Temporary(f"{node.name} sums", 4 * decode.tasks * decode.partial)
    combine = CombineSpec(isa.lanes, decode.shared, decode.parts, decode.group, decode.outputs)
    return (
        KernelCall(decode, (*node.inputs, sums), decode.tasks),
        KernelCall(combine, (sums, node.output), combine.tasks),
    )


Rule = Callable[[Graph, Node, dict[str, Any], Isa], KernelCall | tuple[KernelCall, ...]]
CACHED_RULES: dict[str, Rule] = {
    "rope": rope,
    "cache_write": cache_write,
    "cached_attention": cached_attention,
}
