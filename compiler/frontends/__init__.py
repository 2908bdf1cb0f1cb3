"""Model files and torch modules -> Graph.

load_model(path or ModelProto)            read, fix shapes, optimise (onnxscript), convert
load_model(torch.nn.Module, inputs=...)   torch's own ONNX exporter -> the same way
lm.load_language_model(path)              checkpoints of language models: graphs whose weights stay on disk
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, UnsupportedError
from ..ir import Graph

ACCEPTED = "an ONNX file (.onnx), an onnx.ModelProto or a torch.nn.Module"

# Formats that people will try, with the way round that works today.
_OTHER_FORMATS = {
    ".safetensors": "weights without code: give the directory of a language model, with its config.json, or "
    "load them into their torch module in Python and give that",
    ".pt": "a pickled torch module is code: load it in Python and give the module, or export it to ONNX",
    ".pth": "torch weights without code: load them into their module in Python and give that",
    ".tflite": "TFLite files are not supported by this version: export the original model to ONNX",
    ".pb": "TensorFlow files are not supported by this version: convert the model with tf2onnx",
    ".keras": "Keras files are not supported by this version: use model.export(..., format='onnx')",
    ".h5": "Keras files are not supported by this version: use model.export(..., format='onnx')",
}


def load_model(
    source: Any,
    *,
    shapes: Mapping[str, int | Sequence[int]] | None = None,
    inputs: Sequence[Any] | Mapping[str, Any] | None = None,
    constants: Mapping[str, Any] | None = None,
) -> Graph:
    """A graph with static shapes from an ONNX file, an `onnx.ModelProto` or a `torch.nn.Module`.

    shapes  sizes that the model leaves open: `{"input": (1, 3, 224, 224)}` for a whole input,
            `{"batch": 1}` for a named dimension wherever it occurs
    inputs  example inputs (arrays or tensors), in order or by name: what a torch module is traced with;
            for an ONNX model their shapes are used as `shapes` would be
    constants  values of inputs of an ONNX model that are the same in every run, such as the target of a
            Reshape: they are compiled in, and are no inputs of the result

    Raises InputError (source or shapes that do not fit), ModelError (not a valid model), UnsupportedError
    (a valid model with operators or forms that bitsmith cannot compile: lists all of them).
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        _refuse_other_formats(path)
        return _load_onnx(path, shapes, inputs, constants)
    # Compared by name: asking isinstance would import torch or onnx for a source that is neither.
    names = {f"{base.__module__}.{base.__qualname__}" for base in type(source).__mro__}
    if "torch.nn.modules.module.Module" in names:
        from .torch import load_torch

        if constants:
            raise InputError("constants= is for ONNX models: bind a module's arguments in Python")
        return load_torch(source, shapes, inputs)
    if any(name.startswith("onnx.") and name.endswith(".ModelProto") for name in names):
        return _load_onnx(source, shapes, inputs, constants)
    raise InputError(f"cannot load a {type(source).__module__}.{type(source).__qualname__}: give {ACCEPTED}")


def _load_onnx(source: Any, shapes: Any, inputs: Any, constants: Any) -> Graph:
    from .onnx.importer import load_onnx

    return load_onnx(source, shapes, inputs, constants=constants)


def _refuse_other_formats(path: Path) -> None:
    hint = _OTHER_FORMATS.get(path.suffix.lower())
    if hint is not None:
        raise UnsupportedError(f"{path}: {hint}")
    if path.is_dir():
        raise UnsupportedError(
            f"{path} is a directory without a config.json, which a language model has; give {ACCEPTED}, or a "
            "language model: its directory or a .gguf file"
        )
