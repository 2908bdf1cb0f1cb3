"""Small ONNX models for tests, made by onnx's own helpers, and what ONNX Runtime computes with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper


def node(op: str, inputs: str, outputs: str = "y", **attrs: Any) -> onnx.NodeProto:
    """`inputs` and `outputs` are names between blanks; `-` stands for an absent one."""
    absent = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(op, absent, ["" if name == "-" else name for name in outputs.split()], **attrs)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Sequence[str] | Mapping[str, int] = ("y",),
    weights: Mapping[str, np.ndarray] | None = None,
    opset: int = 17,
    dtype: int = onnx.TensorProto.FLOAT,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """`inputs`: name -> shape, whose sizes may be names of dimensions or None; `dtype` is that of all inputs.

    `outputs`: names, or name -> type where one is not float32; their shapes are left out.
    """
    kinds = outputs if isinstance(outputs, Mapping) else dict.fromkeys(outputs, onnx.TensorProto.FLOAT)
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(name, dtype, list(shape)) for name, shape in inputs.items()],
        [
            helper.make_value_info(name, helper.make_tensor_type_proto(kind, None))
            for name, kind in kinds.items()
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def onnxruntime_outputs(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs in order, without ORT's own graph rewriting."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, dict(feeds))
