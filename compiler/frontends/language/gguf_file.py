"""Reads a GGUF file: its metadata at once, its tensors one by one, piece by piece.

The `gguf` package knows the formats of tensors and decodes them. Its own reader makes several numpy objects
for each word of a vocabulary (5 s for 49,000 words), so that the file's structure is read here
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ModelError, UnsupportedError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
VALUES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Type of a metadata value -> its struct code."""
STRING, ARRAY = 8, 9
MOST_DEPTH = 4
PIECE = 1 << 22
"""Weights that are decoded at a time."""


@dataclass(frozen=True)
class GgufTensor:
    """A tensor in a file. `shape` as numpy has it, rows first; `kind` a gguf.GGMLQuantizationType."""

    path: Path
    shape: tuple[int, ...]
    kind: Any
    offset: int
    row_bytes: int

    def raw(self, begin: int, end: int) -> np.ndarray:
        """uint8 [end - begin, row_bytes] of some rows as they are stored."""
        count = (end - begin) * self.row_bytes
        found = np.fromfile(self.path, np.uint8, count, offset=self.offset + begin * self.row_bytes)
        if found.size != count:
            raise ModelError(f"{self.path} has changed since it was opened: it ends within a tensor")
        return found.reshape(end - begin, self.row_bytes)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """(begin, end) of rows that are read together."""
        rows = math.prod(self.shape[:-1])
        step = max(1, PIECE // max(1, self.shape[-1]))
        return ((begin, min(begin + step, rows)) for begin in range(0, rows, step))

    def array(self) -> np.ndarray:
        """As float32."""
        import gguf

        made = np.empty((math.prod(self.shape[:-1]), self.shape[-1]), np.float32)
        for begin, end in self.pieces():
            stored = self.raw(begin, end)
            if self.kind == gguf.GGMLQuantizationType.F32:
                made[begin:end] = stored.view("<f4")
            elif self.kind == gguf.GGMLQuantizationType.F16:
                made[begin:end] = stored.view("<f2")
            else:
                made[begin:end] = gguf.dequantize(stored, self.kind)
        return made.reshape(self.shape)


@dataclass(frozen=True)
class GgufFile:
    """`fields` are the metadata: numbers, texts, and lists of these."""

    path: Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def open_gguf(path: Path) -> GgufFile:
    """Raises ModelError for a file that is missing, damaged or cut short, UnsupportedError for one in a form
    that is not known.
    """
    try:
        if not path.stat().st_size:
            raise ModelError(f"{path} is empty. Download it again")
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Parser(path, data).parse()
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or error
        raise ModelError(f"cannot read {path}: {what}") from None


class _Parser:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def parse(self) -> GgufFile:
        if self.take(4) != MAGIC:
            raise ModelError(f"{self.path} is not a GGUF file: it does not begin with {MAGIC.decode()!r}")
        version = self.number("I")
        if version not in VERSIONS:
            raise UnsupportedError(f"{self.path} is GGUF version {version}; versions 2 and 3 are supported")
        tensors, fields = self.number("Q"), self.number("Q")
        found = {}
        for _ in range(fields):
            name = self.text()
            found[name] = self.value(self.number("I"))
        described = [self.described() for _ in range(tensors)]
        alignment = found.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise self.damaged(f"its alignment is {alignment!r}")
        start = -(-self.at // alignment) * alignment
        made = {name: self.tensor(name, shape, kind, start + at) for name, shape, kind, at in described}
        return GgufFile(self.path, found, made)

    def described(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, number of the kind and offset of a tensor."""
        name = self.text()
        rank = self.number("I")
        if rank > 8:
            raise self.damaged(f"{name!r} has {rank} dimensions")
        shape = tuple(self.number("Q") for _ in range(rank))
        return name, shape[::-1], self.number("I"), self.number("Q")

    def tensor(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
        import gguf

        try:
            known = gguf.GGMLQuantizationType(kind)
            block, nbytes = gguf.GGML_QUANT_SIZES[known]
        except (ValueError, KeyError):
            raise UnsupportedError(
                f"{self.path}: {name} is stored in a format that is not known ({kind})"
            ) from None
        if not shape or shape[-1] % block:
            raise self.damaged(f"{name} has shape {list(shape)}, which blocks of {block} do not fill")
        made = GgufTensor(self.path, shape, known, offset, shape[-1] // block * nbytes)
        if made.offset + math.prod(shape[:-1]) * made.row_bytes > len(self.data):
            raise self.damaged(f"it ends within {name}")
        return made

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise self.damaged("it ends within its header")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY and depth < MOST_DEPTH:
            inner, count = self.number("I"), self.number("Q")
            if inner in VALUES:
                size = struct.calcsize(f"<{VALUES[inner]}")
                return list(struct.unpack(f"<{count}{VALUES[inner]}", self.take(count * size)))
            return [self.value(inner, depth + 1) for _ in range(count)]
        if kind not in VALUES:
            raise self.damaged(f"a value has type {kind}")
        return self.number(VALUES[kind])

    def damaged(self, what: str) -> ModelError:
        return ModelError(f"{self.path} is damaged or cut short: {what}. Download it again")
