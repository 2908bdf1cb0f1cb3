"""Plans: round trips, strict reading with messages that help, fit with a graph."""

import json

import numpy as np
import pytest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.errors import OutputError, PlanError
from bitsmith.compiler.ir import Graph
from bitsmith.compiler.ops import OPS
from bitsmith.compiler.plan import LAYER_OPS, Calibration, Plan, layers_of
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture
def graph():
    b = GraphBuilder("net")
    x = b.input("x", (1, 3, 8, 8))
    x = b.add("conv2d", [x, b.param("w", np.ones((4, 3, 3, 3), np.float32))], name="stem.conv")
    x = b.add("conv2d", [x, b.param("v", np.ones((4, 4, 1, 1), np.float32))], name="block/expand")
    x = b.add("reduce_mean", [x], axes=(2, 3), keepdims=False)
    y = b.add("linear", [x, b.param("f", np.ones((2, 4), np.float32))], name="head")
    return b.finish([y])


def test_layer_ops_are_those_of_the_operator_table():
    assert set(LAYER_OPS) == {op.name for op in OPS.values() if op.layer}


def test_layers_have_weights_that_are_parameters(graph):
    assert [node.name for node in layers_of(graph)] == ["stem.conv", "block/expand", "head"]
    b = GraphBuilder("dynamic")
    y = b.add("linear", [b.input("x", (1, 4)), b.input("w", (2, 4))])
    assert layers_of(b.finish([y])) == ()


@pytest.mark.parametrize(
    ("rows", "length", "choice"), [(1024, 64, "int8:channel"), (1023, 64, None), (4096, 32, None)]
)
def test_large_tables_are_int8_where_every_layer_is(rows, length, choice):
    """Scales of short rows would weigh more than they save."""
    b = GraphBuilder("text")
    table = b.param("table", np.ones((rows, length), np.float32))
    h = b.add("gather", [table, b.input("tokens", (2,), "int64")], name="embed", axis=0)
    graph = b.finish([b.add("linear", [h, b.param("w", np.ones((3, length), np.float32))], name="head")])
    assert Plan.uniform(graph, "int8").layers.get("embed") == choice
    assert "embed" not in Plan.uniform(graph, "float32").layers


def test_uniform_and_with_choice(graph):
    plan = Plan.uniform(graph, "int8")
    assert dict(plan.layers) == {"stem.conv": "int8", "block/expand": "int8", "head": "int8"}
    other = plan.with_choice("head", "float32")
    assert (plan.choice("head"), other.choice("head"), other.choice("stem.conv")) == (
        "int8",
        "float32",
        "int8",
    )
    assert plan != other
    assert Plan.uniform(graph, "float32").choice("head") == "float32"
    with pytest.raises(PlanError, match="'uint4'; choose float32, bfloat16, int8 or a weight format: there"):
        Plan.uniform(graph, "uint4")
    with pytest.raises(PlanError, match="layer 'head' cannot become 'fp8'"):
        plan.with_choice("head", "fp8")


def test_layers_cannot_be_changed_in_place(graph):
    with pytest.raises(TypeError):
        Plan.uniform(graph, "int8").layers["head"] = "float32"


def test_unlisted_layers_stay_float32(graph):
    plan = Plan("net", {"head": "int8"})
    assert plan.validate(graph) is plan
    assert [plan.choice(node.name) for node in layers_of(graph)] == ["float32", "float32", "int8"]


def test_the_text_is_the_documented_json(graph):
    text = Plan("net", {"head": "int8", "stem.conv": "float32"}).to_text()
    assert json.loads(text) == {
        "version": 1,
        "graph": "net",
        "calibration": {"method": "mse", "percentile": 99.99},
        "layers": {
            "head": {"weights": "int8", "activations": "uint8"},
            "stem.conv": {"weights": "float32", "activations": "float32"},
        },
    }
    layer_lines = [line for line in text.splitlines() if "weights" in line]
    assert len(layer_lines) == 2, "one line per layer, for hand editing and diffs"


@given(
    name=st.text(),
    layers=st.dictionaries(st.text(), st.sampled_from(["int8", "bfloat16", "float32"]), max_size=5),
    method=st.sampled_from(["minmax", "percentile", "mse"]),
    percentile=st.floats(50, 100, exclude_min=True),
)
def test_text_round_trips(name, layers, method, percentile):
    plan = Plan(name, layers, Calibration(method, percentile))
    text = plan.to_text()
    again = Plan.from_text(text)
    assert again == plan
    assert list(again.layers) == list(layers)
    assert again.to_text() == text
    assert hash(again) == hash(plan)


def test_file_round_trip(graph, tmp_path):
    plan = Plan.uniform(graph, "int8").with_choice("head", "float32")
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


def _without(key):
    data = Plan("net", {"head": "int8"}).to_json()
    del data[key]
    return data


