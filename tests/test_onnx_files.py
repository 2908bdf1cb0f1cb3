"""Files that are damaged, hostile or incomplete end in one clear message; open shapes are listed."""

import re
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from bitsmith.compiler.errors import BitsmithError, InputError, ModelError, UnsupportedError
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.frontends.onnx import optimise, parse, read
from bitsmith.compiler.params import Stored
from bitsmith.compiler.reference import run_reference
from onnx import TensorProto, helper, numpy_helper
from onnx_models import model, node


def convnet() -> onnx.ModelProto:
    """Convolution, ReLU, mean, linear: enough for every part of a file to be there."""
    rng = np.random.default_rng(5)
    weights = {
        "w": rng.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "fc": rng.standard_normal((4, 2)).astype(np.float32),
        "axes": np.array([2, 3]),
    }
    nodes = [
        node("Conv", "x w", "c", name="conv"),
        node("Relu", "c", "r", name="act"),
        node("ReduceMean", "r axes", "m", name="mean", keepdims=0),
        node("MatMul", "m fc", "y", name="fc"),
    ]
    return model(nodes, {"x": (1, 3, 6, 6)}, weights=weights, opset=18)


def refused(source, error=ModelError, **how) -> str:
    """The message of the error; it must be one of ours and name the source."""
    with pytest.raises(error) as caught:
        load_model(source, **how)
    message = str(caught.value)
    assert message and "Traceback" not in message
    if isinstance(source, Path):
        assert message.startswith(str(source)), message
    return message


@pytest.fixture
def write(tmp_path):
    def save(data: "bytes | onnx.ModelProto", name: str = "model.onnx") -> Path:
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.SerializeToString())
        return path

    return save


def test_a_file_and_its_proto_are_the_same_graph(write):
    path = write(convnet())
    graph = load_model(path)
    assert graph.name == "model"
    assert load_model(str(path)).content_hash == graph.content_hash
    assert load_model(convnet()).nodes == graph.nodes


def test_weights_of_old_files_need_not_be_inputs():
    proto, old = convnet(), convnet()
    old.ir_version = 3
    assert load_model(old).nodes == load_model(proto).nodes


def test_loading_leaves_the_proto_as_it_was():
    proto = convnet()
    before = proto.SerializeToString()
    load_model(proto)
    assert proto.SerializeToString() == before


def test_truncated_at_any_byte(write):
    data = convnet().SerializeToString()
    for end in [*range(0, len(data) - 1, 17), len(data) - 1]:
        assert "model.onnx" in refused(write(data[:end])), end


def test_flipped_bytes_never_crash(write):
    """Some flips only change a weight or a name: those load. The others end in our errors."""
    data, rng = convnet().SerializeToString(), np.random.default_rng(11)
    loaded = 0
    for _ in range(150):
        broken = bytearray(data)
        broken[rng.integers(len(data))] = rng.integers(256)
        try:
            load_model(write(bytes(broken)))
            loaded += 1
        except BitsmithError as error:
            assert str(error)
    assert 0 < loaded < 150


def test_random_bytes(write):
    rng = np.random.default_rng(12)
    for size in (1, 2, 3, 10, 100, 1000, 10000):
        assert "not an ONNX model" in refused(write(rng.bytes(size)))


def test_empty_missing_unreadable(write, tmp_path):
    assert "the file is empty" in refused(write(b""))
    assert "no such file" in refused(tmp_path / "nothing.onnx")
    assert "is a directory without a config.json" in refused(tmp_path, UnsupportedError)


def test_other_formats_say_what_to_do(write):
    for name, hint in {
        "m.pt": "load it in Python",
        "m.tflite": "export",
        "m.SafeTensors": "weights",
    }.items():
        assert hint in refused(write(b"x", name), UnsupportedError)


@pytest.mark.parametrize(
    "source", [None, 3, b"bytes", [1], np.zeros(2), object()], ids=lambda s: type(s).__name__
)
def test_other_objects_are_refused(source):
    with pytest.raises(InputError, match="cannot load a .*: give an ONNX file"):
        load_model(source)


def test_a_file_over_two_gigabytes(tmp_path):
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.truncate(2**31 + 10)  # sparse: takes no space
    assert "over 2 GB" in refused(path, UnsupportedError)


def change(edit) -> onnx.ModelProto:
    proto = convnet()
    edit(proto)
    return proto


