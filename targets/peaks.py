"""Measures what this machine can do: the limits of rooflines. About a second, then kept in the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..compiler.analysis.roofline import Level, Peaks
from ..compiler.artifact import Artifact, Manifest, open
from ..compiler.database import Database
from ..compiler.errors import InternalError, TargetError
from ..compiler.machine import cache_sizes, this_machine
from .arena import ALIGN
from .build import assemble
from .call import kernel_symbol
from .isa import Isa
from .kernels.peak import (
    ROWS,
    STEPS,
    VECTORS,
    RateSpec,
    StreamSpec,
)
from .objects import default_cache, kernel_objects, toolchain
from .program import (
    Place,
    Program,
    Space,
    Step,
)
from .scratch import scratch_folder
from .target import Target

METHOD = "peaks-3"
"""Stands in the database beside the toolchain: peaks that were taken in another way do not compare."""
ROUNDS = 10
NEAR_ROUNDS = 6
RATE_TASKS = 300  # 100 to 400 microseconds
PASS_BYTES = 24 << 20  # bytes that a step moves at least: a millisecond or so
FILL = 0.5  # of a cache that a working set fills: what else is in it must not push it out
BEYOND = 4  # working set over the next smaller cache, at most: a large one measures the page tables too
MAIN_FACTOR = 3  # working set of main memory over the largest cache
MAIN_BYTES = 64 << 20  # of it, at least
MAIN_SHARE = 1 / 16  # of the machine's memory, at most
A_BYTES = -(-STEPS * ROWS * 4 // ALIGN) * ALIGN
B_BYTES = VECTORS * 64
PAGE = 4096
MOST_GHZ = 10.0


def machine_peaks(target: Target, database: Database, *, cache: Path | None = None) -> Peaks:
    """Rates and bandwidths of one thread, from the database or measured now.

    Raises TargetError when the target's code does not run on this machine.
    """
    made_by = f"{toolchain()}/{METHOD}"
    known = database.get_peaks(target.fingerprint, made_by)
    if known is not None:
        return Peaks.from_json(known)
    if not target.runs_here:
        raise TargetError(
            f"the limits of {target.name} cannot be measured here: this CPU lacks its instructions"
        )
    peaks = _measure(target, cache or default_cache())
    database.put_peaks(target.fingerprint, made_by, peaks.to_json())
    return peaks


@contextmanager
def speedometer(target: Target, peaks: Peaks, cache: Path | None = None) -> Iterator[Callable[[], float]]:
    """A function that measures, in a fraction of a millisecond, which share of its float32 rate the machine
    gives now: others' work and the clock move it."""
    spec = RateSpec("float32", target.isa.lanes)
    symbol, cache = kernel_symbol(spec), cache or default_cache()
    step = Step("float32", symbol, _operands(0), RATE_TASKS)
    program = Program("speed", (), (), (step,), PAGE, A_BYTES + B_BYTES, target.features)
    objects = kernel_objects({symbol: spec}, target.isa, cache)
    weights = np.zeros(A_BYTES + B_BYTES, np.uint8)
    with _opened(program, objects, weights, cache, target.name) as artifact:
        artifact.profile(repeats=1)

        def share() -> float:
            (done,) = artifact.profile(repeats=1)
            return RATE_TASKS * spec.operations / done.nanoseconds / peaks.rates["float32"]

        yield share


def rate_names(isa: Isa) -> tuple[str, ...]:
    """The rows of kernels/mac.py that kernels for this instruction set multiply with, or are measured by."""
    bits = isa.lanes * 32
    depthwise = "portable" if isa.dot == "portable" else f"madd{bits}"
    coded = f"pairs{bits}" if isa.dot.startswith("madd") else ""
    names = ("float32", isa.bf16, isa.dot, isa.pair_dot, depthwise, coded)
    return tuple(dict.fromkeys(name for name in names if name))


def check_rates(rates: Mapping[str, float], isa: Isa) -> None:
    """Raises InternalError for a rate that no chip with these instructions reaches: the compiler must have
    left the work out."""
    for name, rate in rates.items():
        macs = {"float32": isa.macs[0], "bf16": isa.macs[0], "bf16dot": 2 * isa.macs[0]}.get(
            name, isa.macs[1]
        )
        if not 0 < rate <= 2 * macs * MOST_GHZ:
            raise InternalError(f"{name}: {rate:.0f} GOP/s were measured, at {macs} multiply-adds a cycle")


@dataclass(frozen=True)
class _Probe:
    """One thing to measure: a step of the program, and what it does in `amount` operations or bytes."""

    name: str
    step: Step
    amount: int


def working_sets(caches: Sequence[int], memory: int) -> tuple[tuple[str, int, int], ...]:
    """(name, capacity, bytes of the working set) of each level; capacity 0 stands for main memory.

    `caches` are the sizes of the data caches that a core sees, smallest first; `memory` is the machine's.
    """
    nearer = (caches[0], *caches)
    levels = tuple(
        (f"L{i + 1}", size, int(min(size * FILL, nearer[i] * BEYOND))) for i, size in enumerate(caches)
    )
    wanted = max(MAIN_BYTES, MAIN_FACTOR * caches[-1])
    limit = int(memory * MAIN_SHARE) if memory else MAIN_BYTES
    return (*levels, ("memory", 0, max(min(wanted, limit), caches[-1])))


