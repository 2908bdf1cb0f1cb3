"""Normalisations of ONNX become layer_norm, rms_norm or means and arithmetic: equal to other runtimes."""

import numpy as np
import pytest
from bitsmith.compiler.errors import UnsupportedError
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.frontends.onnx.norm import NORM_RULES
from bitsmith.compiler.ir import Graph
from bitsmith.compiler.reference import run_reference
from bitsmith.passes.prepare import prepare
from onnx_cases import IMAGE, SIGNAL, Case, compare, f32
from onnx_models import model, node, onnxruntime_outputs

ROWS = {"x": (3, 5, 4)}
CHANNELS = {"g": (4,), "b": (4,)}
FOUR = (4,)

CASES = [
    Case("LayerNormalization", "x g b", ROWS, CHANNELS),
    Case("LayerNormalization", "x g", ROWS, {"g": (4,)}, {"epsilon": 0.1}),
    Case("LayerNormalization", "x g b", ROWS, {"g": (5, 4), "b": (5, 4)}, {"axis": 1}),
    Case("LayerNormalization", "x g b", ROWS, {"g": (3, 5, 4), "b": (3, 5, 4)}, {"axis": -3}),
    Case("LayerNormalization", "x g b", ROWS, CHANNELS, outputs="y mean inverse"),
    Case("LayerNormalization", "x g b", {**ROWS, "g": FOUR}, {"b": FOUR}),
    Case("LayerNormalization", "x g b", {**ROWS, "g": FOUR, "b": FOUR}),
    Case("InstanceNormalization", "x g b", IMAGE, CHANNELS),
    Case("InstanceNormalization", "x g b", SIGNAL, CHANNELS, {"epsilon": 0.01}, opset=7),
    Case("LRN", "x", IMAGE, {}, {"size": 3}),
    Case("LRN", "x", IMAGE, {}, {"size": 5, "alpha": 0.5, "beta": 0.6, "bias": 2.0}, opset=7),
    Case("LpNormalization", "x", ROWS),
    Case("LpNormalization", "x", ROWS, {}, {"axis": 1, "p": 1}),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_normalisation_agrees_with_onnxruntime(case):
    assert not compare(case.proto(), case.feeds()).differences


def run(op: str, x: np.ndarray, opset: int, weights: dict[str, np.ndarray] | None = None, **attrs):
    names = " ".join(["x", *(weights or {})])
    proto = model([node(op, names, **attrs)], {"x": x.shape}, weights=weights, opset=opset)
    return run_reference(load_model(proto), {"x": x})["y"]


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm(rng, groups):
    """Compared with numpy."""
    x = rng.standard_normal((2, 6, 5, 3)).astype(np.float32) + 3
    g, b = rng.standard_normal((2, 6)).astype(np.float32)
    found = run("GroupNormalization", x, 21, {"g": g, "b": b}, num_groups=groups, epsilon=0.02)
    rows = x.astype(np.float64).reshape(2, groups, -1)
    rows = (rows - rows.mean(2, keepdims=True)) / np.sqrt(rows.var(2, keepdims=True) + 0.02)
    want = rows.reshape(x.shape) * g.reshape(6, 1, 1) + b.reshape(6, 1, 1)
    np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.parametrize("opset", [18, 21])
def test_a_group_norm_whose_result_is_read_agrees_with_onnxruntime(opset):
    weights = {"g": (6,) if opset == 21 else (3,), "b": (6,) if opset == 21 else (3,)}
    rng = np.random.default_rng(4)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in weights.items()}
    nodes = [node("GroupNormalization", "x g b", "n", num_groups=3, epsilon=0.02), node("Relu", "n", "y")]
    proto = model(nodes, {"x": (2, 6, 5, 4)}, weights=arrays, opset=opset)
    x = rng.standard_normal((2, 6, 5, 4)).astype(np.float32)
    (want,) = onnxruntime_outputs(proto, {"x": x})
    np.testing.assert_allclose(run_reference(load_model(proto), {"x": x})["y"], want, atol=1e-5)