def swap_nodes(proto):
    first, second = onnx.NodeProto(), onnx.NodeProto()
    first.CopyFrom(proto.graph.node[0])
    second.CopyFrom(proto.graph.node[1])
    proto.graph.node[0].CopyFrom(second)
    proto.graph.node[1].CopyFrom(first)


INVALID = {
    "cycle": (lambda p: p.graph.node[0].input.__setitem__(0, "y"), "topologically sorted"),
    "unknown input": (lambda p: p.graph.node[1].input.__setitem__(0, "nowhere"), "nowhere"),
    "value made twice": (lambda p: p.graph.node[1].output.__setitem__(0, "c"), "single static assignment"),
    "weight twice": (lambda p: p.graph.initializer.append(p.graph.initializer[0]), "not unique"),
    "input twice": (lambda p: p.graph.input.append(p.graph.input[0]), "multiple times"),
    "output twice": (lambda p: p.graph.output.append(p.graph.output[0]), "two outputs have one name"),
    "output missing": (
        lambda p: setattr(p.graph.output[0], "name", "z"),
        "output 'z' is not an output of any node|no node makes its output 'z'",
    ),
    "no outputs": (lambda p: p.graph.ClearField("output"), "no outputs"),
    "no nodes": (lambda p: p.graph.ClearField("node"), "not an output of any node|no nodes"),
    "no graph": (lambda p: p.ClearField("graph"), "no graph"),
    "no opset": (lambda p: p.ClearField("opset_import"), "opset_import|operator set"),
    "attribute": (lambda p: p.graph.node[0].attribute.append(helper.make_attribute("bogus", 1)), "bogus"),
    "inputs of a node": (lambda p: p.graph.node[0].ClearField("input"), "input size 0"),
    "weight too short": (lambda p: p.graph.initializer[0].dims.__setitem__(0, 5), "too small"),
    "weight huge": (lambda p: p.graph.initializer[0].dims.__setitem__(0, 2**40), "too small|overflow"),
    "weight negative": (lambda p: p.graph.initializer[0].dims.__setitem__(0, -4), "w"),
    "weight of no type": (lambda p: setattr(p.graph.initializer[0], "data_type", 0), "w"),
    "weight of wrong type": (lambda p: setattr(p.graph.initializer[0], "data_type", 6), "w is int32"),
    "kernel too large": (
        lambda p: p.graph.input[0].type.tensor_type.shape.dim[2].__setattr__("dim_value", 2),
        "shapes or types|kernel",
    ),
    "channels": (
        lambda p: p.graph.input[0].type.tensor_type.shape.dim[1].__setattr__("dim_value", 5),
        "channel|shapes or types",
    ),
    "empty dimension": (
        lambda p: p.graph.input[0].type.tensor_type.shape.dim[2].__setattr__("dim_value", 0),
        "'x' has an empty dimension 2",
    ),
    "newer file format": (lambda p: setattr(p, "ir_version", 99), "ir_version 99"),
}


@pytest.mark.parametrize("what", INVALID)
def test_invalid_models(what, write):
    edit, message = INVALID[what]
    path = write(change(edit))
    found = refused(path)
    assert re.search(message, found), found


def test_nodes_out_of_order_are_sorted():
    """As onnxruntime's converter to float16 leaves them, and ONNX Runtime reads them."""
    x = np.random.default_rng(5).standard_normal((1, 3, 6, 6)).astype(np.float32)
    wanted, found = (run_reference(load_model(p), {"x": x}) for p in (convnet(), change(swap_nodes)))
    assert [n.name for n in change(swap_nodes).graph.node] != [n.name for n in convnet().graph.node]
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)


def test_operator_sets_out_of_range(write):
    for version in (1, 6, 999):
        proto = convnet()
        proto.opset_import[0].version = version
        assert f"operator set {version}; bitsmith reads 7 to" in refused(write(proto), UnsupportedError)


def test_operators_that_onnx_does_not_know(write):
    proto = change(
        lambda p: (setattr(p.graph.node[1], "op_type", "Blur"), setattr(p.graph.node[2], "op_type", "Warp"))
    )
    assert refused(write(proto), UnsupportedError).endswith("does not define: Blur, Warp")


def set_weight(proto, name, array):
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(array, name))


