"""Caches of keys and values: what their kernels are told, and how their numbers are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .. import emit
from ..partial import load_part
from ..product import Blocks, tiling_of_two
from ..tiling import Split

FLOOR = -3e38
"""The least maximum of a row of scores: differences to it are numbers even where there is no key."""
KEYS = 64
"""Keys whose scores are there at a time."""
TASKS = 8
"""Pieces at least that decoding is cut into, if need be by cutting the keys of a head."""
BLOCK_ROWS = 24
"""Tokens of a task that share packed keys and values, in whole tiles: packing is then a tenth of the work."""
SMALL = 8192
"""Numbers that are not worth waking another thread for."""
HALF_SIGN, HALF_REST, HALF_SHIFT = 0x8000, 0x7FFF, 13


@dataclass(frozen=True)
class RopeSpec:
    """x [tokens, heads, features] turned by rows of tables [positions, pairs]."""

    lanes: int
    tokens: int
    heads: int
    features: int
    positions: int
    pairs: int
    interleaved: bool
    index_dtype: str

    @property
    def tasks(self) -> int:
        return self.tokens if self.tokens * self.heads * self.features > SMALL else 1


@dataclass(frozen=True)
class CacheWriteSpec:
    """Rows [tokens, heads, features] into a cache [heads, capacity, features] of `dtype`."""

    lanes: int
    dtype: str
    tokens: int
    heads: int
    capacity: int
    features: int
    index_dtype: str

    @property
    def tasks(self) -> int:
        return self.tokens if self.tokens * self.heads * self.features > SMALL else 1


@dataclass(frozen=True)
class CachedAttentionSpec:
    """Attention of `tokens` queries to caches of `dtype`. `half`: the CPU converts float16 itself."""

    lanes: int
    registers: int
    dtype: str
    half: bool
    tokens: int
    heads: int
    shared: int  # heads of the caches
    capacity: int
    features: int
    outputs: int
    scale: float
    soft_cap: float
    window: int
    index_dtype: str

    @property
    def group(self) -> int:
        """Heads of q that share one of the cache."""
        return self.heads // self.shared

    @property
    def padded(self) -> int:
        """Outputs in whole vectors."""
        return -(-self.outputs // self.lanes) * self.lanes

    @property
    def item_bytes(self) -> int:
        return {"float32": 4, "float16": 2, "int8": 1}[self.dtype]

    @property
    def operands(self) -> list[tuple[str, str]]:
        """(name, element type) of the pointers that are read. float16 is bits where the CPU knows none."""
        stored = "uint16" if self.dtype == "float16" and not self.half else self.dtype
        scales = [("k_scale", "float32"), ("v_scale", "float32")] if self.dtype == "int8" else []
        return [
            ("q", "float32"), ("k", stored), ("v", stored), ("position", self.index_dtype), *scales
        ]  # fmt: skip


@dataclass(frozen=True)
class DecodeSpec(CachedAttentionSpec):
    """One token. A task is one head of the caches, or a part of its keys."""

    @property
    def parts(self) -> int:
        return -(-TASKS // self.shared) if self.shared < TASKS else 1

    @property
    def tasks(self) -> int:
        return self.shared * self.parts

    @property
    def partial(self) -> int:
        """Numbers that a task leaves: per head of q its sums of values, then its maximum and its sum."""
        return self.group * (self.padded + 2)


@dataclass(frozen=True)
class CombineSpec:
    """Puts the parts of a DecodeSpec together."""

    lanes: int
    shared: int
    parts: int
    group: int
    outputs: int

    @property
    def padded(self) -> int:
        return -(-self.outputs // self.lanes) * self.lanes

    @property
    def tasks(self) -> int:
        return 1


@dataclass(frozen=True)
class PrefillSpec(CachedAttentionSpec):
    """Several tokens. A task is some of them and one head of the caches."""

    @property
    def tiling(self) -> tuple[Split, Blocks, Blocks]:
        """Tiles of tokens, blocks of the keys and of the outputs."""
        columns, depths = (KEYS, self.outputs), (self.features, KEYS)
        return tiling_of_two(self.tokens, columns, depths, self.lanes, self.registers)

    @property
    def rows(self) -> Split:
        return self.tiling[0]

    @property
    def tallest(self) -> int:
        return self.rows.sizes()[0][0]

    @property
    def tiles(self) -> int:
        """Tiles of a task."""
        return max(1, min(self.rows.count, BLOCK_ROWS // self.tallest))

    @property
    def blocks(self) -> int:
        return -(-self.rows.count // self.tiles)

    @property
    def block_rows(self) -> int:
        """Tokens of a task at most."""
        return self.tiles * self.tallest

    @property
    def tasks(self) -> int:
        return self.shared * self.blocks

    @property
    def stack_bytes(self) -> int:
        panels = KEYS * (self.features + self.padded)
        return 4 * (panels + self.group * self.block_rows * (self.padded + 2) + self.tallest * (KEYS + 1))


def first_row(position: Any, dtype: str, most: int) -> Any:
    """The position that a kernel is given, moved to 0...most."""
    value = emit.load(position, 0)
    value = value if dtype == "int64" else emit.cast(value, "int64", 1)
    return emit.vmin(emit.vmax(value, emit.splat(0, "int64", 1)), emit.splat(most, "int64", 1))


def kept(value: Any, dtype: str, lanes: int = 1) -> Any:
    """The value in a register: an expression that is used twice would be computed twice."""
    place = emit.local(1, emit.vector(dtype, lanes))
    emit.store(place, 0, value)
    return emit.load(place, 0)


def read_floats(spec: CachedAttentionSpec, cache: Any, at: Any, valid: int) -> Any:
    """A vector of a cache's numbers as float32, without their scale; zeros from `valid` on."""
    if spec.dtype == "float32":
        return load_part(cache, "float32", at, spec.lanes, valid)
    if valid == spec.lanes:
        return _widened(spec, emit.load(cache, at, spec.lanes), spec.lanes)
    part = emit.local(spec.lanes, "float32")
    emit.store(part, 0, emit.splat(0.0, "float32", spec.lanes), spec.lanes)
    for i in range(valid):
        emit.store(part, i, _widened(spec, emit.load(cache, at + i), 1))
    return emit.load(part, 0, spec.lanes)