def _measure(target: Target, cache: Path) -> Peaks:
    isa = target.isa
    rates = {name: RateSpec(name, isa.lanes) for name in rate_names(isa)}
    streams = {kind: StreamSpec(kind, isa.lanes) for kind in ("read", "copy")}
    specs = {kernel_symbol(spec): spec for spec in (*rates.values(), *streams.values())}
    sets = working_sets(cache_sizes(), this_machine().memory_bytes)
    probes, weights, half = _probes(rates, streams, sets)
    steps = tuple(probe.step for probe in probes)
    program = Program("peaks", (), (), steps, 2 * half + 2 * PAGE, weights.nbytes, target.features)
    objects = kernel_objects(specs, isa, cache)
    best = _best(program, objects, weights, cache, target.name)
    speed: dict[str, float] = {}
    for probe, ns in zip(probes, best, strict=True):
        speed[probe.name] = max(speed.get(probe.name, 0.0), probe.amount / ns)
    levels = tuple(
        Level(name, float(capacity), speed[f"read {name}"], speed[f"copy {name}"])
        for name, capacity, _ in sets
    )
    found = Peaks({name: speed[name] for name in rates}, levels)
    check_rates(found.rates, isa)
    return found


def _probes(
    rates: dict[str, RateSpec], streams: dict[str, StreamSpec], sets: Sequence[tuple[str, int, int]]
) -> tuple[list[_Probe], np.ndarray, int]:
    """What to measure; weights.bin with operands and block counts; bytes of half of the memory used.

    The halves are copied to and fro: pages that were never written are all one page of the system's, which
    stays in the cache.
    """
    blocks = [nbytes // 2 // streams["copy"].block_bytes for _, _, nbytes in sets]
    reads = [nbytes // streams["read"].block_bytes for _, _, nbytes in sets]
    counts = np.array([*blocks, *reads], np.int32)
    weights = np.concatenate([np.zeros(A_BYTES + B_BYTES, np.uint8), counts.view(np.uint8)])
    half = -(-max(nbytes for _, _, nbytes in sets) // (2 * PAGE)) * PAGE
    # Not a whole number of pages apart: a load that follows a store to the same place of another page waits.
    here, there = Place(Space.ARENA, 0), Place(Space.ARENA, half + PAGE // 2)
    operands = _operands(2 * half + PAGE)
    sums = operands[-1]
    probes = [
        _Probe(name, Step(name, kernel_symbol(spec), operands, RATE_TASKS), RATE_TASKS * spec.operations)
        for name, spec in rates.items()
    ]

    def stream(kind: str, name: str, index: int, x: Place, y: Place) -> _Probe:
        spec, place = streams[kind], Place(Space.WEIGHTS, A_BYTES + B_BYTES + 4 * index)
        moved = int(counts[index]) * spec.block_bytes * (2 if kind == "copy" else 1)
        passes = max(1, PASS_BYTES // moved)
        return _Probe(name, Step(name, kernel_symbol(spec), (x, place, y), passes), passes * moved)

    def level(i: int) -> list[_Probe]:
        name = sets[i][0]
        return [
            stream("copy", f"back {name}", i, there, here),
            stream("copy", f"copy {name}", i, here, there),
            stream("read", f"read {name}", len(sets) + i, here, sums),
        ]

    # Main memory comes first: its copies write every page that later steps read. It takes most of the time,
    # so the others come several times.
    near = probes + [probe for i in range(len(sets) - 1) for probe in level(i)]
    return level(len(sets) - 1) + near * NEAR_ROUNDS, weights, half


def _operands(sums: int) -> tuple[Place, Place, Place]:
    """Of a rate's kernel; its sums lie there in the arena."""
    return Place(Space.WEIGHTS, 0), Place(Space.WEIGHTS, A_BYTES), Place(Space.ARENA, sums)


def _best(
    program: Program, objects: Sequence[Path], weights: np.ndarray, cache: Path, target: str
) -> list[float]:
    """Shortest nanoseconds of each step, over rounds in turns: a limit is what happens undisturbed."""
    with _opened(program, objects, weights, cache, target) as artifact:
        rounds = [artifact.profile(repeats=1) for _ in range(ROUNDS)]
    return [min(step.nanoseconds for step in same) for same in zip(*rounds, strict=True)]


@contextmanager
def _opened(
    program: Program, objects: Sequence[Path], weights: np.ndarray, cache: Path, target: str
) -> Iterator[Artifact]:
    manifest = Manifest(
        name=program.name,
        inputs=(),
        outputs=(),
        target=target,
        features=program.features,
        arena_bytes=program.arena_bytes,
        plan={},
        ledger=(),
        versions={},
    )
    with scratch_folder() as scratch:
        with open(assemble(program, manifest, objects, weights, scratch / program.name, cache)) as artifact:
            yield artifact
