"""Kernels of networks on sequences: vectors twice as wide as this machine's, masks of infinities."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.ir import Graph
from bitsmith.compiler.ops import OPS
from bitsmith.compiler.reference import run_reference
from bitsmith.targets.build import build
from bitsmith.targets.isa import ISAS
from bitsmith.targets.selection import select
from bitsmith.targets.target import TARGETS, Target
from bitsmith.targets.tensor_rules import TENSOR_RULES
from kernel_cases_tensor import TENSORS
from one_graph import ManyNodes, disagreement

# LLVM makes two registers of each vector: AVX-512's kernels, but for their instructions, on AVX2.
WIDE = Target("wide", replace(ISAS["avx2"], lanes=16, registers=32), "AVX2 with vectors of two registers")
HERE = next(target for target in TARGETS.values() if target.runs_here)
OWN = {
    **{f"{name}-{i}": (name, s) for name in TENSOR_RULES for i, s in enumerate(OPS[name].samples)},
    **TENSORS,
}

needs_avx2 = pytest.mark.skipif(not TARGETS["x86-64-avx2"].runs_here, reason="needs AVX2")


@lru_cache
def wide_outcomes() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    many = ManyNodes()
    names = {case: many.add(*OWN[case]) for case in OWN}
    graph = many.graph()
    want = run_reference(graph, many.feeds)
    with build(graph, WIDE) as artifact:
        got = artifact.run(**many.feeds)
    return {case: (got[name], want[name]) for case, name in names.items()}


@needs_avx2
@pytest.mark.parametrize("case", OWN)
def test_wide_vectors(case: str) -> None:
    assert not disagreement(*wide_outcomes()[case])


@pytest.mark.parametrize("case", TENSORS)
def test_every_case_has_a_kernel_of_ours(case: str) -> None:
    many = ManyNodes()
    many.add(*TENSORS[case])
    graph = many.graph()
    for isa in ISAS.values():
        assert select(graph, graph.nodes[0], isa) is not None, isa.name


@pytest.mark.parametrize("hidden", [-np.inf, float(np.finfo(np.float32).min), -10000.0])
def test_masked_keys_count_nothing(hidden: float) -> None:
    rng = np.random.default_rng(3)
    b = GraphBuilder("masked")
    inputs = [b.input(n, (1, 11, 2, 8)) for n in "qkv"] + [b.input("mask", (1, 1, 1, 11))]
    graph = b.finish([b.add("attention", inputs, **{f"{n}_perm": (0, 2, 1, 3) for n in "qkvy"})])
    feeds = {n: rng.normal(size=(1, 11, 2, 8)).astype(np.float32) for n in "qkv"}
    feeds["mask"] = np.where(np.arange(11) < 6, 0.0, hidden).astype(np.float32).reshape(1, 1, 1, 11)
    seen = {n: (a[:, :6] if n in "kv" else a[..., :6] if n == "mask" else a) for n, a in feeds.items()}
    c = GraphBuilder("seen")
    inputs = [c.input(n, a.shape) for n, a in seen.items()]
    cut = c.finish([c.add("attention", inputs, **{f"{n}_perm": (0, 2, 1, 3) for n in "qkvy"})])
    with build(graph, HERE) as artifact:
        got = artifact.run(**feeds)
    assert not disagreement(got[graph.outputs[0]], run_reference(cut, seen)[cut.outputs[0]])


@pytest.mark.parametrize("guarded", [False, True])
def test_parts_of_which_all_keys_are_hidden(guarded: bool) -> None:
    """Every part hides some query's keys all; with the guard, one query has no key at all."""
    rng = np.random.default_rng(5)
    shapes = {"q": (12, 500), "k": (400, 500), "v": (400, 9), "mask": (12, 400)}
    b = GraphBuilder("parts")
    graph = b.finish(
        [b.add("attention", [b.input(n, s) for n, s in shapes.items()], scale=0.05, guarded=guarded)]
    )
    feeds = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    place = np.arange(400)
    hides = [place > 20, place < 390, (place < 150) | (place > 260), *[place > 33 * i + 5 for i in range(9)]]
    feeds["mask"] = np.where(np.stack(hides), -np.inf, 0.0).astype(np.float32)
    feeds["mask"][5] = -np.inf
    feeds["mask"][6] = np.finfo(np.float32).min  # hides nothing where all are alike
    with build(graph, HERE) as artifact:
        (got,) = artifact.run(**feeds).values()
    (want,) = run_reference(graph, feeds).values()
    rest = np.arange(12) != 5
    assert not disagreement(got[rest], want[rest])
    assert not got[5].any() if guarded else np.isnan(got[5]).all() and np.isnan(want[5]).all()


def test_a_softmax_of_infinities_alone_is_not_a_number() -> None:
    b = GraphBuilder("nothing")
    x = b.input("x", (3, 2, 11))
    graph = b.finish([b.add("softmax", [x], axis=axis) for axis in (1, 2)])
    data = np.random.default_rng(2).normal(size=(3, 2, 11)).astype(np.float32)
    data[1, 0], data[2, :, 4] = -np.inf, -np.inf
    with build(graph, HERE) as artifact:
        found = artifact.run(x=data)
    for name, want in run_reference(graph, {"x": data}).items():
        assert np.isnan(want).any() and np.array_equal(np.isnan(found[name]), np.isnan(want))
        np.testing.assert_allclose(found[name], want, atol=1e-6)


