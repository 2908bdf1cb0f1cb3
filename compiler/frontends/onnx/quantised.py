"""Conversion rules: QuantizeLinear and DequantizeLinear.

A value that ONNX holds in int8 or uint8 with one scale becomes uint8 (int8 codes are shifted by 128), which
layers read as it is. Weights become float32 arrays here, with a note of their scale: codes.py gives
the layers that can have them their int8 codes back.
"""

from __future__ import annotations

import numpy as np

from .block_codes import noted
from .converter import (
    Converter,
    OnnxNode,
    Result,
    Rule,
    UnsupportedForm,
)

BYTES = {"uint8": 0, "int8": 128}
"""What is added to codes of that type to store them in uint8."""
RANGES = {"int2": (-2, 1), "uint2": (0, 3), "int4": (-8, 7), "uint4": (0, 15)}


def _limits(dtype: str) -> tuple[int, int]:
    if dtype in RANGES:
        return RANGES[dtype]
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def single(array: np.ndarray | None, otherwise: float = 0.0) -> float | None:
    """The one number of a constant; `otherwise` for an absent one, None where there are several."""
    if array is None:
        return otherwise
    return float(array.reshape(-1)[0]) if array.size == 1 else None


def spread(array: np.ndarray, shape: tuple[int, ...], axis: int, block: int) -> np.ndarray:
    """Scales or zero points as they apply to each element of data of that shape (or to 1 of an axis)."""
    if array.size == 1:
        return array.reshape((1,) * len(shape))
    if not shape:
        raise UnsupportedForm("several scales for a single number")
    axis = axis % len(shape)
    if block:
        return np.repeat(array, block, axis)[tuple(slice(0, d) for d in shape)]
    if array.size != shape[axis]:
        raise UnsupportedForm(f"{array.size} scales for {shape[axis]} elements of axis {axis}")
    return array.reshape([shape[axis] if a == axis else 1 for a in range(len(shape))])


def _quantize_type(c: Converter, node: OnnxNode) -> str:
    zero = c.constant(node, 2)
    if node.has_input(2):
        return zero.dtype.name if zero is not None else c.type(c.value(node, 2)).dtype
    wanted = node.get_int("output_dtype", 0)
    if not wanted:
        return "uint8"
    from onnx import TensorProto

    return str(TensorProto.DataType.Name(wanted).lower())


def _quantize(c: Converter, node: OnnxNode) -> Result:
    """saturate(round(x / scale) + zero)"""
    dtype = _quantize_type(c, node)
    if not dtype.startswith(("int", "uint")) or dtype in RANGES:
        raise UnsupportedForm(f"to {dtype}")
    scale, zero = c.constant(node, 1), c.constant(node, 2)
    one, shift = single(scale, None) if scale is not None else None, single(zero)  # type: ignore[arg-type]
    known = one is not None and shift is not None and (zero is not None or not node.has_input(2))
    if known and dtype in BYTES and c.type(c.value(node)).dtype == "float32":
        assert one is not None and shift is not None
        if not np.isfinite(one) or one <= 0:  # what float32 makes of it; nothing is stored in such steps
            return _quantize_spelled_out(c, node, dtype)
        return store(c, node, c.value(node), one, int(shift), dtype)
    return _quantize_spelled_out(c, node, dtype)


def store(c: Converter, node: OnnxNode, x: str, scale: float, zero: int, dtype: str, part: str = "") -> str:
    """A float32 value as codes of an 8-bit type; the uint8 form is kept in mind."""
    offset = BYTES[dtype]
    plain = part if dtype == "uint8" else f"{part or 'codes'}.bytes"
    stored = c.emit(node, "quantize", [x], plain, y_scale=float(np.float32(scale)), y_zero=zero + offset)
    return from_bytes(c, node, stored, dtype, part)


def from_bytes(c: Converter, node: OnnxNode, stored: str, dtype: str, part: str = "") -> str:
    """Codes of the type that ONNX has, from their uint8 form. For uint8 that is the same."""
    if dtype == "uint8":
        return stored
    wide = c.emit(node, "cast", [stored], f"{part or 'codes'}.wide", to="int32")
    moved = c.emit(node, "sub", [wide, c.scalar(node, "shift", 128, wide)], f"{part or 'codes'}.moved")
    value = c.emit(node, "cast", [moved], part, to="int8")
    c.quantised.bytes[value] = stored
    return value


