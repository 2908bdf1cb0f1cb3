"""What a conversion rule works with: the ONNX node it converts, and the graph that grows."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any

import numpy as np

from ...builder import GraphBuilder
from ...ir import (
    DTYPES,
    AttrValue,
    Graph,
    Node,
    TensorType,
)
from ...ops import OPS
from ...params import OpenParams, entry_of
from .codes import Quantised, restore_codes

Result = str | np.ndarray
"""What an ONNX output became: the name of a value of the graph, or a constant known now."""


class UnsupportedForm(Exception):
    """A rule's way to say that it converts the operator, but not this form of it. The message is the hint."""


class ValueNeeded(UnsupportedForm):
    """A rule must know `value` (an ONNX name) at import, but it is computed at run time."""

    def __init__(self, value: str, what: str) -> None:
        super().__init__(f"its {what} must be constant, but is computed at run time")
        self.value = value


@dataclass(frozen=True)
class OnnxNode:
    """An ONNX node in plain Python: attributes as int, float, str, lists of these, or arrays.

    Outputs that nobody reads have no name.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    opset: int

    def get_int(self, key: str, default: int) -> int:
        return int(self.attrs.get(key, default))

    def get_float(self, key: str, default: float) -> float:
        return float(self.attrs.get(key, default))

    def get_str(self, key: str, default: str) -> str:
        return str(self.attrs.get(key, default))

    def get_ints(self, key: str, default: Sequence[int]) -> tuple[int, ...]:
        return tuple(int(v) for v in self.attrs.get(key, default))

    def has_input(self, index: int) -> bool:
        return index < len(self.inputs) and bool(self.inputs[index])

    @property
    def output(self) -> str:
        """The first output that has a name."""
        return next(name for name in self.outputs if name)

    def used_outputs(self) -> int:
        """Number of outputs up to the last one that has a name."""
        return max((i + 1 for i, name in enumerate(self.outputs) if name), default=0)


WIDER: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("int8", "uint8", "int16", "uint16"), ("int32", "float32")),
    "bool": ("uint8", "int32", "float32"),
    "int32": ("int64", "float64"),
    "uint32": ("int64", "float64"),
    "float64": ("float32",),
}
"""What an operator is computed in where it does not take the operands' own type. Every value survives the
way there and back, but that float64 loses digits in operators that only exist in float32 (layers, softmax).
"""

Rule = Callable[["Converter", OnnxNode], Result | Sequence[Result]]


class Converter:
    """The graph under construction, with the ONNX names of its values.

    `values`: ONNX value -> value of the graph; `constants`: ONNX value -> array known at import.
    A constant becomes a parameter only when a node reads it as an operand. `rules` are all of them, for those
    that build on another operator's.
    """

    def __init__(self, name: str, taken: Sequence[str], rules: Mapping[str, Rule]) -> None:
        self.rules = rules
        self.builder = GraphBuilder(name)
        self.values: dict[str, str] = {}
        self.constants = OpenParams({})
        self._taken = set(taken)  # ONNX names: derived values keep clear of them
        self._names: set[str] = set()
        self._params: dict[tuple[str, str], str] = {}
        self.quantised = Quantised()

    def add_input(self, name: str, kind: TensorType) -> None:
        """A graph input. Numbers stored in 16 bits are computed with in float32."""
        value = self.builder.input(name, kind.shape, kind.dtype)
        if kind.dtype == "float16":
            wide = self.derived(f"{name}.float32")
            value = self.builder.add(
                "cast", [value], name=self._unique(wide, "cast"), output=wide, to="float32"
            )
        self.values[name] = value

    def type(self, value: str) -> TensorType:
        """Type of a value of the graph."""
        return self.builder.types[value]

    def define(self, name: str, result: Result) -> None:
        """What the ONNX value became."""
        if isinstance(result, str):
            self.values[name] = result
        else:
            self.constants[name] = result

    def alias(self, name: str, other: str) -> None:
        """A further name of an ONNX value."""
        self.define(name, self.values[other] if other in self.values else self.constants[other])

    def apply(self, node: OnnxNode) -> Sequence[Result]:
        """What the rule of the node's operator makes of it, output by output. Raises UnsupportedForm."""
        made = self.rules[node.op](self, node)
        return [made] if isinstance(made, (str, np.ndarray)) else made

    def computed(self, node: OnnxNode) -> str:
        """The first of them, of a node with an operand that is not constant."""
        made = self.apply(node)[0]
        assert isinstance(made, str)
        return made

    def constant(self, node: OnnxNode, index: int) -> np.ndarray | None:
        """The input's value if it is known now, else None."""
        return self.constants.get(node.inputs[index]) if node.has_input(index) else None

    def known(self, node: OnnxNode, index: int, what: str) -> np.ndarray:
        """The input's value. Raises UnsupportedForm when it is computed at run time."""
        array = self.constant(node, index)
        if array is None:
            raise ValueNeeded(node.inputs[index] if node.has_input(index) else "", what)
        return array

    def value(self, node: OnnxNode, index: int = 0) -> str:
        """The input as a value of the graph; a constant becomes a parameter."""
        name = node.inputs[index]
        return self.values[name] if name in self.values else self.param(name, self.constants[name])

    def param(self, name: str, array: np.ndarray, form: str = "") -> str:
        """A parameter called `name`. `form` tells apart what is made of one constant (transposed...)."""
        key = (name, form)
        if array.dtype.name in ("float16", "bfloat16"):
            array = array.astype(np.float32)
        if array.dtype.name not in DTYPES:
            raise UnsupportedForm(f"its constant {name!r} has elements of type {array.dtype.name}")
        found = self._params.get(key)
        # Constants that are equal are one in the file's optimised form, but may have other scales.
        if found is None or not np.array_equal(self.builder.params[found], array):
            found = self.builder.param(name, entry_of(array, self.constants.entries.get(name)))
            self._params[key] = found
        return found

    def scalar(self, node: OnnxNode, part: str, number: float, like: str = "") -> str:
        """A parameter of shape () for the arithmetic of a decomposition, of the type of the value `like`."""
        dtype = self.type(like).dtype if like else "float32"
        return self.param(self.derived(f"{node.output}.{part}"), np.array(number, dtype), f"{number} {dtype}")

    def emit(self, node: OnnxNode, op: str, inputs: Sequence[str], part: str = "", **attrs: AttrValue) -> str:
        """Append a node of the graph. The one that makes the ONNX node's own output has no `part`.

        The node that carries the weights always has the plain layer name. Operands that the operator does not
        compute with as they are, are converted before it, and the result back (WIDER).
        """
        operands, narrow = self.widened(node, op, inputs)
        if not narrow:
            return self._append(node, op, operands, [self._wanted(node, part)], part, **attrs)[0]
        (wide,) = self._append(
            node, op, operands, [self.derived(f"{node.output}.{part or op}.wide")], part, **attrs
        )
        if self.type(wide).dtype != self.type(operands[0]).dtype:  # a comparison
            return self.cast(node, wide, self.type(wide).dtype, part)
        return self.cast(node, wide, narrow, part)

    def emit_all(
        self, node: OnnxNode, op: str, inputs: Sequence[str], part: str = "", **attrs: AttrValue
    ) -> list[str]:
        """Append a node with several outputs, which are called as the ONNX node's own, if these are read."""
        names = [name or self.derived(f"{node.output}.{i}") for i, name in enumerate(node.outputs)]
        wanted = [self.derived(f"{name}.{part}") for name in names] if part else names
        return list(self._append(node, op, inputs, wanted, part, **attrs))

    def cast(self, node: OnnxNode, value: str, dtype: str, part: str = "") -> str:
        """The value as another element type; itself when it has that type."""
        if self.type(value).dtype == dtype:
            return value
        if value in self.builder.params:
            return self.param(value, self.builder.params[value].astype(dtype), dtype)
        return self._append(node, "cast", [value], [self._wanted(node, part)], part or "cast", to=dtype)[0]

    def _wanted(self, node: OnnxNode, part: str) -> str:
        return self.derived(f"{node.output}.{part}") if part else node.output

    def _append(
        self,
        node: OnnxNode,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        part: str,
        **attrs: AttrValue,
    ) -> tuple[str, ...]:
        plain = not part or OPS[op].layer
        name = self._unique(node.name if plain else f"{node.name}.{part}", op)
        count = len(
            OPS[op].infer_types([self.type(v) if v else None for v in inputs], OPS[op].complete(attrs))
        )
        return self.builder.add_all(op, inputs, name=name, outputs=tuple(outputs)[:count], **attrs)

    def widened(self, node: OnnxNode, op: str, inputs: Sequence[str]) -> tuple[list[str], str]:
        """The operands in a type that the operator computes with; and the type to convert its result to, or
        "" when that is the type it has.
        """
        kinds = {self.type(v).dtype for v in inputs if v}
        plain = OPS[op].plain
        if not plain or not kinds or (OPS[op].layer and kinds & {"uint8", "int8"}):
            return list(inputs), ""
        own = "float64" if kinds == {"float32", "float64"} else next(iter(kinds))
        if len(kinds) > 1 and kinds != {"float32", "float64"}:
            return list(inputs), ""  # its type rule says what is wrong
        wide = next((dtype for dtype in (own, *WIDER.get(own, ())) if dtype in plain), "")
        if not wide:
            raise UnsupportedForm(f"{own} data")
        operands = [v and self.cast(node, v, wide, f"{op}.in{i}") for i, v in enumerate(inputs)]
        return operands, "" if wide == own else own

    def reshape(self, node: OnnxNode, value: str, shape: Sequence[int], part: str = "") -> str:
        """A reshape node, or the value itself when it has that shape."""
        shape = tuple(int(d) for d in shape)
        return (
            value
            if self.type(value).shape == shape
            else self.emit(node, "reshape", [value], part, shape=shape)
        )

    def derived(self, wanted: str) -> str:
        """`wanted`, or numbered where the ONNX model has a value of that name."""
        return numbered(wanted, self._taken | self.builder.types.keys())

    def _unique(self, wanted: str, op: str) -> str:
        """`wanted`, or else with the operator's name behind it, or else numbered."""
        name = wanted if wanted not in self._names else numbered(f"{wanted}.{op}", self._names)
        self._names.add(name)
        return name

    def finish(self, outputs: Mapping[str, str]) -> Graph:
        """The graph, whose outputs (name -> element type) have their ONNX names and types again."""
        restore_codes(
            self.builder, self.quantised, {param: name for (name, _), param in self._params.items()}
        )
        for name in outputs:
            self._leave(name)
        rename: dict[str, str] = {}
        made = {value for node in self.builder.nodes for value in node.outputs}
        for name, dtype in outputs.items():
            value = self.values.get(name) or self.param(self.derived(f"{name}.value"), self.constants[name])
            if self.type(value).dtype != dtype:
                self._convert_output(name, value, dtype)
            elif value == name:
                continue
            elif value in made and value not in outputs and value not in rename:
                if name in made:  # a rule gave a part of its work the output's name
                    rename[name] = self.derived(f"{name}.part")
                rename[value] = name
            else:  # an alias of an input, a constant or another output: the graph needs a value of its own
                shape, node = self.type(value).shape, self._unique(name, "copy")
                self.builder.add("reshape", [value], name=node, output=name, shape=shape)
        self.builder.nodes = [_renamed(node, rename) for node in self.builder.nodes]
        return self.builder.finish(list(outputs))

    def _leave(self, output: str) -> None:
        """Give a parameter called as an output another name: the output may be the constant that it was made
        of."""
        builder = self.builder
        if output not in builder.params:
            return
        free = self.derived(f"{output}.param")
        builder.params[free] = builder.params.pop(output)
        builder.types[free] = builder.types.pop(output)
        builder.nodes = [_with_input(node, output, free) for node in builder.nodes]
        self._params = {k: free if v == output else v for k, v in self._params.items()}
        self.values = {k: free if v == output else v for k, v in self.values.items()}

    def _convert_output(self, name: str, value: str, dtype: str) -> None:
        """The output as the model declares it; what had its name gets its type behind it."""
        if value == name:
            value = self.derived(f"{name}.{self.type(name).dtype}")
            self.builder.types[value] = self.builder.types.pop(name)
            self.builder.nodes = [_renamed(node, {name: value}) for node in self.builder.nodes]
            self.values = {k: value if v == name else v for k, v in self.values.items()}
        self.builder.add("cast", [value], name=self._unique(name, "cast"), output=name, to=dtype)


def numbered(wanted: str, taken: Container[str]) -> str:
    """`wanted`, or with a number behind it if it is taken."""
    candidates = chain([wanted], (f"{wanted}_{i}" for i in count(1)))
    return next(name for name in candidates if name not in taken)


def _renamed(node: Node, rename: Mapping[str, str]) -> Node:
    inputs = tuple(rename.get(v, v) for v in node.inputs)
    return replace(node, inputs=inputs, outputs=tuple(rename.get(v, v) for v in node.outputs))


def _with_input(node: Node, old: str, new: str) -> Node:
    if old not in node.inputs:
        return node
    return replace(node, inputs=tuple(new if value == old else value for value in node.inputs))
