"""Weights in bounded pairs: the cut is the least that works, and kernels that need it give exact sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.ir import Graph
from bitsmith.passes.pair_bound import PAIR_LIMIT, bound_pairs, bounded, bounded_scale
from bitsmith.passes.quantise import quantise_weights
from bitsmith.targets.build import build
from bitsmith.targets.kernels.conv.gemm_spec import GemmSpec, pairs_bounded
from bitsmith.targets.selection import select
from bitsmith.targets.target import TARGETS
from hypothesis import given, settings
from hypothesis import strategies as st

AVX2 = TARGETS["x86-64-avx2"]
needs_avx2 = pytest.mark.skipif(not AVX2.runs_here, reason="this machine lacks AVX2")


@st.composite
def whole_numbers(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Weights of int8's range in any layout, and an axis."""
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=2, max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    low, high = draw(st.sampled_from([(-128, 128), (40, 128), (-128, -40), (-3, 4)]))
    return rng.integers(low, high, shape).astype(float), draw(st.integers(0, len(shape) - 1))


def pairs_along(w: np.ndarray, axis: int) -> list[tuple[float, float]]:
    """Written down once more, slowly."""
    rows = np.moveaxis(w, axis, -1).reshape(-1, w.shape[axis])
    return [(row[i], row[i + 1]) for row in rows for i in range(0, len(row) - 1, 2)]


def fits(pair: tuple[float, float]) -> bool:
    """vpmaddubsw of any two bytes with this pair stays within int16."""
    extremes = [a * pair[0] + b * pair[1] for a in (0, 255) for b in (0, 255)]
    return -(2**15) <= min(extremes) and max(extremes) < 2**15


@given(whole_numbers())
def test_bounded_pairs_are_bounded(case: tuple[np.ndarray, int]) -> None:
    w, axis = case
    cut = bound_pairs(w, axis)
    assert bounded(cut.astype(np.int8), axis) and cut.shape == w.shape
    assert all(map(fits, pairs_along(cut, axis)))


@given(whole_numbers())
def test_bounded_says_what_fits(case: tuple[np.ndarray, int]) -> None:
    """Exactly the pairs whose sums stay within int16, and those of their negatives too."""
    w, axis = case
    says = bounded(w.astype(np.int8), axis)
    pairs = pairs_along(w, axis)
    assert not says or all(map(fits, pairs))
    assert says or not all(fits(p) and fits((-p[0], -p[1])) for p in pairs)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e19, 3.4e38])
def test_the_scale_does_not_depend_on_the_unit_of_the_weights(size: float) -> None:
    """float32 squares overflow from 1.8e19 and vanish below 1e-23."""
    w = np.random.default_rng(0).uniform(-1, 1, (6, 8, 3, 3)).astype(np.float32)
    full = np.abs(w).reshape(6, -1).max(1).astype(np.float64) / 127
    expected = bounded_scale(w, full, 1) / full
    assert len(set(expected.tolist())) > 1, "every channel takes the same factor: nothing is tested"
    np.testing.assert_allclose(bounded_scale(w * np.float32(size), full * size, 1) / (full * size), expected)


@pytest.mark.filterwarnings("error")
def test_huge_weights_are_quantised_without_a_warning() -> None:
    w = np.full((2, 4, 1, 1), 3.4e38, np.float32)
    w[1] = [[[1e-3]], [[-3e38]], [[2e38]], [[1e38]]]
    made = quantise_weights("big", w, None, 1.0, pair_axis=1)
    assert bounded(made.w)
    np.testing.assert_allclose(made.w * made.scale.reshape(2, 1, 1, 1), w, rtol=0, atol=0.02 * 3.4e38)


@given(whole_numbers())
def test_what_fits_is_not_touched_and_signs_stay(case: tuple[np.ndarray, int]) -> None:
    w, axis = case
    cut = bound_pairs(w, axis)
    np.testing.assert_array_equal(np.sign(cut), np.sign(w))
    for before, after in zip(pairs_along(w, axis), pairs_along(cut, axis), strict=True):
        assert before == after or not bounded(np.array([before], np.int8))
    if w.shape[axis] % 2:
        np.testing.assert_array_equal(cut.take(-1, axis), w.take(-1, axis))
    np.testing.assert_array_equal(bound_pairs(cut, axis), cut)


@given(st.integers(-128, 127), st.integers(-128, 127))
@settings(max_examples=60)
def test_no_other_pair_within_the_bound_is_nearer(a: int, b: int) -> None:
    """By trying all of them: least squared distance, which is also the least of the cuts' sum."""
    sides = np.arange(-128, 129)
    first, second = np.meshgrid(sides, sides, indexing="ij")
    allowed = (first * second <= 0) | (np.abs(first + second) <= PAIR_LIMIT)
    best = np.where(allowed, (first - a) ** 2 + (second - b) ** 2, 10**9).min()
    cut = bound_pairs(np.array([[a, b]], float))[0]
    assert ((cut - (a, b)) ** 2).sum() == best
    assert np.abs(cut - (a, b)).sum() == (max(abs(a + b) - PAIR_LIMIT, 0) if a * b > 0 else 0)


