"""Operators against truths of their own: loops over integers, numpy, torch's shapes, ONNX Runtime."""

import math

import numpy as np
import pytest
import torch
from bitsmith.compiler.ir import TensorType
from bitsmith.compiler.ops import OPS, TypeRuleError
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx_models import model, node, onnxruntime_outputs


def run(name, *arrays, **attrs):
    """An operator's reference on numpy arrays."""
    tensors = [None if a is None else torch.from_numpy(np.array(a)) for a in arrays]
    return OPS[name].reference(tensors, OPS[name].complete(attrs)).numpy()


def direct_conv(x, w, strides, pads, dilations, groups, x_zero=0):
    """NCHW convolution by its definition, one output at a time, in float64 or int64; padding is true zero."""
    kind = np.int64 if w.dtype == np.int8 else np.float64
    top, left, bottom, right = pads
    x = np.pad(x.astype(kind) - x_zero, ((0, 0), (0, 0), (top, bottom), (left, right)))
    w = w.astype(kind)
    (sh, sw), (dh, dw) = strides, dilations
    n, _, height, width = x.shape
    cout, cin, kh, kw = w.shape
    oh = (height - dh * (kh - 1) - 1) // sh + 1
    ow = (width - dw * (kw - 1) - 1) // sw + 1
    y = np.zeros((n, cout, oh, ow), kind)
    for o in range(cout):
        first = o // (cout // groups) * cin
        for i in range(oh):
            for j in range(ow):
                rows, columns = (
                    slice(i * sh, i * sh + dh * (kh - 1) + 1, dh),
                    slice(j * sw, j * sw + dw * (kw - 1) + 1, dw),
                )
                y[:, o, i, j] = (x[:, first : first + cin, rows, columns] * w[o]).sum(axis=(1, 2, 3))
    return y


