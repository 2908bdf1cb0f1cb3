"""AVX-512 kernels on a machine that need not have AVX-512.

Two halves. Kernels compiled for the AVX-512 targets contain the instructions that they are for. And the same
kernels, of 16 lanes and 32 registers, run here on AVX2 and equal the reference: each AVX-512 instruction that
they ask for by name is replaced by plain arithmetic of the same meaning (emulated_avx512.py). Tiles, packing,
tails, scratch and epilogues are thus the ones that an AVX-512 machine runs; only the meaning of the
instructions themselves is taken from Intel's manual instead of from a chip.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest
from bitsmith.compiler.ir import Graph
from bitsmith.compiler.ops import OPS
from bitsmith.compiler.reference import run_reference
from bitsmith.passes.pair_bound import bound_pairs
from bitsmith.targets.build import build
from bitsmith.targets.kernels.conv.gemm_spec import GemmSpec
from bitsmith.targets.kernels.matmul_spec import MatmulSpec
from bitsmith.targets.lower import lower
from bitsmith.targets.objects import is_whole, kernel_objects
from bitsmith.targets.relax_kernels import RelaxSpec
from bitsmith.targets.target import TARGETS, Target
from emulated_avx512 import mnemonics, needs_avx2, wide
from kernel_cases import LAYERS, has_bfloat16, in_bfloat16, random_conv
from one_graph import ManyNodes, disagreement

SAMPLES = {f"{op}-{i}": (op, s) for op in ("conv2d", "linear") for i, s in enumerate(OPS[op].samples)}
EDGES = {
    name: LAYERS[name]
    for name in (
        "batch of three int8",
        "groups int8",
        "depth multiplier int8",
        "kernel larger than the input int8",
        "windows that lie in the padding int8",
        "one by one with strides int8",
        "one channel to many",
        "float residual, uint8 result",
        "planar batch int8",
        "largest sums of one sign",
        "linear from one value int8",
        "linear on many rows",
    )
}


def graph_of(cases: dict[str, tuple[str, Any]]) -> tuple[Graph, dict[str, np.ndarray], dict[str, str]]:
    many = ManyNodes()
    names = {case: many.add(*cases[case]) for case in cases}
    return many.graph(), many.feeds, names


def taps(case: tuple[str, Any]) -> int:
    """Of the window. The emulation of large unrolled windows takes LLVM seconds."""
    return math.prod(case[1].inputs[1].shape[2:])


def check(cases: dict[str, tuple[str, Any]], target: Target, cache: Path) -> None:
    graph, feeds, names = graph_of(cases)
    want = run_reference(graph, feeds)
    with build(graph, target, cache=cache) as artifact:
        got = artifact.run(**feeds)
    for case, name in names.items():
        assert not disagreement(got[name], want[name]), case


def quantised(cases: dict[str, tuple[str, Any]], bounded: bool = False) -> dict[str, tuple[str, Any]]:
    """The int8 cases; `bounded`: with weights that keep the bound of passes/pair_bound.py."""
    rng = np.random.default_rng(5)
    chosen = {}
    for name, (op, sample) in cases.items():
        x, w, *rest = sample.inputs
        if x.dtype != "uint8":
            continue
        if bounded:
            weights = rng.integers(-127, 128, w.shape).astype(float)
            planar = op == "conv2d" and str(sample.attrs.get("layout", "NCHW")).startswith("NCHW")
            w = bound_pairs(weights, 3 if planar else 1).astype(np.int8)
        chosen[name] = op, replace(sample, inputs=(x, w, *rest))
    return chosen


@needs_avx2
def test_kernels_for_vnni_equal_the_reference(emulated: set[str], tmp_path: Path) -> None:
    """The float32 ones too: they share the templates for 16 lanes."""
    check(
        {name: case for name, case in {**SAMPLES, **EDGES}.items() if taps(case) < 25},
        wide("vnni512"),
        tmp_path,
    )
    assert {"llvm.x86.avx512.vpdpbusd.512", "llvm.x86.avx512bf16.dpbf16ps.512"} <= emulated


@needs_avx2
def test_random_layers_in_bfloat16_equal_the_reference(emulated: set[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(22)
    cases = {str(i): ("conv2d", in_bfloat16(random_conv(rng))) for i in range(24)}
    cases |= {name: (op, in_bfloat16(sample)) for name, (op, sample) in LAYERS.items()}
    few = {n: case for n, case in cases.items() if has_bfloat16(case) and taps(case) < 10}
    assert len(few) >= 12
    check(few, wide("vnni512"), tmp_path)
    assert "llvm.x86.avx512bf16.dpbf16ps.512" in emulated


@needs_avx2
def test_random_convolutions_for_vnni_equal_the_reference(emulated: set[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(21)
    cases = {str(i): ("conv2d", random_conv(rng)) for i in range(40)}
    few = {name: case for name, case in quantised(cases).items() if taps(case) < 5}
    assert len(few) >= 6
    check(few, wide("vnni512"), tmp_path)


@needs_avx2
def test_kernels_without_vnni_equal_the_reference(emulated: set[str], tmp_path: Path) -> None:
    """Any weights through vpmaddwd, bounded ones through vpmaddubsw."""
    products = quantised(EDGES)
    check(products, wide("madd512"), tmp_path)
    assert {name for name in emulated if "madd" in name} == {"llvm.x86.avx512.pmaddw.d.512"}
    bounded, target = quantised(products, bounded=True), wide("madd512", "ubs512")
    graph, _, _ = graph_of(bounded)
    dots = [spec.dot for spec in lower(graph, target).kernels.values() if isinstance(spec, GemmSpec)]
    assert dots.count("ubs512") >= 6
    check(bounded, target, tmp_path)
    assert "llvm.x86.avx512.pmaddubs.w.512" in emulated


Objects = dict[str, list[tuple[Any, Path]]]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Objects:
    """(spec, object) of the AVX-512 targets' kernels: of every operator's samples with VNNI, of int8 products
    without, as the rest is the same. What Relax lowers is the same for all targets and left out."""
    every = {f"{op.name}-{i}": (op.name, s) for op in OPS.values() for i, s in enumerate(op.samples)}
    int8 = {**quantised(SAMPLES), **{f"{n}, bounded": c for n, c in quantised(SAMPLES, bounded=True).items()}}
    cache = tmp_path_factory.mktemp("objects")
    made: Objects = {}
    bfloat16 = {name: case for name, case in SAMPLES.items() if has_bfloat16(case)}
    for name, cases in (
        ("x86-64-avx512-vnni", every), ("x86-64-avx512", int8), ("x86-64-avx512-bf16", bfloat16)
    ):  # fmt: skip
        kernels = lower(graph_of(cases)[0], TARGETS[name]).kernels
        own = {
            symbol: spec
            for symbol, spec in kernels.items()
            if (
                not isinstance(spec, RelaxSpec) if cases is every else isinstance(spec, GemmSpec | MatmulSpec)
            )
        }
        made[name] = list(zip(own.values(), kernel_objects(own, TARGETS[name].isa, cache), strict=True))
    return made


def test_all_kernels_compile(objects: Objects) -> None:
    assert len(objects["x86-64-avx512-vnni"]) > 40 and len(objects["x86-64-avx512"]) > 12
    assert all(is_whole(path) for made in objects.values() for _, path in made)


@pytest.mark.skipif(which("objdump") is None, reason="objdump (binutils) is not installed")
@pytest.mark.parametrize(
    ("name", "dot", "instruction"),
    [
        ("x86-64-avx512-vnni", "vnni512", "vpdpbusd"),
        ("x86-64-avx512-vnni", "", "vfmadd"),  # float32
        ("x86-64-avx512", "madd512", "vpmaddwd"),
        ("x86-64-avx512", "ubs512", "vpmaddubsw"),
        ("x86-64-avx512-bf16", "bf16dot", "vdpbf16ps"),
        ("x86-64-avx512-vnni", "bf16", "vfmadd"),
    ],
)
def test_products_hold_the_instruction(objects: Objects, name: str, dot: str, instruction: str) -> None:
    """On registers of 512 bits."""
    products = [
        (s, path)
        for s, path in objects[name]
        if (isinstance(s, GemmSpec) or (isinstance(s, MatmulSpec) and dot)) and s.dot == dot
    ]
    assert len(products) >= 6
    for spec, path in products:
        found = {what for what, operands in mnemonics(path) if "%zmm" in operands}
        assert any(what.startswith(instruction) for what in found), (spec, sorted(found))
