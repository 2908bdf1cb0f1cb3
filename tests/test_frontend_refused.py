"""What is said of models that end in operators which are not compiled: everything at once, and what to do."""

import numpy as np
import onnx
import pytest
from bitsmith.compiler.errors import ModelError, UnsupportedError
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.reference import run_reference
from onnx import TensorProto, helper
from onnx_cases import f32, ints
from onnx_models import model, node, onnxruntime_outputs

CLASSICAL = "ai.onnx.ml"


def detector() -> onnx.ModelProto:
    """One convolution, boxes and scores from it, and the suppression of what overlaps."""
    nodes = [
        node("Conv", "x w", "c"),
        node("Reshape", "c whole", "r"),
        node("Transpose", "r", "rows", perm=[0, 2, 1]),
        node("Slice", "rows first fourth last", "boxes"),
        node("Slice", "r fourth sixth one", "scores"),
        node("NonMaxSuppression", "boxes scores most iou", "y", name="suppress"),
    ]
    weights = {"w": np.ones((6, 3, 1, 1), np.float32), "whole": ints(1, 6, -1), "first": ints(0)}
    weights |= {"fourth": ints(4), "sixth": ints(6), "last": ints(2), "one": ints(1)}
    weights |= {"most": ints(10), "iou": f32(0.5)}
    return model(nodes, {"x": (1, 3, 4, 4)}, {"y": TensorProto.INT64}, weights, opset=13)


def test_a_suppression_names_where_to_end_the_model_and_that_works(tmp_path):
    with pytest.raises(UnsupportedError) as caught:
        load_model(detector())
    said = str(caught.value)
    assert "NonMaxSuppression x 1" in said and "(nodes: suppress)" in said
    assert "end the model before it, at 'boxes' and 'scores' (onnx.utils.extract_model cuts models)" in said
    whole, cut = str(tmp_path / "whole.onnx"), str(tmp_path / "cut.onnx")
    onnx.save(onnx.shape_inference.infer_shapes(detector()), whole)
    onnx.utils.extract_model(whole, cut, ["x"], ["boxes", "scores"])
    feed = {"x": np.random.default_rng(0).standard_normal((1, 3, 4, 4)).astype(np.float32)}
    found = run_reference(load_model(cut), feed)
    for name, wanted in zip(("boxes", "scores"), onnxruntime_outputs(onnx.load(cut), feed), strict=True):
        np.testing.assert_allclose(found[name], wanted, atol=1e-6)


def classical(*last: onnx.NodeProto, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """As converters of sklearn write a scaled perceptron."""
    ml = {"domain": CLASSICAL}
    nodes = [
        helper.make_node("Scaler", ["x"], ["s"], offset=[0.0] * 3, scale=[1.0] * 3, **ml),
        node("MatMul", "s w", "a"),
        node("Relu", "a", "b"),
        helper.make_node("Normalizer", ["b"], ["y"], norm="L2", **ml),
        *last,
    ]
    weights = {"w": np.ones((3, 4), np.float32)}
    return model(nodes, {"x": (1, 3)}, outputs, weights, 15, domains=[CLASSICAL])


def test_classical_steps_are_listed_with_all_else_that_is_missing():
    """Their types are unknown here, which is no reason to stop at the first."""
    with pytest.raises(UnsupportedError) as caught:
        load_model(classical(node("NonZero", "b", "places"), outputs=("y", "places")))
    lines = str(caught.value).splitlines()[1:]
    assert {line.split()[0] for line in lines} == {"ai.onnx.ml::Scaler", "ai.onnx.ml::Normalizer", "NonZero"}
    assert sum("compute that step outside of the model" in line for line in lines) == 2
    assert sum("end the model before it, at 'b'" in line for line in lines) == 1


def test_a_type_that_does_not_fit_is_still_the_models_fault():
    proto = model([node("MatMul", "x w")], {"x": (1, 3)}, weights={"w": np.ones((4, 4), np.float32)})
    with pytest.raises(ModelError, match="shapes or types do not fit"):
        load_model(proto)
