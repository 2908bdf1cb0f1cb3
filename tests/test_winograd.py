"""Winograd convolution: its matrices are an identity, its kernels round little, it is taken where it pays."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.ir import Graph
from bitsmith.targets import select_winograd
from bitsmith.targets.build import build
from bitsmith.targets.isa import ISAS
from bitsmith.targets.kernels.conv.winograd_spec import TRANSFORMS, WinogradSpec
from bitsmith.targets.lower import lower
from bitsmith.targets.target import TARGETS, Target

HERE = {name: target for name, target in TARGETS.items() if target.runs_here}
# LLVM makes two registers of each vector: the templates for 16 lanes, on AVX2.
WIDE = Target("wide", replace(ISAS["avx2"], lanes=16, registers=32), "AVX2 with vectors of two registers")
if TARGETS["x86-64-avx2"].runs_here:
    HERE["wide"] = WIDE

BOUNDS = {2: 1e-6, 4: 2e-5}
"""Of the largest result, by m. The direct form's sums of 9 * c terms are off by 1e-6 to 4e-6."""


@pytest.mark.parametrize("m", TRANSFORMS)
def test_the_matrices_convolve_exactly(m: int) -> None:
    """In fractions: outputs of a tile are those of the definition, whatever the numbers."""
    rng = np.random.default_rng(m)
    exact = np.vectorize(lambda v: Fraction(v).limit_denominator(1000), otypes=[object])
    by = TRANSFORMS[m]
    b, g, a = (exact(np.array(matrix)) for matrix in (by.inputs, by.filters, by.outputs))
    d, w = (exact(rng.integers(-9, 10, (size, size))) for size in (m + 2, 3))
    found = a @ ((g @ w @ g.T) * (b @ d @ b.T)) @ a.T
    wanted = [[(d[i : i + 3, j : j + 3] * w).sum() for j in range(m)] for i in range(m)]
    assert (found == np.array(wanted)).all()


def network(
    x: tuple[int, ...],
    oc: int,
    *,
    bias: bool = True,
    residual: bool = False,
    narrow: bool = False,
    seed: int = 0,
    **attrs: Any,
) -> tuple[Graph, dict[str, np.ndarray]]:
    """A 3x3 convolution and inputs for it."""
    rng = np.random.default_rng(seed)
    b = GraphBuilder("conv")
    feeds = {"x": rng.standard_normal(x).astype(np.float32)}
    w = (rng.standard_normal((oc, x[3], 3, 3)) / np.sqrt(9 * x[3])).astype(np.float32)
    operands = [b.input("x", x), b.param("w", w.astype(ml_dtypes.bfloat16) if narrow else w)]
    operands.append(b.param("b", rng.standard_normal(oc).astype(np.float32)) if bias else "")
    attrs = {"layout": "NHWC", "pads": (1, 1, 1, 1), **attrs}
    if residual:
        top, left, bottom, right = attrs["pads"]
        shape = (x[0], x[1] + top + bottom - 2, x[2] + left + right - 2, oc)
        feeds["r"] = rng.standard_normal(shape).astype(np.float32)
        operands.append(b.input("r", shape))
    return b.finish([b.add("conv2d", operands, **attrs)]), feeds


