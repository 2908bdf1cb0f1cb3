"""What transformers keep of the tokens so far: writing keys and values into a cache, and attention to them.

    cache     [heads, capacity, features] float32, float16 or int8: one row for each token
    scale     [heads, capacity] float32, with an int8 cache: a row stands for scale * codes
    position  [1] int32 or int64, of the first of the tokens; where their rows would leave the cache it is
              moved to the nearest place inside

Rows of a cache that were not written are never read: a query sees its own token and those before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir import TensorType
from .opdef import (
    Attrs,
    OpDef,
    Sample,
    Types,
    given,
    present,
    require,
)
from .rope import check_position, first_row

CACHE_TYPES = ("float32", "float16", "int8")


def _check_cache(name: str, cache: TensorType, scale: TensorType | None) -> None:
    fits = len(cache.shape) == 3 and cache.size > 0 and cache.dtype in CACHE_TYPES
    wanted = " or ".join(CACHE_TYPES)
    require(fits, f"{name} is {cache}, must be [heads, capacity, features] of {wanted}")
    coded = cache.dtype == "int8"
    require(coded == (scale is not None), f"{name} is {cache}: an int8 cache, and no other, has a scale")
    want = TensorType(cache.shape[:2])
    require(scale is None or scale == want, f"the scale of {name} {cache} is {scale}, must be {want}")


def _infer_write(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    cache, new, scale = given(types, 0), given(types, 1), present(types, 3)
    _check_cache("cache", cache, scale)
    check_position(given(types, 2))
    fits = (
        new.dtype == "float32" and len(new.shape) == 3 and new.shape[1:] == (cache.shape[0], cache.shape[2])
    )
    require(fits, f"new is {new}, must be float32[tokens, heads, features] of the cache {cache}")
    require(0 < new.shape[0] <= cache.shape[1], f"new {new} has more tokens than the cache {cache} has room")
    return (cache,) if scale is None else (cache, scale)


def _reference_write(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    cache, new, position, scale = (*inputs, None)[:4]
    first = first_row(position, len(new), cache.shape[1])
    rows, cache = slice(first, first + len(new)), cache.clone()
    new = new.transpose(0, 1)
    if scale is None:
        cache[:, rows] = new.to(cache.dtype)
        return cache
    most = new.abs().amax(dim=-1)
    inverse = torch.where(most > 0, 127 / most, 0)
    cache[:, rows] = torch.round(new * inverse[..., None]).to(torch.int8)
    scale = scale.clone()
    scale[:, rows] = most * torch.tensor(1 / 127, dtype=torch.float32)
    return cache, scale


def _infer_attention(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    q, k, v = (given(types, i) for i in range(3))
    check_position(given(types, 3))
    _check_cache("k_cache", k, present(types, 4))
    _check_cache("v_cache", v, present(types, 5))
    require(q.dtype == "float32" and len(q.shape) == 3, f"q is {q}, must be float32[tokens, heads, features]")
    require(k.shape[:2] == v.shape[:2] and k.dtype == v.dtype, f"caches {k} and {v} differ")
    tokens, heads, features = q.shape
    require(features == k.shape[2], f"q {q} and keys {k} differ in their features")
    grouped = heads > 0 and heads % k.shape[0] == 0
    require(grouped, f"the {heads} heads of q {q} are no multiple of those of the cache {k}")
    require(0 < tokens <= k.shape[1], f"q {q} has more tokens than the cache {k} has room")
    require(attrs["window"] >= 0, f"window is {attrs['window']}, must be 0 (none) or a number of tokens")
    require(attrs["soft_cap"] >= 0, f"soft_cap is {attrs['soft_cap']}, must be 0 (none) or positive")
    return (TensorType((tokens, heads * v.shape[2])),)


def _reference_attention(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    q, k, v, position, k_scale, v_scale = (*inputs, None, None)[:6]
    tokens, heads, _ = q.shape
    first = first_row(position, tokens, k.shape[1])
    keys, values = (_seen(*each, first + tokens) for each in ((k, k_scale), (v, v_scale)))
    keys, values = (t.repeat_interleave(heads // k.shape[0], dim=0) for t in (keys, values))
    scores = q.transpose(0, 1) @ keys.transpose(1, 2) * attrs["scale"]
    if attrs["soft_cap"]:
        scores = torch.tanh(scores / attrs["soft_cap"]) * attrs["soft_cap"]
    ahead = torch.arange(first + tokens) - torch.arange(first, first + tokens)[:, None]
    hidden = (ahead > 0) | (ahead <= -attrs["window"]) if attrs["window"] else ahead > 0
    shares = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    return (shares @ values).transpose(0, 1).reshape(tokens, -1)


def _seen(cache: Any, scale: Any, count: int) -> Any:
    """The first rows of a cache as float32."""
    rows = cache[:, :count].float()
    return rows if scale is None else rows * scale[:, :count, None]


def _attention_flops(types: Types, outs: Sequence[TensorType], attrs: Attrs) -> int:
    """With the cache half full: how full it is changes from run to run."""
    (tokens, heads, features), keys = given(types, 0).shape, given(types, 1).shape[1]
    keys = min(keys // 2 + 1, attrs["window"] or keys)
    return tokens * heads * keys * (2 * features + 2 * given(types, 2).shape[2] + 4)


def _cache(*shape: int, dtype: str = "float16") -> Any:
    """Random numbers, from a generator of their own: a sample's types would be filled below their range."""
    values = np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)
    return (values * 40).astype(np.int8) if dtype == "int8" else values.astype(dtype)


