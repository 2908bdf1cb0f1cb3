"""Codes of values beside a tie are ONNX's own: it divides by the scale; a reciprocal rounds elsewhere."""

import bitsmith
import numpy as np
import onnx
import pytest
from bitsmith.compiler.errors import UnsupportedError
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.reference import run_reference
from onnx_models import model, node, onnxruntime_outputs

SCALE = np.float32(0.007842947)


def near_ties() -> np.ndarray:
    """The float32 numbers beside (k + 1/2) * SCALE; an odd count, so that a kernel's last steps are tried."""
    ties = (np.arange(-140, 141) + 0.5) * np.float64(SCALE)
    middle = ties.astype(np.float32)
    return np.concatenate([np.nextafter(middle, np.float32(-9)), middle, np.nextafter(middle, np.float32(9))])


@pytest.mark.parametrize("zero", [np.int8(-7), np.uint8(128)])
def test_quantising_beside_ties_is_exactly_onnx_runtimes(zero):
    x = near_ties()
    weights = {"s": SCALE, "z": zero}
    proto = model([node("QuantizeLinear", "x s z")], {"x": x.shape}, {"y": onnx.TensorProto.INT8}, weights)
    if zero.dtype == np.uint8:
        proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    (want,) = onnxruntime_outputs(proto, {"x": x})
    graph = load_model(proto)
    np.testing.assert_array_equal(run_reference(graph, {"x": x})["y"], want)
    with bitsmith.compile(graph) as artifact:
        np.testing.assert_array_equal(artifact.run(x=x)["y"], want)
    reciprocal = np.rint(x * (1 / SCALE)) + np.float32(zero)
    assert (np.clip(reciprocal, *((0, 255) if zero.dtype == np.uint8 else (-128, 127))) != want).any()


@pytest.mark.parametrize("scale", [np.inf, 0.0])
def test_scales_that_no_code_can_have_are_refused_in_operators_on_codes(scale):
    weights = {"s": np.float32(scale), "z": np.int8(0), "t": np.float32(1 / 256), "u": np.int8(-128)}
    proto = model(
        [node("QLinearSoftmax", "x s z t u", domain="com.microsoft", opset=13)],
        {"x": (2, 5)},
        {"y": onnx.TensorProto.INT8},
        weights,
        dtype=onnx.TensorProto.INT8,
        domains=["com.microsoft"],
    )
    with pytest.raises(UnsupportedError, match=r"the scale 's' is .* calibrated"):
        load_model(proto)


@pytest.mark.parametrize("scale", [np.inf, 0.0])
def test_the_same_scales_divide_float_data_as_float32_says(scale):
    x = np.array([[-2.0, -0.5, 0.5, 3e38]], np.float32)
    proto = model(
        [node("QuantizeLinear", "x s z")],
        {"x": x.shape},
        {"y": onnx.TensorProto.INT8},
        {"s": np.float32(scale), "z": np.int8(3)},
    )
    np.testing.assert_array_equal(
        run_reference(load_model(proto), {"x": x})["y"], onnxruntime_outputs(proto, {"x": x})[0]
    )
