"""The chips that can be asked for. One row each; a row states only how it differs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from ..compiler.errors import TargetError
from ..compiler.machine import cpu_flags, cpuinfo
from .isa import ISAS, Isa, host_isa


@dataclass(frozen=True)
class Target:
    """What to compile for: a name that users give, and the instruction set of its kernels."""

    name: str
    isa: Isa
    description: str

    @property
    def features(self) -> tuple[str, ...]:
        """CPU features that the artifact needs, by their names in /proc/cpuinfo."""
        return self.isa.features

    @property
    def pair_bound(self) -> bool:
        """int8 products are faster where weights keep the bound of passes/pair_bound.py."""
        return bool(self.isa.pair_dot)

    @property
    def multiplies_bfloat16(self) -> bool:
        """It has an instruction for products of bfloat16 numbers; others widen them."""
        return self.isa.bf16 == "bf16dot"

    @cached_property
    def runs_here(self) -> bool:
        """Kernels for it can be measured on this machine."""
        return set(self.isa.features) <= cpu_flags()

    @cached_property
    def fingerprint(self) -> str:
        """Names the chip in the measurement database: CPU model and instruction set, hashed."""
        info = cpuinfo()
        parts = [self.isa.name, *(info.get(k, "") for k in ("model name", "cpu family", "model", "stepping"))]
        return f"{self.isa.name}-{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:12]}"


TARGETS = {
    target.name: target
    for target in (
        Target(
            "x86-64-avx512-bf16",
            ISAS["avx512-bf16"],
            "x86-64 with AVX-512, VNNI and bfloat16 products (Cooper Lake, Sapphire Rapids, Zen 4 and later)",
        ),
        Target(
            "x86-64-avx512-vnni",
            ISAS["avx512-vnni"],
            "x86-64 with AVX-512 and VNNI (Cascade Lake, Zen 4 and later)",
        ),
        Target("x86-64-avx512", ISAS["avx512"], "x86-64 with AVX-512 (Skylake-X and later)"),
        Target("x86-64-avx2", ISAS["avx2"], "x86-64 with AVX2 and FMA (Haswell, Zen and later)"),
        Target("x86-64", ISAS["x86-64"], "any x86-64 (SSE2)"),
    )
}


def resolve(name: str) -> Target:
    """The target of that name; `host` is the best that this machine runs. Raises TargetError."""
    if name == "host":
        isa = host_isa()
        if isa is None:
            raise TargetError(
                "there is no target for this machine (kernels exist for x86-64 Linux): name one with "
                "--target to cross-compile"
            )
        return next(t for t in TARGETS.values() if t.isa is isa)
    if name not in TARGETS:
        raise TargetError(f"no target is called {name!r}; there are: host, {', '.join(TARGETS)}")
    return TARGETS[name]
