"""The graph: frozen, hashed by content, verified; the builder infers types; the reference executes."""

import dataclasses

import networkx
import numpy as np
import pytest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.errors import InputError, InternalError
from bitsmith.compiler.ir import Graph, Node, TensorType
from bitsmith.compiler.ops import TypeRuleError
from bitsmith.compiler.reference import run_reference
from bitsmith.compiler.verify import verify


def diamond() -> Graph:
    """x -> a -> (b, c) -> d, with a weight that both branches read."""
    builder = GraphBuilder("diamond")
    x = builder.input("x", (2, 3))
    w = builder.param("w", np.arange(9, dtype=np.float32).reshape(3, 3))
    a = builder.add("abs", [x], name="a", output="va")
    b = builder.add("linear", [a, w], name="b", output="vb")
    c = builder.add("linear", [a, w], name="c", output="vc")
    return builder.finish([builder.add("add", [b, c], name="d", output="vd"), a])


def test_types():
    kind = TensorType((2, 3), "int32")
    assert (kind.size, kind.nbytes, str(kind)) == (6, 24, "int32[2, 3]")
    assert (TensorType(()).size, TensorType((0, 4)).size) == (1, 0)
    for bad in ({"shape": (2,), "dtype": "str"}, {"shape": (-1,)}, {"shape": (1.5,)}, {"shape": ("n",)}):
        with pytest.raises(InternalError):
            TensorType(**bad)


def test_nothing_can_be_changed():
    graph = diamond()
    node = graph.node("b")
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.name = "other"
    with pytest.raises(dataclasses.FrozenInstanceError):
        node.op = "conv2d"
    with pytest.raises(TypeError):
        node.attrs["act"] = "relu"
    with pytest.raises(TypeError):
        graph.params["w"] = np.zeros(1)
    with pytest.raises(ValueError, match="read-only"):
        graph.params["w"][0, 0] = 1


def test_looking_around():
    graph = diamond()
    assert graph.producer("va") is graph.node("a")
    assert graph.producer("x") is None and graph.producer("w") is None
    assert [n.name for n in graph.consumers("va")] == ["b", "c"]
    assert graph.consumers("vd") == ()
    assert graph.type_of("w") == TensorType((3, 3)) and graph.type_of("vd") == TensorType((2, 3))
    assert list(graph.used_params()) == ["w"] and graph.param_bytes == 36
    with pytest.raises(KeyError):
        graph.node("nothing")


def test_a_value_read_twice_by_a_node_has_one_consumer():
    builder = GraphBuilder("g")
    x = builder.input("x", (2,))
    graph = builder.finish([builder.add("mul", [x, x], name="square")])
    assert [n.name for n in graph.consumers("x")] == ["square"]


def test_networkx():
    dag = diamond().to_networkx()
    assert networkx.is_directed_acyclic_graph(dag)
    assert set(dag.edges) == {("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")}
    assert dag.edges["a", "b"]["value"] == "va" and dag.nodes["b"]["node"].op == "linear"


def test_the_hash_is_of_the_content():
    graph = diamond()
    assert graph.content_hash == diamond().content_hash
    assert len(graph.content_hash) == 64
    weight = graph.params["w"].copy()
    weight[2, 2] = np.nextafter(weight[2, 2], 9, dtype=np.float32)
    others = [
        graph.with_nodes(graph.nodes, params={"w": weight}),
        graph.with_nodes(graph.nodes, name="other"),
        graph.with_nodes(graph.nodes, outputs=("vd",)),
        graph.with_nodes((*graph.nodes[:-1], graph.nodes[-1].with_attrs(act="silu"))),
    ]
    assert len({graph.content_hash, *(other.content_hash for other in others)}) == 5


def test_the_order_of_attributes_and_params_does_not_matter():
    kinds = (TensorType((1,)),)
    one, two = (
        Node("n", "clip", ("x",), ("y",), kinds, a) for a in ({"lo": 0.0, "hi": 1.0}, {"hi": 1.0, "lo": 0.0})
    )
    assert one == two and hash(one) == hash(two)
    arrays = {"b": np.zeros(1, np.float32), "a": np.ones(1, np.float32)}
    node = Node("n", "add", ("a", "b"), ("y",), kinds)
    first = Graph("g", (), ("y",), (node,), arrays)
    second = Graph("g", (), ("y",), (node,), dict(reversed(arrays.items())))
    assert first.content_hash == second.content_hash


def test_the_hash_does_not_see_memory_layout():
    graph = diamond()
    turned = np.asfortranarray(graph.params["w"])
    assert graph.with_nodes(graph.nodes, params={"w": turned}).content_hash == graph.content_hash


