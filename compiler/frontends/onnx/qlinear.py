"""Conversion rules: operators on integers, ONNX's and those that ONNX Runtime's quantiser writes.

Each is dequantise, the float operator, quantise. Where the weights are int8 codes, codes.py and
passes/fuse_quantised.py make one int8 layer of the three, which sums integers as the operator does.
"""

from __future__ import annotations

import numpy as np

from .attention import attended
from .converter import (
    Converter,
    OnnxNode,
    Result,
    Rule,
    UnsupportedForm,
)
from .quantised import (
    BYTES,
    real,
    single,
    spread,
    store,
)

FOLLOWED_OPSET = 17
"""ONNX's operator set whose meaning ONNX Runtime's own operators have."""


def _weights_real(
    c: Converter, node: OnnxNode, at: int, axis: int, what: str
) -> tuple[str, np.ndarray, np.ndarray]:
    """(name, float32 weights, scales) of an integer operator's constant codes, scale and zero point."""
    codes, scale, zero = (c.known(node, at + i, f"{what}") for i in range(3))
    factors = spread(scale.astype(np.float32), codes.shape, axis, 0)
    centred = codes.astype(np.int64) - spread(zero.astype(np.int64), codes.shape, axis, 0)
    name = f"{node.inputs[at]}.real"
    c.quantised.scales[name] = factors.reshape(-1)
    return name, centred.astype(np.float32) * factors, factors.reshape(-1)


def _inner(node: OnnxNode, op: str, inputs: tuple[str, ...], drop: tuple[str, ...] = ()) -> OnnxNode:
    """The float operator that an integer operator stands for, in the operator set that it follows."""
    attrs = {k: v for k, v in node.attrs.items() if k not in drop}
    opset = node.get_int("opset", FOLLOWED_OPSET) if "::" in node.op else node.opset
    return OnnxNode(node.name, op, inputs, (f"{node.output}.real",), attrs, opset)


def _numbers(c: Converter, node: OnnxNode, scale: int, zero: int) -> tuple[float, int]:
    """One scale and one zero point that are constant."""
    s = single(c.known(node, scale, "scale"), None)  # type: ignore[arg-type]
    z = single(c.known(node, zero, "zero point")) if node.has_input(zero) else 0.0
    if s is None or z is None:
        raise UnsupportedForm("scales per channel of activations")
    if not np.isfinite(s) or s <= 0:
        raise UnsupportedForm(
            f"the scale {node.inputs[scale]!r} is {s}: values were infinite when it was calibrated (a mask "
            "of -3.4e38?); quantise again without this operator, or with a mask of -1e4"
        )
    return s, int(z)


def _stored_type(c: Converter, node: OnnxNode, index: int) -> str:
    """The 8-bit type of a result, which its zero point has."""
    zero = c.constant(node, index)
    dtype = zero.dtype.name if zero is not None else "uint8"
    if dtype not in BYTES:
        raise UnsupportedForm(f"results in {dtype}")
    return dtype


def _qlinear_conv(c: Converter, node: OnnxNode) -> Result:
    """Dequantise, convolve, quantise: codes.py and the passes make one int8 layer of it."""
    x_scale, x_zero = _numbers(c, node, 1, 2)
    c.values[f"{node.inputs[0]}.real"] = real(c, node, c.value(node), x_scale, x_zero, "x")
    name, c.constants[f"{node.inputs[3]}.real"], scales = _weights_real(c, node, 3, 0, "weights")
    inputs = [f"{node.inputs[0]}.real", name]
    if node.has_input(8):
        bias = f"{node.inputs[8]}.real.{node.output}"
        c.constants[bias] = (c.known(node, 8, "bias") * (np.float64(x_scale) * scales)).astype(np.float32)
        inputs.append(bias)
    y = c.computed(_inner(node, "Conv", tuple(inputs)))
    return store(c, node, y, *_numbers(c, node, 6, 7), _stored_type(c, node, 7))


def _qlinear_matmul(c: Converter, node: OnnxNode) -> Result:
    names = []
    for at in (0, 3):
        name = f"{node.inputs[at]}.real"
        if node.inputs[at] in c.constants:
            axis = c.constants[node.inputs[at]].ndim - (1 if at else 2)
            name, c.constants[name], _ = _weights_real(c, node, at, axis, "operand")
        else:
            scale, zero = _numbers(c, node, at + 1, at + 2)
            c.values[name] = real(c, node, c.value(node, at), scale, zero, f"operand{at}")
        names.append(name)
    y = c.computed(_inner(node, "MatMul", tuple(names)))
    return store(c, node, y, *_numbers(c, node, 6, 7), _stored_type(c, node, 7))


