"""Named dimensions: a name closes them all, sums of names are computed, what is open can be pasted back."""

import re
import shlex

import numpy as np
import onnx
import pytest
from bitsmith.compiler.errors import InputError
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.pipeline.data_files import parse_shapes
from onnx_models import model, node


def sequence(**dims) -> onnx.ModelProto:
    """Two inputs joined along axis 1; by default a cache and what is added to it."""
    dims = dims or {
        "past": ("batch", "old", 4),
        "new": ("batch", "seq", 4),
        "mask": ("batch", "old + seq", 1),
    }
    return model([node("Concat", "past new", "all", axis=1), node("Mul", "all mask")], dims)


def shapes_of(graph) -> dict[str, tuple[int, ...]]:
    return {name: kind.shape for name, kind in graph.inputs}


def closed(**sizes) -> dict[str, tuple[int, ...]]:
    return shapes_of(load_model(sequence(), shapes=sizes))


WANTED = {"past": (2, 3, 4), "new": (2, 5, 4), "mask": (2, 8, 1)}


@pytest.mark.parametrize(
    "sizes",
    [
        {"batch": 2, "old": 3, "seq": 5},
        {"batch": np.int64(2), "old": 3, "seq": 5},
        {"past": (2, 3, 4), "seq": 5},
        {"past": (2, 3, 4), "new": (2, 5, 4)},
        {"new": (2, 5, 4), "old": 3},
        {"batch": 2, "old": 3, "seq": 5, "old + seq": 8},
    ],
)
def test_names_close_dimensions_wherever_they_are(sizes):
    assert closed(**sizes) == WANTED


@pytest.mark.parametrize(
    ("name", "size"),
    [("2*n", 10), ("n + 1", 6), ("(n + 3)//2", 4), ("n - 1 - 2", 2)],
)
def test_sums_that_exporters_write(name, size):
    proto = model([node("Add", "x z")], {"x": ("n", 1), "z": (1, name)})
    assert shapes_of(load_model(proto, shapes={"n": 5})) == {"x": (5, 1), "z": (1, size)}


@pytest.mark.parametrize(
    "name", ["batch-size", "n//0", "floor(n/2)", "x z", "__import__('os')", "n**9", "'", "-"]
)
def test_strange_names_are_names(name):
    proto = model([node("Add", "x z")], {"x": ("n", 1), "z": (1, name)})
    with pytest.raises(InputError, match=re.escape(f"z: [1, {name}]")):
        load_model(proto, shapes={"n": 5})
    assert shapes_of(load_model(proto, shapes={"n": 5, name: 3}))["z"] == (1, 3)


def test_a_sum_below_one_is_refused():
    proto = model([node("Add", "x z")], {"x": ("n", 1), "z": (1, "n - 1")})
    with pytest.raises(InputError, match="'n - 1': size 0 is not"):
        load_model(proto, shapes={"n": 1})


def test_misnamed_dimensions_are_closed_by_whole_shapes():
    proto = model([node("Add", "x z")], {"x": ("n", 1), "z": (1, "n")})
    assert shapes_of(load_model(proto, shapes={"x": (5, 1), "z": (1, 2)})) == {"x": (5, 1), "z": (1, 2)}


def test_a_number_is_enough_for_an_input_of_one_dimension():
    proto = model([node("Relu", "x")], {"x": ("n",)})
    assert shapes_of(load_model(proto, shapes={"x": 7})) == {"x": (7,)}
    same = model([node("Relu", "x")], {"x": (2, "x")})
    assert shapes_of(load_model(same, shapes={"x": 7})) == {"x": (2, 7)}


MODELS = {
    "cache": sequence(),
    "nameless": model([node("Relu", "x")], {"x": (None,)}),
    "odd name": model([node("Relu", "x")], {"x": ("batch size", 3)}),
    "image": model([node("Relu", "x")], {"x": ("N", 3, "H", "W")}),
    "unknown sum": model([node("Relu", "x")], {"x": (1, "2*k")}),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_example_of_the_message_works_when_it_is_pasted(name):
    with pytest.raises(InputError, match="input dimensions are open") as caught:
        load_model(MODELS[name])
    pasted = re.search(r"for example (.*)", str(caught.value))[1]
    options = [word for word in shlex.split(pasted) if word != "--shape"]
    graph = load_model(MODELS[name], shapes=parse_shapes(options))
    written = re.search(r"shapes=(\{.*\})", str(caught.value))[1]
    same = load_model(MODELS[name], shapes=eval(written, {}))  # noqa: S307
    assert shapes_of(graph) == shapes_of(same)
    assert all(min(shape) >= 1 for shape in shapes_of(graph).values())
