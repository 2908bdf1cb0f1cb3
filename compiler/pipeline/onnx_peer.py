"""ONNX Runtime as a peer: the original .onnx file, run in turns with the compiled models by the same
clock.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..errors import InputError, ModelError


class OnnxPeer:
    """An ONNX Runtime session on the CPU, all graph optimisations on. Runs like an Artifact: `run(**inputs)`.

    Its threads stop spinning between runs, as they would otherwise take the cores of whoever runs next.
    Raises ModelError when ONNX Runtime cannot load the file.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        import onnxruntime

        self.path, self.threads = Path(path), threads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 3
        if not self.path.is_file():
            raise ModelError(f"{path}: no such file")
        try:
            self._session = onnxruntime.InferenceSession(
                self.path, options, providers=["CPUExecutionProvider"]
            )
        except _failures() as error:
            raise ModelError(f"{path}: ONNX Runtime cannot load it: {error}") from None
        self.inputs = tuple(i.name for i in self._session.get_inputs())
        self.outputs = tuple(o.name for o in self._session.get_outputs())

    @property
    def size_bytes(self) -> int:
        """Size of the model on disk: the file, and its external data when that lies beside it as
        FILE.data.
        """
        data = self.path.with_name(self.path.name + ".data")
        return self.path.stat().st_size + (data.stat().st_size if data.exists() else 0)

    def run(self, *arrays: np.ndarray, **named: np.ndarray) -> Mapping[str, np.ndarray]:
        """Outputs by name. Inputs by name, or in order."""
        feed = {**dict(zip(self.inputs, arrays, strict=False)), **named}
        if set(feed) != set(self.inputs):
            raise InputError(f"{self.path}: its inputs are {', '.join(self.inputs)}, given {', '.join(feed)}")
        return dict(zip(self.outputs, self._session.run(None, feed), strict=True))


def _failures() -> tuple[type[Exception], ...]:
    """The exception types of ONNX Runtime's binding, which share no base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = (t for t in vars(state).values() if isinstance(t, type) and issubclass(t, Exception))
    return RuntimeError, *own
