"""LSTM, GRU and RNN compute what ONNX Runtime computes, with all attributes; and as compiled code."""

import numpy as np
import pytest
from bitsmith.compiler.errors import UnsupportedError
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.plan import layers_of
from bitsmith.compiler.reference import run_reference
from bitsmith.passes.prepare import prepare
from bitsmith.targets.build import build
from bitsmith.targets.target import resolve
from onnx import TensorProto
from onnx_cases import compare
from onnx_models import model, node, onnxruntime_outputs

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, WIDTH, HIDDEN = 5, 3, 6, 11


def made(op, *, directions=1, bias=True, lengths=None, states=False, peepholes=False, outputs=None, **attrs):
    """A model of one recurrent node with random weights, and feeds."""
    rng = np.random.default_rng(5)

    def draw(*shape):
        return rng.uniform(-0.7, 0.7, shape).astype(np.float32)

    wide = GATES[op] * HIDDEN
    weights = {"w": draw(directions, wide, WIDTH), "r": draw(directions, wide, HIDDEN)}
    if bias:
        weights["b"] = draw(directions, 2 * wide)
    if lengths:
        weights["lengths"] = np.array(lengths, np.int32)
    batch_first = attrs.get("layout", 0)
    state = (BATCH, directions, HIDDEN) if batch_first else (directions, BATCH, HIDDEN)
    inputs = {"x": (BATCH, STEPS, WIDTH) if batch_first else (STEPS, BATCH, WIDTH)}
    names = ["x", "w", "r", "b" if bias else "-", "lengths" if lengths else "-"]
    if states:
        kinds = ["h0", "c0"] if op == "LSTM" else ["h0"]
        inputs.update(dict.fromkeys(kinds, state))
        names += kinds
    if peepholes:
        weights["p"] = draw(directions, 3 * HIDDEN)
        names += ["-"] * (7 - len(names)) + ["p"]
    outputs = outputs or ("y h c" if op == "LSTM" else "y h")
    if directions == 2:
        attrs["direction"] = "bidirectional"
    proto = model(
        [node(op, " ".join(names), outputs, hidden_size=HIDDEN, **attrs)],
        inputs,
        [name for name in outputs.split() if name != "-"],
        weights,
        opset=14,
    )
    return proto, {name: draw(*shape) for name, shape in inputs.items()}


LSTMS = [
    {},
    {"states": True},
    {"directions": 2, "states": True, "bias": False},
    {"direction": "reverse", "peepholes": True},
    {"clip": 0.4},
    {"input_forget": 1},
    {"lengths": (5, 2, 3)},
    {"directions": 2, "lengths": (1, 5, 4), "states": True},
    {"activations": ["HardSigmoid", "Softsign", "Relu"]},
    {"activations": ["Sigmoid", "Affine", "Elu"], "activation_alpha": [0.5, 0.9], "activation_beta": [0.1]},
    {"outputs": "y"},
    {"outputs": "- - c"},
]
GRUS = [
    {"linear_before_reset": 0},
    {"linear_before_reset": 1},
    {"linear_before_reset": 1, "bias": False, "states": True},
    {"directions": 2, "states": True},
    {"directions": 2, "linear_before_reset": 1, "lengths": (4, 1, 5)},
    {"direction": "reverse", "lengths": (2, 5, 3), "clip": 0.5},
    {"activations": ["HardSigmoid", "LeakyRelu"], "activation_alpha": [0.3, 0.1], "activation_beta": [0.4]},
]
RNNS = [
    {},
    {"directions": 2, "states": True, "activations": ["Relu", "ThresholdedRelu"], "activation_alpha": [0.2]},
    {"activations": ["Softplus"]},
    {"activations": ["ScaledTanh"], "activation_alpha": [0.8], "activation_beta": [0.6]},
]
CASES = [(op, attrs) for op, rows in (("LSTM", LSTMS), ("GRU", GRUS), ("RNN", RNNS)) for attrs in rows]


@pytest.mark.parametrize(("op", "attrs"), CASES, ids=str)
def test_a_recurrent_layer_agrees_with_onnxruntime(op, attrs):
    proto, feeds = made(op, **attrs)
    assert not compare(proto, feeds).differences


@pytest.mark.parametrize("op", GATES)
def test_batch_first_is_the_same_with_other_axes(op):
    """ONNX Runtime has no layout=1: compared with itself, batch last."""
    proto, feeds = made(op, directions=2, states=True, layout=1)
    plain, _ = made(op, directions=2, states=True)
    want = onnxruntime_outputs(plain, {name: array.swapaxes(0, 1) for name, array in feeds.items()})
    found = run_reference(load_model(proto), feeds)
    np.testing.assert_allclose(found["y"], want[0].transpose(2, 0, 1, 3), atol=1e-5)
    np.testing.assert_allclose(found["h"], want[1].swapaxes(0, 1), atol=1e-5)