def _integer(op: str) -> Rule:
    """ConvInteger and MatMulInteger: sums of (x - x_zero) * (w - w_zero), in float32, as int32.

    A sum beyond 2^24 is rounded to float32's 24 digits.
    """

    def rule(c: Converter, node: OnnxNode) -> Result:
        axis = 0 if op == "Conv" else -1
        names = []
        for i in range(2):
            known = c.constant(node, i)
            name = f"{node.inputs[i]}.real"
            if known is not None and (c.constant(node, 2 + i) is not None or not node.has_input(2 + i)):
                zero = c.constant(node, 2 + i)
                at = known.ndim - 2 if i == 0 else axis
                centred = known.astype(np.int64)
                if zero is not None:
                    centred = centred - spread(zero.astype(np.int64), known.shape, at, 0)
                c.constants[name] = centred.astype(np.float32)
                c.quantised.scales[name] = np.ones(1, np.float32)
            else:
                c.values[name] = _centred(c, node, i, axis)
            names.append(name)
        y = c.computed(_inner(node, op, tuple(names)))
        return c.emit(node, "cast", [c.emit(node, "round", [y], "whole")], to="int32")

    return rule


def _centred(c: Converter, node: OnnxNode, index: int, axis: int) -> str:
    """x - x_zero as float32. The zero point of dynamically quantised data is only known at run time.

    `axis`: of a weight, the one along which it may have several.
    """
    value, zero = c.value(node, index), c.constant(node, 2 + index)
    part = f"operand{index}"
    if not node.has_input(2 + index) or (zero is not None and zero.size == 1):
        return real(c, node, value, 1.0, int(single(zero) or 0), part)
    x = real(c, node, value, 1.0, 0, f"{part}.whole")
    zero_value = c.cast(node, c.value(node, 2 + index), "float32", f"{part}.zero")
    shape = c.type(zero_value).shape
    if index == 0 and len(shape) == 1 and shape != (1,):  # one per row
        zero_value = c.reshape(node, zero_value, (*shape, 1), f"{part}.zeros")
    elif index == 1 and len(shape) == 1 and axis == 0:
        rest = (1,) * (len(c.type(x).shape) - 1)
        zero_value = c.reshape(node, zero_value, (*shape, *rest), f"{part}.zeros")
    return c.emit(node, "sub", [x, zero_value], part)


def _elementwise(op: str) -> Rule:
    """ONNX Runtime's QLinearAdd and QLinearMul."""

    def rule(c: Converter, node: OnnxNode) -> Result:
        operands = []
        for at in (0, 3):
            numbers = _numbers(c, node, at + 1, at + 2)
            known = c.constant(node, at)
            if known is not None:
                value = ((known.astype(np.float32) - numbers[1]) * np.float32(numbers[0])).astype(np.float32)
                operands.append(c.param(node.inputs[at], value, "real"))
            else:
                operands.append(real(c, node, c.value(node, at), *numbers, f"operand{at}"))
        y = c.emit(node, op, operands, "real")
        return store(c, node, y, *_numbers(c, node, 6, 7), _stored_type(c, node, 7))

    return rule


def _unary(op: str, drop: tuple[str, ...] = ()) -> Rule:
    """ONNX Runtime's QLinear form of a float operator on one value: x, scale, zero, scale of y, zero of y."""

    def rule(c: Converter, node: OnnxNode) -> Result:
        name = f"{node.inputs[0]}.real"
        c.values[name] = real(c, node, c.value(node), *_numbers(c, node, 1, 2), "x")
        y = c.computed(_inner(node, op, (name,), drop))
        return store(c, node, y, *_numbers(c, node, 3, 4), _stored_type(c, node, 4))

    return rule


def _qlinear_concat(c: Converter, node: OnnxNode) -> Result:
    values = []
    for at in range(2, len(node.inputs), 3):
        numbers = _numbers(c, node, at + 1, at + 2)
        values.append(real(c, node, c.value(node, at), *numbers, f"operand{at}"))
    axis = node.get_int("axis", 0) % len(c.type(values[0]).shape)
    y = c.emit(node, "concat", values, "real", axis=axis)
    return store(c, node, y, *_numbers(c, node, 0, 1), _stored_type(c, node, 1))


