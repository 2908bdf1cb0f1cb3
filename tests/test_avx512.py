"""AVX-512 kernels on a machine that need not have AVX-512.

Two halves. Kernels compiled for the AVX-512 targets contain the instructions that they are for. And the same
kernels, of 16 lanes and 32 registers, run here on AVX2 and equal the reference: each AVX-512 instruction that
they ask for by name is replaced by plain arithmetic of the same meaning (`EMULATED`), which LLVM writes in
AVX2. Tiles, packing, tails, scratch and epilogues are thus the ones that an AVX-512 machine runs; only the
meaning of the instructions themselves is taken from Intel's manual instead of from a chip.
"""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest
import tvm
from bitsmith.compiler.ir import Graph
from bitsmith.compiler.ops import OPS
from bitsmith.compiler.reference import run_reference
from bitsmith.passes.pair_bound import bound_pairs
from bitsmith.targets.build import build
from bitsmith.targets.isa import ISAS, Isa
from bitsmith.targets.kernels import emit
from bitsmith.targets.kernels.conv.gemm_spec import GemmSpec
from bitsmith.targets.kernels.matmul_spec import MatmulSpec
from bitsmith.targets.lower import lower
from bitsmith.targets.objects import is_whole, kernel_objects
from bitsmith.targets.relax_kernels import RelaxSpec
from bitsmith.targets.target import TARGETS, Target
from kernel_cases import LAYERS, has_bfloat16, in_bfloat16, random_conv
from one_graph import ManyNodes, disagreement

needs_avx2 = pytest.mark.skipif(
    not TARGETS["x86-64-avx2"].runs_here,
    reason="this machine lacks AVX2, for which the emulation is compiled",
)
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


def piece(words: Any, index: int, width: int, signed: bool) -> Any:
    """Bits [index * width, (index + 1) * width) of each of 16 double words, as int32."""
    left, right = (emit.splat(n, "int32", 16) for n in (32 - (index + 1) * width, 32 - width))
    top = emit.ib.shift_left(emit.bits(words, "int32", 16), left)
    if signed:
        return emit.ib.shift_right(top, right)
    return emit.cast(
        emit.ib.shift_right(emit.bits(top, "uint32", 16), emit.cast(right, "uint32", 16)), "int32", 16
    )


def vpdpbusd(acc: Any, a: Any, b: Any) -> Any:
    for i in range(4):
        acc = acc + piece(a, i, 8, signed=False) * piece(b, i, 8, signed=True)
    return acc


def vpmaddwd(a: Any, b: Any) -> Any:
    low, high = (piece(a, i, 16, signed=True) * piece(b, i, 16, signed=True) for i in range(2))
    return low + high


def vpmaddubsw(a: Any, b: Any) -> Any:
    """Saturates, as the instruction does: a kernel that lets it is wrong."""
    products = [piece(a, i, 8, signed=False) * piece(b, i, 8, signed=True) for i in range(4)]
    least, most = (emit.splat(bound, "int32", 16) for bound in (-(2**15), 2**15 - 1))
    low, high = (emit.vmin(emit.vmax(products[i] + products[i + 1], least), most) for i in (0, 2))
    half, mask = emit.splat(16, "int32", 16), emit.splat(2**16 - 1, "int32", 16)
    both = emit.ib.bitwise_or(emit.ib.shift_left(high, half), emit.ib.bitwise_and(low, mask))
    return emit.bits(both, "int16", 32)


def vdpbf16ps(acc: Any, a: Any, b: Any) -> Any:
    """The upper pair first; subnormal numbers, which it takes for zero, do not come up here."""
    for i in (1, 0):
        x, y = (
            emit.ib.shift_left(piece(v, i, 16, signed=False), emit.splat(16, "int32", 16)) for v in (a, b)
        )
        acc = acc + emit.bits(x, "float32", 16) * emit.bits(y, "float32", 16)
    return acc


def cvtps2dq(f: Any, kept: Any, mask: Any, rounding: Any) -> Any:
    """All lanes, rounded as the processor is set (4)."""
    assert (mask.value, rounding.value) == (-1, 4)
    return emit.cast(emit.intrinsic("llvm.nearbyint", "float32x16", f), "int32", 16)


def narrowed(a: Any, b: Any, to: str, least: int, most: int) -> Any:
    """Two vectors as one of half as wide elements, saturated, 128 bits of either in turn."""
    lanes = 512 // tvm.DataType(to).bits // 2
    kind, width = {"int16": ("int32", 4), "int8": ("int16", 8)}[to]
    low, high = (emit.splat(bound, kind, lanes) for bound in (least, most))
    halves = [emit.cast(emit.vmin(emit.vmax(v, low), high), to, lanes) for v in (a, b)]
    return emit.gather_lanes(
        halves,
        tuple(side * lanes + part * width + i for part in range(4) for side in (0, 1) for i in range(width)),
    )


EMULATED: dict[str, Callable[..., Any]] = {
    "llvm.x86.avx512.mask.cvtps2dq.512": cvtps2dq,
    "llvm.x86.avx512.packssdw.512": lambda a, b: narrowed(a, b, "int16", -(2**15), 2**15 - 1),
    "llvm.x86.avx512.packuswb.512": lambda a, b: narrowed(a, b, "int8", 0, 255),
    "llvm.x86.avx512.vpdpbusd.512": vpdpbusd,
    "llvm.x86.avx512bf16.dpbf16ps.512": vdpbf16ps,
    "llvm.x86.avx512.pmaddw.d.512": vpmaddwd,
    "llvm.x86.avx512.pmaddubs.w.512": vpmaddubsw,
}


def wide(dot: str, pair_dot: str = "") -> Target:
    """16 lanes and 32 registers, in AVX2's instructions."""
    isa = Isa(
        f"wide-{dot}", ISAS["avx2"].triple, "haswell", ISAS["avx2"].features, 16, 32, dot, pair_dot, (16, 32),
        "bf16dot",
    )  # fmt: skip
    return Target(isa.name, isa, "AVX-512's kernels, emulated")


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """AVX-512's instructions are written out from here on; gives the names of those that were asked for."""
    asked: set[str] = set()
    real = emit.intrinsic

    def intrinsic(name: str, dtype: str, *args: Any) -> Any:
        if not name.startswith("llvm.x86.avx512"):
            return real(name, dtype, *args)
        asked.add(name)
        return EMULATED[name](*args)

    monkeypatch.setattr(emit, "intrinsic", intrinsic)
    return asked


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


def mnemonics(path: Path) -> list[tuple[str, str]]:
    """(instruction, operands) of an object."""
    command = ["objdump", "-d", "--no-show-raw-insn", str(path)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    return re.findall(r"^\s+[0-9a-f]+:\s+(\w+)\s*(.*)$", listed.stdout, re.MULTILINE)


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
