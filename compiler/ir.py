"""The graph: typed nodes over named values, frozen, with static shapes.

    TensorType(shape, dtype)                            what a value is
    Node(name, op, inputs, outputs, types, attrs)       one operation; what an op means is in compiler/ops
    Graph(name, inputs, outputs, nodes, params, states) a whole network

A graph never changes: a pass makes a new one, which shares the weights (`params`) that it did not touch. They
may be read as late as they are used (params.py).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InternalError
from .params import Entry, Params, entries

if TYPE_CHECKING:
    import networkx

AttrValue = int | float | str | bool | tuple[int, ...] | tuple[float, ...]
FLOATS = ("float32", "float64", "float16")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = (*FLOATS, *INTEGERS, "bool")
"""numpy's names of the element types. float16 is only stored: `cast` reads and writes it."""
WEIGHTS_ONLY = ("bfloat16",)
"""Element types that only parameters have: arrays of ml_dtypes' types, computed with in float32."""


def element_type(dtype: str) -> np.dtype[Any]:
    """numpy's type of that name, those of `WEIGHTS_ONLY` too."""
    if dtype in WEIGHTS_ONLY:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, dtype))
    return np.dtype(dtype)


@dataclass(frozen=True)
class TensorType:
    """Shape (all dimensions known) and element type of a value. A scalar has shape `()`."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in (*DTYPES, *WEIGHTS_ONLY):
            raise InternalError(
                f"data type {self.dtype!r} is not one of {', '.join((*DTYPES, *WEIGHTS_ONLY))}"
            )
        if any(not isinstance(d, int) or d < 0 for d in self.shape):
            raise InternalError(f"shape {self.shape!r} is not a tuple of integers >= 0")

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * element_type(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Node:
    """One operation. `name` is its stable layer name; an absent optional input is `""`."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: tuple[TensorType, ...]
    attrs: Mapping[str, AttrValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "attrs", MappingProxyType(dict(sorted(self.attrs.items()))))

    def __hash__(self) -> int:
        return hash((self.name, self.op, self.inputs, self.outputs, self.types, tuple(self.attrs.items())))

    @property
    def output(self) -> str:
        """The first output (most ops have one)."""
        return self.outputs[0]

    @property
    def type(self) -> TensorType:
        """The type of the first output."""
        return self.types[0]

    def with_attrs(self, **changes: AttrValue) -> Node:
        return replace(self, attrs={**self.attrs, **changes})


@dataclass(frozen=True, eq=False)
class Graph:
    """A network. See the module docstring; `nodes` is in topological order.

    `states` are pairs (input, output) that are one buffer: what a run leaves in the output is the input of
    the next, zeros before the first. In a graph they are plain inputs and outputs; what is compiled keeps
    them.
    """

    name: str
    inputs: tuple[tuple[str, TensorType], ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    params: Mapping[str, np.ndarray]
    states: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        params = Params(self.params)
        for entry in params.entries.values():
            if isinstance(entry, np.ndarray):
                entry.flags.writeable = False
        object.__setattr__(self, "params", params)

    @cached_property
    def types(self) -> Mapping[str, TensorType]:
        """Type of every value: inputs, parameters and node outputs."""
        table = dict(self.inputs)
        table.update((n, TensorType(tuple(a.shape), a.dtype.name)) for n, a in self.stored.items())
        table.update(pair for node in self.nodes for pair in zip(node.outputs, node.types, strict=True))
        return MappingProxyType(table)

    @property
    def stored(self) -> Mapping[str, Entry]:
        """The parameters as they are held (params.py): copying them from graph to graph reads none."""
        return entries(self.params)

    @cached_property
    def _producers(self) -> Mapping[str, Node]:
        return {value: node for node in self.nodes for value in node.outputs}

    @cached_property
    def _consumers(self) -> Mapping[str, tuple[Node, ...]]:
        table: dict[str, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                table.setdefault(value, []).append(node)
        return {value: tuple(nodes) for value, nodes in table.items()}

    @cached_property
    def _by_name(self) -> Mapping[str, Node]:
        return {node.name: node for node in self.nodes}

    def type_of(self, value: str) -> TensorType:
        return self.types[value]

    def producer(self, value: str) -> Node | None:
        """The node that makes `value`; None for a graph input or a parameter."""
        return self._producers.get(value)

    def consumers(self, value: str) -> tuple[Node, ...]:
        """The nodes that read `value`, in order, each once."""
        return self._consumers.get(value, ())

    def node(self, name: str) -> Node:
        """The node of that name. Raises KeyError."""
        return self._by_name[name]

    @property
    def fed(self) -> tuple[tuple[str, TensorType], ...]:
        """The inputs that the caller gives in each run: all but states."""
        kept = {value for value, _ in self.states}
        return tuple(pair for pair in self.inputs if pair[0] not in kept)

    @property
    def returned(self) -> tuple[str, ...]:
        """The outputs that the caller gets: all but states."""
        kept = {value for _, value in self.states}
        return tuple(value for value in self.outputs if value not in kept)

    def used_params(self) -> Iterator[str]:
        """Names of the parameters that some node reads or the graph returns, in order of first use."""
        seen = dict.fromkeys(v for node in self.nodes for v in node.inputs)
        seen.update(dict.fromkeys(self.outputs))
        return (v for v in seen if v in self.params)

    @property
    def param_bytes(self) -> int:
        return sum(self.types[p].nbytes for p in self.used_params())

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over structure and weights: equal graphs give equal hashes on every machine."""
        structure = (self.name, self.inputs, self.outputs, self.nodes, *self.states)
        digest = hashlib.sha256(repr(structure).encode())
        for name in sorted(self.used_params()):
            digest.update(name.encode())
            # Seen as bytes: numpy gives no buffer of types that are not its own.
            digest.update(np.ascontiguousarray(self.params[name]).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def with_nodes(self, nodes: tuple[Node, ...], **changes: Any) -> Graph:
        """The same graph with other nodes (and params, inputs, outputs, when given)."""
        return replace(self, nodes=tuple(nodes), **changes)

    def to_networkx(self) -> networkx.DiGraph:
        """Nodes by name, with the `Node` as attribute `node`; an edge for each value that passes between
        two."""
        import networkx

        dag = networkx.DiGraph()
        dag.add_nodes_from((node.name, {"node": node}) for node in self.nodes)
        for node in self.nodes:
            for value in node.inputs:
                source = self.producer(value)
                if source is not None:
                    dag.add_edge(source.name, node.name, value=value)
        return dag
