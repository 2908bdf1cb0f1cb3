"""Winograd's algorithm on uint8 by int8: exact, whatever the numbers, and taken where it saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitsmith.compiler.ir import Graph
from bitsmith.compiler.ops.opdef import Sample
from bitsmith.compiler.reference import run_reference
from bitsmith.targets import select_winograd
from bitsmith.targets.build import build
from bitsmith.targets.kernels.conv.winograd_spec import MOST_CHANNELS, WHOLE, WinogradSpec
from bitsmith.targets.lower import lower
from bitsmith.targets.target import TARGETS, Target
from emulated_avx512 import needs_avx2, wide
from one_graph import ManyNodes

NARROW = {"act": "clip", "lo": 0.0, "hi": 200.0, "y_zero": 3, "out_dtype": "uint8"}


def sample(
    x: tuple[int, ...],
    oc: int,
    *,
    residual: str = "",
    fill: tuple[int, int] | None = None,
    most: int = 128,
    **attrs: Any,
) -> Sample:
    """A 3x3 convolution of random numbers, weights below `most`, or of `fill`: any input and any weight."""
    rng = np.random.default_rng(7)
    data = rng.integers(0, 256, x).astype(np.uint8) if fill is None else np.full(x, fill[0], np.uint8)
    shape = (oc, x[3], 3, 3)
    w = rng.integers(-most, most, shape) if fill is None else np.full(shape, fill[1])
    attrs = {"layout": "NHWC", "pads": (1, 1, 1, 1), "x_zero": 11, **attrs}
    top, left, bottom, right = attrs["pads"]
    shape = (x[0], x[1] + top + bottom - 2, x[2] + left + right - 2, oc)
    beside = rng.integers(0, 256, shape) if residual == "uint8" else 9 * rng.standard_normal(shape)
    bias = rng.integers(-(2**30), 2**30, oc) if fill else rng.integers(-9999, 10000, oc)
    scale = (rng.uniform(1e-4, 4e-4, oc) / np.sqrt(x[3] / 32)).astype(np.float32)
    return Sample(
        (
            data,
            w.astype(np.int8),
            bias.astype(np.int32),
            beside.astype(residual) if residual else None,
            scale,
        ),
        attrs,
    )


CASES = {
    "whole tiles": sample((1, 8, 12, 32), 64, **NARROW),
    "edges below and right, a residual": sample(
        (1, 9, 7, 16), 64, residual="uint8", r_scale=0.3, r_zero=5, **NARROW
    ),
    "many tiles": sample((1, 33, 18, 16), 64, **NARROW),
    "several images, a residual of floats": sample((3, 6, 5, 32), 64, residual="float32", **NARROW),
    "uneven padding": sample((1, 5, 6, 48), 64, pads=(2, 0, 1, 3), **NARROW),
    "no padding, floats": sample((1, 10, 11, 16), 16, pads=(0, 0, 0, 0)),
    "an activation, a residual": sample(
        (1, 7, 7, 32), 64, act="silu", y_inv=9.0, y_zero=40, out_dtype="uint8", residual="uint8", r_scale=0.1
    ),
    "a bound beyond int32": sample((1, 7, 7, 32), 48, **{**NARROW, "hi": 1e12}),
    "smaller than a tile": sample((2, 1, 2, 16), 64, **NARROW),
    "largest sums": sample((1, 4, 4, 512), 16, fill=(255, -128), x_zero=0),
    "largest sums over zeros": sample((1, 4, 4, 512), 16, fill=(0, 127), x_zero=255),
}
"""Channels in multiples of 32: the emulated target has vectors of 16 lanes."""


def network(cases: dict[str, Sample]) -> tuple[Graph, dict[str, np.ndarray], dict[str, str]]:
    many = ManyNodes()
    names = {case: many.add("conv2d", one) for case, one in cases.items()}
    return many.graph(), many.feeds, names


def check(cases: dict[str, Sample], target: Target, cache: Path | None = None) -> None:
    """Equal to the last bit but for rounding ties; floats to their own rounding."""
    graph, feeds, names = network(cases)
    want = run_reference(graph, feeds)
    taken = [spec for spec in lower(graph, target).kernels.values() if isinstance(spec, WinogradSpec)]
    assert len(taken) == len(cases)
    with build(graph, target, cache=cache) as artifact:
        got = artifact.run(**feeds)
        artifact.set_threads(3)
        again = artifact.run(**feeds)
    for case, name in names.items():
        difference = np.abs(got[name].astype(np.float64) - want[name])
        if want[name].dtype == np.uint8:
            assert difference.max() <= 1 and (difference > 0).mean() < 0.002, case
            assert want[name].std() > 5, case
        else:
            assert difference.max() <= 3e-7 * np.abs(want[name]).max(), case
        np.testing.assert_array_equal(got[name], again[name], err_msg=case)


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken wherever it fits, worth it or not."""
    monkeypatch.setattr(select_winograd, "pays", lambda spec, direct: True)


