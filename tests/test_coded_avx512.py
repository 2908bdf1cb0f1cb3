"""Kernels on coded weights for AVX-512, on a machine that need not have it: see test_avx512.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from bitsmith.compiler.reference import run_reference
from bitsmith.targets.build import build
from bitsmith.targets.lower import lower
from bitsmith.targets.objects import is_whole, kernel_objects
from bitsmith.targets.target import TARGETS
from emulated_avx512 import mnemonics, needs_avx2, wide
from one_graph import ManyNodes, disagreement
from test_coded_kernels import gather_sample, linear_sample

FORMATS = {
    "vnni512": ("int3a:128", "int8:64", "bitmod4:64", "bcq3:32"),
    "madd512": ("int4:32", "bitmod3:24", "nf4:64"),
}
"""Some formats for either; with the second, nf4 needs levels with a sign."""


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
