"""QAttention, which ONNX Runtime writes for a dynamically quantised BERT, computes what it computes."""

import numpy as np
import pytest
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.reference import run_reference
from onnx import helper
from onnx_models import model, node, onnxruntime_outputs

HEADS, SIZE, WIDTH = 2, 4, 12
COLUMNS = 3 * HEADS * SIZE


@pytest.mark.parametrize("per_column", [False, True], ids=["one scale", "a scale for each column"])
@pytest.mark.parametrize("form", ["plain", "masked", "later hidden", "past"])
def test_quantised_attention_agrees_with_onnx_runtime(rng, per_column, form):
    """Weights are uint8: ONNX Runtime's sums of uint8 times int8 saturate on some machines."""
    count = COLUMNS if per_column else 1
    weights = {
        "w": rng.integers(0, 255, (WIDTH, COLUMNS)).astype(np.uint8),
        "b": rng.standard_normal(COLUMNS).astype(np.float32),
        "ws": (rng.random(count) / 100).astype(np.float32),
        "wz": rng.integers(120, 136, count).astype(np.uint8),
    }
    if not per_column:
        weights |= {name: weights[name].reshape(()) for name in ("ws", "wz")}
    feeds: dict[str, np.ndarray] = {"x": rng.standard_normal((2, 5, WIDTH)).astype(np.float32)}
    if form == "masked":
        feeds["m"] = (rng.random((2, 5)) < 0.7).astype(np.int32)
    if form == "past":
        feeds["p"] = rng.standard_normal((2, 2, HEADS, 3, SIZE)).astype(np.float32)
    mask, past = (name if name in feeds else "-" for name in "mp")
    outputs = "y present" if form == "past" else "y"
    attrs = {"num_heads": HEADS, "unidirectional": int(form == "later hidden")}
    nodes = [
        node("DynamicQuantizeLinear", "x", "x8 xs xz"),
        node("QAttention", f"x8 w b xs ws {mask} xz wz {past}", outputs, domain="com.microsoft", **attrs),
    ]
    shapes = {name: array.shape for name, array in feeds.items()}
    proto = model(nodes, shapes, outputs.split(), weights, domains=["com.microsoft"])
    for value in proto.graph.input:
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(feeds[value.name].dtype)
    found = run_reference(load_model(proto), feeds)
    for (name, got), want in zip(found.items(), onnxruntime_outputs(proto, feeds), strict=True):
        np.testing.assert_allclose(got, want, atol=3e-5, err_msg=name)
