"""Element types from the model to the compiled library; inputs fixed at import; definitions inlined."""

import bitsmith
import numpy as np
import pytest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.errors import InputError, ModelError, UnsupportedError
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.ir import DTYPES, INTEGERS
from bitsmith.compiler.reference import run_reference
from bitsmith.passes.dead_code import remove_dead_code
from bitsmith.passes.simplify_moves import simplify_moves
from onnx import TensorProto, helper
from onnx_models import model, node, onnxruntime_outputs

KINDS = {dtype: helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) for dtype in DTYPES}


def ints(*values):
    return np.array(values, np.int64)


def every_type(dtype):
    """x + x where that exists, x moved, and x as every other type."""
    nodes = [node("Transpose", "x", "moved")]
    outputs = {"moved": KINDS[dtype]}
    if dtype != "bool":
        nodes.append(node("Add", "x x", "sum"))
        outputs["sum"] = KINDS[dtype]
    for other in DTYPES:
        nodes.append(node("Cast", "x", f"as_{other}", to=KINDS[other]))
        outputs[f"as_{other}"] = KINDS[other]
    return model(nodes, {"x": (2, 3)}, outputs, dtype=KINDS[dtype], opset=18)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_goes_in_and_out_of_the_library(dtype):
    x = np.array([[0, 1, 2], [3, 100, 1]], dtype)
    with bitsmith.compile(bitsmith.load(every_type(dtype))) as artifact:
        assert artifact.inputs[0].dtype == dtype
        made = artifact.run(x)
    np.testing.assert_array_equal(made["moved"], x.T)
    if dtype != "bool":
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(made["sum"], x + x)
    for other in DTYPES:
        assert made[f"as_{other}"].dtype == other
        np.testing.assert_array_equal(made[f"as_{other}"], x.astype(other))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_wrap_and_divide_towards_zero_as_c_does(dtype):
    bounds = np.iinfo(dtype)
    a = np.array([bounds.max, bounds.min, 7, bounds.max, 5], dtype)
    b = np.array([1, 1, 2, bounds.max, 3], dtype)
    nodes = [node(op, "a b", op) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")]
    proto = model(
        nodes,
        {"a": (5,), "b": (5,)},
        dict.fromkeys(("Add", "Sub", "Mul", "Div", "Max", "Min"), KINDS[dtype]),
        dtype=KINDS[dtype],
        opset=18,
    )
    made = run_reference(load_model(proto), {"a": a, "b": b})
    with np.errstate(over="ignore"):
        wanted = {"Add": a + b, "Sub": a - b, "Mul": a * b, "Max": np.maximum(a, b), "Min": np.minimum(a, b)}
    for name, array in wanted.items():
        np.testing.assert_array_equal(made[name], array, err_msg=name)
    np.testing.assert_array_equal(made["Div"], [bounds.max, bounds.min, 3, 1, 1])


def test_division_of_integers_by_zero_gives_zero_and_does_not_end_the_process():
    proto = model(
        [node("Div", "a b", "q"), node("Mod", "a b", "r")],
        {"a": (3,), "b": (3,)},
        dict.fromkeys("qr", TensorProto.INT32),
        dtype=TensorProto.INT32,
    )
    a, b = np.array([7, -(2**31), -7], np.int32), np.array([0, -1, 2], np.int32)
    with bitsmith.compile(bitsmith.load(proto)) as artifact:
        made = artifact.run(a, b)
    assert made["q"].tolist() == [0, -(2**31), -3] and made["r"].tolist() == [0, 0, 1]


def test_half_precision_is_stored_but_not_computed_with():
    """x * 1000 * 1000 / 1000 / 1000 overflows when each step is rounded to float16."""
    steps = [("Mul", "x", "a"), ("Mul", "a", "b"), ("Div", "b", "c"), ("Div", "c", "y")]
    nodes = [node(op, f"{x} k", y) for op, x, y in steps]
    proto = model(
        nodes, {"x": (2,)}, {"y": TensorProto.FLOAT16}, {"k": np.float16(1000)}, dtype=TensorProto.FLOAT16
    )
    x = np.array([1.5, -3], np.float16)
    made = run_reference(load_model(proto), {"x": x})["y"]
    assert made.dtype == np.float16
    np.testing.assert_allclose(made, x, rtol=1e-3)


def test_double_keeps_its_digits_through_arithmetic():
    proto = model(
        [node("Sub", "x k", "y")],
        {"x": (1,)},
        {"y": TensorProto.DOUBLE},
        {"k": np.array(1.7e9)},
        dtype=TensorProto.DOUBLE,
    )
    assert run_reference(load_model(proto), {"x": np.array([1.7e9 + 0.125])})["y"] == 0.125


@pytest.mark.parametrize(
    ("how", "kind"),
    [("input", TensorProto.STRING), ("input", TensorProto.COMPLEX64), ("output", TensorProto.FLOAT8E4M3FN)],
)
def test_other_types_are_refused_by_name(how, kind):
    name = TensorProto.DataType.Name(kind).lower()
    if how == "input":
        proto = model([node("Identity", "x")], {"x": (2,)}, {"y": kind}, dtype=kind)
    else:
        proto = model([node("Cast", "x", to=kind)], {"x": (2,)}, {"y": kind})
    with pytest.raises(UnsupportedError, match=f"{how} '[xy]' is of type {name}; bitsmith"):
        load_model(proto)


def reshaping():
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node("Reshape", "x shape", "h"), node("Neg", "h")],
        "test",
        [value("x", TensorProto.FLOAT, [2, 6]), value("shape", TensorProto.INT64, [2])],
        [value("y", TensorProto.FLOAT, None)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_inputs_that_decide_shapes_are_asked_for_and_compiled_in():
    with pytest.raises(UnsupportedError, match=r"constants=\{'shape': ...\}") as caught:
        load_model(reshaping())
    assert caught.value.inputs == ("shape",)
    graph = bitsmith.load(reshaping(), constants={"shape": ints(3, 4)})
    assert [name for name, _ in graph.inputs] == ["x"]
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    np.testing.assert_array_equal(run_reference(graph, {"x": x})["y"], -x.reshape(3, 4))


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"size": ints(3, 4)}, "no input called 'size'. It has x, shape"),
        ({"shape": np.array([3.5, 4])}, "constant 'shape' is float64, the model wants int64"),
    ],
)
def test_constants_that_do_not_fit(constants, message):
    with pytest.raises(InputError, match=message):
        load_model(reshaping(), constants=constants)


