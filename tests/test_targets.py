"""Targets and what they stand on: instruction sets, the chip's name, the arena, other machines' artifacts."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import numpy as np
import pytest
from bitsmith.compiler.artifact import open as open_artifact
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.errors import ArtifactError, TargetError
from bitsmith.compiler.machine import cpu_flags
from bitsmith.targets import isa as isa_module
from bitsmith.targets import target as target_module
from bitsmith.targets.arena import ALIGN, SLACK, Lifetime, plan_arena
from bitsmith.targets.build import build, write
from bitsmith.targets.isa import ISAS, host_isa
from bitsmith.targets.target import TARGETS, Target, resolve
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]


@st.composite
def buffers(draw: st.DrawFn) -> dict[str, Lifetime]:
    def one(index: int) -> Lifetime:
        first = draw(st.integers(0, 12))
        return Lifetime(draw(st.integers(0, 5000)), first, first + draw(st.integers(0, 6)))

    return {f"v{i}": one(i) for i in range(draw(st.integers(0, 14)))}


@given(buffers())
def test_what_lives_together_does_not_overlap(lives: dict[str, Lifetime]) -> None:
    offsets, total = plan_arena(lives)
    assert set(offsets) == set(lives)
    for a, x in lives.items():
        assert offsets[a] % ALIGN == 0 and 0 <= offsets[a] and offsets[a] + x.nbytes + SLACK <= total
        for b, y in lives.items():
            if a < b and x.first <= y.last and y.first <= x.last:
                ends = offsets[a] + x.nbytes + SLACK, offsets[b] + y.nbytes + SLACK
                assert ends[0] <= offsets[b] or ends[1] <= offsets[a], (a, b)


@given(buffers())
def test_the_arena_is_no_larger_than_all_and_no_smaller_than_the_fullest_step(
    lives: dict[str, Lifetime],
) -> None:
    _, total = plan_arena(lives)
    steps = range(20)
    fullest = max(sum(x.nbytes + SLACK for x in lives.values() if x.first <= s <= x.last) for s in steps)
    apart = sum(-(-(x.nbytes + SLACK) // ALIGN) * ALIGN for x in lives.values())
    assert fullest <= total <= apart


@given(buffers())
@settings(max_examples=20)
def test_the_arena_is_the_same_every_time(lives: dict[str, Lifetime]) -> None:
    assert plan_arena(lives) == plan_arena(dict(lives))


def test_a_chain_takes_turns_in_two_places() -> None:
    """Layer after layer of one size needs two buffers, however many there are."""
    _, total = plan_arena({f"v{i}": Lifetime(1000, i, i + 1) for i in range(50)})
    assert total == 2 * 1088


def test_unknown_targets_are_answered_with_those_that_exist() -> None:
    with pytest.raises(TargetError) as caught:
        resolve("x86-64-avx1024")
    assert "x86-64-avx1024" in str(caught.value) and "host" in str(caught.value)
    assert all(name in str(caught.value) for name in TARGETS)


def test_host_is_the_best_that_runs_here() -> None:
    runs = [target for target in TARGETS.values() if target.runs_here]
    assert resolve("host") is runs[0] and runs[0].isa is host_isa()
    assert TARGETS["x86-64"].runs_here


@pytest.mark.parametrize(
    ("flags", "best"),
    [
        ({"sse2"}, "x86-64"),
        ({"sse2", "avx2", "fma", "f16c", "bmi1"}, "x86-64"),  # no bmi2
        ({"sse2", "avx2", "fma", "f16c", "bmi1", "bmi2"}, "x86-64-avx2"),
        ({*ISAS["avx512"].features}, "x86-64-avx512"),
        ({*ISAS["avx512-vnni"].features}, "x86-64-avx512-vnni"),
        ({*ISAS["avx512-vnni"].features} - {"avx512dq"}, "x86-64-avx2"),
        ({*ISAS["avx512-bf16"].features}, "x86-64-avx512-bf16"),
    ],
)
def test_the_choice_follows_the_features(monkeypatch: pytest.MonkeyPatch, flags: set[str], best: str) -> None:
    monkeypatch.setattr(isa_module, "cpu_flags", lambda: frozenset(flags | {"sse2"}))
    assert resolve_uncached(monkeypatch).name == best


def resolve_uncached(monkeypatch: pytest.MonkeyPatch) -> Target:
    monkeypatch.setattr(target_module, "host_isa", host_isa.__wrapped__)
    return resolve("host")


def test_a_machine_without_a_target_is_told_to_cross_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(TargetError, match="--target"):
        resolve_uncached(monkeypatch)


def test_rows_go_from_best_to_worst() -> None:
    rows = list(ISAS.values())
    for better, worse in zip(rows, rows[1:], strict=False):
        assert better.macs[0] >= worse.macs[0] and better.macs[1] >= worse.macs[1]
        assert set(worse.features) - {"sse2"} <= set(better.features)
    assert [target.isa for target in TARGETS.values()] == rows


def test_the_fingerprint_names_chip_and_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def fingerprint(name: str) -> str:
        known = TARGETS[name]
        return Target(known.name, known.isa, known.description).fingerprint

    here = {name: fingerprint(name) for name in TARGETS}
    assert here == {name: target.fingerprint for name, target in TARGETS.items()}
    assert len(set(here.values())) == len(TARGETS)
    other = {"model name": "Another CPU", "cpu family": "6", "model": "85", "stepping": "7"}
    monkeypatch.setattr(target_module, "cpuinfo", lambda: other)
    assert fingerprint("x86-64") != here["x86-64"]


def test_the_runtime_knows_every_feature() -> None:
    """What it does not know it takes for missing: such an artifact would open nowhere."""
    source = (ROOT / "targets" / "runtime" / "cpu.c").read_text()
    known = set(re.findall(r'^\s*\{"(\w+)",', source, re.MULTILINE))
    assert len(known) > 20
    assert {feature for isa in ISAS.values() for feature in isa.features} <= known


def test_an_artifact_for_a_better_machine_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    target = TARGETS["x86-64-avx512-vnni"]
    missing = [feature for feature in target.features if feature not in cpu_flags()]
    if not missing:
        pytest.skip("this machine has AVX-512 with VNNI")
    b = GraphBuilder("foreign")
    x = b.input("x", (1, 20))
    w = b.param("w", np.ones((16, 20), np.float32))
    graph = b.finish([b.add("linear", [x, w])])
    place = write(graph, target, tmp_path / "foreign")
    with pytest.raises(ArtifactError) as caught:
        open_artifact(place)
    assert all(feature in str(caught.value) for feature in missing) and "--target host" in str(caught.value)
    with pytest.raises(ArtifactError, match="avx512"):
        build(graph, target, tmp_path / "built")
    assert (tmp_path / "built").is_dir()  # it may be meant for another machine
