"""Weights of a model that are too many to read: mapped from the file beside it that they lie in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from .bare import BYTES


def bytes_of(tensor: Any) -> int:
    """Of a TensorProto's elements; those of less than a byte count as one."""
    return BYTES.get(tensor.data_type, 1) * math.prod(tensor.dims)


def name_file(tensor: Any, folder: Path) -> None:
    """Write the whole path of its file into a TensorProto in place, for `mapped`.

    Raises OSError or ValueError when the file is missing, short, or outside of `folder`.
    """
    from onnx_ir.serde import deserialize_tensor

    deserialize_tensor(tensor, folder).numpy()
    for entry in tensor.external_data:
        if entry.key == "location":
            entry.value = str((folder / entry.value).resolve())


def mapped(tensor: Any) -> np.ndarray:
    """The elements of a TensorProto after `name_file`; they are read when somebody looks at them."""
    from onnx_ir.serde import deserialize_tensor

    return np.asarray(deserialize_tensor(tensor).numpy())