def test_the_scale_has_the_least_error_of_those_tried() -> None:
    rng = np.random.default_rng(2)
    w = rng.standard_normal((6, 10, 3, 3)).astype(np.float32)
    w[0] = 1.0  # every pair is cut: twice the scale is best
    w[1, ::2] = -w[1, 1::2]  # no pair is cut: the full range is best
    full = np.abs(w).reshape(6, -1).max(1) / 127
    scale = bounded_scale(w, full, 1)

    def error(n: int, s: float) -> float:
        stored = bound_pairs(np.rint(w[n : n + 1] / np.float32(s)), 1)
        return float(np.square(stored * np.float32(s) - w[n : n + 1]).sum())

    for n in range(6):
        tried = [error(n, full[n] * factor) for factor in np.linspace(1, 2, 11)]
        assert error(n, scale[n]) <= min(tried) * (1 + 1e-6)
    assert scale[0] == 2 * full[0] and (scale <= 2 * full).all() and (scale >= full).all()
    assert error(1, scale[1]) <= error(1, full[1])


def layer(w: np.ndarray, *, rows: int = 5, x_zero: int = 0, layout: str = "") -> Graph:
    """One int8 linear layer, or a convolution when a layout is given; the result is the sum as float32."""
    b = GraphBuilder("layer")
    scale = b.param("scale", np.ones(len(w), np.float32))
    weights, attrs = b.param("w", w), {"x_zero": x_zero}
    if not layout:
        return b.finish(
            [b.add("linear", [b.input("x", (rows, w.shape[1]), "uint8"), weights, "", "", scale])]
        )
    shape = (1, 6, 7, w.shape[1]) if layout == "NHWC" else (1, w.shape[1], 6, 7)
    x = b.input("x", shape, "uint8")
    return b.finish([b.add("conv2d", [x, weights, "", "", scale], layout=layout, **attrs)])


def chosen(graph: Graph, target: str = "x86-64-avx2") -> GemmSpec:
    call = select(graph, graph.nodes[0], TARGETS[target].isa)
    assert call is not None and isinstance(call.spec, GemmSpec)
    return call.spec


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32), st.booleans())
@settings(max_examples=40, deadline=None)
def test_kernels_and_pass_mean_the_same_pairs(half: int, kh: int, kw: int, seed: int, cut: bool) -> None:
    """For channels-last data with an even number of channels, and for planar data along window rows."""
    w = np.random.default_rng(seed).integers(-90, 91, (4, 2 * half, kh, kw)).astype(np.int8)
    for layout, axis in (("NHWC", 1), ("NCHW:NHWC", 3)):
        stored = bound_pairs(w, axis).astype(np.int8) if cut else w
        spec = chosen(layer(stored, layout=layout))
        assert pairs_bounded(spec, stored) == bounded(stored, axis)
        assert spec.dot == ("ubs256" if bounded(stored, axis) else "madd256")


def test_only_targets_without_vnni_use_bounded_pairs() -> None:
    graph = layer(np.full((8, 16), 64, np.int8))
    dots = {name: chosen(graph, name).dot for name in TARGETS}
    assert dots == {
        "x86-64-avx512-bf16": "vnni512",
        "x86-64-avx512-vnni": "vnni512",
        "x86-64-avx512": "ubs512",
        "x86-64-avx2": "ubs256",
        "x86-64": "portable",
    }
    assert {name for name, target in TARGETS.items() if target.pair_bound} == {"x86-64-avx512", "x86-64-avx2"}


EXTREMES: dict[str, tuple[tuple[int, ...], str]] = {
    "the most that a pair may sum to": ((64, 64), "ubs256"),
    "unequal pairs at the bound": ((127, 1, 1, 127), "ubs256"),
    "opposite signs": ((127, -128, -128, 127), "ubs256"),
    "the least": ((-64, -64, -128, 0), "ubs256"),
    "one step beyond": ((64, 65), "madd256"),
    "one step beyond, negative": ((-64, -65), "madd256"),
    "the largest of all": ((127, 127), "madd256"),
    "the least of all": ((-128, -128), "madd256"),
}


@needs_avx2
@pytest.mark.parametrize("name", EXTREMES)
def test_sums_are_exact_where_they_are_largest(name: str) -> None:
    """Against numpy's integers: all activations 255, and random ones."""
    pattern, dot = EXTREMES[name]
    w = np.resize(np.array(pattern, np.int8), (19, 32))
    graph = layer(w)
    assert chosen(graph).dot == dot
    x = np.random.default_rng(0).integers(0, 256, (5, 32)).astype(np.uint8)
    x[0], x[1, ::2] = 255, 255
    with build(graph, AVX2) as artifact:
        (got,) = artifact.run(x).values()
    np.testing.assert_array_equal(got, (x.astype(np.int64) @ w.astype(np.int64).T).astype(np.float32))


@needs_avx2
def test_both_products_give_the_same_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bounded weights through vpmaddubsw and through vpmaddwd."""
    rng = np.random.default_rng(4)
    w = bound_pairs(rng.integers(-127, 128, (21, 12, 3, 3)).astype(float)).astype(np.int8)
    graph = layer(w, layout="NHWC", x_zero=99)
    x = rng.integers(0, 256, (1, 6, 7, 12)).astype(np.uint8)
    results: dict[str, Any] = {}
    for dot in ("ubs256", "madd256"):
        if dot == "madd256":
            monkeypatch.setattr("bitsmith.targets.select_conv.pairs_bounded", lambda *args: False)
        assert chosen(graph).dot == dot
        with build(graph, AVX2) as artifact:
            (results[dot],) = artifact.run(x).values()
    np.testing.assert_array_equal(results["ubs256"], results["madd256"])
