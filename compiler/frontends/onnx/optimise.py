"""onnxscript's optimizer on a model, whose large weights it gives apart."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...errors import ModelError
from ...ir import DTYPES
from ...params import Entry
from .bare import LARGE
from .fold import stays
from .read import first_line, sort_nodes
from .weights import WeightFile


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """No warnings, and no log lines below errors from the named libraries: our errors say what matters."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for name in loggers:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def optimized(model: Any, label: str) -> tuple[Any, dict[str, Entry]]:
    """Functions inlined, constants folded, dead nodes gone; and the large weights, which the model lacks.
    Those that lie in a file are read when used."""
    import onnx_ir

    try:
        with quiet("onnxscript", "onnx_ir"):
            ir_model = _simplified(model)
            _keep_made(ir_model.graph)
            files: dict[str, WeightFile] = {}
            weights = {name: _taken(value, files) for name, value in _large(ir_model.graph)}
            simpler = onnx_ir.serde.serialize_model(ir_model)
            sort_nodes(simpler.graph)  # two slices become a Split where the second was
            return simpler, weights
    except Exception as error:
        # Foreign code on a foreign file, whatever it stumbles over: the file is what a user can change.
        raise ModelError(f"{label}: the model cannot be simplified: {first_line(error)}") from error


def _simplified(model: Any) -> Any:
    """The onnx_ir model. Where the optimizer fails, as it does on some valid models, with functions inlined
    only: the importer folds constants too."""
    import onnx_ir
    from onnx_ir.passes import PassError, common
    from onnxscript import optimizer

    simpler = onnx_ir.serde.deserialize_model(model)
    try:
        optimizer.optimize_ir(simpler, should_fold=lambda node: False if stays(node) else None)
    except PassError:
        simpler = onnx_ir.serde.deserialize_model(model)
        common.InlinePass()(simpler)
    return simpler


def _keep_made(graph: Any) -> None:
    """Initializers that the optimizer makes of one value get one name, under which it keeps the last."""
    for value in (value for node in graph for value in node.inputs if value is not None):
        known = value.const_value is not None and value.producer() is None
        if known and value.name not in graph.initializers:
            graph.register_initializer(value)


def _large(graph: Any) -> list[tuple[str, Any]]:
    """(name, onnx_ir value) of initializers of many bytes whose elements numpy has."""
    kinds = {name.upper() for name in DTYPES}
    known = [(name, value) for name, value in graph.initializers.items() if value.const_value is not None]
    return [
        (name, value)
        for name, value in known
        if value.const_value.nbytes >= LARGE
        and value.const_value.dtype.name in (kinds | {"FLOAT", "DOUBLE", "FLOAT16"})
    ]


def _taken(value: Any, files: dict[str, WeightFile]) -> Entry:
    """The numbers of an initializer, which has none from then on."""
    import onnx_ir

    tensor = value.const_value
    value.const_value = onnx_ir.tensor(np.zeros(0, tensor.dtype.numpy()), name=value.name)
    if isinstance(tensor, onnx_ir.ExternalTensor):
        if tensor.path not in files:
            files[tensor.path] = WeightFile(tensor.path)
        return files[tensor.path].stored(tensor)
    array = np.asarray(tensor.numpy())
    return array.astype(np.float32) if array.dtype == np.float16 else array