def truth(graph: Graph, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """By torch in float64, of numbers that are rounded first where weights are bfloat16."""
    node = graph.nodes[0]
    if graph.type_of("w").dtype == "bfloat16":
        feeds = {**feeds, "x": torch.from_numpy(feeds["x"]).bfloat16().float().numpy()}
    x, w = (torch.from_numpy(a.astype(np.float64)) for a in (feeds["x"], graph.params["w"]))
    top, left, bottom, right = node.attrs.get("pads", (0, 0, 0, 0))
    bias = torch.from_numpy(graph.params["b"].astype(np.float64)) if "b" in graph.params else None
    x = torch.nn.functional.pad(x.permute(0, 3, 1, 2), (left, right, top, bottom))
    y = torch.nn.functional.conv2d(x, w, bias).permute(0, 2, 3, 1)
    y = y + torch.from_numpy(feeds["r"].astype(np.float64)) if "r" in feeds else y
    return np.asarray(y.clamp(min=0.0) if node.attrs.get("act") == "clip" else y)


def only(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Select the transform of that size wherever it fits, worth it or not."""
    monkeypatch.setattr(select_winograd, "TRANSFORMS", {m: TRANSFORMS[m]})
    everywhere(monkeypatch)


def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select_winograd, "pays", lambda spec, direct: True)


CASES = {
    "whole tiles": network((1, 8, 12, 32), 48),
    "edges below and right": network((1, 9, 7, 16), 16),
    "many tiles, no bias": network((1, 33, 18, 16), 32, bias=False),
    "several images": network((3, 6, 5, 32), 16, residual=True),
    "no padding, an activation": network((1, 10, 11, 16), 16, pads=(0, 0, 0, 0), act="clip", lo=0.0),
    "uneven padding": network((1, 5, 6, 16), 16, pads=(2, 0, 1, 3), residual=True, act="clip", lo=0.0),
    "smaller than a tile": network((2, 1, 2, 16), 64),
    "an odd number of vectors": network((1, 12, 12, 48), 80),
    "bfloat16": network((1, 11, 13, 32), 48, residual=True, narrow=True),
}


SOME = ("edges below and right", "uneven padding", "an odd number of vectors", "bfloat16")


@pytest.mark.parametrize("m", TRANSFORMS)
@pytest.mark.parametrize("target", HERE)
def test_kernels_round_little(m: int, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The templates are the same for all lengths of vectors: AVX2's runs every case."""
    only(m, monkeypatch)
    for name in CASES if target == "x86-64-avx2" else SOME:
        graph, feeds = CASES[name]
        wanted = truth(graph, feeds)
        with build(graph, HERE[target]) as artifact:
            (found,) = artifact.run(**feeds).values()
            artifact.set_threads(3)
            (again,) = artifact.run(**feeds).values()
        kernels = [step.symbol.split("_")[0] for step in lower(graph, HERE[target]).program.steps]
        assert kernels == ["winogradinput", "winograd"], name
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= BOUNDS[m] * np.abs(wanted).max(), name
        np.testing.assert_array_equal(found, again, err_msg=name)


def chosen(graph: Graph, target: str = "x86-64-avx2") -> list[int]:
    """m of each Winograd product in the program."""
    kernels = lower(graph, TARGETS[target]).kernels.values()
    return [spec.m for spec in kernels if isinstance(spec, WinogradSpec)]


@pytest.mark.parametrize("target", TARGETS)
def test_it_is_chosen_where_it_saves(target: str) -> None:
    """The layers of a ResNet: not the last, whose filters are larger than what they are applied to, but where
    products cost more than moving them."""
    for size, channels, taken in ((56, 64, True), (28, 128, True), (7, 512, target == "x86-64")):
        graph, _ = network((1, size, size, channels), channels)
        assert bool(chosen(graph, target)) == taken, (size, channels)


@pytest.mark.parametrize(
    ("x", "oc", "attrs"),
    [
        ((1, 28, 28, 64), 64, {"strides": (2, 2)}),
        ((1, 28, 28, 64), 64, {"dilations": (2, 2)}),
        ((1, 28, 28, 60), 64, {}),
        ((1, 28, 28, 64), 60, {}),
        ((1, 28, 28, 64), 64, {"out_dtype": "uint8", "y_inv": 9.0}),
    ],
)
def test_other_convolutions_are_multiplied_out(x: tuple[int, ...], oc: int, attrs: dict[str, Any]) -> None:
    graph, _ = network(x, oc, **attrs)
    assert not chosen(graph)


def test_products_of_pairs_are_dearer_to_transform_than_to_take() -> None:
    graph, _ = network((1, 28, 28, 128), 128, narrow=True)
    assert chosen(graph) and not chosen(graph, "x86-64-avx512-bf16")


def test_filters_take_no_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, _ = network((1, 28, 28, 64), 64)
    assert chosen(graph)
    small = lower(graph, TARGETS["x86-64-avx2"]).program.weights_bytes
    narrow, _ = network((1, 28, 28, 64), 64, narrow=True)
    half = lower(narrow, TARGETS["x86-64-avx2"]).program.weights_bytes
    assert chosen(narrow) and small - half == 2 * 9 * 64 * 64
    monkeypatch.setattr(select_winograd, "pays", lambda spec, direct: False)
    assert not chosen(graph)
    assert small <= lower(graph, TARGETS["x86-64-avx2"]).program.weights_bytes
