"""Sums of uint8 data times int8 weights are whole numbers that never saturate, as ONNX defines them.

ONNX Runtime's own kernels saturate pairs of products on x86 without VNNI, so numpy is the truth here: a
dynamically quantised language model is up to 7 % of its range away there, and equal with uint8 weights.
"""

import bitsmith
import numpy as np
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.reference import run_reference
from onnx import TensorProto
from onnx_models import model, node, onnxruntime_outputs


def test_integer_products_of_extreme_codes(rng):
    """127 and 255 side by side: two products are more than 16 bits hold."""
    x = rng.integers(200, 256, (5, 64)).astype(np.uint8)
    w = rng.choice([-127, 126, 127], (64, 8)).astype(np.int8)
    zero = np.uint8(3)
    graph = load_model(_product(x.shape, w, zero, np.int8(0)))
    exact = (x.astype(np.int64) - int(zero)) @ w.astype(np.int64)
    np.testing.assert_array_equal(run_reference(graph, {"x": x})["y"], exact)
    with bitsmith.compile(graph) as artifact:
        np.testing.assert_array_equal(artifact.run(x=x)["y"], exact)
    # The same weights as uint8, whose sums ONNX Runtime does not saturate anywhere.
    shifted = _product(x.shape, (w.astype(np.int16) + 128).astype(np.uint8), zero, np.uint8(128))
    np.testing.assert_array_equal(onnxruntime_outputs(shifted, {"x": x})[0], exact)


def _product(shape, w, zero, w_zero):
    weights = {"w": w, "z": zero, "wz": w_zero}
    nodes = [node("MatMulInteger", "x w z wz")]
    return model(nodes, {"x": shape}, {"y": TensorProto.INT32}, weights, dtype=TensorProto.UINT8)
