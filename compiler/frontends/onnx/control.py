"""Control flow that is decided at import: the taken branch of an If, the unrolled rounds of a Loop or Scan.

The nodes of a subgraph are converted in place of the control flow node, under names of their own for each
round. What decides must be known by then: shapes and constants are, since every size is fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from .converter import Converter, UnsupportedForm, ValueNeeded
from .read import graphs_of, to_array

MOST_NODES = 50_000
"""Nodes that the rounds of one loop may become: more takes longer to compile than anyone waits."""


class Host(Protocol):
    """The import that control flow is converted into."""

    converter: Converter
    read: set[str]
    lost: set[str]
    sequences: dict[str, tuple[str, ...]]

    def add_node(self, proto: Any) -> None: ...


def expand(host: Host, proto: Any, opset: int) -> bool:
    """Convert an If, Loop or Scan by what it runs. False for other nodes.

    Raises UnsupportedForm where data decides, and where there are too many rounds.
    """
    rule = _RULES.get(proto.op_type) if proto.domain in ("", "ai.onnx") else None
    if rule is None:
        return False
    if proto.op_type == "Scan" and opset < 9:
        raise UnsupportedForm("in the form of operator set 8, over a batch: export the model again")
    rule(host, proto)
    return True


def attributes(proto: Any) -> dict[str, Any]:
    import onnx

    return {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}


def known(host: Host, name: str, what: str, whole: bool = False) -> Any:
    """The number (or all numbers) that a value holds. Raises ValueNeeded when it is computed at run time."""
    array = host.converter.constants.get(name)
    if array is None:
        raise ValueNeeded(name, what)
    return array if whole else array.reshape(-1)[0].item()


def _if(host: Host, proto: Any) -> None:
    condition = host.converter.constants.get(proto.input[0])
    if condition is None:
        _either(host, proto)
        return
    taken = "then_branch" if condition.reshape(-1)[0] else "else_branch"
    made = _run(host, attributes(proto)[taken], {}, f"{proto.output[0]}.")
    name_results(host, proto.output, made)


def _either(host: Host, proto: Any) -> None:
    """Both branches, of which data chooses. None has an effect but its results."""
    import onnx

    condition, attrs, first = proto.input[0], attributes(proto), proto.output[0]
    both = [_run(host, attrs[f"{way}_branch"], {}, f"{first}.{way}.") for way in ("then", "else")]
    if any(name in host.lost or name in host.sequences for name in (condition, *both[0], *both[1])):
        host.lost.update(proto.output)
        raise ValueNeeded(condition, "condition")
    for pair in zip(*both, strict=True):
        shapes = [shape_of(host, name) for name in pair]
        if shapes[0] != shapes[1]:
            wanted = f"condition (one branch makes {list(shapes[0])}, the other {list(shapes[1])})"
            raise ValueNeeded(condition, wanted)
    host.read |= {f"{first}.condition", *proto.output}
    scalar = constant(host, f"{first}.scalar", np.zeros(0, np.int64))
    host.add_node(onnx.helper.make_node("Reshape", [condition, scalar], [f"{first}.condition"]))
    for name, chosen in zip(proto.output, zip(*both, strict=True), strict=True):
        host.add_node(onnx.helper.make_node("Where", [f"{first}.condition", *chosen], [name]))


def _loop(host: Host, proto: Any) -> None:
    body = attributes(proto)["body"]
    trips, condition, *values = (*proto.input, "", "")[: max(len(proto.input), 2)]
    limit = known(host, trips, "number of rounds") if trips else None
    going = known(host, condition, "condition") if condition else True
    _refuse_long(body, limit or 0)
    stacks: list[list[str]] = [[] for _ in body.output[1 + len(values) :]]
    turn = 0
    while going and (limit is None or turn < limit):
        _refuse_long(body, turn)
        prefix = f"{next(filter(None, proto.output))}.{turn}."
        inputs = [
            constant(host, f"{prefix}turn", np.array(turn, np.int64)),
            constant(host, f"{prefix}going", np.array(True)),
        ]
        names = [value.name for value in body.input]
        made = _run(host, body, dict(zip(names, [*inputs, *values], strict=True)), prefix)
        values = made[1 : 1 + len(values)]
        for stack, value in zip(stacks, made[1 + len(values) :], strict=True):
            stack.append(value)
        turn += 1
        going = known(host, made[0], "condition to go on")
        if not (condition or going):
            raise UnsupportedForm(
                "no condition but a body that ends it, which ONNX Runtime obeys and ONNX not"
            )
    ends = proto.output[: len(values)]
    name_results(host, ends, values[: len(ends)])
    for name, stack in zip(proto.output[len(values) :], stacks, strict=False):
        stack_values(host, name, stack, 0)


def _scan(host: Host, proto: Any) -> None:
    attrs = attributes(proto)
    body, count = attrs["body"], int(attrs["num_scan_inputs"])
    states, sequences = list(proto.input[:-count]), list(proto.input[-count:])
    outputs = len(body.output) - len(states)
    shapes = [shape_of(host, name) for name in sequences]
    axes = [a % len(s) for a, s in zip(attrs.get("scan_input_axes", [0] * count), shapes, strict=True)]
    length = shapes[0][axes[0]]
    _refuse_long(body, length)
    backwards = attrs.get("scan_input_directions", [0] * count)
    stacks: list[list[str]] = [[] for _ in range(outputs)]
    for turn in range(length):
        prefix = f"{next(filter(None, proto.output))}.{turn}."
        elements = [
            element(host, name, axis, length - 1 - turn if back else turn, f"{prefix}in{i}")
            for i, (name, axis, back) in enumerate(zip(sequences, axes, backwards, strict=True))
        ]
        names = [value.name for value in body.input]
        made = _run(host, body, dict(zip(names, [*states, *elements], strict=True)), prefix)
        states = made[: len(states)]
        for stack, value in zip(stacks, made[len(states) :], strict=True):
            stack.append(value)
    name_results(host, proto.output[: len(states)], states)
    ends = attrs.get("scan_output_directions", [0] * outputs)
    places = attrs.get("scan_output_axes", [0] * outputs)
    for name, stack, back, axis in zip(proto.output[len(states) :], stacks, ends, places, strict=False):
        stack_values(host, name, stack[::-1] if back else stack, axis)


_RULES: dict[str, Callable[[Host, Any], None]] = {"If": _if, "Loop": _loop, "Scan": _scan}


def _refuse_long(body: Any, rounds: int) -> None:
    nodes = sum(len(graph.node) for graph in graphs_of(body))
    if rounds * nodes > MOST_NODES:
        raise UnsupportedForm(f"{rounds} rounds of {nodes} nodes; at most {MOST_NODES} nodes are unrolled")


def _run(host: Host, graph: Any, bound: Mapping[str, str], prefix: str) -> list[str]:
    """Convert the nodes of a subgraph under new names. `bound`: its inputs -> values of the import.

    Gives the names of its outputs.
    """
    names = dict(bound)
    for tensor in graph.initializer:
        names[tensor.name] = constant(host, prefix + tensor.name, to_array(tensor))
    names.update((out, prefix + out) for node in graph.node for out in node.output if out)
    nodes = [_renamed(node, names) for node in graph.node]
    results = [names.get(value.name, value.name) for value in graph.output]
    host.read |= set(results) | set(_read(nodes))
    for node in nodes:
        host.add_node(node)
    return results


def _read(nodes: Sequence[Any]) -> Iterator[str]:
    """All values that the nodes read, those in their subgraphs too."""
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _read(attribute.g.node)
                yield from (value.name for value in attribute.g.output)


def _renamed(node: Any, names: Mapping[str, str]) -> Any:
    """A copy of the node that reads and makes values by their new names, in its subgraphs too."""
    import onnx

    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    for attribute in copy.attribute:
        if attribute.HasField("g"):
            _rename_graph(attribute.g, names)
    return copy


def _rename_graph(graph: Any, names: Mapping[str, str]) -> None:
    """New names for what a nested graph reads of its surroundings; its own values keep theirs."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own |= {out for node in graph.node for out in node.output}
    outer = {old: new for old, new in names.items() if old not in own}
    nodes = [_renamed(node, outer) for node in graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in graph.output:
        value.name = outer.get(value.name, value.name)


def constant(host: Host, name: str, array: np.ndarray) -> str:
    host.converter.constants[name] = array
    return name


def name_results(host: Host, names: Sequence[str], made: Sequence[str]) -> None:
    """What a control flow node calls its results."""
    for name, value in zip(names, made, strict=True):
        if value in host.lost:
            host.lost.add(name)
        elif value in host.sequences:
            host.sequences[name] = host.sequences[value]
        elif name and value in host.converter.constants:
            host.converter.constants[name] = host.converter.constants[value]
        elif name:
            host.converter.values[name] = host.converter.values[value]


def shape_of(host: Host, name: str) -> tuple[int, ...]:
    constant = host.converter.constants.get(name)
    return host.converter.type(host.converter.values[name]).shape if constant is None else constant.shape


def element(host: Host, name: str, axis: int, index: int, made: str) -> str:
    """Element `index` of a sequence along an axis, which is dropped."""
    import onnx

    place = constant(host, f"{made}.index", np.array(index, np.int64))
    host.read |= {made}
    host.add_node(onnx.helper.make_node("Gather", [name, place], [made], axis=axis))
    return made


def stack_values(host: Host, name: str, values: Sequence[str], axis: int) -> None:
    """The results of all rounds along a new axis."""
    import onnx

    if any(value in host.lost for value in values):
        host.lost.add(name)
    if not name or name in host.lost:
        return
    if not values:
        raise UnsupportedForm("no round runs, so what its rounds make is empty")
    shape = shape_of(host, values[0])
    if any(shape_of(host, value) != shape for value in values):
        raise UnsupportedForm("its rounds make values of different shapes")
    at = axis % (len(shape) + 1)
    target = np.array((*shape[:at], 1, *shape[at:]), np.int64)
    rows = []
    for i, value in enumerate(values):
        rows.append(f"{name}.row{i}")
        wanted = constant(host, f"{name}.row{i}.shape", target)
        host.read |= {rows[-1], name}
        host.add_node(onnx.helper.make_node("Reshape", [value, wanted], [rows[-1]]))
    host.add_node(onnx.helper.make_node("Concat", rows, [name], axis=at))