@pytest.mark.parametrize("op", GATES)
def test_compiled_it_still_agrees(op):
    proto, feeds = made(op, directions=2, states=True)
    with build(prepare(load_model(proto)), resolve("host")) as artifact:
        found = artifact.run(**feeds)
    for name, want in zip(found, onnxruntime_outputs(proto, feeds), strict=True):
        np.testing.assert_allclose(found[name], want, atol=1e-5)


def test_the_projection_of_the_input_is_a_layer_for_each_direction():
    graph = load_model(made("LSTM", directions=2)[0])
    assert [n.op for n in layers_of(graph)] == ["linear", "linear"]
    assert [n.op for n in graph.nodes].count("lstm") == 2


def test_computed_recurrence_weights_are_refused():
    shapes = {"x": (2, 1, 2), "w": (1, 3, 2), "r": (1, 3, 1)}
    with pytest.raises(UnsupportedError, match="recurrence weights must be constant"):
        load_model(model([node("GRU", "x w r", hidden_size=1)], shapes))


@pytest.mark.parametrize("op", GATES)
def test_lengths_may_be_an_input(op):
    proto, feeds = made(op, directions=2, states=True, lengths=(1, 2, 3))
    lengths = next(t for t in proto.graph.initializer if t.name == "lengths")
    proto.graph.initializer.remove(lengths)
    value = proto.graph.input.add(name="lengths")
    value.type.tensor_type.elem_type = TensorProto.INT32
    value.type.tensor_type.shape.dim.add().dim_value = BATCH
    with build(prepare(load_model(proto)), resolve("host")) as artifact:
        for some in ([5, 2, 4], [1, 5, 3]):
            given = {**feeds, "lengths": np.array(some, np.int32)}
            found = artifact.run(**given)
            for name, want in zip(found, onnxruntime_outputs(proto, given), strict=True):
                np.testing.assert_allclose(found[name], want, atol=1e-5)
        beyond, inside = (artifact.run(**feeds, lengths=np.array(n, "i4")) for n in ([-3, 9, 5], [0, 5, 5]))
    assert all(np.array_equal(beyond[name], inside[name]) for name in beyond)


def test_lengths_that_no_sequence_has_are_refused():
    with pytest.raises(UnsupportedError, match="not one of 0 to 5 for each of 3"):
        load_model(made("LSTM", lengths=(1, 2, 6))[0])


def quantised(batch=1, directions=1, whole=True, states=False):
    """An LSTM as ONNX Runtime's dynamic quantisation writes it; `whole`: one scale for all channels.

    Codes are small: ONNX Runtime's sums of large ones saturate on some CPUs.
    """
    rng, wide = np.random.default_rng(6), 4 * HIDDEN
    scales = (directions,) if whole else (directions, wide)
    weights = {
        "w": rng.integers(-60, 60, (directions, WIDTH, wide)).astype(np.int8),
        "r": rng.integers(-60, 60, (directions, HIDDEN, wide)).astype(np.int8),
        "b": rng.uniform(-0.5, 0.5, (directions, 2 * wide)).astype(np.float32),
    }
    for name in "wr":
        weights[f"{name}s"] = rng.uniform(0.005, 0.01, scales).astype(np.float32)
        weights[f"{name}z"] = np.zeros(scales, np.int8)
    shapes = {"x": (STEPS, batch, WIDTH)}
    shapes |= dict.fromkeys(("h0", "c0"), (directions, batch, HIDDEN)) if states else {}
    made = node(
        "DynamicQuantizeLSTM",
        f"x w r b - {'h0 c0' if states else '- -'} - ws wz rs rz",
        "y h c",
        domain="com.microsoft",
        hidden_size=HIDDEN,
        direction="bidirectional" if directions == 2 else "forward",
    )
    proto = model([made], shapes, ("y", "h", "c"), weights, domains=["com.microsoft"])
    return proto, {name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    "form", [{}, {"directions": 2, "whole": False, "states": True}], ids=["plain", "channels"]
)
def test_a_dynamically_quantised_lstm_agrees_with_onnxruntime(form):
    proto, feeds = quantised(**form)
    assert not compare(proto, feeds).differences


def test_a_dynamically_quantised_lstm_of_several_sequences_is_refused():
    with pytest.raises(UnsupportedError, match="a batch of 2: which sequences share"):
        load_model(quantised(batch=2)[0])
