"""Kernel times: asked of the database first, measured on this machine only; no time is asserted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.database import Database, timed_now
from bitsmith.compiler.errors import InputError, TargetError
from bitsmith.compiler.ir import Graph
from bitsmith.targets import latency
from bitsmith.targets.call import Weights
from bitsmith.targets.latency import NODE_OVERHEAD_US, kernel_times
from bitsmith.targets.lower import node_calls
from bitsmith.targets.program import Program, Space
from bitsmith.targets.target import TARGETS, resolve
from bitsmith.targets.views import Views

HOST = resolve("host")


def network(width: int = 24) -> Graph:
    """Two layers that are one kernel, a residual, a node of several kernels, two that need none."""
    rng = np.random.default_rng(0)
    b = GraphBuilder("timed")
    x = b.input("x", (5, width))
    for name in ("first", "second"):
        w = b.param("w", rng.standard_normal((width, width)).astype(np.float32))
        x = b.add("linear", [x, w], name=name)
    wide = b.add(
        "linear", [x, b.param("w", np.ones((width, width), np.float32)), "", x], name="residual", act="gelu"
    )
    flat = b.add("reshape", [wide], name="alias", shape=(5 * width,))
    none = b.add("slice", [flat], name="empty", starts=(2,), stops=(2,), steps=(1,))
    return b.finish([b.add("softmax", [wide], name="softmax", axis=1), flat, none])


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    path = tmp_path_factory.mktemp("times") / "times.db"
    return path, kernel_times(network(), HOST, Database(path))


def test_every_node_has_a_time(measured: tuple[Path, dict[str, float]]) -> None:
    graph, (_, times) = network(), measured
    assert list(times) == [node.name for node in graph.nodes]
    for node in graph.nodes:
        calls = node_calls(graph, node, HOST, Views(graph))
        assert times[node.name] > NODE_OVERHEAD_US * len(calls) or times[node.name] == 0.0
        assert (times[node.name] == 0.0) == (node.name in ("alias", "empty"))
    assert times["first"] == times["second"]  # one kernel


def test_known_times_are_not_measured(
    measured: tuple[Path, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, times = measured
    monkeypatch.setattr(latency, "_measure", lambda *args: pytest.fail("measured what was known"))
    assert kernel_times(network(), HOST, Database(path)) == times


def test_only_what_is_missing_is_measured(
    measured: tuple[Path, dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[str]] = []

    def record(calls: dict[str, Any], *args: Any) -> dict[str, tuple[float, float]]:
        asked.append(set(calls))
        return dict.fromkeys(calls, (1000.0, 1.0))

    monkeypatch.setattr(latency, "_measure", record)
    b = GraphBuilder("more")
    x = b.input("x", (5, 24))
    y = b.add("linear", [x, b.param("w", np.zeros((24, 24), np.float32))], name="known")
    graph = b.finish([b.add("tanh", [y], name="new")])
    times = kernel_times(graph, HOST, Database(measured[0]))
    (call,) = node_calls(graph, graph.node("new"), HOST, Views(graph))
    assert asked == [{call.symbol}]
    assert times["known"] == measured[1]["first"] and times["new"] == 1000.0 + NODE_OVERHEAD_US


def test_times_come_from_the_database(tmp_path: Path) -> None:
    """What another process wrote is taken, for this chip and toolchain only."""
    graph, database = network(40), Database(tmp_path / "times.db")
    calls = {call.symbol for node in graph.nodes for call in node_calls(graph, node, HOST, Views(graph))}
    made_by = f"{latency.toolchain()}/{latency.METHOD}"
    database.put_many("another chip", made_by, {s: timed_now(9.0, 0.0, 1) for s in calls})
    database.put_many(HOST.fingerprint, "another toolchain", {s: timed_now(8.0, 0.0, 1) for s in calls})
    database.put_many(HOST.fingerprint, made_by, {s: timed_now(7.0, 0.0, 1) for s in calls})
    assert kernel_times(graph, HOST, database)["first"] == 7.0 + NODE_OVERHEAD_US


def test_a_target_that_does_not_run_here_is_refused_before_compiling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = next((target for target in TARGETS.values() if not target.runs_here), None)
    if foreign is None:
        pytest.skip("this machine runs every target")
    monkeypatch.setattr(latency, "kernel_objects", lambda *args: pytest.fail("compiled for nothing"))
    database = Database(tmp_path / "times.db")
    with pytest.raises(TargetError, match=f"{foreign.name} cannot be measured here"):
        kernel_times(network(), foreign, database)
    assert database.count() == 0


def test_a_damaged_database_says_so(tmp_path: Path) -> None:
    path = tmp_path / "times.db"
    database = Database(path)
    path.write_bytes(b"not a database at all " * 400)
    with pytest.raises(InputError, match="times.db.*delete it"):
        kernel_times(network(), HOST, database)


def test_kernels_are_timed_on_memory_that_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights in the mapped file, each kernel's own; activations filled first."""
    seen: list[tuple[Program, np.ndarray]] = []
    real = latency.assemble

    def record(program: Program, manifest: Any, objects: Any, weights: np.ndarray, *rest: Any) -> Path:
        seen.append((program, weights))
        return real(program, manifest, objects, weights, *rest)

    monkeypatch.setattr(latency, "assemble", record)
    graph = network()
    calls = {c.symbol: c for node in graph.nodes for c in node_calls(graph, node, HOST, Views(graph))}
    times = latency._measure(calls, graph, HOST, latency.default_cache(), None)
    assert set(times) == set(calls)
    ((program, weights),) = seen
    assert weights.nbytes == program.weights_bytes
    fill, *steps = program.steps
    assert [p.space for p in fill.places] == [Space.WEIGHTS, Space.ARENA] and fill.places[1].offset == 0
    taken: list[int] = []
    for step in steps:
        call = calls[step.symbol]
        spaces = [Space.WEIGHTS if isinstance(op, Weights) else Space.ARENA for op in call.operands]
        own = [p.offset for p in step.places if p.space is Space.WEIGHTS]
        assert [p.space for p in step.places] == spaces and step.tasks == call.tasks
        taken += own
    assert len(set(taken)) == len(taken) == 2  # those of `first` and `second`, and of `residual`
