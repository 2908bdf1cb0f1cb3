"""ONNX operators become graphs that compute what ONNX Runtime computes, in the operator sets that differ."""

import numpy as np
import pytest
from bitsmith.compiler.errors import UnsupportedError
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.frontends.onnx.math import MATH_RULES
from bitsmith.compiler.frontends.onnx.nn import NN_RULES
from bitsmith.compiler.frontends.onnx.shape import SHAPE_RULES
from bitsmith.compiler.reference import run_reference
from onnx import TensorProto, helper, numpy_helper
from onnx_cases import IMAGE, SIGNAL, Case, compare, f32, ints
from onnx_models import model, node, onnxruntime_outputs

CONV = {"w": (6, 4, 3, 3), "b": (6,)}
VOLUME = {"x": (2, 4, 5, 6, 7)}
VARIANCE = np.array([0.5, 1, 2, 3], np.float32)


NN = [
    Case("Conv", "x w b", IMAGE, CONV),
    Case("Conv", "x w", IMAGE, {"w": (6, 4, 3, 3)}, {"strides": [2, 1], "pads": [0, 1, 2, 1]}, opset=7),
    Case("Conv", "x w b", IMAGE, CONV, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    Case("Conv", "x w b", IMAGE, CONV, {"auto_pad": "SAME_LOWER", "strides": [2, 2], "kernel_shape": [3, 3]}),
    Case("Conv", "x w b", IMAGE, CONV, {"auto_pad": "VALID"}, opset=11),
    Case("Conv", "x w b", IMAGE, CONV, {"dilations": [2, 3], "pads": [2, 2, 2, 2]}, opset=22),
    Case("Conv", "x w", IMAGE, {"w": (8, 2, 3, 3)}, {"group": 2}),
    Case("Conv", "x w b", IMAGE, {"w": (4, 1, 5, 5), "b": (4,)}, {"group": 4, "pads": [2, 2, 2, 2]}),
    Case("Conv", "x w b", SIGNAL, {"w": (6, 4, 5), "b": (6,)}, {"strides": [2], "pads": [1, 2]}),
    Case("Conv", "x w", SIGNAL, {"w": (4, 1, 3)}, {"group": 4, "auto_pad": "SAME_UPPER"}),
    Case("Gemm", "x w b", {"x": (5, 7)}, {"w": (7, 3), "b": (3,)}),
    Case(
        "Gemm",
        "x w b",
        {"x": (5, 7)},
        {"w": (3, 7), "b": (1, 3)},
        {"transB": 1, "alpha": 0.5, "beta": 2.0},
        opset=7,
    ),
    Case("Gemm", "x w", {"x": (7, 5)}, {"w": (7, 3)}, {"transA": 1}),
    Case("Gemm", "x w b", {"x": (5, 7)}, {"w": (7, 3), "b": (5, 1)}, {"beta": 0.5}),
    Case("Gemm", "x w b", {"x": (5, 7)}, {"w": (7, 3), "b": (5, 3)}),
    Case("Gemm", "x w b", {"x": (5, 7)}, {"w": (7, 3), "b": f32(0.5)}, {"alpha": 3.0}),
    Case("Gemm", "x w b", {"x": (5, 7), "b": (5, 3)}, {"w": (3, 7)}, {"transB": 1, "beta": -1.0}),
    Case("Gemm", "x w b", {"x": (5, 7), "w": (3, 7)}, {"b": (3,)}, {"transB": 1, "alpha": 2.0}),
    Case("Gemm", "x w", {"x": (5, 7), "w": (7, 3)}, {}, {"alpha": 2.0}),
    Case("Gemm", "w x", {"x": (7, 3)}, {"w": (5, 7)}),
    Case("MatMul", "x w", {"x": (5, 7)}, {"w": (7, 3)}),
    Case("MatMul", "x w", {"x": (2, 5, 7)}, {"w": (7, 3)}),
    Case("MatMul", "x w", {"x": (7,)}, {"w": (7, 3)}),
    Case("MatMul", "x w", {"x": (5, 7)}, {"w": (7,)}),
    Case("MatMul", "x w", {"x": (2, 5, 7)}, {"w": (2, 7, 3)}),
    Case("MatMul", "w x", {"x": (7, 3)}, {"w": (5, 7)}),
    Case("MatMul", "x z", {"x": (7,), "z": (2, 7, 3)}),
    Case("MatMul", "x z", {"x": (2, 5, 7), "z": (7,)}),
    Case("MatMul", "x z", {"x": (2, 1, 5, 7), "z": (3, 7, 4)}),
    Case(
        "BatchNormalization",
        "x s b m v",
        IMAGE,
        {"s": (4,), "b": (4,), "m": (4,), "v": VARIANCE},
        {"epsilon": 1e-3},
    ),
    Case(
        "BatchNormalization",
        "x s b m v",
        {"x": (3, 4)},
        {"s": (4,), "b": (4,), "m": (4,), "v": VARIANCE},
        opset=9,
    ),
    Case("MaxPool", "x", IMAGE, {}, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("MaxPool", "x", IMAGE, {}, {"kernel_shape": [3, 2], "strides": [2, 3], "ceil_mode": 1}),
    Case(
        "MaxPool",
        "x",
        IMAGE,
        {},
        {"kernel_shape": [2, 3], "dilations": [2, 2], "auto_pad": "VALID"},
        opset=12,
    ),
    Case(
        "MaxPool",
        "x",
        IMAGE,
        {},
        {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]},
        opset=8,
    ),
    Case("MaxPool", "x", SIGNAL, {}, {"kernel_shape": [3], "strides": [2], "pads": [1, 0]}),
    Case(
        "AveragePool",
        "x",
        IMAGE,
        {},
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
        opset=7,
    ),
    Case(
        "AveragePool", "x", IMAGE, {}, {"kernel_shape": [3, 3], "pads": [1, 0, 2, 1], "count_include_pad": 1}
    ),
    Case(
        "AveragePool", "x", IMAGE, {}, {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, opset=19
    ),
    Case("AveragePool", "x", SIGNAL, {}, {"kernel_shape": [4], "strides": [3]}),
    Case(
        "Conv", "x w b", VOLUME, {"w": (6, 2, 3, 2, 3), "b": (6,)}, {"group": 2, "pads": [1, 0, 1, 2, 1, 0]}
    ),
    Case("Conv", "x w", VOLUME, {"w": (3, 4, 2, 3, 1)}, {"strides": [2, 1, 2], "dilations": [2, 1, 1]}),
    Case(
        "MaxPool",
        "x",
        VOLUME,
        {},
        {"kernel_shape": [2, 3, 2], "strides": [2, 2, 1], "pads": [1, 1, 0, 0, 1, 1]},
    ),
    Case("AveragePool", "x", VOLUME, {}, {"kernel_shape": [2, 3, 2], "pads": [1, 1, 0, 0, 1, 1]}),
    Case("LpPool", "x", IMAGE, {}, {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "p": 3}, opset=18),
    Case("GlobalLpPool", "x", IMAGE),
    Case("GlobalAveragePool", "x", IMAGE),
    Case("GlobalMaxPool", "x", SIGNAL),
]

TWO = {"x": (2, 3, 4), "z": (3, 1)}
ROWS = {"x": (3, 5, 4)}
MATH = [
    *[Case(op, "x z", TWO) for op in ("Add", "Sub", "Mul", "Max", "Min")],
    *[Case(op, "x z", TWO, low=0.5, opset=7) for op in ("Div", "Mul", "Add")],
    *[Case(op, "x c", ROWS, {"c": (4,)}) for op in ("Add", "Sub", "Mul")],
    *[Case(op, "c x", ROWS, {"c": f32(2.5)}) for op in ("Sub", "Div", "Max")],
    *[Case(op, "x z x", TWO) for op in ("Max", "Min", "Sum", "Mean")],
    *[Case(op, "x", ROWS) for op in ("Max", "Sum", "Mean")],
    *[Case("Pow", "x e", ROWS, {"e": f32(e)}, low=0.3) for e in (-1, -0.5, 0.5, 1, 2, 3)],
    Case("Pow", "x e", ROWS, {"e": ints(2)}, opset=15),
    *[Case(op, "x", ROWS) for op in ("Abs", "Neg", "Exp", "Erf", "Relu", "Sigmoid", "Tanh", "HardSwish")],
    *[Case(op, "x", ROWS, low=0.1) for op in ("Log", "Sqrt", "Reciprocal")],
    *[Case(op, "x", ROWS) for op in ("Ceil", "Floor", "Round", "Sign", "Sin", "Cos", "Sinh", "Cosh", "Atan")],
    *[Case(op, "x", ROWS, low=-0.9, high=0.9) for op in ("Asin", "Acos", "Atanh", "Asinh", "Tan")],
    Case("Acosh", "x", ROWS, low=1.1),
    *[Case("Mod", "x z", TWO, attrs={"fmod": 1}, low=low) for low in (-3.0, 0.5)],
    Case("Pow", "x z", TWO, low=0.3),
    Case("Clip", "x", ROWS, {}, {"min": -1.0, "max": 0.5}, opset=7),
    Case("Clip", "x", ROWS, {}, {"max": 0.5}, opset=10),
    Case("Clip", "x lo hi", ROWS, {"lo": f32(0), "hi": f32(1.5)}),
    Case("Clip", "x - hi", ROWS, {"hi": f32(1.5)}, opset=11),
    Case("Clip", "x lo", ROWS, {"lo": f32(-np.inf)}),
    Case("Clip", "x lo hi", ROWS, {"lo": f32(np.inf), "hi": f32(np.inf)}),
    Case("Clip", "x lo hi", ROWS, {"lo": f32(-1), "hi": f32(-np.inf)}),
    Case("PRelu", "x s", ROWS, {"s": np.array([0.1, -np.inf, np.inf, 2], np.float32)}),
    Case("Clip", "x", ROWS),
    Case("Clip", "x lo hi", {**ROWS, "lo": (), "hi": ()}),
    Case("Clip", "x lo", {**ROWS, "lo": ()}),
    Case("LeakyRelu", "x", ROWS),
    Case("LeakyRelu", "x", ROWS, {}, {"alpha": 0.3}, opset=7),
    Case("PRelu", "x c", ROWS, {"c": (5, 1)}),
    Case("Elu", "x", ROWS),
    Case("Elu", "x", ROWS, {}, {"alpha": 0.5}),
    Case("HardSigmoid", "x", ROWS),
    Case("HardSigmoid", "x", ROWS, {}, {"alpha": 1 / 6, "beta": 0.5}),
    Case("Gelu", "x", ROWS, opset=20),
    Case("Gelu", "x", ROWS, {}, {"approximate": "tanh"}, opset=20),
    *[
        Case(op, "x", ROWS, {}, {"axis": 1}, opset=opset)
        for op in ("Softmax", "LogSoftmax")
        for opset in (11, 13)
    ],
    *[Case(op, "x", ROWS, opset=opset) for op in ("Softmax", "LogSoftmax") for opset in (7, 13)],
    *[
        Case(op, "x", ROWS, {}, {"axes": [0, -1], "keepdims": keep}, opset=11)
        for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceSumSquare")
        for keep in (0, 1)
    ],
    *[
        Case(op, "x a", ROWS, {"a": ints(1)}, {"keepdims": 0}, opset=18)
        for op in ("ReduceMean", "ReduceSum", "ReduceMax")
    ],
    *[Case(op, "x", ROWS, opset=18) for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")],
    *[Case(op, "x", ROWS, {}, {"noop_with_empty_axes": 1}, opset=18) for op in ("ReduceMean", "ReduceSum")],
    Case("ReduceMin", "x a", ROWS, {"a": ints()}, {"noop_with_empty_axes": 1}, opset=18),
]

SHAPE = [
    Case("Reshape", "x s", ROWS, {"s": ints(0, -1, 2)}),
    Case("Reshape", "x s", ROWS, {"s": ints(60)}, opset=7),
    Case("Reshape", "x s", ROWS, {"s": ints(3, 5, 4)}),
    Case("Flatten", "x", IMAGE),
    Case("Flatten", "x", IMAGE, {}, {"axis": -1}, opset=11),
    Case("Flatten", "x", IMAGE, {}, {"axis": 0}, opset=9),
    Case("Squeeze", "x", {"x": (1, 3, 1, 2)}),
    Case("Squeeze", "x", {"x": (1, 3, 1, 2)}, {}, {"axes": [2]}, opset=11),
    Case("Squeeze", "x a", {"x": (1, 3, 1, 2)}, {"a": ints(-2, 0)}, opset=13),
    Case("Unsqueeze", "x", ROWS, {}, {"axes": [0, 3]}, opset=11),
    Case("Unsqueeze", "x a", ROWS, {"a": ints(-1, 1)}, opset=13),
    Case("Transpose", "x", IMAGE, {}, {"perm": [0, 2, 3, 1]}),
    Case("Transpose", "x", ROWS),
    Case("Transpose", "x", ROWS, {}, {"perm": [0, 1, 2]}),
    Case("Concat", "x z c", {"x": (2, 3), "z": (2, 1)}, {"c": (2, 4)}, {"axis": -1}),
    Case("Concat", "x", ROWS, {}, {"axis": 0}, opset=7),
    Case("Slice", "x", ROWS, {}, {"starts": [1, -3], "ends": [100, -1], "axes": [1, 2]}, opset=9),
    Case("Slice", "x b e", ROWS, {"b": ints(1), "e": ints(2)}, opset=10),
    Case("Slice", "x b e a s", ROWS, {"b": ints(0, 1), "e": ints(9, 9), "a": ints(-2, 2), "s": ints(2, 3)}),
    Case("Slice", "x b e", ROWS, {"b": ints(0), "e": ints(3)}),
    Case("Split", "x", ROWS, {}, {"axis": 1, "split": [2, 3]}, opset=11, outputs="y z"),
    Case("Split", "x s", ROWS, {"s": ints(1, 4)}, {"axis": 1}, opset=13, outputs="y z"),
    Case("Split", "x", ROWS, {}, {"axis": -1}, opset=13, outputs="y z"),
    Case("Split", "x", ROWS, {}, {"axis": 1, "num_outputs": 3}, opset=18, outputs="y z t"),
    Case("Gather", "x i", ROWS, {"i": np.array(-2, np.int64)}, {"axis": 1}),
    Case("Expand", "x s", ROWS, {"s": ints(1, 1, 4)}),
    Case("Identity", "x", ROWS),
    Case("Dropout", "x", ROWS, opset=7),
    Case("Dropout", "x r t", ROWS, {"r": f32(0.3), "t": np.array(False)}, opset=13),
    Case("Cast", "x", ROWS, {}, {"to": TensorProto.FLOAT}),
]


@pytest.mark.parametrize("case", [*NN, *MATH, *SHAPE], ids=str)
def test_an_operator_agrees_with_onnxruntime(case):
    assert not compare(case.proto(), case.feeds()).differences


def test_every_rule_has_a_case():
    """Other families have their own files, and ONNX's own tests in test_conformance.py."""
    elsewhere = {"Constant", "Shape", "Size", "Swish"}
    assert {*NN_RULES, *MATH_RULES, *SHAPE_RULES} <= {case.op for case in (*NN, *MATH, *SHAPE)} | elsewhere


@pytest.mark.parametrize("attrs", [{}, {"alpha": 0.5}], ids=str)
def test_swish(attrs):
    """Newer than ONNX Runtime: compared with its formula."""
    proto = model([node("Swish", "x", **attrs)], ROWS, opset=24)
    x = np.random.default_rng(0).uniform(-4, 4, ROWS["x"]).astype(np.float32)
    found = run_reference(load_model(proto), {"x": x})["y"]
    np.testing.assert_allclose(found, x / (1 + np.exp(-attrs.get("alpha", 1.0) * x)), atol=1e-6)


def test_a_split_with_an_output_that_nobody_names():
    """ONNX Runtime crashes on it: compared with numpy."""
    graph = load_model(model([node("Split", "x", "y - t", axis=0)], {"x": (3, 2)}, ["y", "t"], opset=11))
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    found = run_reference(graph, {"x": x})
    np.testing.assert_array_equal(found["y"], x[:1])
    np.testing.assert_array_equal(found["t"], x[2:])


def test_outputs_that_nobody_reads_do_not_matter():
    nodes = [node("MaxPool", "x", "y indices", kernel_shape=[2, 2]), node("Dropout", "y", "z mask")]
    feeds = {"x": np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)}
    assert not compare(model(nodes, {"x": (1, 1, 3, 3)}, ["z"]), feeds).differences


def test_uint8_inputs_are_converted():
    proto = model([node("Cast", "x", to=TensorProto.FLOAT)], {"x": (2, 3)}, dtype=TensorProto.UINT8)
    found = compare(proto, {"x": np.array([[0, 1, 2], [127, 128, 255]], np.uint8)})
    graph = found.graph
    assert not found.differences
    assert [n.op for n in graph.nodes] == ["dequantize"]


def test_shape_arithmetic_vanishes():
    """What exporters write for x.view(x.size(0), -1): shape, gather, concat; all of it is known."""
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape zero", "batch"),
        node("Unsqueeze", "batch axes", "batch1"),
        node("Concat", "batch1 rest", "target", axis=0),
        node("Size", "x", "size"),
        node("Cast", "size", "count", to=TensorProto.FLOAT),
        node("Reshape", "x target", "flat"),
        node("Div", "flat count"),
    ]
    weights = {"zero": np.array(0), "axes": ints(0), "rest": ints(-1)}
    found = compare(model(nodes, {"x": (2, 3, 4)}, weights=weights), {"x": np.ones((2, 3, 4), np.float32)})
    graph = found.graph
    assert not found.differences
    assert [n.op for n in graph.nodes] == ["reshape", "div"]


def test_constants_in_all_their_forms():
    tensor = numpy_helper.from_array(np.full((2, 2), 3, np.float32))
    nodes = [
        node("Constant", "", "a", value=tensor),
        node("Constant", "", "b", value_float=2.0),
        node("Constant", "", "c", value_floats=[1.0, -1.0]),
        node("Constant", "", "s", value_ints=[2, 2]),
        node("Mul", "x a", "xa"),
        node("Sub", "xa b", "xab"),
        node("Mul", "xab c", "xabc"),
        node("Reshape", "xabc s"),
    ]
    assert not compare(model(nodes, {"x": (2, 2)}), {"x": np.array([[1, 2], [3, 4]], np.float32)}).differences


def test_an_output_that_is_a_weight_is_the_weight_as_the_file_has_it(rng):
    """The layer that reads it has it transposed."""
    weight = rng.standard_normal((2, 3)).astype(np.float32)
    proto = model([node("MatMul", "x w")], {"x": (1, 2)}, ("w", "y"), {"w": weight})
    x = rng.standard_normal((1, 2)).astype(np.float32)
    found = run_reference(load_model(proto), {"x": x})
    np.testing.assert_array_equal(found["w"], weight)
    np.testing.assert_allclose(found["y"], x @ weight, rtol=1e-6)


def test_large_constants_are_combined_element_by_element():
    """2^14 numbers with as many are 2^14 again, although nothing says so in the file."""
    many = np.arange(2**14, dtype=np.float32)
    nodes = [node("Where", "c a b", "v"), node("Concat", "v a", "w", axis=0), node("Add", "x w")]
    proto = model(nodes, {"x": (1,)}, weights={"a": many, "b": -many, "c": many > 100})
    (want,) = onnxruntime_outputs(proto, {"x": np.ones(1, np.float32)})
    found = run_reference(load_model(proto), {"x": np.ones(1, np.float32)})["y"]
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("axis, chosen", [(1, (1, 40)), (0, (1, 3)), (-1, (2, 5))])
def test_constants_chosen_of_larger_ones_are_folded(rng, axis, chosen):
    """As BERT's token types are of their buffer; onnx's own evaluator fails at it."""
    data = rng.standard_normal((2, 64)).astype(np.float32)
    weights = {"data": data, "at": rng.integers(-2, 2, chosen)}
    nodes = [node("GatherElements", "data at", "part", axis=axis), node("Add", "x part")]
    proto = model(nodes, {"x": chosen}, weights=weights)
    x = rng.standard_normal(chosen).astype(np.float32)
    (want,) = onnxruntime_outputs(proto, {"x": x})
    np.testing.assert_array_equal(run_reference(load_model(proto), {"x": x})["y"], want)


def test_constant_arithmetic_on_weights_is_folded(rng):
    """A weight that is transposed and scaled in the model is one parameter, whatever its size."""
    weight = rng.standard_normal((300, 400)).astype(np.float32)  # larger than the optimizer folds itself
    nodes = [node("Transpose", "w", "wt"), node("Mul", "wt half", "ws"), node("MatMul", "x ws")]
    proto = model(nodes, {"x": (2, 400)}, weights={"w": weight, "half": f32(0.5)})
    found = compare(proto, {"x": rng.standard_normal((2, 400)).astype(np.float32)}, atol=1e-3)
    graph = found.graph
    assert not found.differences
    assert [n.op for n in graph.nodes] == ["linear"] and len(graph.params) == 1


def test_weights_of_linear_are_stored_by_output():
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    for nodes in ([node("MatMul", "x w")], [node("Gemm", "x w")]):
        graph = load_model(model(nodes, {"x": (1, 4)}, weights={"w": weight}))
        np.testing.assert_array_equal(graph.params["w"], weight.T)


def test_a_shared_weight_is_one_parameter():
    nodes = [node("MatMul", "x w", "h", name="first"), node("MatMul", "h w", name="second")]
    graph = load_model(model(nodes, {"x": (1, 3)}, weights={"w": np.eye(3, dtype=np.float32)}))
    assert list(graph.params) == ["w"] and [n.name for n in graph.nodes] == ["first", "second"]


def test_names_are_kept_and_made_unique():
    nodes = [
        node("Relu", "x", "a", name="act"),
        node("Abs", "a", "b", name="act"),
        node("Neg", "b", "c"),
        node("PRelu", "c s", name="/head/prelu"),
    ]
    graph = load_model(model(nodes, {"x": (2, 3)}, weights={"s": f32(0.1).reshape(1)}))
    assert [n.name for n in graph.nodes] == [
        "act",
        "act_1",
        "c",
        "/head/prelu.below",
        "/head/prelu.above",
        "/head/prelu.slope",
        "/head/prelu",
    ]


def test_a_convolution_keeps_its_name_when_the_optimizer_folds_its_batch_norm(rng):
    nodes = [
        node("Conv", "x w", "c", name="/stem/Conv"),
        node("BatchNormalization", "c s b m v", name="/stem/bn"),
    ]
    stats = {name: rng.uniform(0.5, 1.5, 6).astype(np.float32) for name in "sbmv"}
    proto = model(nodes, IMAGE, weights={"w": rng.standard_normal((6, 4, 3, 3)).astype(np.float32), **stats})
    found = compare(proto, {"x": rng.standard_normal(IMAGE["x"]).astype(np.float32)}, atol=1e-4)
    graph = found.graph
    assert not found.differences
    assert graph.nodes[0].op == "conv2d" and graph.nodes[0].name == "/stem/Conv"


def test_outputs_keep_their_names_and_order():
    nodes = [
        node("Relu", "x", "a"),
        node("Identity", "a", "b"),
        node("Identity", "a", "c"),
        node("Neg", "x", "d"),
    ]
    found = compare(model(nodes, {"x": (2,)}, ["d", "c", "a", "b"]), {"x": np.array([1, -2], np.float32)})
    graph = found.graph
    assert not found.differences
    assert graph.outputs == ("d", "c", "a", "b")


def test_an_input_that_is_also_an_output_is_copied():
    proto = model([node("Relu", "x", "y")], {"x": (2,)}, ["x", "y"])
    graph = load_model(proto)
    assert graph.outputs == ("x_output", "y")
    x = np.array([1, -2], np.float32)
    np.testing.assert_array_equal(run_reference(graph, {"x": x})["x_output"], x)


def test_half_precision_and_double_are_computed_in_float32_by_layers():
    weight = np.array([[0.5], [2.0]])
    for kind, dtype in ((TensorProto.FLOAT16, np.float16), (TensorProto.DOUBLE, np.float64)):
        nodes = [node("MatMul", "x w", "h"), node("Cast", "h", to=TensorProto.FLOAT)]
        graph = load_model(model(nodes, {"x": (1, 2)}, weights={"w": weight.astype(dtype)}, dtype=kind))
        assert graph.type_of("x").dtype == np.dtype(dtype).name and graph.type_of("y").dtype == "float32"
        assert run_reference(graph, {"x": np.array([[2, 3]], dtype)})["y"] == 7


def test_functions_in_the_model_are_inlined():
    twice = helper.make_function(
        "mine",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    proto = model([helper.make_node("Twice", ["x"], ["y"], domain="mine")], {"x": (2,)}, domains=["mine"])
    proto.functions.append(twice)
    found = compare(proto, {"x": np.array([1, 2], np.float32)})
    graph = found.graph
    assert not found.differences
    assert [n.op for n in graph.nodes] == ["add"]


def test_a_value_that_is_flattened_several_times():
    """The optimizer makes a Reshape of each, and calls all their shapes the same."""
    nodes = [node("Flatten", "x", name, axis=axis) for name, axis in (("a", 1), ("b", 2), ("c", 0), ("d", 2))]
    nodes.append(node("Add", "b d"))
    found = compare(model(nodes, {"x": (2, 3, 4)}, ("a", "c", "y")), {"x": np.ones((2, 3, 4), np.float32)})
    assert not found.differences


def test_halves_of_which_one_is_used_before_the_other_is_made():
    """As gated layers are exported; the optimizer makes one Split of both, behind what uses the first."""
    nodes = [
        node("Slice", "x three six last", "a"),
        node("Neg", "a", "b"),
        node("Slice", "x zero three last", "c"),
        node("Mul", "b c"),
    ]
    weights = {name: np.array([n]) for name, n in (("zero", 0), ("three", 3), ("six", 6), ("last", -1))}
    proto = model(nodes, {"x": (2, 6)}, weights=weights, opset=18)
    assert not compare(proto, {"x": np.arange(12, dtype=np.float32).reshape(2, 6)}).differences


def test_everything_unsupported_is_listed_at_once():
    nodes = [
        *[
            node("RandomNormalLike", a, b, name=f"noise{i}")
            for i, (a, b) in enumerate(["xa", "ab", "bc", "cd"])
        ],
        node("Dropout", "d ratio on", "e", name="drop"),
        node("NonZero", "e", "f", name="places"),
        helper.make_node("Fancy", ["f"], ["g"], domain="com.example", name="fancy"),
        node("Unique", "g", "y", name="single"),
    ]
    weights = {"ratio": f32(0.5), "on": np.array(True)}
    with pytest.raises(UnsupportedError) as caught:
        load_model(model(nodes, {"x": (2, 3, 3)}, weights=weights, domains=["com.example"]))
    lines = str(caught.value).splitlines()
    assert lines[0] == "ONNX model 'test': bitsmith cannot compile these operators:"
    assert lines[1].startswith("  RandomNormalLike x 4: random")
    assert lines[1].endswith("(nodes: noise0, noise1, noise2, ...)")
    rest = {line.split()[0]: line for line in lines[2:]}
    assert set(rest) == {"Dropout", "NonZero", "com.example::Fancy", "Unique"}
    assert "training_mode" in rest["Dropout"] and "standard ONNX operators only" in rest["com.example::Fancy"]


UNSUPPORTED_FORMS = [
    ("4-D data", node("Conv", "x w"), {"x": (1, 1, 5, 5, 5, 5)}, {"w": (1, 1, 3, 3, 3, 3)}),
    ("training_mode", node("Dropout", "x r t"), {"x": (4,)}, {"r": f32(0.5), "t": np.array(True)}),
]


@pytest.mark.parametrize(
    ("message", "proto", "shapes", "weights"), UNSUPPORTED_FORMS, ids=[row[0] for row in UNSUPPORTED_FORMS]
)
def test_forms_that_are_refused(message, proto, shapes, weights):
    made = {k: np.ones(v, np.float32) if isinstance(v, tuple) else v for k, v in weights.items()}
    kinds = {"i": TensorProto.INT64, "u8": TensorProto.UINT8}
    outputs = {name: kinds.get(name, TensorProto.FLOAT) for name in proto.output}
    with pytest.raises(UnsupportedError, match=f"{proto.op_type} x 1: .*{message}"):
        load_model(model([proto], shapes, outputs, made))
