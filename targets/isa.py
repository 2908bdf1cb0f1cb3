"""Instruction sets that kernels are generated for, one row each, and which of them this machine runs."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ..compiler.machine import cpu_flags


@dataclass(frozen=True)
class Isa:
    """One instruction set.

    mcpu       LLVM's name of a CPU that has it (and of nothing newer)
    features   what a machine must have, by the names in /proc/cpuinfo; checked when an artifact is opened
    lanes      float32 values in a vector register
    registers  vector registers that a kernel may use
    dot        how uint8 x int8 products are summed: a row of kernels/mac.py
    pair_dot   a faster row for weights in bounded pairs (passes/pair_bound.py), "" when there is none
    macs       float32 / int8 multiply-adds per cycle of one core at best: bounds what peaks.py measures
    bf16       how pairs of bfloat16 are summed: a row of kernels/mac.py
    tiles      kernel spec -> register tile that measured faster here than the model's (targets/tune.py)
    """

    name: str
    triple: str
    mcpu: str
    features: tuple[str, ...]
    lanes: int
    registers: int
    dot: str
    pair_dot: str
    macs: tuple[int, int]
    bf16: str = "bf16"
    tiles: Mapping[Any, tuple[int, int]] = field(default_factory=dict, compare=False)


X86 = "x86_64-linux-gnu"
_AVX2 = ("avx2", "fma", "f16c", "bmi1", "bmi2")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_VNNI = (*_AVX512, "avx512_vnni")

ISAS = {
    isa.name: isa
    for isa in (
        Isa(
            "avx512-bf16",
            X86,
            "cooperlake",
            (*_VNNI, "avx512_bf16"),
            16,
            32,
            "vnni512",
            "",
            (32, 128),
            "bf16dot",
        ),
        Isa("avx512-vnni", X86, "cascadelake", _VNNI, 16, 32, "vnni512", "", (32, 128)),
        Isa("avx512", X86, "skylake-avx512", _AVX512, 16, 32, "madd512", "ubs512", (32, 64)),
        Isa("avx2", X86, "haswell", _AVX2, 8, 16, "madd256", "ubs256", (16, 32)),
        Isa("x86-64", X86, "x86-64", ("sse2",), 4, 16, "portable", "", (8, 4)),
    )
}
"""Best first."""


@cache
def host_isa() -> Isa | None:
    """The best row that this machine runs; None on a machine that is not x86-64 Linux."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return None
    return next((isa for isa in ISAS.values() if set(isa.features) <= cpu_flags()), None)
