"""What convolutions and pools have in common: a window that moves over an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Window:
    """[n, h, w, c] -> [n, oh, ow, ...]; `pads` are those above and to the left of the image."""

    n: int
    h: int
    w: int
    c: int
    oh: int
    ow: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int]


def window(
    x: Sequence[int], y: Sequence[int], kernel: Sequence[int], attrs: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields of a Window over x [n, h, w, c] that makes y [n, oh, ow, ...], from a node's attributes."""
    n, h, w, c = x
    top, left = attrs["pads"][:2]
    size = (kernel[0], kernel[1])
    return vars(Window(n, h, w, c, y[1], y[2], size, attrs["strides"], attrs["dilations"], (top, left)))


def flat_window(rows: int, channels: int) -> dict[str, Any]:
    """Those of a 1x1 window over `rows` pixels in one line: a linear layer."""
    return vars(Window(1, 1, rows, channels, 1, rows, (1, 1), (1, 1), (1, 1), (0, 0)))
