"""Models that come quantised: the same numbers as ONNX Runtime, int8 layers kept as they came."""

import itertools

import bitsmith
import numpy as np
import onnx
import pytest
from bitsmith.compiler.errors import UnsupportedError
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.plan import Plan, layers_of
from bitsmith.compiler.reference import run_reference
from bitsmith.passes.apply_plan import apply_plan
from bitsmith.passes.prepare import prepare
from bitsmith.targets.build import build
from bitsmith.targets.target import resolve
from onnx import TensorProto
from onnx_models import model, node, onnxruntime_outputs
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

SHAPE = (1, 3, 12, 12)


class Samples(CalibrationDataReader):
    def __init__(self):
        rng = np.random.default_rng(8)
        self.feeds = iter([{"x": rng.standard_normal(SHAPE).astype(np.float32)} for _ in range(4)])

    def get_next(self):
        return next(self.feeds, None)


def network():
    """Two convolutions with a residual, pooling, a classifier."""
    rng = np.random.default_rng(2)

    def draw(*shape):
        return (rng.standard_normal(shape) / np.prod(shape[1:]) ** 0.5).astype(np.float32)

    nodes = [
        node("Conv", "x w1 b1", "c1", name="stem", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2 b2", "c2", name="middle", pads=[1, 1, 1, 1]),
        node("Add", "c2 r1", "sum"),
        node("Relu", "sum", "r2"),
        node("MaxPool", "r2", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", "p", "g"),
        node("Flatten", "g", "f"),
        node("Gemm", "f w3 b3", "y", name="classes", transB=1),
    ]
    weights = {"w1": draw(8, 3, 3, 3), "b1": draw(8), "w2": draw(8, 8, 3, 3), "b2": draw(8)}
    weights |= {"w3": draw(5, 8), "b3": draw(5)}
    return model(nodes, {"x": SHAPE}, weights=weights, opset=13)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """(format, activation type, per channel) -> the network quantised by ONNX Runtime."""
    folder = tmp_path_factory.mktemp("quantised")
    onnx.save(network(), folder / "float.onnx")

    def make(form, kind, per_channel):
        place = folder / f"{form.name}_{kind.name}_{per_channel}.onnx"
        if not place.exists():
            options = {"quant_format": form, "activation_type": kind, "weight_type": QuantType.QInt8}
            quantize_static(folder / "float.onnx", place, Samples(), per_channel=per_channel, **options)
        return onnx.load(place)

    return make


FORMS = [
    pytest.param(*row, id=f"{row[0].name}-{row[1].name}-{row[2]}")
    for row in itertools.product(QuantFormat, (QuantType.QUInt8, QuantType.QInt8), (False, True))
]


@pytest.mark.parametrize(("form", "kind", "per_channel"), FORMS)
def test_a_quantised_network_computes_what_onnxruntime_computes(quantised, form, kind, per_channel):
    proto = quantised(form, kind, per_channel)
    graph = prepare(load_model(proto))
    x = np.random.default_rng(3).standard_normal(SHAPE).astype(np.float32)
    (want,) = onnxruntime_outputs(proto, {"x": x})
    step = np.diff(np.unique(want)).min()  # of the last quantisation
    found = run_reference(graph, {"x": x})["y"]
    # ONNX Runtime's uint8 by int8 products saturate on some machines, and ties may round the other way.
    assert np.abs(found - want).max() <= 2.01 * step + 1e-6
    if kind == QuantType.QUInt8 and per_channel:  # the graphs of the others have the same operators
        with build(graph, resolve("host")) as artifact:
            assert np.abs(artifact.run(x=x)["y"] - found).max() <= 1.01 * step + 1e-6


@pytest.mark.parametrize(("form", "kind", "per_channel"), FORMS)
def test_its_layers_stay_int8_whatever_a_plan_says(quantised, form, kind, per_channel):
    graph = prepare(load_model(quantised(form, kind, per_channel)))
    layers = layers_of(graph)
    assert len(layers) == 3
    for layer in layers:
        assert graph.type_of(layer.inputs[0]).dtype == "uint8"
        assert graph.type_of(layer.inputs[1]).dtype == "int8"
    plan = Plan.uniform(graph, "float32")
    assert set(plan.layers.values()) == {"int8"}
    assert apply_plan(graph, plan, None) is graph


def test_a_model_that_came_quantised_needs_no_calibration(quantised, rng):
    """Nothing is left to choose ranges for."""
    proto = quantised(QuantFormat.QDQ, QuantType.QUInt8, True)
    x = rng.standard_normal(SHAPE).astype(np.float32)
    (want,) = onnxruntime_outputs(proto, {"x": x})
    with bitsmith.compile(load_model(proto)) as artifact:
        found = next(iter(artifact.run(x).values()))
    step = np.diff(np.unique(want)).min()
    assert np.abs(found - want).max() <= 2.01 * step + 1e-6


def test_the_codes_are_those_of_the_file(quantised):
    proto = quantised(QuantFormat.QDQ, QuantType.QUInt8, True)
    graph = prepare(load_model(proto))
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    found = [graph.params[layer.inputs[1]] for layer in layers_of(graph)]
    for name, codes in zip(("w1", "w2", "w3"), found, strict=True):
        np.testing.assert_array_equal(codes, stored[f"{name}_quantized"])


def test_values_between_its_layers_stay_uint8(quantised):
    graph = prepare(load_model(quantised(QuantFormat.QDQ, QuantType.QUInt8, False)))
    kinds = {n.op: n.type.dtype for n in graph.nodes}
    assert kinds["conv2d"] == kinds["add"] == kinds["max_pool2d"] == "uint8"


def test_dynamically_quantised_products_keep_their_codes(rng):
    """What ONNX Runtime's quantize_dynamic writes for a MatMul."""
    codes = rng.integers(-127, 128, (20, 7)).astype(np.int8)
    nodes = [
        node("DynamicQuantizeLinear", "x", "x8 scale zero"),
        node("MatMulInteger", "x8 w zero", "sums"),
        node("Cast", "sums", "real", to=TensorProto.FLOAT),
        node("Mul", "scale step", "factor"),
        node("Mul", "real factor", "y"),
    ]
    proto = model(nodes, {"x": (4, 20)}, weights={"w": codes, "step": np.array(0.01, np.float32)})
    graph = load_model(proto)
    x = rng.standard_normal((4, 20)).astype(np.float32)
    (want,) = onnxruntime_outputs(proto, {"x": x})
    np.testing.assert_allclose(run_reference(graph, {"x": x})["y"], want, atol=1e-4)


@pytest.mark.parametrize("codes", [np.uint8, np.int8])
def test_products_that_onnxruntime_fuses_with_dynamic_quantisation(rng, codes):
    """Small codes: ONNX Runtime's sums of uint8 times int8 saturate on some machines."""
    weights = {
        "w": rng.integers(0, 60, (20, 7)).astype(codes),
        "s": rng.random(7).astype(np.float32) / 50,
        "z": np.full(7, 30, codes),
        "b": rng.standard_normal(7).astype(np.float32),
    }
    nodes = [
        node("DynamicQuantizeMatMul", "x w s z b", "y", domain="com.microsoft"),
        node("DynamicQuantizeLinear", "x", "x8 xs xz"),
        node("MatMulIntegerToFloat", "x8 w xs s xz z b", "t", domain="com.microsoft"),
    ]
    proto = model(nodes, {"x": (4, 20)}, ("y", "t"), weights=weights, domains=["com.microsoft"])
    x = rng.standard_normal((4, 20)).astype(np.float32)
    found = run_reference(prepare(load_model(proto)), {"x": x})
    for name, want in zip(("y", "t"), onnxruntime_outputs(proto, {"x": x}), strict=True):
        np.testing.assert_allclose(found[name], want, atol=1e-5)


def test_dynamically_quantised_constant_data_are_zeros(rng):
    weights = {"w": rng.integers(0, 60, (6, 3)).astype(np.uint8), "s": np.float32(0.1), "z": np.uint8(9)}
    nodes = [node("DynamicQuantizeMatMul", "x w s z", domain="com.microsoft")]
    proto = model(nodes, {"x": (2, 6)}, weights=weights, domains=["com.microsoft"])
    found = run_reference(load_model(proto), {"x": np.zeros((2, 6), np.float32)})["y"]
    np.testing.assert_array_equal(found, np.zeros((2, 3), np.float32))


def test_equal_codes_may_have_different_scales(rng):
    """A file has a number once that two operators read."""
    numbers = {"h": np.int8(127), "s1": np.float32(0.01), "s2": np.float32(0.002), "z": np.int8(0)}
    nodes = [
        node("QuantizeLinear", "x s1 z", "q"),
        onnx.helper.make_node("QLinearAdd", ["q", "s1", "z", "h", "s1", "z", "s1", "z"], ["a"]),
        onnx.helper.make_node("QLinearAdd", ["a", "s1", "z", "h", "s2", "z", "s1", "z"], ["b"]),
        node("DequantizeLinear", "b s1 z"),
    ]
    for adding in nodes[1:3]:
        adding.domain = "com.microsoft"
    proto = model(nodes, {"x": (50,)}, weights=numbers, domains=["com.microsoft"])
    x = rng.uniform(-1, 0, 50).astype(np.float32)
    (want,) = onnxruntime_outputs(proto, {"x": x})
    np.testing.assert_allclose(run_reference(load_model(proto), {"x": x})["y"], want, atol=0.0101)


def blocked_product(rng, k, n, block, bits, *, zeros=False, scale=np.float32, bias=False):
    """A model of one MatMulNBits on float32 data."""
    blocks, bytes_ = -(-k // block), lambda count: -(-count * bits // 8)
    weights = {
        "b": rng.integers(0, 256, (n, blocks, bytes_(block))).astype(np.uint8),
        "s": (rng.random(n * blocks) + 0.1).astype(scale).astype(np.float32),
    }
    if zeros:
        weights["z"] = rng.integers(0, 256, n * bytes_(blocks)).astype(np.uint8)
    if bias:
        weights["c"] = rng.standard_normal(n).astype(np.float32)
    names = ["x", "b", "s", "z" if zeros else "", "", "c" if bias else ""]
    while not names[-1]:
        names.pop()
    attrs = {"K": k, "N": n, "bits": bits, "block_size": block}
    made = onnx.helper.make_node("MatMulNBits", names, ["y"], domain="com.microsoft", **attrs)
    return model([made], {"x": (3, k)}, weights=weights, domains=["com.microsoft"])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("k, block", [(40, 16), (96, 32), (130, 64), (128, 128)])
@pytest.mark.parametrize("scale", [np.float16, np.float32])
def test_weights_in_blocks_agree_with_onnx_runtime(rng, bits, zeros, k, block, scale):
    proto = blocked_product(rng, k, 6, block, bits, zeros=zeros, scale=scale, bias=zeros)
    x = rng.standard_normal((3, k)).astype(np.float32)
    (want,) = onnxruntime_outputs(proto, {"x": x})
    found = run_reference(prepare(load_model(proto)), {"x": x})["y"]
    np.testing.assert_allclose(found, want, atol=2e-6 * np.abs(want).max(), rtol=0)


@pytest.mark.parametrize("zeros, name", [(False, "int4:32"), (True, "int4a:32")])
@pytest.mark.parametrize("scale, suffix", [(np.float16, ""), (np.float32, ":float32")])
def test_four_bit_weights_in_blocks_keep_their_codes(rng, zeros, name, scale, suffix):
    proto = blocked_product(rng, 64, 6, 32, 4, zeros=zeros, scale=scale)
    (layer,) = layers_of(load_model(proto))
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    params = load_model(proto).params
    assert layer.op == "coded_linear" and layer.attrs["format"] == name + suffix
    np.testing.assert_array_equal(params[layer.inputs[1]], stored["b"])
    np.testing.assert_array_equal(params[layer.inputs[2]], stored["s"].reshape(6, 2))


def test_bytes_with_far_zero_points_become_numbers(rng):
    """255 - 0 is no int8 level."""
    proto = blocked_product(rng, 64, 6, 32, 8, zeros=True)
    for tensor in proto.graph.initializer:
        if tensor.name == "z":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(12, np.uint8), "z"))
    (layer,) = layers_of(load_model(proto))
    assert layer.op == "linear"


def test_an_artifact_of_coded_weights_is_as_small_as_they_are_and_agrees(rng):
    proto = blocked_product(rng, 512, 256, 32, 4, bias=True)
    graph = load_model(proto)
    x = rng.standard_normal((3, 512)).astype(np.float32)
    (want,) = onnxruntime_outputs(proto, {"x": x})
    with bitsmith.compile(graph) as artifact:
        found = artifact.run(x)["y"]
        weights = (artifact.path / "weights.bin").stat().st_size
        (row,) = artifact.ledger
    np.testing.assert_allclose(found, want, atol=2e-6 * np.abs(want).max(), rtol=0)
    assert weights < 512 * 256 * 0.5 + 256 * 16 * 4 + 8192
    assert row["choice"] == "int4:32:float32@float32" and row["weight_bytes"] <= weights


@pytest.mark.parametrize("form", ["k first", "turned", "gemm", "per channel"])
@pytest.mark.parametrize("kind", ["INT4", "UINT4"])
def test_four_bit_codes_behind_dequantize_linear_are_kept(rng, form, kind):
    low, high = (-8, 8) if kind == "INT4" else (0, 16)
    shape, axis, scales = {
        "k first": ((64, 6), 0, (2, 6)),
        "turned": ((6, 64), 1, (6, 2)),
        "gemm": ((6, 64), 1, (6, 2)),
        "per channel": ((64, 6), 1, (6,)),
    }[form]
    codes = rng.integers(low, high, shape)
    zero = rng.integers(low, high, scales)
    ends = {
        "turned": [node("Transpose", "real", "rows", perm=[1, 0]), node("MatMul", "x rows")],
        "gemm": [node("Gemm", "x real", transB=1)],
    }.get(form, [node("MatMul", "x real")])
    block = 0 if form == "per channel" else 32
    nodes = [node("DequantizeLinear", "w s z", "real", axis=axis, block_size=block), *ends]
    factors = {"s": rng.random(scales).astype(np.float32)}
    proto = model(nodes, {"x": (2, 64)}, weights=factors, opset=21)
    element = getattr(TensorProto, kind)
    for name, values in (("w", codes), ("z", zero)):
        proto.graph.initializer.append(
            onnx.helper.make_tensor(name, element, values.shape, values.reshape(-1).tolist())
        )
    graph = load_model(proto)
    x = rng.standard_normal((2, 64)).astype(np.float32)
    (want,) = onnxruntime_outputs(proto, {"x": x})
    (layer,) = layers_of(graph)
    assert layer.attrs["format"] == ("int4a:channel:float32" if not block else "int4a:32:float32")
    found = run_reference(prepare(graph), {"x": x})["y"]
    np.testing.assert_allclose(found, want, atol=2e-6 * np.abs(want).max(), rtol=0)


def test_blocked_weights_become_numbers(rng):
    codes = rng.integers(-8, 8, (6, 8)).astype(np.int8)
    scales = rng.random((3, 8)).astype(np.float32)
    nodes = [node("DequantizeLinear", "w s", "real", axis=0, block_size=2), node("MatMul", "x real")]
    proto = model(nodes, {"x": (2, 6)}, weights={"w": codes, "s": scales}, opset=21)
    x = rng.standard_normal((2, 6)).astype(np.float32)
    want = x @ (codes * np.repeat(scales, 2, 0))
    np.testing.assert_allclose(run_reference(load_model(proto), {"x": x})["y"], want, atol=1e-4)


@pytest.mark.parametrize("dtype", ["UINT8", "INT8", "INT16", "UINT16"])
def test_quantising_rounds_ties_to_even_and_saturates(dtype):
    zero = np.array(3, np.dtype(dtype.lower()))
    nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z")]
    proto = model(nodes, {"x": (7,)}, weights={"s": np.float32(0.5), "z": zero}, opset=21)
    x = np.array([0.25, 0.75, -0.25, 1e6, -1e6, 3.0, -0.76], np.float32)
    (want,) = onnxruntime_outputs(proto, {"x": x})
    np.testing.assert_array_equal(run_reference(prepare(load_model(proto)), {"x": x})["y"], want)


def test_eight_bit_floats_are_refused():
    zero = onnx.helper.make_tensor("z", TensorProto.FLOAT8E4M3FN, [], [0.0])
    proto = model(
        [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z")], {"x": (4,)}, opset=21
    )
    proto.graph.initializer.append(zero)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1), "s"))
    with pytest.raises(UnsupportedError, match="QuantizeLinear x 1: to float8"):
        load_model(proto)
