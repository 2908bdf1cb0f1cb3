"""Measured time of each kernel of a graph, one thread, kept in the database for all models and searches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.artifact import Manifest, open
from ..compiler.database import Database, timed_now
from ..compiler.errors import TargetError
from ..compiler.ir import Graph
from .arena import ALIGN, SLACK
from .build import assemble
from .call import (
    KernelCall,
    Operand,
    Temporary,
    Weights,
    kernel_symbol,
)
from .kernels.pointwise import CopySpec
from .lower import node_calls
from .objects import (
    Progress,
    default_cache,
    kernel_objects,
    toolchain,
)
from .program import (
    Place,
    Program,
    Space,
    Step,
)
from .scratch import scratch_folder
from .target import Target
from .views import Views

REPEATS = 30
NODE_OVERHEAD_US = 0.05
"""What a step costs besides its kernel: the call through the table and the look at the thread pool."""

METHOD = "times-2"
"""Stands in the database beside the toolchain: times that were taken in another way do not compare."""
FILL = "fill"


def kernel_times(
    graph: Graph,
    target: Target,
    database: Database,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Microseconds of each node of a planned graph, by name; 0 for nodes that need no kernel.

    Kernels that the database lacks are compiled and measured, all in one artifact whose steps run in turn, so
    that each finds the caches as another kernel left them. Raises TargetError when the target does not run on
    this machine.
    """
    views = Views(graph)
    calls = {node.name: node_calls(graph, node, target, views) for node in graph.nodes}
    distinct = {call.symbol: call for of_node in calls.values() for call in of_node}
    times = call_times(distinct, graph, target, database, cache=cache, progress=progress)
    return {
        name: sum(times[call.symbol] + NODE_OVERHEAD_US for call in of_node)
        for name, of_node in calls.items()
    }


def call_times(
    distinct: Mapping[str, KernelCall],
    graph: Graph,
    target: Target,
    database: Database,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Microseconds of each of these calls on values of the graph, by symbol; see `kernel_times`."""
    made_by = f"{toolchain()}/{METHOD}"
    known = database.get_many(target.fingerprint, made_by, distinct)
    times = {symbol: entry.median_us for symbol, entry in known.items()}
    missing = {symbol: call for symbol, call in distinct.items() if symbol not in times}
    if missing:
        measured = _measure(missing, graph, target, cache or default_cache(), progress)
        entries = {
            symbol: timed_now(median, spread, REPEATS) for symbol, (median, spread) in measured.items()
        }
        database.put_many(target.fingerprint, made_by, entries)
        times |= {symbol: median for symbol, (median, _) in measured.items()}
    return times


def _measure(
    calls: Mapping[str, KernelCall], graph: Graph, target: Target, cache: Path, progress: Progress | None
) -> dict[str, tuple[float, float]]:
    """(median, interquartile range) in microseconds of each kernel."""
    if not target.runs_here:
        raise TargetError(
            f"kernels for {target.name} cannot be measured here: this CPU lacks its instructions"
        )
    program, fill = _bench_program(calls, graph, target)
    specs = {kernel_symbol(fill): fill, **{symbol: call.spec for symbol, call in calls.items()}}
    objects = kernel_objects(specs, target.isa, cache, progress)
    manifest = Manifest(
        name=program.name,
        inputs=(),
        outputs=(),
        target=target.name,
        features=program.features,
        arena_bytes=program.arena_bytes,
        plan={},
        ledger=(),
        versions={},
    )
    with scratch_folder() as scratch:
        weights = np.zeros(program.weights_bytes, np.uint8)
        place = assemble(program, manifest, objects, weights, scratch / "times", cache)
        with open(place) as artifact:
            artifact.profile(repeats=3)
            runs: dict[str, list[float]] = {symbol: [] for symbol in calls}
            for _ in range(REPEATS):
                for step in artifact.profile(repeats=1):
                    if step.layer != FILL:
                        runs[step.layer].append(step.nanoseconds / 1e3)
    return {symbol: _median_and_range(sorted(values)) for symbol, values in runs.items()}


def _median_and_range(values: list[float]) -> tuple[float, float]:
    n = len(values)
    return values[n // 2], values[3 * n // 4] - values[n // 4]


def _bench_program(calls: Mapping[str, KernelCall], graph: Graph, target: Target) -> tuple[Program, Any]:
    """All kernels one after the other, and the spec of the kernel that fills their activations.

    Activations share memory, as neighbours in a network do; weights are each kernel's own. Both are memory
    that was written: pages that never were are all one page of the system's, which stays in the cache (a
    linear layer with 8 MB of weights seemed five times as fast).
    """

    def size(operand: Operand) -> int:
        known = operand.nbytes if isinstance(operand, Weights | Temporary) else graph.type_of(operand).nbytes
        return -(-(known + SLACK) // ALIGN) * ALIGN

    widest: dict[int, int] = {}
    for call in calls.values():
        for i, operand in enumerate(call.operands):
            if not isinstance(operand, Weights):
                widest[i] = max(widest.get(i, 0), size(operand))
    starts = {i: sum(n for j, n in widest.items() if j < i) for i in widest}
    fill = CopySpec(sum(widest.values()))
    steps = [Step(FILL, kernel_symbol(fill), (Place(Space.WEIGHTS, 0), Place(Space.ARENA, 0)), fill.tasks)]
    weights = 0
    for symbol, call in calls.items():
        places = []
        for i, operand in enumerate(call.operands):
            if isinstance(operand, Weights):
                places.append(Place(Space.WEIGHTS, weights))
                weights += size(operand)
            else:
                places.append(Place(Space.ARENA, starts[i]))
        steps.append(Step(symbol, symbol, tuple(places), call.tasks))
    most = max(weights, fill.nbytes)
    return Program("kernel-times", (), (), tuple(steps), fill.nbytes, most, target.features), fill
