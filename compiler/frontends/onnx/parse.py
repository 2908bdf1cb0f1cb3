"""An ONNX file as a ModelProto: small files as a whole, large ones without the numbers of their weights.

A ModelProto that is read as a whole takes twice the file. In the wire format of protobuf
(https://protobuf.dev/programming-guides/encoding) a message is a row of fields, each with its number, the way
it is written, and for texts, bytes and messages how many bytes follow.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import ModelError, UnsupportedError
from .bare import LARGE
from .weights import bytes_of, leave_inside

MAX_BYTES = 2**31 - 1
"""Protobuf's limit for one message; the checker and shape inference need the whole model as one."""
STAY = 64 << 20
"""Bytes of weights, in one file or beside it, from which on large ones stay in their files."""
GRAPH, INITIALIZER, RAW_DATA = 7, 5, 9
"""Numbers of fields: of ModelProto, GraphProto and TensorProto."""
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""The ways in which fields are written."""

Inside = dict[int, tuple[int, int]]
"""Number of an initializer -> where in the file its numbers begin and end."""


def parse(path: Path) -> tuple[Any, Inside]:
    """The model, and where those numbers lie that it lacks. Raises ModelError, UnsupportedError."""
    from google.protobuf.message import DecodeError

    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UnsupportedError(
                f"{path}: {size / 1e9:.1f} GB; files over 2 GB cannot be read: save the weights beside it "
                "(onnx.save with save_as_external_data=True)"
            )
        if not size and path.is_file():
            raise ModelError(f"{path}: the file is empty")
        model, inside = _large(path) if size >= STAY else _small(path)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from None
    except DecodeError:
        raise ModelError(f"{path}: not an ONNX model, or damaged (the download may be incomplete)") from None
    if any(isinstance(text, bytes) for text in _texts(model)):
        raise ModelError(f"{path}: damaged: it has names that are not text")
    if not model.ir_version or not model.HasField("graph"):
        raise ModelError(f"{path}: not an ONNX model, or damaged (it has no version or no graph)")
    return model, inside


def name_inside(model: Any, inside: Inside, path: Path) -> None:
    """Note in the initializers, in place, where in the file they lie."""
    for i, (start, stop) in inside.items():
        leave_inside(model.graph.initializer[i], path, start, stop)


def _small(path: Path) -> tuple[Any, Inside]:
    import onnx

    model = onnx.ModelProto()
    model.ParseFromString(path.read_bytes())
    return model, {}


def _large(path: Path) -> tuple[Any, Inside]:
    import onnx

    model, inside = onnx.ModelProto(), {}
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        rest, graphs = _without(data, 0, len(data), GRAPH)
        model.ParseFromString(rest)
        for graph in graphs:
            model.graph.SetInParent()
            rest, initializers = _without(data, *graph, INITIALIZER)
            model.graph.MergeFromString(rest)
            for initializer in initializers:
                if place := _add(model.graph, data, *initializer):
                    inside[len(model.graph.initializer) - 1] = place
    return model, inside


def _add(graph: Any, data: mmap.mmap, start: int, stop: int) -> tuple[int, int] | None:
    """Append an initializer; says where its numbers lie if it lacks them, being many."""
    tensor = graph.initializer.add()
    rest, numbers = _without(data, start, stop, RAW_DATA)
    tensor.ParseFromString(rest)
    sizes = [end - begin for begin, end in numbers]
    if tensor.data_location != tensor.EXTERNAL and sizes == [bytes_of(tensor)] and sizes[0] >= LARGE:
        return numbers[0]
    tensor.ParseFromString(data[start:stop])
    return None


def _without(data: mmap.mmap, start: int, stop: int, number: int) -> tuple[bytes, list[tuple[int, int]]]:
    """A message's bytes without its fields of that number, and where the values of these begin and end."""
    kept, found = [], []
    for field, way, begin, value, end in _fields(data, start, stop):
        if field == number and way == BYTES:
            found.append((value, end))
        else:
            kept.append(data[begin:end])
    return b"".join(kept), found


def _fields(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(number, way, where it begins, where its value begins, where it ends) of the fields of a message."""
    from google.protobuf.message import DecodeError

    at = start
    while at < stop:
        begin = at
        key, value = _varint(data, at, stop)
        way = key & 7
        if way == VARINT:
            _, at = _varint(data, value, stop)
        elif way == BYTES:
            length, value = _varint(data, value, stop)
            at = value + length
        elif way in (FIXED64, FIXED32):
            at = value + (8 if way == FIXED64 else 4)
        else:
            raise DecodeError("a field written in no known way")
        if at > stop:
            raise DecodeError("cut off")
        yield key >> 3, way, begin, value, at


def _varint(data: mmap.mmap, at: int, stop: int) -> tuple[int, int]:
    """A number written in groups of seven bits, and where it ends."""
    from google.protobuf.message import DecodeError

    number = 0
    for shift, byte in enumerate(data[at : min(at + 10, stop)]):
        number |= (byte & 127) << 7 * shift
        if byte < 128:
            return number, at + shift + 1
    raise DecodeError("a number without an end")


def _texts(message: Any) -> Iterator[str | bytes]:
    """All strings of a protobuf message; protobuf gives those that are not valid UTF-8 as bytes."""
    for field, value in message.ListFields():
        values = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
        if field.type == field.TYPE_STRING:
            yield from values
        elif field.type == field.TYPE_MESSAGE:
            for inner in values:
                yield from _texts(inner)
