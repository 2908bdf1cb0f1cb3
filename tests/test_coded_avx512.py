"""Kernels on coded weights for AVX-512, on a machine that need not have it: see test_avx512.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bitsmith.compiler.reference import run_reference
from bitsmith.targets.build import build
from bitsmith.targets.kernels import emit
from bitsmith.targets.lower import lower
from bitsmith.targets.objects import is_whole, kernel_objects
from bitsmith.targets.target import TARGETS
from one_graph import ManyNodes, disagreement
from test_avx512 import EMULATED, mnemonics, needs_avx2, wide
from test_coded_kernels import gather_sample, linear_sample

FORMATS = {
    "vnni512": ("int3a:128", "int8:64", "bitmod4:64", "bcq3:32"),
    "madd512": ("int4:32", "bitmod3:24", "nf4:64"),
}
"""Some formats for either; with the second, nf4 needs levels with a sign."""


def vpshufb(table: Any, codes: Any) -> Any:
    """Bytes of each 128 bits of the table; only indices below 16 occur."""
    lanes = [emit.local(64, "uint8") for _ in range(3)]
    for buffer, value in zip(lanes, (table, codes), strict=False):
        emit.store(buffer, 0, value, 64)
    with emit.loop(0, 64) as i:
        index = emit.cast(emit.load(lanes[1], i), "int64", 1)
        emit.store(lanes[2], i, emit.load(lanes[0], index + i // 16 * 16))
    return emit.load(lanes[2], 0, 64)


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    asked: set[str] = set()
    real, meanings = emit.intrinsic, {**EMULATED, "llvm.x86.avx512.pshuf.b.512": vpshufb}

    def intrinsic(name: str, dtype: str, *args: Any) -> Any:
        if not name.startswith("llvm.x86.avx512"):
            return real(name, dtype, *args)
        asked.add(name)
        return meanings[name](*args)

    monkeypatch.setattr(emit, "intrinsic", intrinsic)
    return asked


def cases(formats: tuple[str, ...]) -> tuple[ManyNodes, dict[str, str]]:
    many = ManyNodes()
    names = {
        f"{format}, {rows} rows": many.add("coded_linear", linear_sample(rows, 20, 136, format, "int8"))
        for format in formats
        for rows in (1, 5)
    }
    names |= {f"rows of {f}": many.add("coded_gather", gather_sample(f)) for f in ("bitmod4:64", "bcq4:32")}
    return many, names


@needs_avx2
@pytest.mark.parametrize(("dot", "wanted"), [("vnni512", "vpdpbusd"), ("madd512", "pmaddubs")])
def test_kernels_equal_the_reference(emulated: set[str], dot: str, wanted: str, tmp_path: Path) -> None:
    many, names = cases(FORMATS[dot])
    graph = many.graph()
    want = run_reference(graph, many.feeds)
    with build(graph, wide(dot), cache=tmp_path) as artifact:
        got = artifact.run(**many.feeds)
    for case, value in names.items():
        assert not disagreement(got[value], want[value]), case
    assert any(wanted in name for name in emulated) and any("pshuf" in name for name in emulated)


@pytest.mark.parametrize(
    ("target", "instruction"), [("x86-64-avx512-vnni", "vpdpbusd"), ("x86-64-avx512", "vpmaddubsw")]
)
def test_products_hold_the_instructions(target: str, instruction: str, tmp_path: Path) -> None:
    """On registers of 512 bits, beside the shuffles that look levels up."""
    many = ManyNodes()
    for rows in (1, 5):
        many.add("coded_linear", linear_sample(rows, 32, 256, "bitmod4:128", "int8"))
    kernels = {
        s: k for s, k in lower(many.graph(), TARGETS[target]).kernels.items() if s.startswith("coded_")
    }
    assert len(kernels) == 2
    for path in kernel_objects(kernels, TARGETS[target].isa, tmp_path):
        assert is_whole(path)
        found = {what for what, operands in mnemonics(path) if "%zmm" in operands}
        assert {instruction, "vpshufb"} <= found, sorted(found)
