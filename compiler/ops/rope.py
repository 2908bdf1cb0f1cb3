"""Rotary position embedding: pairs of features are turned by an angle that grows with the position.

    x         [tokens, heads, features] float32
    cos, sin  [positions, pairs], 2 * pairs <= features: what to turn by at each position; features beyond
              stay as they are
    position  [1] int32 or int64, of the first token; outside of the table it is moved to the nearest inside

(Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir import TensorType
from .index import INDEX_TYPES
from .opdef import (
    Attrs,
    OpDef,
    Sample,
    Types,
    given,
    require,
)


def check_position(kind: TensorType) -> None:
    fits = kind.shape == (1,) and kind.dtype in INDEX_TYPES
    require(fits, f"position is {kind}, must be int32[1] or int64[1]")


def first_row(position: Any, rows: int, size: int) -> int:
    """Where `rows` rows begin in a table of `size`, moved to the nearest place where they fit."""
    return min(max(int(position.reshape(-1)[0]), 0), size - rows)


def _infer(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, cos, sin = (given(types, i) for i in range(3))
    check_position(given(types, 3))
    require(x.dtype == "float32" and len(x.shape) == 3, f"x is {x}, must be float32[tokens, heads, features]")
    table = cos == sin and cos.dtype == "float32" and len(cos.shape) == 2
    require(table, f"cos is {cos} and sin {sin}, must both be float32[positions, pairs]")
    require(2 * cos.shape[1] <= x.shape[2], f"cos {cos} turns more than the features of x {x}")
    require(cos.shape[0] >= x.shape[0], f"cos {cos} has fewer positions than x {x} has tokens")
    return (x,)


def _reference(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    x, cos, sin, position = inputs
    first, pairs = first_row(position, len(x), len(cos)), cos.shape[1]
    c, s = (t[first : first + len(x), None] for t in (cos, sin))
    turned, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    if attrs["interleaved"]:
        a, b = turned[..., 0::2], turned[..., 1::2]
        made = torch.stack((a * c - b * s, b * c + a * s), dim=-1).flatten(-2)
    else:
        a, b = turned[..., :pairs], turned[..., pairs:]
        made = torch.cat((a * c - b * s, b * c + a * s), dim=-1)
    return torch.cat((made, rest), dim=-1)


def _table(positions: int, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    angles = np.outer(np.arange(positions), 10.0 ** -np.arange(pairs)).astype(np.float32)
    return np.cos(angles), np.sin(angles)


def _at(position: int, dtype: type = np.int64) -> np.ndarray:
    return np.array([position], dtype)


ROPE = OpDef(
    name="rope",
    inputs=("x", "cos", "sin", "position"),
    required=4,
    infer=_infer,
    reference=_reference,
    samples=(
        Sample((TensorType((1, 3, 64)), *_table(40, 32), _at(17))),
        Sample((TensorType((5, 2, 16)), *_table(9, 8), _at(2, np.int32))),
        Sample((TensorType((3, 2, 20)), *_table(7, 6), _at(4)), {"interleaved": True}),
        Sample((TensorType((2, 1, 10)), *_table(6, 5), _at(30))),  # moved to 4
    ),
    attrs={"interleaved": False},
    couple=lambda types, attrs: (frozenset({("x", 1), ("y", 1)}),),
    flops=lambda types, outs, attrs: 3 * outs[0].size,
)
"""Pairs are (i, i + pairs), as in the checkpoints of `transformers`; neighbours when `interleaved`, as in the
paper."""