def _widened(spec: CachedAttentionSpec, value: Any, lanes: int) -> Any:
    if spec.dtype == "int8" or spec.half:
        return emit.cast(value, "float32", lanes)
    # Exponent and mantissa in their place, and 2**112 for the difference of the biases: exact, denormals too.
    whole = kept(emit.cast(value, "int32", lanes), "int32", lanes)
    rest = emit.ib.shift_left(
        emit.ib.bitwise_and(whole, emit.splat(HALF_REST, "int32", lanes)),
        emit.splat(HALF_SHIFT, "int32", lanes),
    )
    number = emit.bits(rest, "float32", lanes) * emit.splat(2.0**112, "float32", lanes)
    negative = emit.ib.bitwise_and(whole, emit.splat(HALF_SIGN, "int32", lanes)) > emit.splat(
        0, "int32", lanes
    )
    sign = emit.select(negative, emit.splat(-1.0, "float32", lanes), emit.splat(1.0, "float32", lanes))
    return number * sign


def capped(spec: CachedAttentionSpec, scores: Any, lanes: int) -> Any:
    """Scores times the scale, under the soft cap: cap * tanh(score / cap), tanh by exp."""
    scores = scores if spec.scale == 1.0 else scores * emit.splat(spec.scale, "float32", lanes)
    if not spec.soft_cap:
        return scores
    one, cap = (emit.splat(v, "float32", lanes) for v in (1.0, spec.soft_cap))
    doubled = emit.exp(
        kept(scores * emit.splat(2.0 / spec.soft_cap, "float32", lanes), "float32", lanes), lanes
    )
    return cap - (cap + cap) / (kept(doubled, "float32", lanes) + one)
