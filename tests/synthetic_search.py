"""A network whose times and quality are formulas: what the search is tested on without compiling anything."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from bitsmith.compiler.machine import Machine
from bitsmith.compiler.measure import Latency, Quality
from bitsmith.compiler.plan import Plan
from bitsmith.search.allocation import Edge
from bitsmith.search.evaluator import CONFIRM_PART, CostTable, Layer, Names
from bitsmith.search.result import Sensitivity


@dataclass
class SyntheticBuild:
    plan: Plan
    size_bytes: int
    closed: bool = False

    def save(self, path: Path) -> None:
        path.mkdir()
        (path / "manifest.json").write_text(self.plan.to_text())

    def close(self) -> None:
        assert not self.closed
        self.closed = True


@dataclass
class Synthetic:
    """`count` layers in a chain. int8 halves a layer's time, except for every fifth, which it doubles.

    The KL of a plan is the sum of its layers' plus `interaction` for every pair of int8 neighbours; the
    kernel table does not know of `overhead_us` per int8 layer, so that times do not quite add up either.
    """

    count: int = 12
    seed: int = 0
    interaction: float = 0.0
    overhead_us: float = 0.0
    conversion_us: float = 1.0
    samples: int = 100
    noise: float = 0.0
    bfloat16: float = 0.0  # of a layer's time in float32; 0: the chip gains nothing by it
    delay: float = 0.0
    identity: Mapping[str, str] = field(default_factory=lambda: {"graph": "synthetic", "target": "formula"})
    notes: tuple[str, ...] = ()
    sensitivity_samples: int = 3
    built: list[SyntheticBuild] = field(default_factory=list)
    log: list[tuple] = field(default_factory=list)
    saved: dict[Path, tuple] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.rng = np.random.default_rng(self.seed + 1)
        names = [f"layer{i}" for i in range(self.count)]
        self.float_us = {n: float(rng.uniform(20, 100)) for n in names}
        self.int8_us = {
            n: us * (2.0 if i % 5 == 4 else 0.5) for i, (n, us) in enumerate(self.float_us.items())
        }
        self.kl = {n: float(10 ** rng.uniform(-5, -2)) for n in names}
        self.layers = tuple(
            Layer(n, "conv2d", (1, 8, 8, 16), 1000 * i, 1000, 4064, 1128) for i, n in enumerate(names)
        )
        self.edges = tuple(
            Edge(a, b, self.conversion_us, self.conversion_us) for a, b in zip(names, names[1:], strict=False)
        )
        self.base_plan = Plan("synthetic", dict.fromkeys(names, "float32"))
        self.names = Names(
            "synthetic", "0" * 64, "formula", "formula-1", Machine("none", 2, (), 0, "Linux", "3", {})
        )

    def int8(self, plan: Plan) -> list[bool]:
        return [plan.choice(x.name) == "int8" for x in self.layers]

    def true_us(self, plan: Plan) -> float:
        return self.predict(plan) + self.overhead_us * sum(self.int8(plan))

    def true_kl(self, plan: Plan) -> float:
        bits = self.int8(plan)
        pairs = sum(a and b for a, b in zip(bits, bits[1:], strict=False))
        return (
            sum(self.kl[x.name] for x, b in zip(self.layers, bits, strict=True) if b)
            + self.interaction * pairs
        )

    def sensitivity(self, sample: int) -> dict[str, Sensitivity]:
        self.log.append(("sensitivity", sample))
        time.sleep(self.delay)
        factor = 0.5 + sample / 2  # mean of three samples: 1
        return {n: Sensitivity(kl * factor, 2 * kl * factor) for n, kl in self.kl.items()}

    def costs(self, progress) -> CostTable:
        return CostTable(self.float_us, self.int8_us, self.edges)

    def one_us(self, plan: Plan, name: str) -> float:
        factor = {"float32": 1.0, "bfloat16": self.bfloat16}
        choice = plan.choice(name)
        return self.int8_us[name] if choice == "int8" else factor[choice] * self.float_us[name]

    def narrowed(self, plan: Plan, smallest: bool) -> Plan | None:
        self.log.append(("narrowed", smallest))
        found = {x: "bfloat16" for x, choice in plan.layers.items() if choice == "float32"}
        return replace(plan, layers={**plan.layers, **found}) if self.bfloat16 and found else None

    def predict(self, plan: Plan) -> float:
        bits = self.int8(plan)
        us = sum(self.one_us(plan, x.name) for x in self.layers)
        return us + self.conversion_us * sum(a != b for a, b in zip(bits, bits[1:], strict=False))

    def build(self, plan: Plan) -> SyntheticBuild:
        self.log.append(("build", frozenset(n for n, c in plan.layers.items() if c == "int8")))
        time.sleep(self.delay)
        bits = self.int8(plan)
        weights = sum(x.int8_bytes if b else x.float_bytes for x, b in zip(self.layers, bits, strict=True))
        weights -= sum(2 * x.weights for x in self.layers if plan.choice(x.name) == "bfloat16")
        self.built.append(SyntheticBuild(plan, 20_000 + weights))
        return self.built[-1]

    def quality(self, built: SyntheticBuild, part: str) -> Quality:
        kl = self.true_kl(built.plan)
        n = self.samples * (2 if part == CONFIRM_PART else 1)
        agreement = max(0.0, 1.0 - round(n * 0.2 * kl**0.5) / n)
        return Quality(agreement, kl, 40.0 - 1000 * kl, None, n, kl_error=0.0)

    def latency(self, builds, *, repeats, seconds, threads=None) -> dict[str, Latency]:
        self.log.append(("latency", tuple(builds), threads))
        drift = float(self.rng.uniform(1.0, 1.5))  # of the machine: all turns of one run share it
        times = {name: drift * self.true_us(b.plan) for name, b in builds.items()}
        first = next(iter(times.values()))
        jitter = {name: 1 + self.noise * float(self.rng.standard_normal()) for name in times}
        return {
            name: Latency(
                us * jitter[name], us / 50, self.noise, repeats, us * jitter[name] / first, us / first
            )
            for name, us in times.items()
        }

    def layer_times(self, built: SyntheticBuild) -> dict[str, float]:
        bits = self.int8(built.plan)
        return {
            x.name: self.one_us(built.plan, x.name) + self.overhead_us * b
            for x, b in zip(self.layers, bits, strict=True)
        }

    def save(self, plan, path, ledger) -> int:
        self.saved[path] = (plan, ledger)
        path.mkdir(exist_ok=True)
        (path / "manifest.json").write_text(plan.to_text())
        return 0