def _scales(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).uniform(0.01, 0.03, shape).astype(np.float32)


def _at(position: int, dtype: type = np.int64) -> np.ndarray:
    return np.array([position], dtype)


CACHE_WRITE = OpDef(
    name="cache_write",
    inputs=("cache", "new", "position", "scale"),
    required=3,
    infer=_infer_write,
    reference=_reference_write,
    samples=(
        Sample((TensorType((3, 20, 64), "float16"), TensorType((1, 3, 64)), _at(11))),
        Sample((TensorType((2, 9, 8)), TensorType((4, 2, 8)), _at(3, np.int32))),
        Sample((TensorType((2, 9, 20), "float16"), TensorType((4, 2, 20)), _at(30))),  # moved to 5
        Sample((TensorType((2, 9, 32), "int8"), TensorType((3, 2, 32)), _at(-2), _scales(2, 9))),  # to 0
        Sample((TensorType((1, 5, 13), "int8"), TensorType((1, 1, 13)), _at(4), _scales(1, 5))),
    ),
    plain=(),
)
"""cache with rows position, position + 1, ... replaced by new [tokens, heads, features] float32. A row of an
int8 cache gets the scale that its largest value is 127 of, in `scale`, the second output."""


def _codes(*shape: int) -> tuple[np.ndarray, ...]:
    """Keys, values, the position behind half of the rows, scales of both."""
    cache, scale = _cache(*shape, dtype="int8"), _scales(*shape[:2])
    return cache, cache[:, ::-1].copy(), _at(shape[1] // 2), scale, scale[:, ::-1].copy()


CACHED_ATTENTION = OpDef(
    name="cached_attention",
    inputs=("q", "k_cache", "v_cache", "position", "k_scale", "v_scale"),
    required=4,
    infer=_infer_attention,
    reference=_reference_attention,
    samples=(
        Sample((TensorType((1, 6, 64)), _cache(2, 90, 64), _cache(2, 90, 64), _at(70)), {"scale": 0.125}),
        Sample((TensorType((5, 4, 16)), _cache(4, 40, 16), _cache(4, 40, 24), _at(33, np.int32))),
        Sample((TensorType((1, 9, 32)), *_codes(3, 50, 32)), {"scale": 0.2}),
        Sample((TensorType((7, 2, 20)), *_codes(1, 30, 20)), {"scale": 0.2, "soft_cap": 5.0}),
        Sample((TensorType((6, 4, 12)), *(_cache(2, 33, 12, dtype="float32"),) * 2, _at(0)), {"window": 3}),
        Sample(
            (TensorType((1, 2, 8)), _cache(2, 70, 8), _cache(2, 70, 8), _at(99)),
            {"window": 30, "soft_cap": 2.0},
        ),
    ),
    attrs={"scale": 1.0, "soft_cap": 0.0, "window": 0},
    flops=_attention_flops,
)
"""y[i] of q [tokens, heads, features]: attention of token position + i to the rows of the caches up to its
own, with a window to the last `window` of them. Scores are scale * q . k, then with a soft cap
soft_cap * tanh(scores / soft_cap). Neighbouring heads of q share a head of the cache (grouped-query
attention, Ainslie et al., 2023; soft cap and window as in Gemma 2, 2024). y is [tokens, heads * features of
v]."""

CACHES = (CACHE_WRITE, CACHED_ATTENTION)
