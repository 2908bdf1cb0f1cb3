"""Sequences of tensors, as exporters write them for lists: known by the names of their elements.

Which element is meant must be known at import. A sequence is then no value of its own: what splits a tensor
is a Split, what puts sequences together a Concat.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .control import (
    Host,
    attributes,
    constant,
    element,
    known,
    name_results,
    shape_of,
    stack_values,
)
from .converter import UnsupportedForm


def on_sequences(host: Host, proto: Any, opset: int) -> bool:
    """Convert a node that makes or reads sequences. False for other nodes.

    Raises UnsupportedForm where data decides, and for a sequence that is not known.
    """
    standard = proto.domain in ("", "ai.onnx")
    if standard and proto.op_type in ("Identity", "SequenceEmpty", "SequenceConstruct"):
        return _made(host, proto)
    rule = _RULES.get(proto.op_type) if standard else None
    if rule is None:
        return False
    if proto.input[0] in host.lost:
        host.lost.update(proto.output)
        return True
    if proto.op_type != "SplitToSequence" and proto.input[0] not in host.sequences:
        raise UnsupportedForm("a sequence that is not known at import")
    rule(host, proto, opset)
    return True


def _made(host: Host, proto: Any) -> bool:
    if proto.op_type == "Identity":
        if proto.input[0] not in host.sequences:
            return False
        host.sequences[proto.output[0]] = host.sequences[proto.input[0]]
    else:
        host.sequences[proto.output[0]] = tuple(proto.input)
    return True


def _place(host: Host, proto: Any, at: int, size: int) -> int:
    """The position that an input says, counted from the front; the last without it."""
    given = len(proto.input) > at and proto.input[at]
    place = int(known(host, proto.input[at], "position")) if given else -1
    if not -size <= place < size:
        raise UnsupportedForm(f"position {place} of a sequence of {size}")
    return place % size


def _insert(host: Host, proto: Any, opset: int) -> None:
    elements = host.sequences[proto.input[0]]
    last = len(proto.input) < 3 or not proto.input[2]
    place = len(elements) if last else _place(host, proto, 2, len(elements) + 1)
    host.sequences[proto.output[0]] = (*elements[:place], proto.input[1], *elements[place:])


def _erase(host: Host, proto: Any, opset: int) -> None:
    elements = host.sequences[proto.input[0]]
    place = _place(host, proto, 1, len(elements))
    host.sequences[proto.output[0]] = (*elements[:place], *elements[place + 1 :])


def _at(host: Host, proto: Any, opset: int) -> None:
    elements = host.sequences[proto.input[0]]
    name_results(host, proto.output, [elements[_place(host, proto, 1, len(elements))]])


def _length(host: Host, proto: Any, opset: int) -> None:
    constant(host, proto.output[0], np.array(len(host.sequences[proto.input[0]]), np.int64))


def _split(host: Host, proto: Any, opset: int) -> None:
    import onnx

    x, name, attrs = proto.input[0], proto.output[0], attributes(proto)
    shape = shape_of(host, x)
    axis = int(attrs.get("axis", 0)) % len(shape)
    if len(proto.input) > 1 and proto.input[1]:
        sizes = _sizes(np.asarray(known(host, proto.input[1], "sizes", whole=True)), shape[axis])
    elif attrs.get("keepdims", 1):
        sizes = [1] * shape[axis]
    else:
        names = [f"{name}.{i}" for i in range(shape[axis])]
        host.sequences[name] = tuple(element(host, x, axis, i, made) for i, made in enumerate(names))
        return
    names = [f"{name}.{i}" for i in range(len(sizes))]
    host.read |= set(names)
    inputs, said = [x], {"split": sizes}
    if opset >= 13:
        inputs, said = [x, constant(host, f"{name}.sizes", np.array(sizes, np.int64))], {}
    host.add_node(onnx.helper.make_node("Split", inputs, names, axis=axis, **said))
    host.sequences[name] = tuple(names)


def _sizes(said: np.ndarray, length: int) -> list[int]:
    """One number is the size of all parts but the last."""
    if said.ndim:
        return [int(size) for size in said]
    size = int(said)
    if size < 1:
        raise UnsupportedForm(f"parts of {size}")
    return [min(size, length - start) for start in range(0, length, size)]


def _concat(host: Host, proto: Any, opset: int) -> None:
    import onnx

    elements, attrs = host.sequences[proto.input[0]], attributes(proto)
    if attrs.get("new_axis", 0):
        stack_values(host, proto.output[0], elements, int(attrs["axis"]))
    elif any(value in host.lost for value in elements):
        host.lost.add(proto.output[0])
    elif not elements:
        raise UnsupportedForm("a sequence of no tensors")
    else:
        host.add_node(onnx.helper.make_node("Concat", elements, proto.output, axis=int(attrs["axis"])))


_RULES: dict[str, Callable[[Host, Any, int], None]] = {
    "SequenceInsert": _insert,
    "SequenceErase": _erase,
    "SequenceAt": _at,
    "SequenceLength": _length,
    "SplitToSequence": _split,
    "ConcatFromSequence": _concat,
}
