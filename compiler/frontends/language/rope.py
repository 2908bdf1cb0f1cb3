"""Frequencies and tables of rotary position embeddings, as `transformers` computes them: in float32.

Scalings: none, "linear" (Chen et al., "Extending Context Window of Large Language Models via Position
Interpolation", 2023), "llama3" (Grattafiori et al., "The Llama 3 Herd of Models", 2024) and "yarn" (Peng et
al., "YaRN: Efficient Context Window Extension of Large Language Models", ICLR 2024).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import ModelError, UnsupportedError
from .config import Rope

F32 = np.float32
LENGTH = "original_max_position_embeddings"
SCALINGS = ("linear", "llama3", "yarn")


def plain_rope(theta: float, size: int, factor: float = 1.0) -> Rope:
    """theta ** (-2 i / size) for each of size / 2 pairs, divided by `factor`."""
    exponents = np.arange(0, size, 2).astype(F32) / F32(size)
    return _rope(F32(1) / F32(theta) ** exponents / F32(factor))


def divided_rope(rope: Rope, factors: np.ndarray) -> Rope:
    """Each frequency divided by its own factor."""
    return _rope(np.asarray(rope.frequencies, F32) / factors.astype(F32))


def scaled_rope(theta: float, size: int, scaling: Mapping[str, Any], context: int, where: str) -> Rope:
    """By `rope_parameters` or `rope_scaling` of a config.json; `context` is the model's.

    Raises UnsupportedError for another type than those above, ModelError where a number is missing.
    """
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return plain_rope(theta, size)
    if kind not in SCALINGS:
        raise UnsupportedError(
            f"{where}: rope scaling {kind!r} is not supported; default, {', '.join(SCALINGS)} are. A model "
            "made for shorter texts without it runs when the scaling is taken out of its config.json"
        )
    factor = _number(scaling, "factor", where)
    if kind == "linear":
        return plain_rope(theta, size, factor)
    original = _number({LENGTH: context, **scaling}, LENGTH, where)
    if kind == "yarn":
        return _yarn(theta, size, factor, original, scaling, where)
    low, high = (_number(scaling, key, where) for key in ("low_freq_factor", "high_freq_factor"))
    if high == low:
        raise ModelError(f"{where}: low_freq_factor and high_freq_factor of the rope scaling are equal")
    return _llama3(plain_rope(theta, size), factor, low, high, original)


def _llama3(rope: Rope, factor: float, low: float, high: float, original: float) -> Rope:
    """Long waves are stretched by the factor, short ones stay, those between go from one to the other."""
    plain = np.asarray(rope.frequencies, F32)
    lengths = F32(2 * math.pi) / plain
    blend = (F32(original) / lengths - F32(low)) / F32(high - low)
    between = (1 - blend) * plain / F32(factor) + blend * plain
    made = np.where(lengths > original / low, plain / F32(factor), plain)
    return _rope(np.where((lengths <= original / low) & (lengths >= original / high), between, made))


def _yarn(
    theta: float, size: int, factor: float, original: float, scaling: Mapping[str, Any], where: str
) -> Rope:
    """Pairs that turn more than beta_fast times in `original` positions stay, those that turn less than
    beta_slow times are stretched by the factor. What scores gain by it is taken from cosines and sines."""
    if theta <= 1:
        raise ModelError(f"{where}: yarn needs a rope_theta above 1; it is {theta:g}")

    def given(key: str, usual: float) -> float:
        return _number(scaling, key, where) if scaling.get(key) else usual

    def pair(turns: float) -> float:
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(given("beta_fast", 32)), pair(given("beta_slow", 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = (np.arange(size // 2, dtype=F32) - F32(low)) / F32(high - low or 0.001)
    stretched = ramp.clip(0, 1)
    plain = np.asarray(plain_rope(theta, size).frequencies, F32)
    shares = (given("mscale", 0), given("mscale_all_dim", 0))
    above, below = shares if all(shares) else (1, 0)
    usual = _magnitude(factor, above) / _magnitude(factor, below)
    return replace(
        _rope(plain / F32(factor) * stretched + plain * (1 - stretched)),
        scale=given("attention_factor", usual),
    )


def _magnitude(factor: float, share: float) -> float:
    return 0.1 * share * math.log(factor) + 1 if factor > 1 else 1.0


def _number(scaling: Mapping[str, Any], key: str, where: str) -> float:
    value = scaling.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ModelError(f"{where}: the rope scaling needs {key}, a positive number; it has {value!r}")
    return float(value)


def _rope(frequencies: np.ndarray) -> Rope:
    return Rope(tuple(float(f) for f in frequencies.astype(F32)))


def angles(rope: Rope, positions: int) -> np.ndarray:
    """float32 [positions, pairs]."""
    return np.outer(np.arange(positions, dtype=F32), np.asarray(rope.frequencies, F32))
