"""Graphs whose layers' weights become codes: the same network but for what the codes lose."""

from __future__ import annotations

import numpy as np
import pytest
from bitsmith.compiler.analysis.cost import layer_storage, node_cost
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.errors import PlanError
from bitsmith.compiler.formats import bits_per_weight, decode, encode, format_of
from bitsmith.compiler.ir import Graph
from bitsmith.compiler.plan import Plan, free_layers_of, layers_of
from bitsmith.compiler.reference import run_reference
from bitsmith.passes.apply_plan import apply_plan
from bitsmith.passes.code_layers import code_layers, round_layers
from bitsmith.targets.build import build
from bitsmith.targets.target import resolve
from one_graph import disagreement


def words() -> Graph:
    """An embedding tied to the head, a layer with bias, residual and activation, one without."""
    rng = np.random.default_rng(2)
    b = GraphBuilder("words")

    def param(name: str, *shape: int) -> str:
        return b.param(name, (rng.standard_normal(shape) / shape[-1] ** 0.5).astype(np.float32))

    table = param("table", 40, 64)
    h = b.add("gather", [table, b.input("tokens", (3,), "int64")], name="embed", axis=0)
    up = b.add("linear", [h, param("up.w", 96, 64), param("up.b", 96)], name="up", act="silu")
    h = b.add("linear", [up, param("down.w", 64, 96), "", h], name="down")
    return b.finish([b.add("linear", [h, table], name="head")])


FEED = {"tokens": np.array([3, 39, -2])}


def decoded(graph: Graph, plan: Plan) -> Graph:
    """The graph with the values that the codes stand for, in float32."""
    params = dict(graph.params)
    for name, coded in round_layers(graph, plan).items():
        node = graph.node(name)
        params[node.inputs[1 if node.op == "linear" else 0]] = decode(coded)
    return graph.with_nodes(graph.nodes, params=params)


@pytest.mark.parametrize("format", ["int4:32", "bitmod4:64", "int8:channel", "shiftadd3:32"])
def test_float_activations_give_what_the_decoded_weights_give(format: str) -> None:
    graph = words()
    plan = Plan.uniform(graph, f"{format}@float32")
    coded = apply_plan(graph, plan, None)
    assert [n.op for n in coded.nodes] == ["coded_gather", *["coded_linear"] * 3]
    assert [n.name for n in coded.nodes] == [n.name for n in graph.nodes] and coded.outputs == graph.outputs
    (want,) = run_reference(decoded(graph, plan), FEED).values()
    (got,) = run_reference(coded, FEED).values()
    assert not disagreement(got, want)


def test_activations_of_8_bits_are_near_and_by_group_nearer() -> None:
    graph = words()
    (want,) = run_reference(graph, FEED).values()
    errors = {}
    for reads in ("float32", "int8:group", "int8:token"):
        (got,) = run_reference(
            apply_plan(graph, Plan.uniform(graph, f"int8:32@{reads}"), None), FEED
        ).values()
        errors[reads] = float(np.abs(got - want).mean() / np.abs(want).mean())
    assert errors["float32"] < errors["int8:group"] < errors["int8:token"] < 0.03


def test_tied_layers_share_their_codes_and_others_are_gone() -> None:
    coded = apply_plan(words(), Plan.uniform(words(), "int4:32"), None)
    assert coded.node("embed").inputs[1:] == coded.node("head").inputs[1:]
    assert "table" not in coded.params and "up.w" not in coded.params and "up.b" in coded.params
    mixed = Plan.uniform(words(), "int4:32").with_choice("head", "int8:channel")
    apart = apply_plan(words(), mixed, None)
    assert apart.node("embed").inputs[1] != apart.node("head").inputs[1]


def test_what_a_plan_leaves_out_stays_float() -> None:
    graph = words()
    coded = apply_plan(graph, Plan("words", {"up": "nf4:64"}), None)
    assert [n.op for n in coded.nodes] == ["gather", "coded_linear", "linear", "linear"]
    assert [n.name for n in layers_of(coded)] == ["up", "down", "head"]
    assert [n.name for n in free_layers_of(coded)] == ["down", "head"]


def test_storage_and_cost_count_the_codes() -> None:
    graph = words()
    format = format_of("bitmod4:64")
    node = apply_plan(graph, Plan.uniform(graph, "bitmod4:64"), None).node("down")
    coded = apply_plan(graph, Plan.uniform(graph, "bitmod4:64"), None)
    storage = layer_storage(coded, node)
    assert storage.weights == 64 * 96 and storage.bits == pytest.approx(bits_per_weight(format, 96))
    assert node_cost(coded, node).macs == 3 * 64 * 96


def test_given_codes_are_taken_as_they_are() -> None:
    graph = words()
    up = encode(-graph.params["up.w"], format_of("int8:channel"))
    coded = code_layers(graph, {"up": up}, {"up": "float32"})
    negative = dict(graph.params) | {"up.w": decode(up)}
    (want,) = run_reference(graph.with_nodes(graph.nodes, params=negative), FEED).values()
    (got,) = run_reference(coded, FEED).values()
    assert not disagreement(got, want)


def test_a_mixed_plan_compiles() -> None:
    graph = words()
    plan = Plan("words", {"embed": "int8:channel", "up": "bitmod4:64", "down": "int4a:32@int8:group"})
    planned = apply_plan(graph, plan, None)
    (want,) = run_reference(planned, FEED).values()
    with build(planned, resolve("host")) as artifact:
        (got,) = artifact.run(**FEED).values()
    assert not disagreement(got, want)


def test_what_cannot_be_codes_is_explained() -> None:
    graph = words()
    up = encode(graph.params["up.w"], format_of("int4:32"))
    with pytest.raises(PlanError, match="'words' has no layer upp to make codes of"):
        code_layers(graph, {"upp": up})
    with pytest.raises(PlanError, match=r"codes of shape \[96, 64\] for the weight \[64, 96\] of 'down'"):
        code_layers(graph, {"down": up})
    with pytest.raises(PlanError, match="'up' is coded_linear"):
        code_layers(code_layers(graph, {"up": up}), {"up": up})
    b = GraphBuilder("computed")
    w = b.input("w", (96, 64))
    computed = b.finish([b.add("linear", [b.input("x", (1, 64)), w], name="up")])
    with pytest.raises(PlanError, match="'up' computes its weight"):
        code_layers(computed, {"up": up})