def test_the_matrices_convolve_four_times() -> None:
    rng = np.random.default_rng(0)
    d, w = rng.integers(0, 256, (4, 4)), rng.integers(-128, 128, (3, 3))
    b, g, a = (np.array(matrix) for matrix in (WHOLE.inputs, WHOLE.filters, WHOLE.outputs))
    wanted = [[(d[i : i + 3, j : j + 3] * w).sum() for j in range(2)] for i in range(2)]
    np.testing.assert_array_equal(a @ ((g @ w @ g.T) * (b @ d @ b.T)) @ a.T, 4 * np.array(wanted))


@needs_avx2
def test_kernels_are_exact(everywhere: None) -> None:
    check(CASES, TARGETS["x86-64-avx2"])


@needs_avx2
def test_kernels_of_sixteen_lanes_are_exact(everywhere: None, emulated: set[str], tmp_path: Path) -> None:
    chosen = ("edges below and right, a residual", "an activation, a residual")
    fitting = {
        name: sample((1, 9, 7, 32), 64, **{**CASES[name].attrs, "residual": "uint8"}) for name in chosen
    }
    check(fitting, wide("madd512"), tmp_path)
    assert "llvm.x86.avx512.pmaddw.d.512" in emulated


def taken(one: Sample, target: str = "x86-64-avx2") -> bool:
    graph, _, _ = network({"one": one})
    return any(isinstance(spec, WinogradSpec) for spec in lower(graph, TARGETS[target]).kernels.values())


@pytest.mark.parametrize(
    ("target", "wanted"),
    [("x86-64-avx2", True), ("x86-64-avx512", True), ("x86-64-avx512-vnni", False), ("x86-64", False)],
)
def test_it_is_taken_where_16_bits_are_cheap(target: str, wanted: bool) -> None:
    """An instruction of VNNI multiplies twice as many bytes as words; plain x86-64 multiplies one by one."""
    assert taken(sample((1, 28, 28, 128), 128, **NARROW), target) == wanted


def test_it_is_taken_where_it_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not where filters are dear to transform, nor where int32 has no room for four times the sum."""
    assert taken(sample((1, 56, 56, 64), 64, **NARROW))
    assert not taken(sample((1, 7, 7, 512), 512, most=64, **NARROW))
    monkeypatch.setattr(select_winograd, "pays", lambda spec, direct: True)
    most = MOST_CHANNELS // 32 * 32
    assert taken(sample((1, 4, 4, most), 32)) and not taken(sample((1, 4, 4, most + 32), 32))


@pytest.mark.parametrize(
    "one",
    [
        sample((1, 28, 28, 60), 64),
        sample((1, 28, 28, 64), 60, **NARROW),
        sample((1, 28, 28, 64), 48, **NARROW),
    ],
)
def test_others_are_multiplied_out(one: Sample) -> None:
    assert not taken(one)
