"""Pad in all modes, negative pads, axes, element types: what ONNX Runtime computes."""

import numpy as np
import pytest
from bitsmith.compiler.errors import UnsupportedError
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.reference import run_reference
from onnx import TensorProto
from onnx_cases import Case, compare, f32, ints
from onnx_models import model, node

ROWS = {"x": (3, 5, 4)}
IMAGE = {"x": (2, 3, 5, 6)}
MODES = ("constant", "edge", "reflect", "wrap")


def pads(*numbers, shapes=ROWS, **attrs):
    return Case("Pad", "x p", shapes, {"p": ints(*numbers)}, attrs, opset=19)


CASES = [
    Case("Pad", "x", ROWS, {}, {"pads": [0, 1, 0, 0, 0, 2], "value": 1.5}, opset=7),
    Case("Pad", "x p v", ROWS, {"p": ints(0, 1, 0, 0, 0, 2), "v": f32(-1)}, opset=13),
    Case("Pad", "x p - a", ROWS, {"p": ints(1, 2), "a": ints(-1)}, opset=18),
    pads(0, 0, 0, 0, 0, 0),
    *[pads(0, 0, 2, 1, 0, 0, 3, 2, shapes=IMAGE, mode=mode) for mode in MODES],
    *[pads(1, 2, 1, 1, 0, 1, 3, 2, shapes=IMAGE, mode=mode) for mode in MODES],
    *[pads(2, 0, 3, 1, 4, 0, mode=mode) for mode in ("edge", "wrap")],
    *[pads(0, -1, 0, 0, -2, 1, mode=mode) for mode in ("constant", "edge", "reflect")],
    *[pads(0, -1, -1, -2, 0, 0, mode=mode) for mode in MODES],
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_pad_agrees_with_onnxruntime(case):
    assert not compare(case.proto(), case.feeds()).differences


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["INT64", "INT32", "UINT8", "BOOL", "DOUBLE"])
def test_any_element_type(mode, dtype):
    kind = getattr(TensorProto, dtype)
    proto = model(
        [node("Pad", "x p", mode=mode)], {"x": (2, 3)}, {"y": kind}, {"p": ints(1, 0, 0, 2)}, 19, kind
    )
    x = np.array([[0, 1, 7], [3, 0, 200]]).astype(np.dtype(dtype.lower()))
    found = run_reference(load_model(proto), {"x": x})["y"]
    assert found.dtype == x.dtype
    np.testing.assert_array_equal(found, np.pad(x, ((1, 0), (0, 2)), mode=mode))


def test_height_and_width_are_one_node():
    graph = load_model(pads(0, 0, 2, 1, 0, 0, 3, 2, shapes=IMAGE, mode="reflect").proto())
    assert [n.op for n in graph.nodes] == ["pad"]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (pads(0, 0, 0, 0, 0, 0, mode="mirror"), "'mirror'"),
        (pads(-2, 0, 0, -1, 0, 0), "leave nothing"),
        (Case("Pad", "x p", {**ROWS, "p": (6,)}, opset=13), "pads must be constant"),
    ],
    ids=str,
)
def test_what_cannot_be_compiled_is_refused(case, message):
    proto = case.proto()
    for value in proto.graph.input[1:]:
        value.type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(UnsupportedError, match=message):
        load_model(proto)
