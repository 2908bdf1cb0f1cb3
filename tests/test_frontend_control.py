"""If, Loop and Scan whose way is known at import become the nodes that they run, as ONNX Runtime has it."""

import numpy as np
import pytest
from bitsmith.compiler.errors import ModelError, UnsupportedError
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.reference import run_reference
from onnx import TensorProto, helper, numpy_helper
from onnx_cases import compare
from onnx_models import model, node

FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def graph(nodes, inputs=(), outputs=(), weights=None):
    """A subgraph; inputs and outputs are (name, type, shape)."""
    values = [[helper.make_tensor_value_info(*item) for item in items] for items in (inputs, outputs)]
    tensors = [numpy_helper.from_array(np.asarray(a), name) for name, a in (weights or {}).items()]
    return helper.make_graph(nodes, "inner", *values, tensors)


def branch(op, constant, name="z"):
    weights = {f"{op}.c": np.float32(constant)}
    return graph([node(op, f"x {op}.c", name)], outputs=[(name, FLOAT, (2, 3))], weights=weights)


def chosen(condition):
    """x + 1 or x * 5, as the condition (nodes that make `c`) says."""
    return [*condition, node("If", "c", then_branch=branch("Add", 1), else_branch=branch("Mul", 5))]


X = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
SHAPES = {"x": (2, 3)}


@pytest.mark.parametrize(("size", "op"), [(2, "add"), (4, "mul")])
def test_a_condition_on_the_shape_chooses_the_branch(size, op):
    condition = [node("Shape", "x", "s"), node("Gather", "s zero", "n"), node("Equal", "n size", "c")]
    weights = {"zero": np.array(0), "size": np.array(size)}
    found = compare(model(chosen(condition), SHAPES, weights=weights), X)
    assert not found.differences
    assert [n.op for n in found.graph.nodes] == [op]


def with_flag(nodes):
    proto = model(nodes, SHAPES)
    flag = proto.graph.input.add(name="flag")
    flag.type.CopyFrom(helper.make_tensor_type_proto(BOOL, ()))
    return proto


def test_a_condition_that_is_an_input_chooses_of_both_branches():
    proto = with_flag(chosen([node("Identity", "flag", "c")]))
    for value, op in ((True, "add"), (False, "mul")):
        assert not compare(proto, {**X, "flag": np.array(value)}).differences
        assert [n.op for n in load_model(proto, constants={"flag": value}).nodes] == [op]


def test_branches_of_different_shapes_need_the_condition():
    other = graph([node("ReduceSum", "x", "z")], outputs=[("z", FLOAT, (1, 1))])
    proto = with_flag([node("If", "flag", then_branch=branch("Add", 1), else_branch=other)])
    with pytest.raises(
        UnsupportedError, match=r"(?s)\[2, 3\], the other \[1, 1\]\) must be.*constants=\{'flag': \.\.\.\}"
    ):
        load_model(proto)


def body(nodes, state=("v", FLOAT, (2, 3)), more=(), going="going", weights=None):
    inputs = [("turn", INT, ()), ("going", BOOL, ()), state]
    return graph(nodes, inputs, [(f"{going}.out", BOOL, ()), (f"{state[0]}.out", *state[1:]), *more], weights)


def looped(inner, trips=3, condition=True, outputs="y"):
    nodes = [node("Loop", "trips start x" if condition is not None else "trips - x", outputs, body=inner)]
    weights = {"trips": np.array(trips)}
    if condition is not None:
        weights["start"] = np.array(condition)
    return model(nodes, SHAPES, outputs.split(), weights)


GO_ON = node("Identity", "going", "going.out")
GROW = [
    node("Cast", "turn", "t", to=FLOAT),
    node("Add", "v t", "sum"),
    node("Mul", "sum x", "v.out"),
]


@pytest.mark.parametrize("trips", [0, 1, 4])
def test_a_loop_of_known_length_is_unrolled(trips):
    """The state is carried, the body reads its round and a value from outside."""
    found = compare(looped(body([GO_ON, *GROW]), trips), X)
    assert not found.differences
    assert [n.op for n in found.graph.nodes].count("mul") == trips


def test_rounds_are_stacked():
    inner = body([GO_ON, *GROW, node("ReduceSum", "sum", "total", keepdims=0)], more=[("total", FLOAT, ())])
    assert not compare(looped(inner, outputs="y totals"), X).differences


