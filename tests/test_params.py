"""Parameters that are read when they are used: what copies, checks and compiles graphs holds few of them."""

import gc

import numpy as np
import pytest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.ir import Graph
from bitsmith.compiler.params import OpenParams, Params, Stored
from bitsmith.compiler.plan import Plan, layers_of
from bitsmith.compiler.reference import run_reference
from bitsmith.passes.apply_plan import apply_plan
from bitsmith.passes.prepare import prepare
from bitsmith.targets.build import build
from bitsmith.targets.target import resolve

LAYERS, WIDTH = 6, 48


class Shelf:
    """Weights that count how often they are read, and how many of them are held at a time."""

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        self.values = [rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 7 for _ in range(LAYERS)]
        self.reads = 0
        self.held = 0
        self.most = 0

    def stored(self, index: int) -> Stored:
        return Stored((WIDTH, WIDTH), "float32", lambda: self._read(index))

    def _read(self, index: int) -> np.ndarray:
        made = _Watched(self, self.values[index])
        self.reads += 1
        return made.array


class _Watched:
    def __init__(self, shelf: Shelf, values: np.ndarray) -> None:
        import weakref

        self.array = values.copy()
        shelf.held += 1
        shelf.most = max(shelf.most, shelf.held)
        weakref.finalize(self.array, self._gone, shelf)

    @staticmethod
    def _gone(shelf: Shelf) -> None:
        shelf.held -= 1


def network(shelf: Shelf, stored: bool = True) -> Graph:
    b = GraphBuilder("net")
    x = b.input("x", (3, WIDTH))
    for i in range(LAYERS):
        weight = shelf.stored(i) if stored else shelf.values[i]
        x = b.add("linear", [x, b.param(f"{i}.weight", weight)], name=f"layer{i}")
        x = b.add("add", [x, b.param(f"{i}.bias", np.full(WIDTH, 0.1, np.float32))], name=f"add{i}")
    x = b.add("mul", [x, b.param("factor", np.float32([0.5]))], name="scaled")
    return b.finish([b.add("silu", [x], name="y")])


def feed() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((3, WIDTH)).astype(np.float32)}


def test_a_stored_array_is_read_when_asked_for_and_let_go():
    shelf = Shelf()
    params = Params({"w": shelf.stored(0), "b": np.zeros(2, np.float32)})
    assert "w" in params and set(params) == {"w", "b"} and len(params) == 2 and shelf.reads == 0
    held = params["w"]
    assert params["w"] is held and shelf.reads == 1
    with pytest.raises(ValueError, match="read-only"):
        held[0, 0] = 1
    del held
    gc.collect()
    assert shelf.held == 0
    np.testing.assert_array_equal(params["w"], shelf.values[0])
    assert shelf.reads == 2


def test_open_params_are_set_and_copied_without_reading():
    shelf = Shelf()
    params = OpenParams({"w": shelf.stored(0)})
    params["v"] = shelf.stored(1)
    del params["w"]
    assert list(Params(params)) == ["v"] and shelf.reads == 0
    with pytest.raises(TypeError):
        Params(params)["v"] = np.zeros(1)  # type: ignore[index]


def test_building_checking_preparing_and_planning_read_no_weight():
    shelf = Shelf()
    graph = network(shelf)
    prepared = prepare(graph)
    planned = apply_plan(prepared, Plan.uniform(prepared, "float32"), None)
    assert len(layers_of(planned)) == LAYERS and planned.param_bytes >= LAYERS * WIDTH * WIDTH * 4
    assert shelf.reads == 0


def test_hashing_and_running_hold_one_weight_at_a_time():
    shelf = Shelf()
    graph, eager = network(shelf), network(shelf, stored=False)
    assert graph.content_hash == eager.content_hash
    np.testing.assert_array_equal(run_reference(graph, feed())["y"], run_reference(eager, feed())["y"])
    assert shelf.reads == 2 * LAYERS and shelf.most <= 2


def test_compiling_holds_few_weights_at_a_time(tmp_path):
    shelf = Shelf()
    prepared = prepare(network(shelf))
    with build(prepared, resolve("host"), tmp_path / "out", cache=tmp_path / "cache") as artifact:
        found = artifact.run(**feed())["y"]
    assert shelf.reads >= LAYERS and shelf.most <= 2
    np.testing.assert_allclose(found, run_reference(prepared, feed())["y"], rtol=1e-4, atol=1e-5)