def to_bytes(c: Converter, node: OnnxNode, value: str, part: str) -> str:
    """The uint8 form of 8-bit codes."""
    if c.type(value).dtype == "uint8":
        return value
    if value not in c.quantised.bytes:
        wide = c.emit(node, "cast", [value], f"{part}.wide", to="int32")
        moved = c.emit(node, "add", [wide, c.scalar(node, "shift", 128, wide)], f"{part}.moved")
        c.quantised.bytes[value] = c.emit(node, "cast", [moved], f"{part}.bytes", to="uint8")
    return c.quantised.bytes[value]


def _operand(c: Converter, node: OnnxNode, index: int, shape: tuple[int, ...], part: str) -> str:
    """A scale or zero point as a float32 value that broadcasts to the data."""
    block, axis = node.get_int("block_size", 0), node.get_int("axis", 1)
    known = c.constant(node, index)
    if known is not None:
        full = spread(known.astype(np.float32), shape, axis, block)
        return c.param(node.inputs[index], full, f"{part}{len(shape)}")
    value = c.value(node, index)
    sizes = c.type(value).shape
    if block or (c.type(value).size > 1 and not shape):
        raise UnsupportedForm(f"{part}s of blocks that are computed at run time")
    if c.type(value).size > 1:
        sizes = tuple(d if a == axis % len(shape) else 1 for a, d in enumerate(shape))
    return c.cast(node, c.reshape(node, value, sizes, f"{part}.row"), "float32", f"{part}.real")


def _quantize_spelled_out(c: Converter, node: OnnxNode, dtype: str) -> Result:
    x = c.cast(node, c.value(node), "float32", "real")
    shape = c.type(x).shape
    low, high = _limits(dtype)
    y = c.emit(node, "div", [x, _operand(c, node, 1, shape, "scale")], "steps")
    y = c.emit(node, "round", [y], "rounded")
    if node.has_input(2):
        y = c.emit(node, "add", [y, _operand(c, node, 2, shape, "zero")], "shifted")
    y = c.emit(node, "clip", [y], "codes", lo=float(low), hi=float(high))
    return c.emit(node, "cast", [y], to=dtype)


def _dequantize(c: Converter, node: OnnxNode) -> Result:
    """(x - zero) * scale"""
    codes, scale, zero = (c.constant(node, i) for i in range(3))
    if codes is not None and scale is not None and (zero is not None or not node.has_input(2)):
        return _known_real(c, node, codes, scale, zero)
    value = c.value(node)
    dtype = c.type(value).dtype
    one, shift = (single(scale) if scale is not None else None), single(zero)
    if (
        dtype in BYTES
        and one is not None
        and shift is not None
        and (zero is not None or not node.has_input(2))
    ):
        return real(c, node, value, one, int(shift))
    x = c.cast(node, value, "float32", "wide")
    shape = c.type(x).shape
    if node.has_input(2):
        x = c.emit(node, "sub", [x, _operand(c, node, 2, shape, "zero")], "centred")
    return c.emit(node, "mul", [x, _operand(c, node, 1, shape, "scale")])


def real(c: Converter, node: OnnxNode, value: str, scale: float, zero: int, part: str = "") -> str:
    """8-bit codes with one scale as float32."""
    offset = BYTES[c.type(value).dtype]
    stored = to_bytes(c, node, value, part or "codes")
    scale = float(np.float32(scale))
    return c.emit(node, "dequantize", [stored], part, x_scale=scale, x_zero=zero + offset)


def _known_real(
    c: Converter, node: OnnxNode, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None
) -> np.ndarray:
    """Constant codes as float32; the scale is noted for codes.py."""
    block, axis = node.get_int("block_size", 0), node.get_int("axis", 1)
    if not node.output:
        return np.zeros(0, np.float32)
    factors = spread(scale.astype(np.float32), codes.shape, axis, block)
    wide = codes.astype(np.int64 if codes.dtype.kind in "iu" else np.float32)
    if zero is not None:
        wide = wide - spread(zero.astype(wide.dtype), codes.shape, axis, block)
    few = noted(codes, scale, zero, axis, block)
    if few is not None:
        c.quantised.blocks[node.output] = few
    elif not block:
        c.quantised.scales[node.output] = factors.reshape(-1)
    return np.asarray(wide.astype(np.float32) * factors).reshape(codes.shape)


QUANTISED_RULES: dict[str, Rule] = {"DequantizeLinear": _dequantize, "QuantizeLinear": _quantize}