def test_rms_norm(rng):
    """Newer than ONNX Runtime: compared with numpy."""
    x, g = rng.standard_normal((3, 5, 4)).astype(np.float32), rng.standard_normal((5, 4)).astype(np.float32)
    found = run("RMSNormalization", x, 23, {"g": g}, axis=1, epsilon=0.1)
    want = x / np.sqrt((x.astype(np.float64) ** 2).mean((1, 2), keepdims=True) + 0.1) * g
    np.testing.assert_allclose(found, want, atol=1e-5)


def test_zeros_stay_zeros_when_normalised_to_length_one():
    found = run("LpNormalization", np.zeros((2, 3), np.float32), 22, axis=1)
    np.testing.assert_array_equal(found, np.zeros((2, 3)))


def test_every_rule_has_a_test():
    elsewhere = {"GroupNormalization", "RMSNormalization", "MeanVarianceNormalization"}
    assert set(NORM_RULES) == {case.op for case in CASES} | elsewhere


def test_mean_variance_normalisation(rng):
    x = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    found = run("MeanVarianceNormalization", x, 13)
    centred = x - x.mean((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(found, centred / x.std((0, 2, 3), keepdims=True), atol=1e-5)


@pytest.mark.parametrize(
    ("op", "shape", "attrs", "message"),
    [
        ("GroupNormalization", (1, 6, 4), {"num_groups": 4}, "6 channels do not split into 4 groups"),
        ("InstanceNormalization", (2, 6), {}, "no pixels"),
    ],
)
def test_what_has_no_meaning_is_refused(op, shape, attrs, message):
    weights = {"g": np.ones(shape[1], np.float32), "b": np.ones(shape[1], np.float32)}
    with pytest.raises(UnsupportedError, match=message):
        load_model(model([node(op, "x g b", **attrs)], {"x": shape}, weights=weights, opset=21))


def spelled_out(axis: int, square: str) -> Graph:
    """Layer norm as exporters of old operator sets write it, over one axis of an image or of rows."""
    nodes = [
        node("ReduceMean", "x", "m", axes=[axis]),
        node("Sub", "x m", "d"),
        node("Pow", "d two", "q") if square == "Pow" else node("Mul", "d d", "q"),
        node("ReduceMean", "q", "v", axes=[axis]),
        node("Add", "v eps", "e"),
        node("Sqrt", "e", "s"),
        node("Div", "d s", "n"),
        node("Mul", "n g", "z"),
        node("Add", "z b"),
    ]
    shape, row = ((2, 4, 9, 8), (4, 1, 1)) if axis == 1 else ((3, 5, 4), (4,))
    rng = np.random.default_rng(0)
    weights = {
        "two": f32(2),
        "eps": f32(1e-5),
        "g": rng.random(row, np.float32),
        "b": rng.random(row, np.float32),
    }
    if axis == 1:  # after a convolution, as in ConvNeXt: the image lies channels last
        nodes.insert(0, node("Conv", "image w", "x", kernel_shape=[1, 1]))
        weights["w"] = rng.random((4, 4, 1, 1), np.float32)
    inputs = {"image" if axis == 1 else "x": shape}
    return load_model(model(nodes, inputs, weights=weights, opset=11))


@pytest.mark.parametrize("square", ["Pow", "Mul"])
@pytest.mark.parametrize("axis", [1, -1])
def test_a_layer_norm_that_is_spelled_out_becomes_one_node(rng, axis, square):
    graph = spelled_out(axis, square)
    prepared = prepare(graph)
    ops = [n.op for n in prepared.nodes if n.op not in ("transpose", "reshape")]
    assert ops == (["conv2d", "layer_norm"] if axis == 1 else ["layer_norm"])
    ((name, kind),) = graph.inputs
    x = rng.standard_normal(kind.shape).astype(np.float32) * 3 + 1
    want, found = run_reference(graph, {name: x})["y"], run_reference(prepared, {name: x})["y"]
    np.testing.assert_allclose(found, want, atol=1e-4)
