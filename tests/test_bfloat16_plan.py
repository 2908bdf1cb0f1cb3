"""Plans with bfloat16 layers: what they make of a graph, which layers cannot have it, what is compiled."""

from __future__ import annotations

import json
from pathlib import Path

import bitsmith
import numpy as np
import pytest
import torch
from bitsmith.compiler import pipeline
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.calibrate import calibrate
from bitsmith.compiler.errors import PlanError
from bitsmith.compiler.ir import Graph
from bitsmith.compiler.plan import Plan, layers_of
from bitsmith.compiler.reference import run_reference
from bitsmith.passes.apply_plan import apply_plan
from bitsmith.passes.prepare import prepare
from nets import imported

RNG = np.random.default_rng(5)
TABLE = RNG.standard_normal((40, 32)).astype(np.float32)
UP = RNG.standard_normal((24, 32)).astype(np.float32)
DOWN = RNG.standard_normal((32, 24)).astype(np.float32)
TOKENS = np.array([3, -1, 39, 0])


def words() -> Graph:
    """A table that is also the weight of the last layer."""
    b = GraphBuilder("words")
    table = b.param("table", TABLE)
    h = b.add("gather", [table, b.input("tokens", (4,), "int64")], name="embed", axis=0)
    h = b.add("linear", [h, b.param("up.w", UP)], name="up", act="clip", lo=0.0)
    h = b.add("linear", [h, b.param("down.w", DOWN)], name="down")
    return b.finish([b.add("linear", [h, table], name="head")])


def rounded(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array)).bfloat16().float()


def words_by_torch() -> np.ndarray:
    """Every weight and everything that is multiplied with one rounded, sums in float32."""
    h = rounded(TABLE)[torch.from_numpy(TOKENS % 40)]
    h = (rounded(h.numpy()) @ rounded(UP).T).relu()
    h = rounded(h.numpy()) @ rounded(DOWN).T
    return (rounded(h.numpy()) @ rounded(TABLE).T).numpy()


def close(got: np.ndarray, want: np.ndarray) -> bool:
    """But for activations at a tie, which another order of sums moves to the other bfloat16."""
    return bool(np.abs(got - want).max() <= 2e-3 * np.abs(want).max())


def test_a_uniform_plan_makes_layers_and_tables_bfloat16() -> None:
    graph = words()
    plan = Plan.uniform(graph, "bfloat16")
    assert dict(plan.layers) == dict.fromkeys(("up", "down", "head", "embed"), "bfloat16")
    planned = apply_plan(graph, plan, None)
    stored = {planned.type_of(node.inputs[1]).dtype for node in layers_of(planned)}
    assert stored == {"bfloat16"} and planned.type_of(planned.node("embed").inputs[0]).dtype == "uint16"
    assert planned.param_bytes == 2 * (2 * TABLE.size + UP.size + DOWN.size) + 4
    np.testing.assert_array_equal(
        planned.params[planned.node("up").inputs[1]].astype(np.float32), rounded(UP).numpy()
    )
    (got,) = run_reference(planned, {"tokens": TOKENS}).values()
    assert close(got, words_by_torch()) and got.dtype == np.float32


def test_what_is_compiled_computes_the_same_and_diff_agrees(tmp_path: Path) -> None:
    graph = words()
    with pipeline.compile(graph, plan=Plan.uniform(graph, "bfloat16")) as artifact:
        (got,) = artifact.run(tokens=TOKENS).values()
        artifact.save(tmp_path / "words")
    assert close(got, words_by_torch())
    report = pipeline.diff(graph, tmp_path / "words")
    assert report.ok and report.layer("up").choice == "bfloat16"
    with bitsmith.open(tmp_path / "words") as artifact:
        rows = {row["layer"]: row for row in artifact.manifest.ledger}
    assert rows["up"]["choice"] == "bfloat16" and rows["up"]["bits"] == 16
    assert rows["up"]["weight_bytes"] * 2 == rows["up"]["float_bytes"]


def test_layers_of_three_choices_stand_beside_each_other() -> None:
    """Against the float network: no layer loses more than its format must."""
    source, x, y = imported("resnet")
    graph = prepare(source)
    names = [node.name for node in layers_of(graph)]
    choices = dict(zip(names, ("bfloat16", "int8", "float32") * len(names), strict=False))
    ranges = calibrate(graph, np.concatenate([x, -x]))
    planned = apply_plan(graph, Plan(graph.name, choices), ranges)
    kinds = {node.name: planned.type_of(node.inputs[1]).dtype for node in layers_of(planned)}
    assert kinds == choices
    (got,) = run_reference(planned, {graph.inputs[0][0]: x}).values()
    assert np.abs(got - y).max() < 0.15 * np.abs(y).max()


def test_a_bfloat16_network_is_near_the_float_one() -> None:
    source, x, y = imported("mobilenet_v2")
    graph = prepare(source)
    plan = Plan.uniform(graph, "bfloat16")
    (got,) = run_reference(apply_plan(graph, plan, None), {graph.inputs[0][0]: x}).values()
    assert 0 < np.abs(got - y).max() < 0.05 * np.abs(y).max()
    alone = {n.name for n in layers_of(graph) if n.op == "conv2d" and n.attrs.get("groups", 1) > 1}
    assert alone and {name for name, choice in plan.layers.items() if choice == "float32"} == alone
    with pytest.raises(PlanError, match="depthwise convolution.*choose float32 or int8"):
        plan.with_choice(min(alone), "bfloat16").validate(graph)


def test_layers_that_came_as_int8_stay_so() -> None:
    b = GraphBuilder("codes")
    w, scale = b.param("w", np.ones((4, 6), np.int8)), b.param("s", np.ones(4, np.float32))
    y = b.add("linear", [b.input("x", (2, 6), "uint8"), w, "", "", scale], name="fc")
    graph = b.finish([y])
    assert Plan.uniform(graph, "bfloat16").choice("fc") == "int8"
    assert apply_plan(graph, Plan("codes", {"fc": "bfloat16"}), None) is graph


def test_the_plan_file_says_so() -> None:
    plan = Plan("words", {"up": "bfloat16", "down": "int8"})
    data = json.loads(plan.to_text())
    assert data["version"] == 2
    assert data["layers"]["up"] == {"weights": "bfloat16", "activations": "bfloat16"}
    assert Plan.from_text(plan.to_text()) == plan