def test_a_loop_ends_when_its_condition_becomes_false():
    inner = body([*GROW, node("Less", "turn two", "going.out")], weights={"two": np.array(2)})
    found = compare(looped(inner, 10), X)
    assert not found.differences
    assert [n.op for n in found.graph.nodes].count("mul") == 3


def test_without_a_condition_only_the_number_of_rounds_counts():
    assert not compare(looped(body([GO_ON, *GROW]), 3, condition=None), X).differences
    inner = body([*GROW, node("Less", "turn zero", "going.out")], weights={"zero": np.array(0)})
    with pytest.raises(UnsupportedError, match="a body that ends it"):
        load_model(looped(inner, 3, condition=None))


def test_an_if_in_a_loop_reads_values_of_both():
    first, later = (
        graph([node(op, "v x", f"{op}.z")], outputs=[(f"{op}.z", FLOAT, (2, 3))]) for op in ("Add", "Sub")
    )
    nodes = [
        GO_ON,
        node("Equal", "turn zero", "c"),
        node("If", "c", "picked", then_branch=first, else_branch=later),
        node("Relu", "picked", "v.out"),
    ]
    found = compare(looped(body(nodes, weights={"zero": np.array(0)}), 2), X)
    assert not found.differences
    assert [n.op for n in found.graph.nodes] == ["add", "clip", "sub", "clip"]


@pytest.mark.parametrize(("axis", "backwards"), [(0, 0), (1, 0), (1, 1)])
def test_a_scan_runs_along_its_axis(axis, backwards):
    state, piece = (("s", FLOAT, ()), ("p", FLOAT, (3 if axis == 0 else 2,)))
    inner = graph(
        [node("ReduceMax", "p", "m", keepdims=0), node("Add", "s m", "s.out"), node("Mul", "p s", "q")],
        [state, piece],
        [("s.out", FLOAT, ()), ("q", FLOAT, piece[2])],
    )
    attrs = {
        "num_scan_inputs": 1,
        "scan_input_axes": [axis],
        "scan_output_axes": [axis],
        "scan_input_directions": [backwards],
        "scan_output_directions": [backwards],
    }
    nodes = [node("Scan", "start x", "y z", body=inner, **attrs)]
    assert not compare(model(nodes, SHAPES, ["y", "z"], {"start": np.float32(1)}), X).differences


def test_a_function_that_calls_a_function_is_inlined():
    def function(name, nodes):
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
        return helper.make_function("mine", name, ["a"], ["b"], nodes, opsets)

    inner = function("Inner", [node("Relu", "a", "b")])
    outer = function("Outer", [helper.make_node("Inner", ["a"], ["t"], domain="mine"), node("Neg", "t", "b")])
    proto = model([helper.make_node("Outer", ["x"], ["y"], domain="mine")], SHAPES, domains=["mine"])
    proto.functions.extend([inner, outer])
    found = run_reference(load_model(proto), {"x": X["x"] - 3})["y"]
    np.testing.assert_array_equal(found, -np.maximum(X["x"] - 3, 0))


def test_a_loop_that_goes_on_as_data_says_is_refused():
    nodes = [*GROW, node("ReduceMax", "v", "m", keepdims=0), node("Less", "m ten", "going.out")]
    with pytest.raises(UnsupportedError, match="Loop x 1: its condition to go on must be constant"):
        load_model(looped(body(nodes, weights={"ten": np.float32(10)})))


def test_a_loop_of_too_many_rounds_is_refused_at_once():
    with pytest.raises(UnsupportedError, match="1000000 rounds of 4 nodes"):
        load_model(looped(body([GO_ON, *GROW]), 1_000_000))


def test_an_endless_loop_is_refused():
    proto = looped(body([GO_ON, *GROW]))
    proto.graph.node[0].input[0] = ""
    with pytest.raises(UnsupportedError, match="rounds of 4 nodes"):
        load_model(proto)


def test_a_loop_without_its_state_makes_no_sense():
    proto = looped(body([GO_ON, *GROW]))
    del proto.graph.node[0].input[2:]
    with pytest.raises((ModelError, UnsupportedError)):
        load_model(proto)
