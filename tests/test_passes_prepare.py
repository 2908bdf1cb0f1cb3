"""The passes together: prepare(graph) computes what the graph computes, and has the canonical form."""

import numpy as np
import pytest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.errors import InternalError, ModelError
from bitsmith.compiler.plan import layers_of
from bitsmith.passes.pass_base import Pass, run_passes
from bitsmith.passes.prepare import PASSES, prepare
from golden_passes import assert_equal_outputs, graph_from_text
from hypothesis import given, settings
from random_graphs import FLOAT_STEPS, graphs


@settings(max_examples=120, deadline=None, derandomize=True)
@given(graph=graphs(FLOAT_STEPS))
def test_prepare_keeps_what_random_graphs_compute(graph):
    prepared = prepare(graph)
    assert_equal_outputs(graph, prepared)
    assert {node.name for node in layers_of(graph)} <= {node.name for node in layers_of(prepared)}
    assert not any(node.op == "batch_norm" for node in prepared.nodes)
    assert set(prepared.params) == set(prepared.used_params())
    convs = [node for node in prepared.nodes if node.op == "conv2d"]
    assert all(str(node.attrs["layout"]).endswith("NHWC") for node in convs)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(graph=graphs(FLOAT_STEPS))
def test_a_prepared_graph_can_be_prepared_again(graph):
    once = prepare(graph)
    assert_equal_outputs(once, prepare(once))


def inverted_residual(rng):
    """A block of MobileNet as exporters write it, in a whole small network."""
    b = GraphBuilder("mobile")

    def param(name, *shape):
        return b.param(name, (rng.normal(size=shape) / max(np.prod(shape[1:]), 1) ** 0.5).astype(np.float32))

    def conv(x, name, cin, cout, kernel, groups=1, **attrs):
        weight = param(f"{name}.weight", cout, cin // groups, kernel, kernel)
        x = b.add("conv2d", [x, weight], name=name, groups=groups, **attrs)
        stats = [param(f"{name}.{s}", cout) for s in ("gamma", "beta", "mean")]
        return b.add("batch_norm", [x, *stats, b.param(f"{name}.var", np.full(cout, 0.7, np.float32))])

    x = b.input("image", (1, 3, 16, 16))
    x = b.add("pad", [x], before=(0, 0, 0, 0), after=(0, 0, 1, 1))
    x = conv(x, "stem", 3, 8, 3, strides=(2, 2))
    short = b.add("clip", [x], lo=0.0, hi=6.0)
    x = b.add("clip", [conv(short, "expand", 8, 24, 1)], lo=0.0, hi=6.0)
    x = b.add("clip", [conv(x, "depthwise", 24, 24, 3, groups=24, pads=(1, 1, 1, 1))], lo=0.0, hi=6.0)
    x = b.add("add", [conv(x, "project", 24, 8, 1), short])
    x = b.add("reduce_mean", [x], axes=(2, 3))
    x = b.add("reshape", [x], shape=(1, 8))
    x = b.add("matmul", [x, param("classes", 8, 10)], name="classifier")
    return b.finish([b.add("add", [x, param("offset", 10)], output="scores")])


def test_a_mobile_network_becomes_its_layers(rng):
    graph = inverted_residual(rng)
    prepared = prepare(graph)
    assert_equal_outputs(graph, prepared)
    found = [(node.op, node.name) for node in prepared.nodes]
    assert found == [
        ("conv2d", "stem"),
        ("conv2d", "expand"),
        ("conv2d", "depthwise"),
        ("conv2d", "project"),
        ("reduce_mean", found[4][1]),
        ("linear", "classifier"),
    ]
    stem, project = prepared.node("stem"), prepared.node("project")
    assert dict(stem.attrs) == {
        "act": "clip",
        "lo": 0.0,
        "hi": 6.0,
        "layout": "NCHW:NHWC",
        "pads": (0, 0, 1, 1),
        "strides": (2, 2),
    }
    assert project.inputs[3] == stem.output
    assert prepared.outputs == ("scores",)
    assert prepared.inputs == graph.inputs


def test_dump_sees_every_pass(rng):
    seen = []
    prepare(inverted_residual(rng), dump=lambda name, graph: seen.append((name, len(graph.nodes))))
    assert [name for name, _ in seen] == [each.name for each in PASSES]
    assert seen[-1][1] == 6


def test_pass_names_are_distinct():
    assert len({each.name for each in PASSES}) == len(PASSES)


SMALL = """graph g(x: float32[1, 4]) -> y {
  a: sigmoid(x) -> a: float32[1, 4]
  y: neg(a) -> y: float32[1, 4]
}"""


def _drop_first(graph):
    return graph.with_nodes(graph.nodes[1:])


def _rename_output(graph):
    return graph_from_text(SMALL.replace("y", "z"))


def _crash(graph):
    raise KeyError("layer")


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (_drop_first, "before it is made"),
        (_rename_output, "inputs, outputs or states"),
        (_crash, "KeyError: 'layer'"),
    ],
)
def test_an_error_names_the_pass_and_those_before_it(broken, complaint):
    passes = (Pass("first", lambda g: g), Pass("second", lambda g: g), Pass("broken", broken))
    with pytest.raises(InternalError, match="pass 'broken' failed after first, second: .*" + complaint):
        run_passes(graph_from_text(SMALL), passes)


def test_a_changed_output_type_is_an_error():
    narrow = SMALL.replace("neg(a) -> y: float32[1, 4]", "reduce_sum(a) {axes=(1,)} -> y: float32[1, 1]")
    with pytest.raises(
        InternalError, match=r"pass 'broken' failed after no other pass: .*y from float32\[1, 4\]"
    ):
        run_passes(graph_from_text(SMALL), (Pass("broken", lambda g: graph_from_text(narrow)),))


def test_errors_of_the_user_pass_through():
    def complain(graph):
        raise ModelError("the weights are NaN")

    with pytest.raises(ModelError, match="^the weights are NaN$"):
        run_passes(graph_from_text(SMALL), (Pass("check", complain),))
