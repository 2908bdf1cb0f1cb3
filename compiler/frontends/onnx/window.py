"""What convolutions and pools share: how their windows lie on the data."""

from __future__ import annotations

from collections.abc import Sequence

from .converter import Converter, OnnxNode, UnsupportedForm


def axes_2d(values: Sequence[int], fill: int) -> tuple[int, int]:
    """Per-axis numbers of a 1-D or 2-D window as two; a 1-D window slides along the last axis."""
    return (fill, values[0]) if len(values) == 1 else (values[0], values[1])


def pads_2d(pads: Sequence[int]) -> tuple[int, int, int, int]:
    """ONNX pads (begins, then ends) as top, left, bottom, right."""
    return (0, pads[0], 0, pads[1]) if len(pads) == 2 else (pads[0], pads[1], pads[2], pads[3])


def window_pads(
    node: OnnxNode,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[int, ...]:
    """Begins, then ends, of the padding that `auto_pad` or `pads` ask for."""
    mode = node.get_str("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return node.get_ints("pads", [0] * (2 * len(kernel)))
    if mode == "VALID":
        return (0,) * (2 * len(kernel))
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise UnsupportedForm(f"auto_pad {mode!r} is not known")
    begins, ends = [], []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return (*begins, *ends)


def plane(c: Converter, node: OnnxNode) -> tuple[str, tuple[int, ...]]:
    """(the input as [n, c, h, w], its spatial sizes); a 1-D signal becomes one row."""
    x = c.value(node)
    shape = c.type(x).shape
    if len(shape) == 3:
        x = c.reshape(node, x, (shape[0], shape[1], 1, shape[2]), "row")
    elif len(shape) != 4:
        raise UnsupportedForm(f"{len(shape) - 2}-D data; at most 3-D is supported")
    return x, shape[2:]


def flat(c: Converter, node: OnnxNode, y: str, spatial: int) -> str:
    """The result without the row axis that `plane` put in."""
    if spatial == 2:
        return y
    n, channels, _, length = c.type(y).shape
    return c.emit(node, "reshape", [y], shape=(n, channels, length))
