"""The form without multiplications: equal to the reference, and with none in its code."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from shutil import which

import numpy as np
import pytest
from bitsmith.compiler.analysis.coded_forms import plane_operations, signed_digits, table_operations
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.formats import format_of
from bitsmith.compiler.ledger import LedgerRow
from bitsmith.compiler.ops.coded import sample_weight
from bitsmith.compiler.pipeline.models import compile
from bitsmith.compiler.plan import Plan
from bitsmith.compiler.reference import run_reference
from bitsmith.targets.build import build
from bitsmith.targets.isa import ISAS, Isa
from bitsmith.targets.kernels.coded.emitters import CODED_EMITTERS
from bitsmith.targets.kernels.coded.planes import PlaneSpec, SignTableSpec
from bitsmith.targets.lower import lower
from bitsmith.targets.select_planes import coded_form
from bitsmith.targets.target import Target
from bitsmith.targets.tir import compile_kernel
from one_graph import ManyNodes, disagreement
from test_coded_kernels import linear_sample

PLAIN = replace(ISAS["x86-64"], name="x86-64 without a multiplier", dot="shift")
TARGET = Target(PLAIN.name, PLAIN, "for tests")
RV32I = Isa("rv32i", "riscv32-unknown-linux-gnu", "generic-rv32", (), 4, 32, "shift", "", (1, 1))
CASES = (
    ("shiftadd3:32", 1, "int8"),
    ("shiftadd2:64", 3, "int8:group"),
    ("shiftadd4:24", 2, "int8"),
    ("bcq3:128", 1, "int8"),
    ("bcq4:channel", 2, "int8"),
)


def made() -> tuple[ManyNodes, list[str]]:
    many = ManyNodes()
    return many, [many.add("coded_linear", linear_sample(rows, 12, 200, f, a)) for f, rows, a in CASES]


def test_planes_equal_the_reference(tmp_path: Path) -> None:
    many, names = made()
    graph = many.graph()
    lowered = lower(graph, TARGET)
    assert sum(isinstance(spec, PlaneSpec) for spec in lowered.kernels.values()) == len(CASES)
    want = run_reference(graph, many.feeds)
    with build(graph, TARGET, cache=tmp_path) as artifact:
        got = artifact.run(**many.feeds)
    for name, case in zip(names, CASES, strict=True):
        assert not disagreement(got[name], want[name]), case


def multiplications(code: bytes, path: Path) -> list[str]:
    """Instructions of an object that multiply, and functions it calls to do so."""
    path.write_bytes(code)
    listed = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(path)], capture_output=True, text=True
    )
    names = re.findall(r"^\s+[0-9a-f]+:\s+(\w+)", listed.stdout, re.MULTILINE)
    assert len(names) > 20
    return [name for name in names if "mul" in name or "madd" in name]


@pytest.mark.skipif(which("objdump") is None, reason="objdump (binutils) is not installed")
def test_no_instruction_multiplies(tmp_path: Path) -> None:
    kernels = lower(made()[0].graph(), TARGET).kernels
    integer = {s: spec for s, spec in kernels.items() if isinstance(spec, PlaneSpec | SignTableSpec)}
    assert len(integer) >= len(CASES) + 1
    for symbol, spec in integer.items():
        code = compile_kernel(CODED_EMITTERS[type(spec)](spec, symbol), PLAIN)
        assert not multiplications(code, tmp_path / "kernel.o"), spec
    others = [spec for spec in kernels.values() if type(spec).__name__ == "PlaneScaleSpec"]
    code = compile_kernel(CODED_EMITTERS[type(others[0])](others[0], "scales"), PLAIN)
    assert multiplications(code, tmp_path / "kernel.o"), "the check finds none where there are some"


def test_a_chip_without_a_multiplier_calls_for_none() -> None:
    """RISC-V's base instructions have no multiplication: a compiler would call a function named __mulsi3."""
    kernels = lower(made()[0].graph(), TARGET).kernels
    integer = {s: spec for s, spec in kernels.items() if isinstance(spec, PlaneSpec | SignTableSpec)}
    for symbol, spec in integer.items():
        assert b"__mul" not in compile_kernel(CODED_EMITTERS[type(spec)](spec, symbol), RV32I), spec
    scale = next(spec for spec in kernels.values() if type(spec).__name__ == "PlaneScaleSpec")
    assert b"__mul" in compile_kernel(CODED_EMITTERS[type(scale)](scale, "scales"), RV32I)


def test_operations_by_hand() -> None:
    format = format_of("shiftadd3:32")
    found = plane_operations(format, 10, 64)
    # 8 tables of 256 sums: one from 8 subtractions, 255 from one addition each; 10 rows of 3 * 8 bytes;
    # 2 groups of 3 powers of two in each row
    assert found.adds == 8 * (8 + 255) + 10 * 24 + 10 * 2 * 3
    assert (found.multiplies, found.lookups, found.scalings) == (0, 10 * 24, 10 * 2)
    assert found.shifts == 8 * 8 + 10 * 2 * 3
    table = table_operations(format, 10, 64)
    assert (table.multiplies, table.lookups, table.shifts) == (640, 640, 0)
    assert table_operations(format_of("int4:32"), 10, 64).lookups == 0
    with pytest.raises(ValueError, match="int4:32 are not signed sums"):
        plane_operations(format_of("int4:32"), 10, 64)


def test_signed_digits_are_fewest() -> None:
    every = np.arange(-127, 128)
    fewest = {0: 0}
    powers = [sign << bit if sign > 0 else -(1 << bit) for bit in range(8) for sign in (1, -1)]
    reached = {0}
    for count in range(1, 5):
        reached = {value + power for value in reached for power in powers}
        for value in reached:
            fewest.setdefault(value, count)
    assert signed_digits(every.astype(np.int8)).tolist() == [fewest[value] for value in every.tolist()]


def test_powers_of_two_cost_one_shift_each() -> None:
    coded = sample_weight(16, 64, "shiftadd3:32")
    digits = signed_digits(coded.arrays["alpha"])
    counted = plane_operations(coded.format, 16, 64, coded.arrays["alpha"])
    assert counted.shifts == 64 + int(digits.sum())


def test_the_form_of_a_target_has_a_reason() -> None:
    here = coded_form(format_of("shiftadd3"), 576, 576, "int8", ISAS["avx2"])
    assert here.name == "table" and "32 weights of any format in two instructions" in here.reason
    bare = coded_form(format_of("shiftadd3"), 576, 576, "int8", PLAIN)
    assert bare.name == "planes" and "no multiplier" in bare.reason
    other = coded_form(format_of("int4:32"), 576, 576, "int8", PLAIN)
    assert other.name == "table" and "no planes form" in other.reason


def test_the_ledger_says_which_form_runs_and_why() -> None:
    b = GraphBuilder("net")
    h = b.add("linear", [b.input("x", (1, 32)), b.param("w", np.ones((16, 32), np.float32))], name="up")
    graph = b.finish([b.add("linear", [h, b.param("v", np.ones((4, 16), np.float32))], name="down")])
    with compile(graph, plan=Plan("net", {"up": "shiftadd2:32"})) as artifact:
        up, down = (LedgerRow.from_json(row) for row in artifact.ledger)
    assert up.choice == "shiftadd2:32" and up.reason.endswith("an addition for 8 bits of codes")
    assert "table form" in up.reason and "form" not in down.reason
