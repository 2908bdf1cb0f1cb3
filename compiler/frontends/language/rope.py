"""Frequencies and tables of rotary position embeddings, as `transformers` computes them: in float32.

Scalings: none, "linear" (Chen et al., "Extending Context Window of Large Language Models via Position
Interpolation", 2023) and "llama3" (Grattafiori et al., "The Llama 3 Herd of Models", 2024).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import ModelError, UnsupportedError
from .config import Rope

F32 = np.float32
LENGTH = "original_max_position_embeddings"


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
    if kind not in ("linear", "llama3"):
        raise UnsupportedError(
            f"{where}: rope scaling {kind!r} is not supported; default, linear and llama3 are. A model "
            "made for shorter texts without it runs when the scaling is taken out of its config.json"
        )
    factor = _number(scaling, "factor", where)
    if kind == "linear":
        return plain_rope(theta, size, factor)
    low, high = (_number(scaling, key, where) for key in ("low_freq_factor", "high_freq_factor"))
    original = _number({LENGTH: context, **scaling}, LENGTH, where)
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
