"""A SearchResult without a search: what the report and the tables are tested on. Numbers are made up, but
hang together.
"""

import numpy as np
from bitsmith.compiler.analysis.roofline import Level, Peaks, Roofline, Work, kernel_row, roofline
from bitsmith.compiler.ledger import LedgerRow
from bitsmith.compiler.machine import Machine
from bitsmith.compiler.measure import Latency, Quality
from bitsmith.compiler.plan import Plan
from bitsmith.search.result import Additivity, Candidate, SearchResult, Sensitivity


def made_up_result(
    layers: int = 12,
    trials: int = 9,
    constraints: tuple[str, ...] = ("agreement>=0.98", "latency<=8ms"),
    **changes: object,
) -> SearchResult:
    """Layers `block.N`; the more of them are int8, the faster, smaller and worse."""
    names = [f"blocks.{i}.conv" for i in range(layers)]
    random = np.random.default_rng(1)
    uniform = [
        _candidate(n, names, count, "baseline", random) for n, count in (("float32", 0), ("int8", layers))
    ]
    counts = [layers - 1, *random.integers(1, layers, trials - 1)]
    rest = [
        _candidate(f"trial-{i}", names, int(count), "optuna" if i else "allocation", random)
        for i, count in enumerate(counts)
    ]
    best = min((c for c in rest if c.feasible), key=lambda c: c.latency_us)
    fields: dict[str, object] = {
        "graph": "made_up_net",
        "graph_hash": "0123456789abcdef" * 4,
        "target": "x86-64-avx2",
        "fingerprint": "avx2-0123456789ab",
        "machine": Machine(
            "Some CPU (25/1/1)", 2, ("avx2", "fma"), 8 << 30, "Linux x86_64", "3.11.7", {"bitsmith": "0.1.0"}
        ),
        "threads": 1,
        "objectives": ("quality", "latency", "size"),
        "constraints": constraints,
        "float32": uniform[0],
        "int8": uniform[1],
        "best": best,
        "front": _front([*uniform, *rest]),
        "trials": (*uniform, *rest),
        "ledger": tuple(_row(name, i, best.plan.choice(name)) for i, name in enumerate(names)),
        "sensitivity": {name: Sensitivity(1e-3, 1e-4) for name in names},
        "additivity": (Additivity(best.name, 2900.0, 3050.0), Additivity("float32", 9100.0, 8700.0)),
        "seconds": 123.4,
        "met": True,
        "roofline": made_up_roofline(names),
        "notes": ("No evaluation data was given: plans were judged on a third of the calibration samples.",),
    }
    return SearchResult(**{**fields, **changes})


def _candidate(
    name: str, names: list[str], count: int, origin: str, random: np.random.Generator
) -> Candidate:
    part = count / len(names)
    latency = 9000 - 6000 * part + 40 * float(random.standard_normal())
    kl = 1e-9 if count == 0 else 2e-3 * float(np.exp(2 * part + random.standard_normal() / 4))
    agreement = 1.0 if count == 0 else 1 - round(float(random.uniform(0, 0.06) * part) * 42) / 42
    choices = {n: "int8" if i < count else "float32" for i, n in enumerate(names)}
    quality = Quality(agreement, kl, 45 - 18 * part if count else 200.0, None, 42, kl / 5)
    return Candidate(
        name=name,
        plan=Plan("made_up_net", choices),
        quality=quality,
        latency=Latency(latency * 1.02, 90.0, 0.004, 40, latency / 9000, latency / 9000),
        latency_us=latency,
        size_bytes=int(18.7e6 - 13.6e6 * part),
        predicted_us=latency * 0.96,
        feasible=agreement >= 0.98,
        origin=origin,
    )


def _front(candidates: list[Candidate]) -> tuple[Candidate, ...]:
    def beaten(c: Candidate) -> bool:
        return any(
            o.latency_us < c.latency_us and (o.quality.kl or 0) < (c.quality.kl or 0) for o in candidates
        )

    return tuple(sorted((c for c in candidates if not beaten(c)), key=lambda c: c.latency_us))


def _row(name: str, index: int, choice: str) -> LedgerRow:
    weights = 1000 * (index + 1)
    int8 = choice == "int8"
    return LedgerRow(
        layer=name,
        op="conv2d",
        shape=(1, 14, 14, 32),
        choice=choice,
        bits=8.51 if int8 else 32.2,
        weight_bytes=weights + 64 if int8 else 4 * weights + 32,
        float_bytes=4 * weights + 32,
        macs=weights * 196,
        predicted_us=2.0 + index * (1.5 if int8 else 5),
        measured_us=None if index == 1 else 2.5 + index * (1.5 if int8 else 5),
        error_share=(index + 1) / 78 if int8 else 0.0,
        reason=f"int8 saves {index * 23:.0f} µs and costs 1.2e-03 nats"
        if int8
        else "int8 measures slower: conversions cost 11 µs",
    )


def made_up_roofline(names: list[str]) -> Roofline:
    """Every kind of row: at its limit and far from it, of unknown operations, with nothing known."""
    levels = (
        Level("L1", 32 << 10, 207.0, 207.0),
        Level("L2", 512 << 10, 102.0, 97.0),
        Level("L3", 32 << 20, 51.0, 54.0),
        Level("memory", 0, 16.0, 12.0),
    )
    peaks = Peaks({"float32": 102.4, "madd256": 162.0, "ubs256": 197.0}, levels)
    rows = [
        kernel_row(
            name,
            f"gemm_{i:016x}",
            40.0 + 9 * i,
            Work(4_000_000 + 900_000 * i, ("ubs256", "float32")[i % 2], 90_000, 70_000, 20_000 * i),
            peaks,
            8e6,
        )
        for i, name in enumerate(names)
    ]
    rows.append(kernel_row("softmax", "relax_00", 12.0, Work(None, "", 4000, 4000, 0), peaks, 8e6))
    rows.append(kernel_row("inputs.q8", "pointwise_00", 21.5, Work(0, "", 602112, 150528, 0), peaks, 8e6))
    rows.append(kernel_row("older", "copy_00", 3.25, None, peaks, 8e6))
    return roofline(rows, peaks, 41.0)