CONVS = [
    # x, w, strides, pads, dilations, groups
    ((1, 3, 6, 7), (4, 3, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((2, 4, 7, 6), (6, 2, 3, 2), (2, 1), (0, 1, 2, 0), (1, 2), 2),
    ((1, 5, 8, 8), (5, 1, 5, 5), (2, 2), (1, 2, 2, 2), (1, 1), 5),
    ((1, 6, 5, 5), (3, 6, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
]
LAYOUTS = ("NCHW", "NHWC", "NCHW:NHWC")


def laid_out(x, layout, which):
    """An NCHW array as the layout's input (0) or output (-1)."""
    return x if layout.split(":")[which] == "NCHW" else np.ascontiguousarray(x.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_float_convolution(conv, layout, rng):
    x_shape, w_shape, strides, pads, dilations, groups = conv
    x, w, b = (rng.standard_normal(s).astype(np.float32) for s in (x_shape, w_shape, w_shape[:1]))
    acc = direct_conv(x, w, strides, pads, dilations, groups) + b[:, None, None]
    residual = rng.standard_normal(acc.shape).astype(np.float32)
    wanted = np.clip(acc + residual, 0.0, 1.5)
    found = run(
        "conv2d",
        laid_out(x, layout, 0),
        w,
        b,
        laid_out(residual, layout, -1),
        strides=strides,
        pads=pads,
        dilations=dilations,
        groups=groups,
        layout=layout,
        act="clip",
        lo=0.0,
        hi=1.5,
    )
    np.testing.assert_allclose(found, laid_out(wanted, layout, -1), atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("conv", CONVS, ids=str)
def test_int8_convolution(conv, layout, rng):
    """Every integer operation is exact; the float epilogue is repeated here in float64."""
    x_shape, w_shape, strides, pads, dilations, groups = conv
    x = rng.integers(0, 256, x_shape).astype(np.uint8)
    w = rng.integers(-127, 128, w_shape).astype(np.int8)
    bias = rng.integers(-5000, 5000, w_shape[0]).astype(np.int32)
    scale = rng.uniform(1e-4, 2e-3, w_shape[0]).astype(np.float32)
    acc = direct_conv(x, w, strides, pads, dilations, groups, x_zero=117) + bias[:, None, None]
    residual = rng.integers(0, 256, acc.shape).astype(np.uint8)
    place = {"strides": strides, "pads": pads, "dilations": dilations, "groups": groups, "layout": layout}
    arrays = (laid_out(x, layout, 0), w, bias)
    # Without a scale and in float32, the accumulator itself is what comes out.
    exact = run("conv2d", *arrays, x_zero=117, **place)
    np.testing.assert_array_equal(exact, laid_out(acc.astype(np.float32), layout, -1))
    f = acc * scale.astype(np.float64)[:, None, None] + (residual.astype(np.float64) - 99) * np.float64(
        np.float32(0.3)
    )
    wanted = np.clip(np.rint(np.clip(f, -80, 120)) + 90, 0, 255)
    found = run(
        "conv2d",
        *arrays,
        laid_out(residual, layout, -1),
        scale,
        x_zero=117,
        r_scale=0.3,
        r_zero=99,
        y_zero=90,
        act="clip",
        lo=-80.0,
        hi=120.0,
        out_dtype="uint8",
        **place,
    )
    assert found.dtype == np.uint8
    step = np.abs(found.astype(int) - laid_out(wanted, layout, -1))
    assert step.max() <= 1 and (step > 0).mean() < 0.01


def test_int8_linear(rng):
    x, w = rng.integers(0, 256, (5, 30)).astype(np.uint8), rng.integers(-127, 128, (7, 30)).astype(np.int8)
    bias, scale = rng.integers(-900, 900, 7).astype(np.int32), rng.uniform(1e-3, 1e-2, 7).astype(np.float32)
    acc = (x.astype(np.int64) - 20) @ w.T.astype(np.int64) + bias
    np.testing.assert_array_equal(run("linear", x, w, bias, x_zero=20), acc.astype(np.float32))
    wanted = np.clip(np.rint(acc * scale.astype(np.float64)) + 128, 0, 255)
    found = run("linear", x, w, bias, None, scale, x_zero=20, y_zero=128, out_dtype="uint8")
    assert np.abs(found - wanted).max() <= 1


def test_float_linear_and_matmul(rng):
    x, w, b = (rng.standard_normal(s).astype(np.float32) for s in ((2, 5, 7), (3, 7), (3,)))
    np.testing.assert_allclose(run("linear", x, w, b), x @ w.T + b, atol=1e-5)
    y = rng.standard_normal((4, 2, 7, 3)).astype(np.float32)
    np.testing.assert_allclose(run("matmul", x, y), np.matmul(x, y), atol=1e-5)


def test_quantize_rounds_ties_to_even_and_saturates():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1000, -1000, np.inf, -np.inf], np.float32)
    np.testing.assert_array_equal(
        run("quantize", x, y_scale=1.0, y_zero=10), [10, 12, 12, 10, 8, 255, 0, 255, 0]
    )
    q = np.array([0, 10, 255], np.uint8)
    np.testing.assert_array_equal(run("dequantize", q, x_scale=0.5, x_zero=10), [-5, 0, 122.5])


def test_quantised_add(rng):
    a, b = (rng.integers(0, 256, (3, 8)).astype(np.uint8) for _ in range(2))
    real = (a.astype(float) - 3) * 0.7 + (b.astype(float) - 128) * 1.3
    attrs = {"a_scale": 0.7, "a_zero": 3, "b_scale": 1.3, "b_zero": 128}
    np.testing.assert_allclose(run("add", a, b, **attrs), real, atol=1e-4)
    found = run("add", a, b, **attrs, y_inv=0.5, y_zero=100, out_dtype="uint8", act="clip", lo=0.0)
    assert np.abs(found - np.clip(np.rint(np.maximum(real, 0) * 0.5) + 100, 0, 255)).max() <= 1


def test_quantised_mean(rng):
    x = rng.integers(0, 256, (2, 4, 5, 3)).astype(np.uint8)
    wanted = ((x.astype(float) - 7) * 0.02).mean(axis=(1, 2))
    found = run("reduce_mean", x, axes=(1, 2), keepdims=False, x_scale=0.02, x_zero=7)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def erf(x):
    return np.vectorize(math.erf)(x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


UNARY = {
    "clip": lambda x: np.clip(x, -0.5, 1.0),
    "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hard_sigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "gelu": lambda x: x * 0.5 * (1 + erf(x / math.sqrt(2))),
    "tanh": np.tanh,
    "leaky_relu": lambda x: np.where(x > 0, x, 0.2 * x),
    "exp": np.exp,
    "log": lambda x: np.log(np.abs(x) + 0.1),
    "sqrt": lambda x: np.sqrt(np.abs(x)),
    "rsqrt": lambda x: 1 / np.sqrt(np.abs(x) + 0.1),
    "neg": np.negative,
    "abs": np.abs,
    "erf": erf,
}
BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "floor_mod": np.mod,
    "fmod": np.fmod,
}
# What a function of positive numbers gets instead of x, here and in its row above.
POSITIVE = {"log": lambda x: np.abs(x) + 0.1, "sqrt": np.abs, "rsqrt": lambda x: np.abs(x) + 0.1}


FUNCTIONS = {
    **{n: getattr(np, f"arc{n[1:]}") for n in ("acos", "acosh", "asin", "asinh", "atan", "atanh")},
    **{n: getattr(np, n) for n in ("ceil", "cos", "cosh", "floor", "round", "sign", "sin", "sinh", "tan")},
}
# Where they are defined.
DOMAINS = {"acos": (-1, 1), "asin": (-1, 1), "atanh": (-0.99, 0.99), "acosh": (1, 8), "tan": (-1.4, 1.4)}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_mathematical_functions(name, rng):
    x = rng.uniform(*DOMAINS.get(name, (-8, 8)), 500).astype(np.float32)
    np.testing.assert_allclose(run(name, x), FUNCTIONS[name](x), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", UNARY)
def test_unary_operators(name, rng):
    x = np.concatenate([rng.uniform(-8, 8, 500), [0.0, -3.0, 3.0, 6.0]])
    attrs = {"clip": {"lo": -0.5, "hi": 1.0}, "leaky_relu": {"alpha": 0.2}}.get(name, {})
    operand = POSITIVE.get(name, lambda x: x)(x).astype(np.float32)
    np.testing.assert_allclose(run(name, operand, **attrs), UNARY[name](x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", BINARY)
def test_binary_operators(name, rng):
    a, b = rng.uniform(-4, 4, (3, 1, 5)).astype(np.float32), rng.uniform(1, 4, (4, 5)).astype(np.float32)
    np.testing.assert_allclose(run(name, a, b), BINARY[name](a, b), rtol=1e-6)


def test_every_pointwise_operator_has_a_truth():
    pointwise = {
        name
        for name, op in OPS.items()
        if op.inputs in (("x",), ("a", "b")) and not set(op.attrs) & {"axes", "kernel", "shape"}
    }
    elsewhere = {"matmul", "transpose", "pad", "slice", "softmax", "quantize", "dequantize"}
    # Against numpy's answers in ONNX's own node tests (test_conformance.py).
    elsewhere |= {
        "arg_max",
        "arg_min",
        "bit_and",
        "bit_or",
        "bit_xor",
        "bitcast",
        "cast",
        "cumprod",
        "cumsum",
    }
    elsewhere |= {"depth_to_space", "equal", "isinf", "isnan", "less", "less_equal", "pow", "resize"}
    elsewhere |= {"reverse", "shift_left", "shift_right", "topk"}
    assert pointwise - elsewhere == set(UNARY) | set(BINARY) | set(FUNCTIONS)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    ("op", "onnx_op", "mine", "theirs"),
    [
        ("max_pool2d", "MaxPool", {}, {}),
        ("max_pool2d", "MaxPool", {"dilations": (2, 1)}, {"dilations": [2, 1]}),
        ("avg_pool2d", "AveragePool", {}, {}),
        ("avg_pool2d", "AveragePool", {"count_pad": True}, {"count_include_pad": 1}),
    ],
)
def test_pools_agree_with_onnxruntime(op, onnx_op, mine, theirs, layout, rng):
    x = rng.standard_normal((2, 3, 9, 8)).astype(np.float32)
    proto = model(
        [node(onnx_op, "x", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 2, 1], **theirs)], {"x": x.shape}
    )
    (wanted,) = onnxruntime_outputs(proto, {"x": x})
    found = run(
        op, laid_out(x, layout, 0), kernel=(3, 2), strides=(2, 1), pads=(1, 0, 2, 1), layout=layout, **mine
    )
    np.testing.assert_allclose(found, laid_out(wanted, layout, -1), atol=1e-6)


def test_pool_of_uint8(rng):
    x = rng.integers(0, 256, (1, 4, 4, 3)).astype(np.uint8)
    found = run("max_pool2d", x, kernel=(2, 2), strides=(2, 2), layout="NHWC")
    np.testing.assert_array_equal(found, x.reshape(1, 2, 2, 2, 2, 3).max(axis=(2, 4)))


def test_batch_norm(rng):
    x = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    gamma, beta, mean = (rng.standard_normal(3).astype(np.float32) for _ in range(3))
    variance = rng.uniform(0.1, 2, 3).astype(np.float32)
    shape = (1, 3, 1, 1)
    wanted = (x - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + 1e-3) * gamma.reshape(
        shape
    ) + beta.reshape(shape)
    np.testing.assert_allclose(run("batch_norm", x, gamma, beta, mean, variance, eps=1e-3), wanted, atol=1e-5)


def test_moving_data(rng):
    x = rng.standard_normal((2, 6, 5)).astype(np.float32)
    np.testing.assert_array_equal(run("reshape", x, shape=(5, 12)), x.reshape(5, 12))
    np.testing.assert_array_equal(run("transpose", x, perm=(2, 0, 1)), x.transpose(2, 0, 1))
    np.testing.assert_array_equal(run("concat", x, x[:, :1], axis=1), np.concatenate([x, x[:, :1]], 1))
    np.testing.assert_array_equal(
        run("pad", x, before=(0, 1, 2), after=(1, 0, 0), value=3.0),
        np.pad(x, ((0, 1), (1, 0), (2, 0)), constant_values=3),
    )
    np.testing.assert_array_equal(
        run("slice", x, starts=(0, 1, 0), stops=(1, 6, 5), steps=(1, 2, 3)), x[0:1, 1:6:2, 0:5:3]
    )
    exps = np.exp(x - x.max(axis=1, keepdims=True))
    np.testing.assert_allclose(run("softmax", x, axis=1), exps / exps.sum(axis=1, keepdims=True), atol=1e-6)
    for name, function in {"reduce_mean": np.mean, "reduce_sum": np.sum, "reduce_max": np.max}.items():
        np.testing.assert_allclose(
            run(name, x, axes=(0, 2), keepdims=False), function(x, axis=(0, 2)), atol=1e-5
        )


small = st.integers(1, 4)


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kernel=st.tuples(small, small),
    strides=st.tuples(small, small),
    pads=st.tuples(*[st.integers(0, 3)] * 2),
    dilations=st.tuples(small, small),
    layout=st.sampled_from(LAYOUTS),
)
def test_convolution_shapes_are_torchs(size, kernel, strides, pads, dilations, layout):
    shape = (1, 2, *size) if layout.startswith("NCHW") else (1, *size, 2)
    attrs = {"strides": strides, "pads": (*pads, *pads), "dilations": dilations, "layout": layout}
    types = [TensorType(shape), TensorType((3, 2, *kernel))]
    try:
        wanted = torch.nn.functional.conv2d(
            torch.zeros(1, 2, *size), torch.zeros(3, 2, *kernel), None, strides, pads, dilations
        )
    except RuntimeError:
        with pytest.raises(TypeRuleError):
            OPS["conv2d"].infer_types(types, OPS["conv2d"].complete(attrs))
        return
    (found,) = OPS["conv2d"].infer_types(types, OPS["conv2d"].complete(attrs))
    n, c, h, w = wanted.shape
    assert found.shape == ((n, c, h, w) if layout == "NCHW" else (n, h, w, c))


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    kernel=st.tuples(small, small),
    strides=st.tuples(small, small),
    pads=st.tuples(*[st.integers(0, 2)] * 2),
    dilations=st.tuples(small, small),
)
def test_max_pool_shapes_and_values_are_torchs(size, kernel, strides, pads, dilations):
    assume(all(2 * pad <= k for pad, k in zip(pads, kernel, strict=True)))  # torch takes no more
    x = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(1))
    attrs = {"kernel": kernel, "strides": strides, "pads": (*pads, *pads), "dilations": dilations}
    try:
        wanted = torch.nn.functional.max_pool2d(x, kernel, strides, pads, dilations)
    except RuntimeError:
        with pytest.raises(TypeRuleError):
            OPS["max_pool2d"].infer_types([TensorType((1, 2, *size))], OPS["max_pool2d"].complete(attrs))
        return
    (found,) = OPS["max_pool2d"].infer_types([TensorType((1, 2, *size))], OPS["max_pool2d"].complete(attrs))
    assert found.shape == tuple(wanted.shape)
    np.testing.assert_array_equal(run("max_pool2d", x.numpy(), **attrs), wanted.numpy())
