"""Tiles by measuring: the best is taken, computes the same, and is kept only if the whole is faster."""

from __future__ import annotations

from types import SimpleNamespace

import bitsmith
import numpy as np
import pytest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.cli import main
from bitsmith.compiler.database import Database
from bitsmith.compiler.errors import TargetError
from bitsmith.compiler.ir import Graph
from bitsmith.compiler.pipeline import tuning
from bitsmith.compiler.reference import run_reference
from bitsmith.targets import tune
from bitsmith.targets.kernels.conv.gemm_spec import GemmSpec
from bitsmith.targets.kernels.tiling import best_tile, likely_tiles
from bitsmith.targets.lower import node_calls
from bitsmith.targets.target import TARGETS, resolve
from bitsmith.targets.tune import tile_reasons, tuned_target
from bitsmith.targets.views import Views

HOST = resolve("host")


def network() -> Graph:
    """Two convolutions and an activation, NHWC as passes/layout.py makes it."""
    rng = np.random.default_rng(0)
    b = GraphBuilder("tuned")
    x = b.input("x", (1, 6, 6, 16))
    for name, oc, size in (("spatial", 24, 3), ("pointwise", 40, 1)):
        w = b.param("w", rng.standard_normal((oc, 16 if size == 3 else 24, size, size)).astype(np.float32))
        x = b.add("conv2d", [x, w], name=name, layout="NHWC", pads=(size // 2,) * 4)
    return b.finish([b.add("silu", [x], name="act")])


def specs(graph: Graph, target: object) -> list[GemmSpec]:
    calls = [call for node in graph.nodes for call in node_calls(graph, node, target, Views(graph))]
    return [call.spec for call in calls if isinstance(call.spec, GemmSpec)]


def prefer(monkeypatch: pytest.MonkeyPatch, place: int, margin: float = 0.5) -> list[str]:
    """Times in which the tile at that place of each spec's list is the best; returns what was timed."""
    asked: list[str] = []

    def times(calls, graph, target, database, *, cache=None, progress=None):
        asked.extend(calls)
        tiles = {symbol: (call.spec.tile, call.spec.likely_tiles) for symbol, call in calls.items()}
        return {s: margin if tile == all_[place] else 1.0 for s, (tile, all_) in tiles.items()}

    monkeypatch.setattr(tune, "call_times", times)
    return asked


@pytest.mark.parametrize("place", [1, -1])
def test_the_measured_best_is_taken_and_computes_the_same(monkeypatch, tmp_path, place):
    graph, asked = network(), prefer(monkeypatch, place)
    target = tuned_target(graph, HOST, Database(tmp_path / "times.db"))
    assert [spec.tile for spec in specs(graph, target)] == [s.likely_tiles[place] for s in specs(graph, HOST)]
    assert len(asked) == sum(len(s.likely_tiles) for s in specs(graph, HOST))
    assert set(tile_reasons(graph, target)) == {"spatial", "pointwise"} and not tile_reasons(graph, HOST)
    feed = {"x": np.random.default_rng(1).standard_normal((1, 6, 6, 16)).astype(np.float32)}
    from bitsmith.targets.build import build

    with build(graph, target) as artifact:
        found = artifact.run(**feed)["act"]
    np.testing.assert_allclose(found, run_reference(graph, feed)["act"], rtol=1e-4, atol=1e-4)


def test_a_gain_within_noise_changes_nothing(monkeypatch, tmp_path):
    prefer(monkeypatch, 1, margin=0.98)
    target = tuned_target(network(), HOST, Database(tmp_path / "times.db"))
    assert specs(network(), target) == specs(network(), HOST)


def test_real_times_are_kept(tmp_path):
    database = Database(tmp_path / "times.db")
    first = tuned_target(network(), HOST, database)
    count = database.count()
    again = tuned_target(network(), HOST, database)
    assert count == sum(len(s.likely_tiles) for s in specs(network(), HOST)) == database.count()
    assert first.isa.tiles == again.isa.tiles


def test_the_models_tile_comes_first_and_all_fit():
    for spec in specs(network(), HOST):
        first, *others = spec.likely_tiles
        assert first == spec.tile and others and first not in others
        assert all(rows * vectors <= 0.75 * spec.registers for rows, vectors in spec.likely_tiles)
    cost = specs(network(), HOST)[0].mac.cost
    narrow = likely_tiles(40, 8, 16, cost, width=2)
    assert narrow[0] == best_tile(40, 8, 16, cost, 2) and {vectors for _, vectors in narrow} == {2}


@pytest.mark.parametrize("ratio", [0.9, 1.1])
def test_the_whole_model_decides(monkeypatch, ratio):
    prefer(monkeypatch, 1)
    monkeypatch.setattr(
        tuning, "measure_latency", lambda *a, **k: {"tuned": SimpleNamespace(ratio_to_first=ratio)}
    )
    b = GraphBuilder("linear")
    w = b.param("w", np.ones((96, 32), np.float32))
    graph = b.finish([b.add("linear", [b.input("x", (40, 32)), w], name="fc")])
    with bitsmith.compile(graph, tune=True) as artifact:
        (row,) = artifact.ledger
        np.testing.assert_allclose(artifact.run(np.ones((40, 32), np.float32))["fc"], 32.0)
    assert ("measured faster than" in row["reason"]) == (ratio < 1)


def test_another_machines_target_is_refused(tmp_path, capsys):
    import onnx
    from onnx_models import model, node

    path = tmp_path / "m.onnx"
    onnx.save(model([node("Relu", "x", "y")], {"x": (1, 4)}), path)
    away = next((name for name, t in TARGETS.items() if not t.runs_here), None)
    if away is None:
        pytest.skip("this machine runs every target")
    with pytest.raises(SystemExit):
        main(["compile", str(path), "-o", str(tmp_path / "out"), "--tune", "--target", away])
    assert "leave it out for" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(TargetError, match="cannot be measured here"):
        tuned_target(network(), TARGETS[away], Database(tmp_path / "times.db"))
