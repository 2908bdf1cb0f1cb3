"""Builds a graph node by node; types are inferred."""

from __future__ import annotations

from collections.abc import Sequence

from .ir import (
    AttrValue,
    Graph,
    Node,
    TensorType,
)
from .ops import OPS
from .params import Entry, OpenParams
from .verify import verify


class GraphBuilder:
    """Collects inputs, parameters and nodes; `finish` gives the graph.

    b = GraphBuilder("mlp")
    x = b.input("x", (1, 4))
    y = b.add("linear", [x, b.param("w", w)], act="clip", lo=0.0)
    graph = b.finish([y])
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.inputs: list[tuple[str, TensorType]] = []
        self.params = OpenParams({})
        self.nodes: list[Node] = []
        self.types: dict[str, TensorType] = {}
        self.states: list[tuple[str, str]] = []

    def fresh(self, wanted: str) -> str:
        """`wanted`, or with a number behind it if it is taken."""
        name, count = wanted, 1
        while name in self.types:
            name, count = f"{wanted}_{count}", count + 1
        return name

    def input(self, name: str, shape: tuple[int, ...], dtype: str = "float32") -> str:
        self.types[name] = TensorType(tuple(shape), dtype)
        self.inputs.append((name, self.types[name]))
        return name

    def keep(self, before: str, after: str) -> None:
        """The value `after` is the input `before` of the next run; `finish` returns it behind the outputs."""
        self.states.append((before, after))

    def param(self, name: str, array: Entry) -> str:
        """A parameter; the name returned may be numbered."""
        name = self.fresh(name)
        self.params[name] = array
        self.types[name] = TensorType(tuple(array.shape), array.dtype.name)
        return name

    def add(
        self,
        op: str,
        inputs: Sequence[str],
        *,
        name: str | None = None,
        output: str | None = None,
        **attrs: AttrValue,
    ) -> str:
        """Append a node and return its (first) output's name. Raises TypeRuleError when a rule is broken.

        `name` is the layer's name, by default the output's; attributes that equal their default are left out.
        """
        return self.add_all(op, inputs, name=name, outputs=(output,) if output else (), **attrs)[0]

    def add_all(
        self,
        op: str,
        inputs: Sequence[str],
        *,
        name: str | None = None,
        outputs: Sequence[str] = (),
        **attrs: AttrValue,
    ) -> tuple[str, ...]:
        """Append a node that may have several outputs and return their names.

        Those that `outputs` does not name are called after the first, with their number behind it.
        """
        definition = OPS[op]
        kinds = [self.types[v] if v else None for v in inputs]
        types = definition.infer_types(kinds, definition.complete(attrs))
        first = (outputs or (name or f"{op}_{len(self.nodes)}",))[0]
        wanted = [*(outputs or (first,)), *(f"{first}.{i}" for i in range(max(len(outputs), 1), len(types)))]
        names = []
        for value, kind in zip(wanted, types, strict=True):
            names.append(self.fresh(value))
            self.types[names[-1]] = kind
        kept = {k: v for k, v in attrs.items() if v != definition.attrs[k]}
        self.nodes.append(Node(name or names[0], op, tuple(inputs), tuple(names), types, kept))
        return tuple(names)

    def finish(self, outputs: Sequence[str]) -> Graph:
        """The graph, verified. The outputs of states follow those given."""
        returned = (*outputs, *(after for _, after in self.states))
        states = tuple(self.states)
        graph = Graph(self.name, tuple(self.inputs), returned, tuple(self.nodes), self.params, states)
        return verify(graph, "building")