def test_weights_with_nan_and_infinity_are_all_named(write):
    proto = convnet()
    first, second = np.ones((4, 3, 3, 3), np.float32), np.ones((4, 2), np.float32)
    first[0, 0, 0, :2] = np.nan
    second[1, 1] = -np.inf
    set_weight(proto, "w", first)
    set_weight(proto, "fc", second)
    message = refused(write(proto))
    assert "w: 2 of 108 values" in message and "fc: 1 of 8 values" in message


def test_an_infinite_constant_beside_a_layer_that_leaves_inputs_out():
    """The constant of a node has no name, like an input that is absent."""
    infinite = helper.make_node(
        "Constant", [], ["open"], value=numpy_helper.from_array(np.array(np.inf, np.float32))
    )
    weights = {"w": np.ones((1, 4, 2), np.float32), "r": np.ones((1, 4, 1), np.float32)}
    nodes = [node("LSTM", "x w r - - h", "y", hidden_size=1), infinite, node("Min", "y open", "z")]
    graph = load_model(model(nodes, {"x": (3, 1, 2), "h": (1, 1, 1)}, ["z"], weights))
    assert [kind.shape for _, kind in graph.inputs] == [(3, 1, 2), (1, 1, 1)]


def test_double_weights_beyond_float32_count_as_infinite():
    proto = model(
        [node("MatMul", "x w")],
        {"x": (1, 2)},
        {"y": TensorProto.DOUBLE},
        {"w": np.full((2, 2), 1e300)},
        dtype=TensorProto.DOUBLE,
    )
    assert "w: 4 of 4 values" in refused(proto)


def test_arithmetic_on_weights_that_gives_nan():
    nodes = [node("Sqrt", "w", "root"), node("MatMul", "x root")]
    proto = model(nodes, {"x": (1, 200)}, weights={"w": np.full((200, 200), -1, np.float32)})
    assert "constants computed in the model are NaN or infinite: root" in refused(proto)


@pytest.mark.parametrize(
    ("op", "inputs", "weights"),
    [
        ("ConstantOfShape", "n", {"n": np.array([2**20, 2**20])}),
        ("Expand", "one n", {"one": np.ones(1, np.float32), "n": np.array([2**40])}),
        ("Tile", "one n", {"one": np.ones(1, np.float32), "n": np.array([2**40])}),
        ("Range", "a b c", {"a": np.array(0), "b": np.array(2**50), "c": np.array(1)}),
        ("Add", "a b", {"a": np.ones((1, 2**14), np.float32), "b": np.ones((2**14, 1), np.float32)}),
    ],
)
def test_constants_that_explode_are_refused(op, inputs, weights):
    """A few bytes that ask for terabytes must not be computed."""
    nodes = [node(op, inputs, "huge"), node("Cast", "huge", "f", to=TensorProto.FLOAT), node("Add", "x f")]
    proto = model(nodes, {"x": (1,)}, weights=weights)
    assert re.search(rf"{op}.* makes a constant of more than \d+ numbers", refused(proto))


def external(tmp_path, location: str, length: int = 32) -> Path:
    """A model whose weight `fc` lies in another file."""
    proto = convnet()
    (tensor,) = (t for t in proto.graph.initializer if t.name == "fc")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": str(length)}.items():
        tensor.external_data.add(key=key, value=value)
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def numbers(graph):
    return {name: (array.shape, array.tobytes()) for name, array in graph.params.items()}


@pytest.fixture
def staying(monkeypatch):
    """Every model is large enough for its weights to stay in their files, and most weights."""
    for module in (read, parse):
        monkeypatch.setattr(module, "STAY", 0)
        monkeypatch.setattr(module, "LARGE", 32)
    monkeypatch.setattr(optimise, "LARGE", 32)


@pytest.mark.usefixtures("staying")
def test_weights_that_stay_in_the_file_are_read_when_used(write):
    graph, whole = load_model(write(convnet())), load_model(convnet())
    layers = [value for node in graph.nodes if node.op in ("conv2d", "linear") for value in node.inputs[1:2]]
    assert layers and all(isinstance(graph.stored[value], Stored) for value in layers)
    assert graph.nodes == whole.nodes and numbers(graph) == numbers(whole)


@pytest.mark.usefixtures("staying")
def test_weights_in_half_precision_stay_too(write):
    half = np.arange(20, dtype=np.float16).reshape(4, 5) / 7
    nodes = [node("Cast", "h", "w", to=TensorProto.FLOAT), node("Gemm", "x w", "y", transB=1)]
    graph = load_model(write(model(nodes, {"x": (2, 5)}, weights={"h": half})))
    x = np.ones((2, 5), np.float32)
    np.testing.assert_allclose(run_reference(graph, {"x": x})["y"], x @ half.astype(np.float32).T, rtol=1e-6)