def broken(**changes) -> Graph:
    graph = diamond()
    a, b, c, d = graph.nodes
    kinds = (TensorType((2, 3)),)
    nodes = {
        "order": (b, a, c, d),
        "same layer name": (a, b, dataclasses.replace(c, name="b"), d),
        "same value": (a, b, dataclasses.replace(c, outputs=("vb",)), d),
        "overwrites an input": (dataclasses.replace(a, outputs=("x",)), b, c, d),
        "unknown value": (a, b, c, dataclasses.replace(d, inputs=("vb", "nowhere"))),
        "unknown operator": (dataclasses.replace(a, op="frobnicate"), b, c, d),
        "wrong type": (dataclasses.replace(a, types=(TensorType((3, 2)),)), b, c, d),
        "wrong dtype": (dataclasses.replace(a, types=(TensorType((2, 3), "int8"),)), b, c, d),
        "too many types": (dataclasses.replace(a, types=kinds * 2), b, c, d),
        "no outputs": (dataclasses.replace(a, outputs=(), types=()), b, c, d),
        "unknown attribute": (a.with_attrs(bogus=1), b, c, d),
        "bad attribute": (a, b.with_attrs(act="bogus"), c, d),
        "numpy attribute": (a, b.with_attrs(lo=np.float32(0.5)), c, d),
        "missing input": (a, dataclasses.replace(b, inputs=("va",)), c, d),
        "absent input": (a, dataclasses.replace(b, inputs=("va", "")), c, d),
    }
    what = changes.pop("nodes", None)
    return graph.with_nodes(nodes[what] if what else graph.nodes, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": "order"}, "'b' .linear. reads 'va' before it is made"),
        ({"nodes": "same layer name"}, "two nodes are called 'b'"),
        ({"nodes": "same value"}, "makes vb a second time"),
        ({"nodes": "overwrites an input"}, "makes x a second time"),
        ({"nodes": "unknown value"}, "reads 'nowhere' before"),
        ({"nodes": "unknown operator"}, "'a' .frobnicate.: no such operator"),
        (
            {"nodes": "wrong type"},
            r"'a'.*has types float32\[3, 2\]; its operator gives float32\[2, 3\]|differ|must be",
        ),
        ({"nodes": "wrong dtype"}, "'a'.*has types int8|'a'"),
        ({"nodes": "too many types"}, "'a' has 1 outputs and 2 types"),
        ({"nodes": "no outputs"}, "'a' has 0 outputs"),
        ({"nodes": "unknown attribute"}, "no attribute bogus"),
        ({"nodes": "bad attribute"}, "activation 'bogus' is not one of"),
        ({"nodes": "numpy attribute"}, "attribute lo = np.float32.* is not a plain number"),
        ({"nodes": "missing input"}, "linear takes 2 to 5 inputs, not 1"),
        ({"nodes": "absent input"}, "linear needs its input 'w'"),
        ({"outputs": ("vd", "nowhere")}, "graph outputs nowhere are made by no node"),
        ({"inputs": (("x", TensorType((2, 3))),) * 2}, "two graph inputs have one name"),
        (
            {"params": {"w": np.zeros((3, 3), np.float32), "x": np.zeros(1, np.float32)}},
            "x: both input and parameter",
        ),
        ({"params": {}}, "reads 'w' before"),
        ({"params": {"w": np.zeros((3, 4), np.float32)}}, r"w is float32\[3, 4\], must be \[out, 3\]"),
    ],
)
def test_verify_finds(changes, message):
    with pytest.raises(InternalError, match=f"invalid graph 'diamond' after the test: .*(?:{message})"):
        verify(broken(**changes), "the test")


def test_verify_passes_what_is_right():
    graph = diamond()
    assert verify(graph) is graph


def test_the_builder_numbers_names_and_drops_defaults():
    builder = GraphBuilder("g")
    x = builder.input("x", (2, 2))
    first, second = (
        builder.param("w", np.eye(2, dtype=np.float32)),
        builder.param("w", np.ones((2, 2), np.float32)),
    )
    assert (first, second) == ("w", "w_1")
    y = builder.add("linear", [x, first], name="fc", act="none", x_zero=0)
    graph = builder.finish([builder.add("linear", [y, second], name="fc2", act="silu")])
    assert [dict(node.attrs) for node in graph.nodes] == [{}, {"act": "silu"}]
    with pytest.raises(TypeRuleError, match="no attribute bogus"):
        builder.add("linear", [x, first], bogus=1)
    with pytest.raises(TypeRuleError, match="w is"):
        builder.add("linear", [x, builder.param("v", np.zeros((2, 3), np.float32))])


def test_the_reference_runs_and_lets_others_watch():
    x = np.array([[1, -2, 3], [0, 1, -1]], np.float32)
    seen = {}
    found = run_reference(diamond(), {"x": x}, seen.__setitem__)
    weight = np.arange(9, dtype=np.float32).reshape(3, 3)
    np.testing.assert_allclose(found["vd"], 2 * np.abs(x) @ weight.T)
    np.testing.assert_array_equal(found["va"], np.abs(x))
    assert list(seen) == ["x", "va", "vb", "vc", "vd"] and seen["va"].shape == (2, 3)


def test_the_reference_takes_read_only_and_strided_inputs():
    x = np.arange(6, dtype=np.float32).reshape(3, 2).T
    x.flags.writeable = False
    np.testing.assert_array_equal(run_reference(diamond(), {"x": x})["va"], x)


def test_outputs_that_are_inputs_or_parameters():
    graph = Graph("g", (("x", TensorType(())),), ("x", "w"), (), {"w": np.ones(2, np.float32)})
    found = run_reference(verify(graph), {"x": np.array(3, np.float32)})
    assert found["x"] == 3 and found["x"].shape == () and (found["w"] == 1).all()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "'x' must be float32.2, 3., got nothing"),
        ({"x": np.zeros((2, 4), np.float32)}, r"got float32\[2, 4\]"),
        ({"x": np.zeros((2, 3))}, r"got float64\[2, 3\]"),
    ],
)
def test_the_reference_refuses_other_inputs(inputs, message):
    with pytest.raises(InputError, match=message):
        run_reference(diamond(), inputs)