def test_an_operator_without_a_rule_is_replaced_by_onnx_definition():
    nodes = [node("SoftmaxCrossEntropyLoss", "x t w", "y p", reduction="mean", ignore_index=1)]
    weights = {"t": np.array([[0, 1], [2, 2], [1, 0]]), "w": np.array([0.5, 2, 1], np.float32)}
    proto = model(nodes, {"x": (3, 3, 2)}, ("y", "p"), weights)
    x = np.random.default_rng(5).standard_normal((3, 3, 2)).astype(np.float32)
    made = run_reference(load_model(proto), {"x": x})
    for name, wanted in zip("yp", onnxruntime_outputs(proto, {"x": x}), strict=True):
        np.testing.assert_allclose(made[name], wanted, rtol=1e-5)


def test_indices_never_leave_their_tensor():
    """What lies outside is moved inside: a compiled model must not read other memory."""
    proto = model(
        [node("Gather", "table i", "y")],
        {"i": (4,)},
        weights={"table": np.eye(3, dtype=np.float32)},
        dtype=TensorProto.INT64,
    )
    with bitsmith.compile(bitsmith.load(proto)) as artifact:
        made = artifact.run(ints(-1, 2**40, -(2**40), 1))["y"]
    np.testing.assert_array_equal(made, np.eye(3)[[2, 2, 0, 1]])
    known = model([node("Gather", "x i", "y")], {"x": (3,)}, weights={"i": ints(3)})
    with pytest.raises(ModelError, match="outside of 3"):
        load_model(known)


@pytest.mark.parametrize(
    ("first", "second", "left"),
    [("float32", "float64", 0), ("int32", "int64", 0), ("float64", "float32", 2), ("int64", "float64", 2)],
)
def test_a_cast_there_and_back_goes_if_it_loses_nothing(first, second, left):
    b = GraphBuilder("casts")
    x = b.add("neg", [b.input("x", (3,), first)])
    y = b.add("cast", [b.add("cast", [x], to=second)], to=first)
    graph = remove_dead_code(simplify_moves(b.finish([b.add("abs", [y])])))
    assert [node.op for node in graph.nodes].count("cast") == left


def test_topk_gives_both_outputs_through_the_library():
    nodes = [node("TopK", "x k", "v i", axis=1, largest=0), node("Neg", "v", "y")]
    proto = model(nodes, {"x": (2, 7)}, {"y": TensorProto.FLOAT, "i": TensorProto.INT64}, {"k": ints(3)})
    x = np.array([[5, 1, 1, 0, 9, 2, 2], [3, 3, 3, 3, 3, 3, 2]], np.float32)
    with bitsmith.compile(bitsmith.load(proto)) as artifact:
        made = artifact.run(x)
    for name, wanted in zip(("y", "i"), onnxruntime_outputs(proto, {"x": x}), strict=True):
        np.testing.assert_array_equal(made[name], wanted)
