"""Conversion rule: ConvTranspose as one convolution whose channels become pixels.

A transposed convolution writes y[s * i + d * k] += x[i] * w[k]. Call the place in y s * w + p, with p < s.
Tap k belongs to phase p = d * k mod s and reads x at w - d * k div s. So each phase is a convolution of x
with every s-th tap, all phases share one window, and together they are a convolution with s times the
channels, followed by depth_to_space; what `pads` cuts off, depth_to_space leaves out. Nothing is multiplied
by the zeros that a stuffed input has (where s divides the kernel, nothing by zeros at all).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...ir import AttrValue
from .converter import (
    Converter,
    OnnxNode,
    Result,
    Rule,
    UnsupportedForm,
    ValueNeeded,
)
from .window import flat, plane


@dataclass(frozen=True)
class _Axis:
    """One spatial axis: sizes of x, the kernel and the result, stride, dilation, what is cut off in front."""

    size: int
    kernel: int
    out: int
    stride: int
    dilation: int
    begin: int

    @property
    def taps(self) -> int:
        """Length of the window that all phases share, in steps of `step`."""
        return self.dilation * (self.kernel - 1) // self.stride // self.step + 1

    @property
    def step(self) -> int:
        """Dilation of the convolution: with stride 1 it is the model's, else its zeros are spelled out."""
        return self.dilation if self.stride == 1 else 1

    @property
    def pads(self) -> tuple[int, int]:
        """Zeros around x, so that all windows which the result needs are there."""
        first, last = self.begin // self.stride, (self.begin + self.out - 1) // self.stride
        return max(self.reach - first, 0), max(last - (self.size - 1), 0)

    @property
    def reach(self) -> int:
        return self.step * (self.taps - 1)

    @property
    def crop(self) -> tuple[int, int]:
        """What is left over in front of and behind the result once the channels are pixels."""
        before, behind = self.pads
        windows = self.size + before + behind - self.reach
        front = self.begin - (self.reach - before) * self.stride
        return front, windows * self.stride - front - self.out


def _axes(c: Converter, node: OnnxNode, sizes: tuple[int, ...], kernel: tuple[int, ...]) -> list[_Axis]:
    rank = len(kernel)
    ones, zeros = [1] * rank, [0] * rank
    strides, dilations = node.get_ints("strides", ones), node.get_ints("dilations", ones)
    extra, wanted = node.get_ints("output_padding", zeros), node.get_ints("output_shape", ())
    mode, pads = node.get_str("auto_pad", "NOTSET"), node.get_ints("pads", [0] * (2 * rank))
    axes = []
    for i in range(rank):
        full = strides[i] * (sizes[i] - 1) + extra[i] + dilations[i] * (kernel[i] - 1) + 1
        if wanted or mode.startswith("SAME"):
            out = wanted[len(wanted) - rank + i] if wanted else sizes[i] * strides[i]
            total = max(full - out, 0)
            begin = total // 2 if mode == "SAME_UPPER" else total - total // 2
        else:
            begin = 0 if mode == "VALID" else pads[i]
            out = full if mode == "VALID" else full - pads[i] - pads[i + rank]
        if out < 1 or begin < 0:
            raise UnsupportedForm(f"pads {list(pads)} that leave nothing or are negative")
        axes.append(_Axis(sizes[i], kernel[i], out, strides[i], dilations[i], begin))
    return axes