def _with(**changes):
    return {**Plan("net", {"head": "int8"}).to_json(), **changes}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the plan is list, must be an object"),
        (_without("version"), "the plan lacks version"),
        (_without("layers"), "the plan lacks layers"),
        (_with(version=3), "version is 3; this bitsmith reads versions 1 and 2"),
        (_with(version=True), "version is True"),
        (_with(version="1"), "version is '1'"),
        (_with(graph=3), "graph is 3, must be a name"),
        (_with(layer={}), r"unknown fields: 'layer' \(did you mean layers\?\)"),
        (_with(layers=[]), r"layers is \[\], must be an object"),
        (_with(layers={"head": "int8"}), "layer 'head' is str, must be an object"),
        (_with(layers={"head": {"weights": "int8"}}), "layer 'head' lacks activations"),
        (
            _with(layers={"head": {"weights": "int4", "activations": "uint8"}}),
            'layer \'head\' asks for {"weights": "int4".* it can have {.*"float32"} or {.*"bfloat16"',
        ),
        (_with(layers={"head": {"weights": "int8", "activations": "int8"}}), "layer 'head' asks for"),
        (
            _with(layers={"head": {"weights": "int9:32", "activations": "int8:token"}}),
            "layer 'head': there is no weight format 'int9'",
        ),
        (_with(layers={"head": {"weights": "int8", "activations": "uint8", "bits": 8}}), "'bits'"),
        (_with(calibration={"method": "entropy"}), "method 'entropy' is not one of minmax, percentile, mse"),
        (_with(calibration={"percentile": 50}), "percentile 50 must be above 50 and at most 100"),
        (_with(calibration={"percentile": "99"}), "percentile '99'"),
        (
            _with(calibration={"percentil": 99}),
            r"calibration has unknown fields: 'percentil' \(did you mean percentile",
        ),
    ],
)
def test_what_is_no_plan_is_explained(data, message):
    with pytest.raises(PlanError, match=message):
        Plan.from_text(json.dumps(data))


def test_syntax_errors_name_the_line():
    with pytest.raises(PlanError, match="not JSON: .* in line 3, column"):
        Plan.from_text('{\n  "version": 1,\n  "graph" "net"\n}')


def test_a_layer_given_twice_is_an_error():
    formats = '{"weights": "int8", "activations": "uint8"}'
    with pytest.raises(PlanError, match="'head' is given twice"):
        Plan.from_text(f'{{"version": 1, "graph": "n", "layers": {{"head": {formats}, "head": {formats}}}}}')


def test_deep_nesting_is_an_error():
    with pytest.raises(PlanError):
        Plan.from_text("[" * 100_000)


def test_unknown_layers_come_with_close_names(graph):
    plan = Plan("net", {"stem_conv": "int8", "head": "int8", "zzz": "int8"})
    with pytest.raises(
        PlanError, match=r"names 2 layer\(s\) .*'stem_conv' \(did you mean stem.conv\?\); 'zzz'"
    ) as error:
        plan.validate(graph)
    assert "bitsmith inspect" in str(error.value)


def test_errors_of_a_file_name_it(tmp_path):
    with pytest.raises(PlanError, match=r"cannot read plan .*none\.json: No such file"):
        Plan.load(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(PlanError, match=r"plan .*bad\.json: not JSON"):
        Plan.load(tmp_path / "bad.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match=r"cannot read plan .*binary\.json"):
        Plan.load(tmp_path / "binary.json")


def test_saving_where_one_cannot_write_leaves_nothing(tmp_path):
    with pytest.raises(OutputError, match="cannot write the plan"):
        Plan("net", {}).save("/dev/null/plan.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot write the plan"):
        Plan("net", {}).save(tmp_path / "folder")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def embedding_and_head() -> Graph:
    b = GraphBuilder("words")
    table = b.param("table", np.ones((10, 32), np.float32))
    h = b.add("gather", [table, b.input("tokens", (2,), "int64")], name="embed", axis=0)
    h = b.add("linear", [h, b.param("w", np.ones((32, 32), np.float32))], name="up")
    return b.finish([b.add("linear", [h, table], name="head")])


def test_weight_formats_are_choices(graph):
    plan = Plan.uniform(embedding_and_head(), "bitmod4").with_choice("up", "int4:32@int8:token")
    assert dict(plan.layers) == {
        "embed": "bitmod4:128",
        "up": "int4:32@int8:token",
        "head": "bitmod4:128",
    }
    assert {layer: (str(f), reads) for layer, (f, reads) in plan.coded.items()} == {
        "embed": ("bitmod4:128", "int8:group"),
        "up": ("int4:32", "int8:token"),
        "head": ("bitmod4:128", "int8:group"),
    }
    data = json.loads(plan.to_text())
    assert data["version"] == 2
    assert data["layers"]["up"] == {"weights": "int4:32", "activations": "int8:token"}
    assert Plan.from_text(plan.to_text()) == plan
    assert Plan.from_text(plan.to_text()).to_text() == plan.to_text()
    assert Plan.uniform(graph, "int4:32").choice("stem.conv") == "float32", "convolutions have no formats"


def test_an_int8_plan_is_written_as_ever(graph):
    assert Plan.uniform(graph, "int8").to_json()["version"] == 1
    assert Plan("net", {"head": "int8:channel"}).to_json()["version"] == 2


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("int4:32@int7", "activations 'int7' are not one of int8:group, int8:token, float32"),
        ("bitmod4:12", "the group size '12'"),
        ("", "there is no weight format ''"),
    ],
)
def test_bad_formats_are_explained(choice, message):
    with pytest.raises(PlanError, match=message):
        Plan("net", {"head": choice})


def test_formats_are_for_linear_layers_and_tables(graph):
    with pytest.raises(PlanError, match="'stem.conv' cannot become 'int4:32': it is a convolution"):
        Plan("net", {"stem.conv": "int4:32"}).validate(graph)
    words = embedding_and_head()
    with pytest.raises(PlanError, match="'embed' cannot become 'int8': it is a table .* int8:channel"):
        Plan("words", {"embed": "int8"}).validate(words)
    assert Plan("words", {"embed": "int8:channel"}).validate(words)