@pytest.mark.usefixtures("staying")
def test_a_file_that_is_gone_is_still_read_and_one_that_was_written_to_is_not(write):
    path = write(convnet())
    graph = load_model(path)
    path.unlink()
    assert numbers(graph) == numbers(load_model(convnet()))
    graph = load_model(write(convnet()))
    write(bytes(10))
    with pytest.raises(ModelError, match="written to after the model was loaded"):
        numbers(graph)


@pytest.mark.usefixtures("staying")
def test_large_files_that_are_damaged(write):
    data = convnet().SerializeToString()
    for end in [*range(1, len(data) - 1, 17), len(data) - 1]:
        assert "model.onnx" in refused(write(data[:end])), end
    for at in range(0, len(data), 7):
        broken = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
        path = write(broken)
        try:
            load_model(path)
        except BitsmithError as error:
            assert str(error).startswith(str(path))


@pytest.fixture(params=[False, True], ids=["read", "staying"])
def beside(request):
    """How weights in other files are read."""
    if request.param:
        request.getfixturevalue("staying")


@pytest.mark.usefixtures("beside")
def test_external_weights_are_read(tmp_path):
    path = external(tmp_path, "weights.bin")
    weight = np.arange(8, dtype=np.float32).reshape(4, 2)
    (tmp_path / "weights.bin").write_bytes(weight.tobytes())
    np.testing.assert_array_equal(load_model(path).params["fc"], weight.T)


@pytest.mark.usefixtures("beside")
def test_external_weights_that_are_missing_or_short(tmp_path):
    path = external(tmp_path, "weights.bin")
    assert "weights of 'fc' cannot be read" in refused(path)
    (tmp_path / "weights.bin").write_bytes(b"short")
    assert "weights of 'fc' cannot be read" in refused(path)


@pytest.mark.usefixtures("beside")
def test_external_weights_may_not_leave_the_directory(tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(32))
    inner = tmp_path / "inner"
    inner.mkdir()
    for location in ("../secret.bin", str(secret), "/etc/passwd", "a/../../secret.bin"):
        assert "weights of 'fc' cannot be read" in refused(external(inner, location))
    (inner / "link.bin").symlink_to(secret)
    assert "weights of 'fc' cannot be read" in refused(external(inner, "link.bin"))


def test_a_proto_with_external_weights_is_refused(tmp_path):
    proto = onnx.load(external(tmp_path, "weights.bin"), load_external_data=False)
    assert "give the path" in refused(proto)


def test_deeply_nested_graphs():
    result = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])]
    graph = leaf = helper.make_graph([node("Neg", "x")], "leaf", [], result)
    for _ in range(25):  # protobuf itself refuses more
        inner = helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=leaf)
        graph = helper.make_graph([inner], "level", [], result)
    proto = model([], {"x": (1,)})
    proto.graph.node.extend([node("Cast", "x", "c", to=TensorProto.BOOL), *graph.node])
    graph = load_model(proto)
    assert [n.op for n in graph.nodes].count("where") == 25


def test_control_flow_is_reported_with_its_hint():
    branch, other = (
        helper.make_graph([made], "branch", [], [helper.make_tensor_value_info("b", 1, None)])
        for made in (node("Neg", "x", "b"), node("ReduceSum", "x", "b"))
    )
    nodes = [
        node("ReduceSum", "x", "s", keepdims=0),
        node("Greater", "s zero", "c"),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=other),
    ]
    message = refused(model(nodes, {"x": (2,)}, weights={"zero": np.array(0, np.float32)}), UnsupportedError)
    assert "If x 1: its condition (one branch makes [2], the other [1]) must be constant" in message


def test_a_model_whose_outputs_are_constant():
    graph = load_model(model([node("Neg", "w")], {"x": (2,)}, weights={"w": np.ones(2, np.float32)}))
    np.testing.assert_array_equal(run_reference(graph, {"x": np.zeros(2, np.float32)})["y"], [-1, -1])


def dynamic(**dims) -> onnx.ModelProto:
    return model(
        [node("Relu", "x", "h"), node("Add", "h z")],
        dims or {"x": ("batch", 3, "side"), "z": ("batch", 1, None)},
    )