def test_what_is_not_a_number_stays_so() -> None:
    b = GraphBuilder("nan")
    x, z, w = b.input("x", (1, 4, 4, 19)), b.input("z", (1, 4, 4, 19)), b.param("w", np.eye(19, dtype="f"))
    acts = ("silu", "tanh", "sigmoid", "gelu", "hard_sigmoid", "hard_swish", "leaky_relu", "clip")
    found = [b.add("linear", [x, w], act=act, **({"lo": 0.0} if act == "clip" else {})) for act in acts]
    found += [b.add(op, [x]) for op in ("exp", "erf", "abs", "sign")]
    found += [b.add(op, [x, z]) for op in ("maximum", "minimum")]
    found += [b.add(f"reduce_{most}", [x], axes=(axis,)) for axis in (1, 3) for most in ("max", "min")]
    places = b.param("places", np.zeros((1, 4, 4, 19), np.int64))
    pairs = [("max", x, z), ("min", z, x)]
    found += [b.add("scatter_elements", [to, places, of], axis=1, reduction=r) for r, to, of in pairs]
    found += [b.add("softmax", [x], axis=axis) for axis in (1, 3)]
    found += [b.add("max_pool2d", [x], kernel=(3, 3), strides=(1, 1), layout="NHWC")]
    graph = b.finish(found)
    rng = np.random.default_rng(8)
    feeds = {n: rng.normal(size=(1, 4, 4, 19)).astype(np.float32) for n in "xz"}
    feeds["x"][0, 1, 2, ::6], feeds["z"][0, 0, :, 17] = np.nan, np.nan
    with build(graph, HERE) as artifact:
        got = artifact.run(**feeds)
    for name, want in run_reference(graph, feeds).items():
        # A product with the identity spreads them over its row.
        assert np.isnan(want).any() and np.array_equal(np.isnan(got[name]), np.isnan(want)), name
        np.testing.assert_allclose(got[name], want, atol=2e-6)


def test_exp_over_its_whole_range() -> None:
    x = np.concatenate([np.linspace(-110, 95, 997), [-np.inf, np.inf, 0.0, 88.0, 88.7, 88.75, -87.3]])
    b = GraphBuilder("exp")
    graph = b.finish([b.add("exp", [b.input("x", x.shape)])])
    feed = x.astype(np.float32)
    with build(graph, HERE) as artifact:
        got = artifact.run(feed)[graph.outputs[0]].astype(np.float64)
    with np.errstate(over="ignore"):
        want = np.exp(feed.astype(np.float64))
    finite = want < np.finfo(np.float32).max
    np.testing.assert_allclose(got[finite], want[finite], rtol=6e-6, atol=2e-38)
    assert np.isinf(got[~finite]).all()


def chain_graph() -> Graph:
    """Chains that meet, broadcast, end at outputs, and one too long for one kernel."""
    b = GraphBuilder("chains")
    x, row, column = b.input("x", (9, 37)), b.input("row", (37,)), b.input("column", (9, 1))
    scaled = b.add("mul", [b.add("add", [x, row]), column])
    gate = b.add("sigmoid", [b.add("sub", [scaled, row])])
    first = b.add("mul", [gate, scaled])  # `scaled` has two readers
    second = b.add("exp", [b.add("neg", [b.add("abs", [b.add("mul", [row, row])])])])
    joined = b.add("div", [first, b.add("add", [second, b.param("one", np.ones((1,), np.float32))])])
    long = joined
    for _ in range(15):
        long = b.add("maximum", [b.add("mul", [long, column]), row])
    codes = b.input("codes", (9, 37), "uint8")
    real = b.add("mul", [b.add("dequantize", [codes], x_scale=0.013, x_zero=77), row])
    stored = b.add("quantize", [b.add("mul", [real, column])], y_scale=0.0071, y_zero=131)
    again = b.add("quantize", [b.add("dequantize", [codes], x_scale=0.02, x_zero=3)], y_scale=0.03, y_zero=9)
    return b.finish([b.add("silu", [joined]), joined, long, stored, again])


@pytest.mark.parametrize(
    "target", [t for t in TARGETS.values() if t.runs_here] + [WIDE], ids=lambda t: t.name
)
def test_chains_are_computed_together(target: Target) -> None:
    graph = chain_graph()
    rng = np.random.default_rng(11)
    feeds = {n: rng.uniform(-1, 1, kind.shape).astype(np.float32) for n, kind in graph.inputs}
    feeds["codes"] = rng.integers(0, 256, feeds["codes"].shape).astype(np.uint8)
    want = run_reference(graph, feeds)
    if target is WIDE and not TARGETS["x86-64-avx2"].runs_here:
        pytest.skip("needs AVX2")
    with build(graph, target) as artifact:
        got = artifact.run(**feeds)
        steps = len(artifact.profile(**feeds, repeats=1))
    for name in graph.outputs:
        assert not disagreement(got[name], want[name]), name
    assert steps <= len(graph.nodes) // 4
