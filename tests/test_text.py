"""The text form gives back every graph, whatever its names and attributes; bad text names its line."""

import math

import numpy as np
import pytest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.errors import InputError
from bitsmith.compiler.ir import DTYPES, Graph, Node, TensorType
from bitsmith.compiler.text import parse_graph, print_graph
from hypothesis import given, settings
from hypothesis import strategies as st

MLP = """\
graph mlp(x: float32[1, 4]) -> y {
  param w: float32[3, 4]
  fc: linear(x, w) {act="clip", lo=0.0} -> y: float32[1, 3]
}
"""


def mlp() -> Graph:
    builder = GraphBuilder("mlp")
    x = builder.input("x", (1, 4))
    w = builder.param("w", np.ones((3, 4), np.float32))
    return builder.finish([builder.add("linear", [x, w], name="fc", output="y", act="clip", lo=0.0)])


def same(a: Graph, b: Graph) -> bool:
    return (a.name, a.inputs, a.outputs, a.nodes) == (b.name, b.inputs, b.outputs, b.nodes)


def test_the_docstrings_example_is_what_prints():
    assert print_graph(mlp()) == MLP.replace('"clip"', "'clip'")


def test_double_quotes_read_as_well():
    assert same(parse_graph(MLP), mlp())


def test_parameters_are_zero_unless_given():
    assert not parse_graph(MLP).params["w"].any()
    given_weight = np.full((3, 4), 2.5)
    read = parse_graph(MLP, {"w": given_weight}).params["w"]
    assert read.dtype == np.float32 and (read == 2.5).all()
    with pytest.raises(InputError, match=r"'w' is declared float32\[3, 4\], but given with shape \(4, 3\)"):
        parse_graph(MLP, {"w": given_weight.T})


def test_absent_inputs_and_reserved_names():
    scalar = TensorType(())
    node = Node("param", "op", ("_", "", "param"), ("graph",), (scalar,), {"axes": (), "one": (1,)})
    graph = Graph("_", (("_", scalar), ("param", scalar)), ("graph",), (node,), {})
    text = print_graph(graph)
    assert "'param': op('_', _, 'param') {axes=(), one=(1,)} -> graph: float32[]" in text
    assert same(parse_graph(text), graph)


def test_unused_parameters_do_not_print():
    graph = mlp()
    more = graph.with_nodes(graph.nodes, params={**graph.params, "unused": np.zeros(5, np.float32)})
    assert print_graph(more) == print_graph(graph) and more.content_hash == graph.content_hash


names = st.one_of(
    st.text(min_size=1),
    st.sampled_from(
        ["_", "param", "graph", "inf", "nan", "-inf", "a.b", "nan.x", "x-y", "é", "'", '"', "\\", "\n", "->"]
    ),
)
types = st.builds(TensorType, st.lists(st.integers(0, 2**40), max_size=5).map(tuple), st.sampled_from(DTYPES))
numbers = st.one_of(st.integers(), st.floats(allow_nan=False), st.booleans())
keys = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
attributes = st.dictionaries(
    keys,
    st.one_of(
        numbers,
        names,
        st.lists(st.integers(), max_size=4).map(tuple),
        st.lists(st.floats(allow_nan=False), max_size=4).map(tuple),
    ),
    max_size=4,
)


@st.composite
def graphs(draw):
    """Graphs of any names and attributes; they need not make sense as computations."""
    inputs = draw(st.lists(st.tuples(names, types), max_size=3, unique_by=lambda pair: pair[0]))
    nodes = draw(
        st.lists(
            st.builds(
                lambda name, op, reads, makes, attrs: Node(
                    name, op, tuple(reads), tuple(n for n, _ in makes), tuple(t for _, t in makes), attrs
                ),
                names,
                keys,
                st.lists(st.one_of(names, st.just("")), max_size=4),
                st.lists(st.tuples(names, types), min_size=1, max_size=2),
                attributes,
            ),
            max_size=4,
        )
    )
    return Graph(draw(names), tuple(inputs), tuple(draw(st.lists(names, max_size=3))), tuple(nodes), {})


@settings(max_examples=100, deadline=None)
@given(graphs())
def test_any_graph_comes_back(graph):
    text = print_graph(graph)
    again = parse_graph(text)
    assert same(again, graph)
    assert print_graph(again) == text
    for old, new in zip(graph.nodes, again.nodes, strict=True):
        assert [type(v) for v in old.attrs.values()] == [type(v) for v in new.attrs.values()]


def test_special_floats_come_back():
    node = Node(
        "n",
        "op",
        (),
        ("y",),
        (TensorType(()),),
        {"a": math.inf, "b": -math.inf, "c": math.nan, "d": -0.0, "e": 5e-324},
    )
    (again,) = parse_graph(print_graph(Graph("g", (), ("y",), (node,), {}))).nodes
    assert (again.attrs["a"], again.attrs["b"]) == (math.inf, -math.inf)
    assert math.isnan(again.attrs["c"])
    assert math.copysign(1, again.attrs["d"]) == -1 and again.attrs["e"] == 5e-324


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "expected 'graph', found ''"),
        ("grape g() -> y {}", 1, "expected 'graph', found 'grape'"),
        ("graph g(x: float32[1)", 1, "a size, found '\\)'"),
        ("graph g(x: float33[1])", 1, "expected one of float32, .*found 'float33'"),
        ("graph g(x: float32[-1])", 1, "a size, found '-1'"),
        ("graph g() -> y {\n  n: op( -> y: float32[]\n}", 2, "a name, found '->'"),
        ("graph g() -> y {\n\n  n: op() {a=} -> y: float32[]\n}", 3, "a value, found '}'"),
        ("graph g() -> y {\n  n: op() {a=1.2.3} -> y: float32[]\n}", 2, "a value"),
        ("graph g() -> y {\n  n: op() {a=((1,),)} -> y: float32[]\n}", 2, "a value, found '\\('"),
        ("graph g() -> y {\n  n: op() {a=__import__} -> y: float32[]\n}", 2, "a value"),
        ("graph g() -> y {\n  n: op() -> y: float32[]\n", 2, "a name, found ''"),
        ("graph g() -> y {\n  n op() -> y: float32[]\n}", 2, "expected ':', found 'op'"),
        ("graph g() -> y {\n}\nmore", 3, "the end, found 'more'"),
        ("graph g() -> y {\n  n: op('unclosed) -> y: float32[]\n}", 2, "cannot read \"'unclosed"),
        ("graph g() -> y {\n  n: op('\\x') -> y: float32[]\n}", 2, "a name"),
        ("graph g() -> y {\n  n: op() -> y: float32[]\n  @\n}", 3, "cannot read '@'"),
    ],
)
def test_bad_text_names_its_line(text, line, message):
    with pytest.raises(InputError, match=f"graph text, line {line}: .*{message}"):
        parse_graph(text)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_broken_text_never_crashes(data):
    """Any character of a good text replaced or cut: it parses, or it is an InputError."""
    cut = data.draw(st.integers(0, len(MLP)))
    broken = MLP[:cut] + data.draw(st.text(max_size=3)) + MLP[cut + data.draw(st.integers(0, 5)) :]
    try:
        parse_graph(broken)
    except InputError as error:
        assert "line" in str(error)
