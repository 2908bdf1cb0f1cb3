"""Conversion rules: Fourier transforms, as products with a matrix of sines and cosines.

A complex number is two numbers in the last axis; a real signal has one there.
"""

from __future__ import annotations

import numpy as np

from .converter import (
    Converter,
    OnnxNode,
    Result,
    Rule,
    UnsupportedForm,
)

LONGEST = 4096
"""Above this the matrix (2 x bins x length) outweighs what a model is likely to hold."""


def dft_matrix(length: int, bins: int, complex_in: bool, inverse: bool) -> np.ndarray:
    """[bins, 2, length, 1 or 2]: from real (and imaginary) parts to real and imaginary parts."""
    angles = 2 * np.pi * (np.outer(np.arange(bins), np.arange(length)) % length) / length
    cos, sin = np.cos(angles), np.sin(angles) * (-1 if inverse else 1)
    real = np.stack([cos, sin], -1)  # (xr + i xi) (cos - i sin)
    imaginary = np.stack([-sin, cos], -1)
    whole = np.stack([real, imaginary], 1) / (length if inverse else 1)
    return whole if complex_in else whole[..., :1]


def real_inverse_matrix(length: int) -> np.ndarray:
    """[length, 1, length // 2 + 1, 2]: the real signal of which half of the spectrum is given."""
    bins = length // 2 + 1
    angles = 2 * np.pi * (np.outer(np.arange(length), np.arange(bins)) % length) / length
    twice = np.where((np.arange(bins) == 0) | (2 * np.arange(bins) == length), 1.0, 2.0) / length
    return np.stack([np.cos(angles) * twice, -np.sin(angles) * twice], -1)[:, None]


def _dft(c: Converter, node: OnnxNode) -> Result:
    x = c.value(node)
    rank = len(c.type(x).shape)
    axis = int(c.known(node, 2, "axis").reshape(-1)[0]) if node.has_input(2) else node.get_int("axis", 1)
    if node.opset >= 20 and not node.has_input(2):
        axis = -2
    axis += rank if axis < 0 else 0
    order = (*(i for i in range(rank) if i not in (axis, rank - 1)), axis, rank - 1)
    moved = x if order == tuple(range(rank)) else c.emit(node, "transpose", [x], "moved", perm=order)
    y = _transformed(c, node, moved)
    if moved == x:
        return y
    back = tuple(int(i) for i in np.argsort(order))
    return c.emit(node, "transpose", [y], perm=back)


def _transformed(c: Converter, node: OnnxNode, x: str) -> str:
    """The transform along the axis before the last."""
    *around, size, parts = c.type(x).shape
    inverse, half = bool(node.get_int("inverse", 0)), bool(node.get_int("onesided", 0))
    length = 2 * (size - 1) if inverse and half else size
    if node.has_input(1):
        length = int(c.known(node, 1, "dft_length").reshape(-1)[0])
    _check(length)
    if inverse and half:
        matrix = real_inverse_matrix(length)
    else:
        matrix = dft_matrix(length, length // 2 + 1 if half else length, parts == 2, inverse)
    bins, out_parts, taps, _ = matrix.shape
    x = _fitted(c, node, x, taps)
    flat = c.reshape(node, x, (*around, taps * parts), "flat")
    weight = c.param(
        c.derived(f"{node.output}.matrix"), matrix.reshape(bins * out_parts, -1).astype(np.float32)
    )
    y = c.emit(node, "linear", [flat, weight], "transform")
    return c.reshape(node, y, (*around, bins, out_parts), "parts")


def _fitted(c: Converter, node: OnnxNode, x: str, length: int) -> str:
    """The signal cut, or with zeros behind, along the axis before the last."""
    shape = c.type(x).shape
    size, rank = shape[-2], len(shape)
    if size > length:
        stops = (*shape[:-2], length, shape[-1])
        return c.emit(node, "slice", [x], "cut", starts=(0,) * rank, stops=stops, steps=(1,) * rank)
    if size < length:
        after = (*(0,) * (rank - 2), length - size, 0)
        return c.emit(node, "pad", [x], "padded", before=(0,) * rank, after=after)
    return x


def _check(length: int) -> None:
    if length > LONGEST:
        raise UnsupportedForm(f"a transform of {length} numbers; up to {LONGEST} are supported")


def _stft(c: Converter, node: OnnxNode) -> Result:
    """A convolution whose kernels are the windowed waves, one step of it per frame."""
    x, step = c.value(node), int(c.known(node, 1, "frame_step").reshape(-1)[0])
    batch, size, *parts = c.type(x).shape
    channels = parts[0] if parts else 1
    if node.has_input(3):
        length = int(c.known(node, 3, "frame_length").reshape(-1)[0])
    elif node.has_input(2):
        length = c.type(c.value(node, 2)).shape[0]
    else:
        length = size
    _check(length)
    bins = length // 2 + 1 if node.get_int("onesided", 1) else length
    matrix = dft_matrix(length, bins, channels == 2, False)
    if node.has_input(2):
        matrix = matrix * c.known(node, 2, "window").reshape(1, 1, length, 1)
    kernels = matrix.transpose(0, 1, 3, 2).reshape(2 * bins, channels, 1, length).astype(np.float32)
    signal = c.reshape(node, x, (batch, size, channels), "signal")
    if channels > 1:
        signal = c.emit(node, "transpose", [signal], "channels", perm=(0, 2, 1))
    row = c.reshape(node, signal, (batch, channels, 1, size), "row")
    weight = c.param(c.derived(f"{node.output}.waves"), kernels)
    y = c.emit(node, "conv2d", [row, weight], "transform", strides=(1, step))
    frames = c.type(y).shape[-1]
    lines = c.reshape(node, y, (batch, 2 * bins, frames), "lines")
    turned = c.emit(node, "transpose", [lines], "frames", perm=(0, 2, 1))
    return c.reshape(node, turned, (batch, frames, bins, 2))


FOURIER_RULES: dict[str, Rule] = {"DFT": _dft, "STFT": _stft}