def _to_float(c: Converter, node: OnnxNode) -> Result:
    """ONNX Runtime's MatMulIntegerToFloat: both operands made real, their product, and a bias.

    Data and its scale and zero point are computed; those of weights are known.
    """
    c.values[f"{node.output}.a"] = _real_at_run_time(c, node, 2, 4)
    return product_with_codes(c, node, f"{node.output}.a", 1, (3, 5), 6)


def _attention(c: Converter, node: OnnxNode) -> list[Result]:
    """ONNX Runtime's QAttention: data of computed scale and zero point times weights of q, k and v."""
    c.values[f"{node.output}.a"] = _real_at_run_time(c, node, 3, 6)
    product = product_with_codes(c, node, f"{node.output}.a", 1, (4, 7), 2)
    assert isinstance(product, str)
    return attended(c, node, product, mask=5, past=8, bias=len(node.inputs))


def _real_at_run_time(c: Converter, node: OnnxNode, scale: int, zero: int) -> str:
    """(x - zero) * scale, of the input 0 and those."""
    dtype = c.type(c.value(node)).dtype
    x = c.cast(node, real(c, node, c.value(node), 1.0, 0, "a.whole"), "float32", "a.wide")
    if node.has_input(zero):
        x = c.emit(node, "sub", [x, c.cast(node, c.value(node, zero), "float32", "a.zero")], "a.centred")
    if dtype not in BYTES:
        raise UnsupportedForm(f"data of type {dtype}")
    return c.emit(node, "mul", [x, c.value(node, scale)], "a")


def product_with_codes(
    c: Converter, node: OnnxNode, a: str, at: int, beside: tuple[int, int], bias: int
) -> Result:
    """A value times constant codes whose scale and zero point are the inputs `beside`, plus a bias."""
    codes, scale = c.known(node, at, "weights"), c.known(node, beside[0], "scale")
    factors = spread(scale.astype(np.float32), codes.shape, codes.ndim - 1, 0)
    centred = codes.astype(np.int64)
    if node.has_input(beside[1]):
        zero = c.known(node, beside[1], "zero point").astype(np.int64)
        centred = centred - spread(zero, codes.shape, codes.ndim - 1, 0)
    name = f"{node.inputs[at]}.real"
    c.constants[name] = centred.astype(np.float32) * factors
    y = c.computed(_inner(node, "MatMul", (a, name)))
    return c.emit(node, "add", [y, c.value(node, bias)], "biased") if node.has_input(bias) else y


def _qgemm(c: Converter, node: OnnxNode) -> Result:
    """ONNX Runtime's QGemm: alpha * A B + C, C in steps of alpha * a_scale * b_scale."""
    a_scale, a_zero = _numbers(c, node, 1, 2)
    c.values[f"{node.inputs[0]}.real"] = real(c, node, c.value(node), a_scale, a_zero, "a")
    axis = 0 if node.get_int("transB", 0) else 1
    name, c.constants[f"{node.inputs[3]}.real"], scales = _weights_real(c, node, 3, axis, "weights")
    inputs = [f"{node.inputs[0]}.real", name]
    if node.has_input(6):
        step = np.float64(a_scale) * scales * node.get_float("alpha", 1.0)
        c.constants[f"{node.inputs[6]}.real"] = (c.known(node, 6, "bias") * step).astype(np.float32)
        inputs.append(f"{node.inputs[6]}.real")
    y = c.computed(_inner(node, "Gemm", tuple(inputs)))
    if not node.has_input(7):
        return y
    return store(c, node, y, *_numbers(c, node, 7, 8), _stored_type(c, node, 8))


def _microsoft() -> dict[str, Rule]:
    rules: dict[str, Rule] = {
        "MatMulIntegerToFloat": _to_float,
        "QAttention": _attention,
        "QGemm": _qgemm,
        "QLinearAdd": _elementwise("add"),
        "QLinearAveragePool": _unary("AveragePool", ("channels_last",)),
        "QLinearConcat": _qlinear_concat,
        "QLinearGlobalAveragePool": _unary("GlobalAveragePool", ("channels_last",)),
        "QLinearLeakyRelu": _unary("LeakyRelu"),
        "QLinearMul": _elementwise("mul"),
        "QLinearSigmoid": _unary("Sigmoid"),
        "QLinearSoftmax": _unary("Softmax", ("opset",)),
    }
    return {f"com.microsoft::{name}": rule for name, rule in rules.items()}


QLINEAR_RULES: dict[str, Rule] = {
    "ConvInteger": _integer("Conv"),
    "MatMulInteger": _integer("MatMul"),
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    **_microsoft(),
}
