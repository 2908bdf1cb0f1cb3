"""Weights that stay in their files, and are read when somebody computes with them."""

from __future__ import annotations

import math
import os
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ModelError
from ...params import Stored
from .bare import BYTES


def bytes_of(tensor: Any) -> int:
    """Of a TensorProto's elements; those of less than a byte count as one."""
    return BYTES.get(tensor.data_type, 1) * math.prod(tensor.dims)


def leave_beside(tensor: Any, folder: Path) -> None:
    """Write the whole path of its file into a TensorProto that names one, in place, for `mapped`.

    Raises OSError or ValueError when the file is missing, short, or outside of `folder`.
    """
    from onnx_ir.serde import deserialize_tensor

    deserialize_tensor(tensor, folder).numpy()
    for entry in tensor.external_data:
        if entry.key == "location":
            entry.value = str((folder / entry.value).resolve())


def leave_inside(tensor: Any, path: Path, start: int, stop: int) -> None:
    """Note in a TensorProto, in place, for `mapped`, between which bytes of a file its elements lie."""
    tensor.data_location = tensor.EXTERNAL
    for key, value in {"location": path.resolve(), "offset": start, "length": stop - start}.items():
        tensor.external_data.add(key=key, value=str(value))


def mapped(tensor: Any) -> np.ndarray:
    """The elements of a TensorProto that was left where it lies, to be read when somebody looks at them."""
    from onnx_ir.serde import deserialize_tensor

    return np.asarray(deserialize_tensor(tensor).numpy())


class WeightFile:
    """A file that is open as long as somebody may read weights of it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._handle = os.open(path, os.O_RDONLY)
        self._state = self._now()
        weakref.finalize(self, os.close, self._handle)

    def stored(self, tensor: Any) -> Stored:
        """The elements of an onnx_ir ExternalTensor of this file; float32 where they are float16."""
        kind, shape = np.dtype(tensor.dtype.numpy()), tuple(tensor.shape.numpy())
        made = np.dtype(np.float32) if kind == np.float16 else kind
        return Stored(shape, made, partial(self._read, shape, kind, tensor.offset or 0, made))

    def _read(self, shape: tuple[int, ...], kind: np.dtype, offset: int, made: np.dtype) -> np.ndarray:
        array = np.empty(shape, kind)
        rest = array.reshape(-1).view(np.uint8).data
        while rest and (count := os.preadv(self._handle, [rest], offset)):
            rest, offset = rest[count:], offset + count
        if rest or self._now() != self._state:
            raise ModelError(f"{self.path}: it was written to after the model was loaded: load it again")
        return array.astype(made, copy=False)

    def _now(self) -> tuple[int, int]:
        state = os.fstat(self._handle)
        return state.st_size, state.st_mtime_ns