def _phases(weight: np.ndarray, groups: int, axes: list[_Axis]) -> np.ndarray:
    """[in, out / groups, kh, kw] -> [phase of h, phase of w, out, in / groups, window of h, window of w]."""
    high, wide = axes
    c_in, per_group = weight.shape[:2]
    rows = weight.reshape(groups, c_in // groups, per_group, *weight.shape[2:])
    rows = rows.transpose(0, 2, 1, 3, 4).reshape(groups * per_group, c_in // groups, *weight.shape[2:])
    full = np.zeros((high.stride, wide.stride, *rows.shape[:2], high.taps, wide.taps), np.float32)
    for i in range(high.kernel):
        for j in range(wide.kernel):
            (q, p), (v, u) = (divmod(k * a.dilation, a.stride) for k, a in ((i, high), (j, wide)))
            # A window reads forwards, a transposed convolution backwards.
            full[p, u, :, :, high.taps - 1 - q // high.step, wide.taps - 1 - v // wide.step] = rows[..., i, j]
    return full


def _conv_transpose(c: Converter, node: OnnxNode) -> Result:
    weight = c.constant(node, 1)
    shape = weight.shape if weight is not None else c.type(c.value(node, 1)).shape
    kernel, sizes = shape[2:], c.type(c.value(node)).shape[2:]
    if len(kernel) != len(sizes) or node.get_ints("kernel_shape", kernel) != kernel:
        raise UnsupportedForm(f"a kernel of {list(kernel)} on {len(sizes)}-D data")
    axes = _axes(c, node, sizes, kernel)
    if weight is None or (node.has_input(2) and c.constant(node, 2) is None):
        return _computed(c, node, axes)
    bias = c.constant(node, 2)
    if len(axes) == 3:
        return _volume(c, node, weight, bias, axes)
    x, _ = plane(c, node)
    if len(axes) == 1:
        weight, axes = weight[:, :, None], [_Axis(1, 1, 1, 1, 1, 0), *axes]
    y = _plane(c, node, x, weight, bias, axes, "" if len(sizes) == 2 else "pixels")
    return flat(c, node, y, len(sizes))


def _computed(c: Converter, node: OnnxNode, axes: list[_Axis]) -> str:
    """With a weight that is computed: what each pixel of the result reads becomes a column, zeros included,
    and each group of channels a product with it.
    """
    if len(axes) == 3:
        raise ValueNeeded(node.inputs[1], "weight, for 3-D data,")
    x, _ = plane(c, node)
    n, channels, high, wide = c.type(x).shape
    groups, per_group = node.get_int("group", 1), c.type(c.value(node, 1)).shape[1]
    pixels = c.reshape(node, x, (n, channels, high * wide), "pixels")
    pixels = c.emit(node, "pad", [pixels], "pixels.zero", before=(0,) * 3, after=(0, 0, 1))
    planar = axes if len(axes) == 2 else [_Axis(1, 1, 1, 1, 1, 0), *axes]
    (rows, no_row), (columns, no_column) = (_sources(axis) for axis in planar)
    index = rows[:, None, :, None] * wide + columns[None, :, None, :]
    index = np.where(no_row[:, None, :, None] | no_column[None, :, None, :], high * wide, index)
    taps, outs = len(rows) * len(columns), [axis.out for axis in planar]
    table = c.param(c.derived(f"{node.output}.taps"), index.reshape(taps, -1))
    read = c.emit(node, "gather", [pixels, table], "columns", axis=2)
    deep = channels // groups
    read = c.reshape(node, read, (n, groups, deep * taps, index[0, 0].size), "columns.groups")
    weight = c.reshape(node, c.value(node, 1), (groups, deep, per_group, taps), "weight.groups")
    weight = c.emit(node, "transpose", [weight], "weight.rows", perm=(0, 2, 1, 3))
    weight = c.reshape(node, weight, (1, groups, per_group, deep * taps), "weight.product")
    y = c.emit(node, "matmul", [weight, read], "product")
    y = c.reshape(node, y, (n, groups * per_group, *outs), "planes")
    if node.has_input(2):
        bias = c.reshape(node, c.value(node, 2), (groups * per_group, 1, 1), "bias.column")
        y = c.emit(node, "add", [y, bias], "biased")
    return flat(c, node, y, len(axes))


def _sources(axis: _Axis) -> tuple[np.ndarray, np.ndarray]:
    """[taps, out]: which of x a tap reads for each of the result, and whether it reads none."""
    places = np.arange(axis.out) + axis.begin - axis.dilation * np.arange(axis.kernel)[:, None]
    source, left = np.divmod(places, axis.stride)
    return source, (left != 0) | (source < 0) | (source >= axis.size)


def _plane(
    c: Converter,
    node: OnnxNode,
    x: str,
    weight: np.ndarray,
    bias: np.ndarray | None,
    axes: list[_Axis],
    name: str,
) -> str:
    """[n, out, high, wide] of x [n, in, h, w]; `name`: of the part of the node that it is."""
    high, wide = axes
    groups = node.get_int("group", 1)
    y = _convolved(c, node, x, _phases(weight, groups, axes), bias, axes)
    (top, bottom), (left, right) = high.crop, wide.crop
    blocks = (high.stride, wide.stride)
    if blocks != (1, 1) or any((top, bottom, left, right)):
        y = c.emit(node, "depth_to_space", [y], name, block=blocks, crop=(top, left, bottom, right))
    return y


def _volume(
    c: Converter, node: OnnxNode, weight: np.ndarray, bias: np.ndarray | None, axes: list[_Axis]
) -> str:
    """Every slice of depth by itself, each tap in depth with channels of its own; a slice of the result is
    the sum of those that fall on it: [n, d * taps + one of zeros] -> gather [n, out depth, most] -> sum.
    """
    deep, *rest = axes
    n, channels, depth, *sizes = c.type(c.value(node)).shape
    moved = c.emit(node, "transpose", [c.value(node)], "slices", perm=(0, 2, 1, 3, 4))
    planes = c.reshape(node, moved, (n * depth, channels, *sizes), "planes")
    per_tap = weight.reshape(channels, -1, *weight.shape[3:])
    y = _plane(c, node, planes, per_tap, None, rest, "pixels")
    out, (high, wide) = c.type(y).shape[1] // deep.kernel, c.type(y).shape[2:]
    y = c.reshape(node, y, (n, depth, out, deep.kernel, high, wide), "taps")
    y = c.emit(node, "transpose", [y], "taps.first", perm=(0, 1, 3, 2, 4, 5))
    y = c.reshape(node, y, (n, depth * deep.kernel, out, high, wide), "parts")
    y = c.emit(node, "pad", [y], "parts.zero", before=(0,) * 5, after=(0, 1, 0, 0, 0))
    table = c.param(c.derived(f"{node.output}.slices"), _slices(deep))
    read = c.emit(node, "gather", [y, table], "parts.read", axis=1)
    summed = c.emit(node, "reduce_sum", [read], "summed", axes=(2,), keepdims=False)
    if bias is None:
        return c.emit(node, "transpose", [summed], perm=(0, 2, 1, 3, 4))
    y = c.emit(node, "transpose", [summed], "channels", perm=(0, 2, 1, 3, 4))
    column = c.param(node.inputs[2], bias.reshape(-1, 1, 1, 1), "column")
    return c.emit(node, "add", [y, column])


def _slices(deep: _Axis) -> np.ndarray:
    """int64 [out, most taps]: which of size * kernel slices fall on each of the result; the one behind them
    where there are fewer."""
    places = np.arange(deep.out)[:, None] + deep.begin - deep.dilation * np.arange(deep.kernel)
    source, left = np.divmod(places, deep.stride)
    falls = (left == 0) & (source >= 0) & (source < deep.size)
    index = np.where(falls, source * deep.kernel + np.arange(deep.kernel), deep.size * deep.kernel)
    return np.sort(index, axis=1)[:, : max(1, int(falls.sum(axis=1).max()))]


def _convolved(
    c: Converter,
    node: OnnxNode,
    x: str,
    phases: np.ndarray,
    bias: np.ndarray | None,
    axes: list[_Axis],
) -> str:
    """The convolution(s); channels are in the order of phases. Grouped ones are one per phase: in a single
    one the channels of a group would have to stand together.
    """
    high, wide = axes
    groups = node.get_int("group", 1)
    attrs: dict[str, AttrValue] = {
        "pads": (high.pads[0], wide.pads[0], high.pads[1], wide.pads[1]),
        "dilations": (high.step, wide.step),
        "groups": groups,
    }
    flat_phases = phases.reshape(-1, *phases.shape[2:])
    parts = [flat_phases.reshape(-1, *phases.shape[3:])] if groups == 1 else list(flat_phases)
    made = []
    for i, w in enumerate(parts):
        inputs = [x, c.param(node.inputs[1], w, f"phase{i}")]
        if bias is not None:
            inputs.append(c.param(node.inputs[2], np.tile(bias, len(w) // bias.size), f"x{len(w)}"))
        made.append(c.emit(node, "conv2d", inputs, f"phase{i}", **attrs))
    return made[0] if len(made) == 1 else c.emit(node, "concat", made, "phases", axis=1)


TRANSPOSED_RULES: dict[str, Rule] = {"ConvTranspose": _conv_transpose}