def test_open_dimensions_are_listed_with_the_way_to_close_them(write):
    message = refused(write(dynamic()), InputError)
    assert "x: [batch, 3, side]" in message and "z: [batch, 1, ?]" in message
    assert "Open are: batch, side, z\n" in message
    assert "--shape batch=1 --shape side=128 --shape z=1x1x128\n" in message
    assert "shapes={'batch': 1, 'side': 128, 'z': (1, 1, 128)}" in message


@pytest.mark.parametrize(
    "how",
    [
        {"shapes": {"batch": 2, "side": 5, "z": (2, 1, 5)}},
        {"shapes": {"x": (2, 3, 5), "z": [2, 1, 5]}},
        {"shapes": {"x": (np.int64(2), 3, 5), "z": (2, 1, 5)}},
        {"inputs": (np.zeros((2, 3, 5)), np.zeros((2, 1, 5)))},
        {"inputs": {"z": np.zeros((2, 1, 5)), "x": np.zeros((2, 3, 5))}},
    ],
)
def test_ways_to_close_dimensions(how):
    graph = load_model(dynamic(), **how)
    assert {name: kind.shape for name, kind in graph.inputs} == {"x": (2, 3, 5), "z": (2, 1, 5)}
    assert graph.type_of("y").shape == (2, 3, 5)


def test_the_user_may_change_a_shape_of_the_file():
    assert load_model(convnet(), shapes={"x": (2, 3, 9, 9)}).type_of("c").shape == (2, 4, 7, 7)


def test_an_input_without_any_shape():
    proto = dynamic()
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    assert "x: no shape at all" in refused(proto, InputError)
    graph = load_model(proto, shapes={"x": (2, 3, 5), "z": (2, 1, 5)})
    assert graph.type_of("y").shape == (2, 3, 5)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"shapes": {"w": (1,)}},
            "no input or dimension called 'w'. It has inputs x, z; dimensions batch, side",
        ),
        ({"shapes": {"x": (2, 3)}}, "'x' must have 3 sizes"),
        ({"shapes": {"x": (2, 3, 0)}}, "size 0 is not a whole number of 1 or more"),
        ({"shapes": {"batch": -1}}, "size -1 is not"),
        ({"shapes": {"batch": 1.5}}, "size 1.5 is not"),
        ({"shapes": {"batch": True}}, "size True is not"),
        ({"shapes": {"batch": "many"}}, "must be numbers"),
        ({"shapes": {"x": ("a", 3, 5)}}, "size 'a' is not"),
        ({"shapes": {"batch": (1, 2)}}, "is not a whole number"),
        ({"shapes": {"x": 5}}, "'x' must have 3 sizes, not .5,"),
        (
            {"shapes": {"x": (2, 3, 5), "batch": 4}},
            "'batch' is 4, but the shape .2, 3, 5. of input 'x' has 2",
        ),
        ({"inputs": (np.zeros((2, 3, 5)),)}, "1 example inputs for a model with 2: x, z"),
        ({"inputs": {"q": np.zeros(2)}}, "no input or dimension called 'q'"),
        ({"inputs": (1, 2)}, "must be an array"),
    ],
)
def test_shapes_that_do_not_fit(how, message):
    with pytest.raises(InputError, match=message):
        load_model(dynamic(), **how)


def test_sizes_that_no_memory_holds_are_refused():
    message = refused(model([node("Relu", "x", "y")], {"x": (1, 3, 2**20, 2**20)}), UnsupportedError)
    assert "more than 2^31 - 1 elements" in message and "x: float32[1, 3, 1048576, 1048576]" in message
    few = load_model(model([node("Relu", "x", "y")], {"x": (1, 2, 2**15, 2**14)}))
    assert few.type_of("y").size == 2**30


def test_shapes_that_contradict_the_model(write):
    assert "w takes 3 channels per group, x has 5" in refused(write(convnet()), shapes={"x": (1, 5, 6, 6)})
    proto = model([node("MatMul", "x w")], {"x": ("n", 4)}, weights={"w": np.ones((4, 2), np.float32)})
    message = refused(write(proto), shapes={"x": (1, 5)})
    assert "shapes or types do not fit, with inputs x [1, 5]" in message


def test_loading_is_silent(capfd, write):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(write(convnet()))
    assert capfd.readouterr() == ("", "")
