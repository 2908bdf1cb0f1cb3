"""Sequences whose elements are known at import leave no trace, and compute what ONNX Runtime computes."""

import numpy as np
import pytest
from bitsmith.compiler.errors import UnsupportedError
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.reference import run_reference
from onnx import TensorProto, helper
from onnx_cases import compare
from onnx_models import model, node, onnxruntime_outputs

X = {"x": np.arange(28, dtype=np.float32).reshape(4, 7) - 9}
SPLIT = node("SplitToSequence", "x sizes", "q", axis=1)
CASES = {
    "elements": [
        SPLIT,
        node("SequenceAt", "q one", "a"),
        node("SequenceAt", "q last", "b"),
        node("Add", "a b"),
    ],
    "equal parts": [node("SplitToSequence", "x three", "q", axis=1), node("ConcatFromSequence", "q", axis=1)],
    "without the axis": [
        node("SplitToSequence", "x", "q", axis=1, keepdims=0),
        node("SequenceErase", "q one", "r"),
        node("SequenceLength", "r", "n"),
        node("Cast", "n", "size", to=TensorProto.FLOAT),
        node("ConcatFromSequence", "r", "s", axis=-1, new_axis=1),
        node("Mul", "s size"),
    ],
    "built": [
        node("Relu", "x", "p"),
        node("SequenceEmpty", "", "q"),
        node("SequenceInsert", "q x", "r"),
        node("SequenceInsert", "r p zero", "t"),
        node("ConcatFromSequence", "t", axis=0),
    ],
    "constructed": [
        node("SequenceConstruct", "x x x", "q"),
        node("ConcatFromSequence", "q", axis=0, new_axis=1),
    ],
}
WEIGHTS = {
    "sizes": np.array([2, 2, 3]),
    "zero": np.array(0),
    "one": np.array(1),
    "last": np.array(-3),
    "three": np.array(3),
}


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("case", CASES)
def test_sequences_agree_with_onnxruntime(case, opset):
    found = compare(model(CASES[case], {"x": (4, 7)}, weights=WEIGHTS, opset=opset), X)
    assert not found.differences


def test_a_loop_that_fills_a_list():
    nodes = [
        node("Cast", "turn", "number", to=TensorProto.FLOAT),
        node("Mul", "x number", "scaled"),
        node("SequenceInsert", "list scaled", "longer"),
        node("Identity", "going", "on"),
    ]
    number, flag = (helper.make_tensor_value_info(n, t, ()) for n, t in (("turn", 7), ("going", 9)))
    before, after = (helper.make_tensor_sequence_value_info(n, 1, None) for n in ("list", "longer"))
    body = helper.make_graph(
        nodes, "body", [number, flag, before], [helper.make_tensor_value_info("on", 9, ()), after]
    )
    proto = model(
        [
            node("SequenceEmpty", "", "none"),
            node("Loop", "three yes none", "all", body=body),
            node("Identity", "all", "same"),
            node("ConcatFromSequence", "same", axis=0, new_axis=1),
        ],
        {"x": (4, 7)},
        weights={"three": np.array(3), "yes": np.array(True)},
    )
    assert not compare(proto, X).differences


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([SPLIT, node("SequenceAt", "q nine")], "position 9 of a sequence of 3"),
        (
            [SPLIT, node("ReduceSum", "x", "n"), node("Cast", "n", "i", to=7), node("SequenceAt", "q i")],
            "must be constant",
        ),
        ([node("SequenceEmpty", "", "q"), node("ConcatFromSequence", "q", axis=0)], "no tensors"),
    ],
    ids=["outside", "computed", "empty"],
)
def test_what_is_not_known_is_refused(nodes, message):
    with pytest.raises(UnsupportedError, match=message):
        load_model(model(nodes, {"x": (4, 7)}, weights={**WEIGHTS, "nine": np.array(9)}))


@pytest.mark.parametrize(
    "nodes",
    [
        [node("SplitToSequence", "x three", "y")],
        [node("Relu", "x", "r"), node("SequenceConstruct", "x r r w", "y")],
        [SPLIT, node("SequenceInsert", "q x", "y")],
    ],
)
def test_the_elements_of_a_sequence_that_is_returned_are_outputs(nodes):
    weights = {**WEIGHTS, "three": np.array(3), "w": np.ones((2, 2), np.float32)}
    proto = model(nodes, {"x": (4, 7)}, weights=weights)
    proto.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("y", 1, None))
    x = np.random.default_rng(1).standard_normal((4, 7)).astype(np.float32)
    (wanted,) = onnxruntime_outputs(proto, {"x": x})
    found = run_reference(load_model(proto), {"x": x})
    assert list(found) == [f"y.{i}" for i in range(len(wanted))]
    assert all(np.array_equal(a, b) for a, b in zip(found.values(), wanted, strict=True))


def test_a_sequence_as_input_is_refused():
    proto = model([node("SequenceAt", "x i", "y")], {"x": (4, 7)}, weights={"i": np.array(0)})
    proto.graph.input[0].CopyFrom(helper.make_tensor_sequence_value_info("x", 1, None))
    with pytest.raises(UnsupportedError, match="'x' is not a tensor but of the kind sequence"):
        load_model(proto)
