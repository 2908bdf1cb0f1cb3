"""Measured time of each kernel of a graph, one thread, remembered in the database for all models and searches."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..compiler.artifact import ArraySpec, Manifest, open, write_artifact
from ..compiler.database import Database, timed_now
from ..compiler.errors import TargetError
from ..compiler.ir import Graph
from .arena import ALIGN, SLACK
from .call import KernelCall, Operand, Temporary, Weights
from .link import HEADER, hash64, link_library
from .lower import node_calls
from .objects import Progress, default_cache, kernel_objects, toolchain
from .program import Place, Program, Space, Step
from .target import Target

REPEATS = 30
NODE_OVERHEAD_US = 0.05
"""What a step costs besides its kernel: the call through the table and the look at the thread pool."""


def kernel_times(
    graph: Graph,
    target: Target,
    database: Database,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Microseconds of each node of a planned graph, by name; 0 for nodes that need no kernel.

    Kernels that the database lacks are compiled and measured, all in one artifact whose steps run in turn, so that each finds
    the caches as another kernel left them. Raises TargetError when the target does not run on this machine.
    """
    calls = {node.name: node_calls(graph, node, target) for node in graph.nodes}
    distinct = {call.symbol: call for of_node in calls.values() for call in of_node}
    known = database.get_many(target.fingerprint, toolchain(), distinct)
    times = {symbol: entry.median_us for symbol, entry in known.items()}
    missing = {symbol: call for symbol, call in distinct.items() if symbol not in times}
    if missing:
        measured = _measure(missing, graph, target, cache or default_cache(), progress)
        entries = {
            symbol: timed_now(median, spread, REPEATS) for symbol, (median, spread) in measured.items()
        }
        database.put_many(target.fingerprint, toolchain(), entries)
        times |= {symbol: median for symbol, (median, _) in measured.items()}
    return {
        name: sum(times[call.symbol] + NODE_OVERHEAD_US for call in of_node)
        for name, of_node in calls.items()
    }


def _measure(
    calls: Mapping[str, KernelCall], graph: Graph, target: Target, cache: Path, progress: Progress | None
) -> dict[str, tuple[float, float]]:
    """(median, interquartile range) in microseconds of each kernel."""
    if not target.runs_here:
        raise TargetError(
            f"kernels for {target.name} cannot be measured here: this CPU lacks its instructions"
        )
    objects = kernel_objects({s: call.spec for s, call in calls.items()}, target.isa, cache, progress)
    program = _bench_program(calls, graph, target)
    with tempfile.TemporaryDirectory(prefix="bitsmith-times-") as scratch:
        library = Path(scratch) / "model.so"
        link_library(library, objects, program, hash64(b""), cache=cache)
        manifest = Manifest(
            name=program.name,
            inputs=(),
            outputs=tuple(ArraySpec(s.name, s.shape, s.dtype) for s in program.outputs),
            target=target.name,
            features=program.features,
            arena_bytes=program.arena_bytes,
            plan={},
            ledger=(),
            versions={},
        )
        place = write_artifact(Path(scratch) / "times", manifest, library=library, weights=b"", header=HEADER)
        with open(place) as artifact:
            artifact.profile(repeats=3)
            runs: dict[str, list[float]] = {symbol: [] for symbol in calls}
            for _ in range(REPEATS):
                for step in artifact.profile(repeats=1):
                    runs[step.layer].append(step.nanoseconds / 1e3)
    return {symbol: _median_and_range(sorted(values)) for symbol, values in runs.items()}


def _median_and_range(values: list[float]) -> tuple[float, float]:
    n = len(values)
    return values[n // 2], values[3 * n // 4] - values[n // 4]


def _bench_program(calls: Mapping[str, KernelCall], graph: Graph, target: Target) -> Program:
    """All kernels one after the other. Activations share memory, as neighbours in a network do; weights are each kernel's own."""

    def size(operand: Operand) -> int:
        known = operand.nbytes if isinstance(operand, Weights | Temporary) else graph.type_of(operand).nbytes
        return -(-(known + SLACK) // ALIGN) * ALIGN

    width = max(len(call.operands) for call in calls.values())
    activations = [
        max(
            size(c.operands[i])
            for c in calls.values()
            if i < len(c.operands) and not isinstance(c.operands[i], Weights)
        )
        if any(i < len(c.operands) and not isinstance(c.operands[i], Weights) for c in calls.values())
        else 0
        for i in range(width)
    ]
    top = sum(activations)
    steps = []
    for symbol, call in calls.items():
        places = []
        for i, operand in enumerate(call.operands):
            at = sum(activations[:i])
            if isinstance(operand, Weights):
                at, top = top, top + size(operand)
            places.append(Place(Space.ARENA, at))
        steps.append(Step(symbol, symbol, tuple(places), call.tasks))
    return Program("kernel-times", (), (), tuple(steps), top, 0, target.features)
