"""Kernels of caches equal the reference, at the edges of what they are cut for."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from bitsmith.compiler.ops import Sample
from bitsmith.compiler.reference import run_reference
from bitsmith.targets.build import build
from bitsmith.targets.isa import ISAS
from bitsmith.targets.target import TARGETS, Target
from one_graph import ManyNodes, disagreement


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def attend(
    tokens: int, heads: int, shape: tuple[int, int, int], position: int, dtype: str = "float16", **attrs: Any
) -> tuple[str, Sample]:
    """Values are as wide as keys, or `outputs` wide; rows behind the last token are not numbers."""
    shared, capacity, features = shape
    k, v = numbers(*shape), numbers(shared, capacity, attrs.pop("outputs", features))
    end = position + tokens
    scales: tuple[np.ndarray, ...] = ()
    if dtype == "int8":
        k, v = ((40 * x).clip(-127, 127).astype(np.int8) for x in (k, v))
        scales = tuple(np.abs(numbers(shared, capacity + i)[:, :capacity]) / 40 for i in range(2))
        scales = tuple(np.ascontiguousarray(s) for s in scales)
        for s in scales:
            s[:, end:] = np.nan
    else:
        k, v = k.astype(dtype), v.astype(dtype)
        k[:, end:], v[:, end:] = np.nan, np.nan
    q = numbers(tokens, heads, features)
    return "cached_attention", Sample((q, k, v, np.array([position]), *scales), {"scale": 0.2, **attrs})


CASES: dict[str, tuple[str, Sample]] = {
    "one token, last": attend(1, 9, (3, 300, 64), 299),
    "one token, int8": attend(1, 9, (3, 300, 64), 211, "int8"),
    "one token, heads enough": attend(1, 16, (8, 200, 40), 199),
    "one token, many share": attend(1, 14, (1, 150, 24), 140),
    "one token, wide": attend(1, 4, (1, 100, 256), 99, soft_cap=50.0),
    "one token, window": attend(1, 8, (4, 300, 32), 270, window=100, soft_cap=20.0),
    "one token, odd": attend(1, 6, (2, 99, 13), 77, outputs=9),
    "one token, odd int8": attend(1, 6, (2, 99, 13), 77, "int8", outputs=21),
    "chunk, first": attend(128, 9, (3, 300, 64), 0),
    "chunk, behind others": attend(128, 9, (3, 300, 64), 150),
    "chunk, int8": attend(100, 6, (2, 300, 64), 131, "int8"),
    "chunk, float32": attend(50, 2, (2, 200, 32), 77, "float32"),
    "chunk, wide, capped": attend(40, 4, (1, 150, 256), 101, soft_cap=50.0),
    "chunk, window": attend(70, 4, (2, 300, 32), 200, window=64),
    "chunk, window below a tile": attend(70, 4, (2, 300, 32), 3, window=2),
    "chunk, odd": attend(29, 6, (2, 99, 13), 61, outputs=9),
    "chunk, odd int8": attend(29, 6, (2, 99, 13), 61, "int8", outputs=21),
    "two tokens": attend(2, 9, (3, 300, 64), 255),
    "whole cache": attend(65, 2, (1, 65, 16), 0),
    "many rows written": (
        "cache_write",
        Sample((numbers(3, 300, 64).astype(np.float16), numbers(128, 3, 64), np.array([172]))),
    ),
    "many rows coded": (
        "cache_write",
        Sample((np.zeros((3, 300, 65), np.int8), numbers(128, 3, 65), np.array([9]), numbers(3, 300))),
    ),
    "many turned": (
        "rope",
        Sample((numbers(128, 9, 80), numbers(200, 36), numbers(201, 36)[:200].copy(), np.array([50]))),
    ),
}  # fmt: skip
ELSEWHERE = ("one token, odd", "one token, odd int8", "one token, window", "chunk, odd", "chunk, odd int8")
"""Compiled for other vectors too."""
WIDE = Target("wide", replace(ISAS["avx2"], lanes=16, registers=32), "AVX2 with vectors of two registers")
HERE = {name: target for name, target in TARGETS.items() if target.runs_here}
if TARGETS["x86-64-avx2"].runs_here:
    HERE["wide"] = WIDE


PAIRS = [(target, case) for i, target in enumerate(HERE) for case in (CASES if i == 0 else ELSEWHERE)]


@lru_cache
def outcomes(target: str) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    many = ManyNodes()
    names = {case: many.add(*CASES[case]) for of, case in PAIRS if of == target}
    graph = many.graph()
    want = run_reference(graph, many.feeds)
    with build(graph, HERE[target]) as artifact:
        got = artifact.run(**many.feeds)
        artifact.set_threads(3)
        again = artifact.run(**many.feeds)
    for name, array in got.items():
        np.testing.assert_array_equal(again[name], array, err_msg=f"{name} with 3 threads")
    return {case: [(got[v], want[v]) for v in many.siblings[name]] for case, name in names.items()}


@pytest.mark.parametrize(("target", "case"), PAIRS)
def test_kernels_equal_the_reference(target: str, case: str) -> None:
    for got, want in outcomes(target)[case]:
        assert not np.isnan(got.astype(np.float32)).any()
        assert not disagreement(got, want)
