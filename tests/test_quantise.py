"""Planned graphs: what is stored how, and that they compute what rounding the numbers would compute."""

import os

import numpy as np
import pytest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.calibrate import Ranges, calibrate
from bitsmith.compiler.errors import InputError, ModelError, PlanError
from bitsmith.compiler.plan import Calibration, Plan, layers_of
from bitsmith.compiler.reference import run_reference
from bitsmith.compiler.text import print_graph
from bitsmith.compiler.verify import verify
from bitsmith.passes.apply_plan import apply_plan, conversions
from bitsmith.passes.prepare import prepare
from bitsmith.passes.quantise import qparams, quantise_weights
from bitsmith.passes.smooth import smooth
from golden_passes import FOLDER, SEPARATOR, graph_from_text, random_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from quantised_simulation import simulate
from random_graphs import PLAIN_STEPS, graphs

CASES = sorted(file.stem for file in (FOLDER / "apply_plan").glob("*.txt"))


def round_ranges(graph):
    """Ranges that make every step 0.01: 0 to 2.55 for values called pos..., -1.28 to 1.27 for the others."""
    values = {
        v: (0.0, 2.55) if v.startswith("pos") else (-1.28, 1.27) for v in graph.types if v not in graph.params
    }
    return Ranges(values, {}, Calibration("minmax"), 1)


def plan_by_names(graph):
    """int8 for the layers whose name says so."""
    choices = {n.name: "int8" if n.name.startswith("int8") else "float32" for n in layers_of(graph)}
    return Plan(graph.name, choices)


@pytest.mark.parametrize("case", CASES)
def test_golden(case):
    file = FOLDER / "apply_plan" / f"{case}.txt"
    source, _, wanted = file.read_text(encoding="utf-8").partition(SEPARATOR)
    graph = graph_from_text(source)
    found = print_graph(verify(apply_plan(graph, plan_by_names(graph), round_ranges(graph)), case))
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(print_graph(graph) + SEPARATOR + found, encoding="utf-8")
    else:
        assert found == wanted


def sample_inputs(graph, count, seed=3):
    return [random_inputs(graph, seed + i) for i in range(count)]


def real_values(planned, inputs):
    """Every value that the planned graph makes, as it is stored."""
    seen = {}
    run_reference(planned, inputs, lambda value, array: seen.setdefault(value, array.copy()))
    return seen


def assert_as_simulated(graph, plan, ranges, inputs):
    planned = apply_plan(graph, plan, ranges)
    graph, ranges = smooth(graph, plan, ranges)
    stored = {v for v in graph.types if v in planned.types and planned.type_of(v).dtype == "uint8"}
    wanted = simulate(graph, plan, ranges, stored, inputs)
    found = run_reference(planned, inputs)
    for value in graph.outputs:
        size = max(float(np.abs(wanted[value]).max()), 1e-6)
        # A number near a rounding tie may go the other way: then a later one differs by about a step.
        np.testing.assert_allclose(found[value], wanted[value], atol=0.02 * size)
        assert np.abs(found[value] - wanted[value]).mean() < 0.004 * size
    return planned


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    graph=graphs(PLAIN_STEPS, most=7),
    choices=st.lists(st.sampled_from(["int8", "int8", "float32"]), min_size=20),
)
def test_random_plans_compute_what_rounding_would(graph, choices):
    graph = prepare(graph)
    names = [node.name for node in layers_of(graph)]
    plan = Plan(graph.name, dict(zip(names, choices, strict=False)))
    data = sample_inputs(graph, 3)
    ranges = calibrate(graph, data, method="minmax")
    planned = assert_as_simulated(graph, plan, ranges, data[0])
    assert planned.inputs == graph.inputs
    assert [node.name for node in layers_of(planned)] == names
    for name in names:
        dtype = planned.type_of(planned.node(name).inputs[1]).dtype
        assert dtype == ("int8" if plan.choice(name) == "int8" else "float32")
    assert apply_plan(graph, plan, ranges).content_hash == planned.content_hash


def block(rng, act="clip"):
    """A stem, an inverted residual, a pool and a classifier."""
    b = GraphBuilder("block")

    def layer(op, inputs, name, *shape, **attrs):
        w = (rng.normal(size=shape) / np.prod(shape[1:]) ** 0.5).astype(np.float32)
        bias = rng.normal(size=shape[0]).astype(np.float32)
        operands = [inputs[0], b.param(f"{name}.w", w), b.param(f"{name}.b", bias), *inputs[1:]]
        return b.add(op, operands, name=name, output=f"{name}.out", **attrs)

    clip = {"act": "clip", "lo": 0.0, "hi": 3.0} if act == "clip" else {"act": act}
    x = b.input("x", (1, 3, 12, 12))
    s = layer("conv2d", [x], "stem", 8, 3, 3, 3, strides=(2, 2), pads=(0, 0, 1, 1), **clip)
    y = layer("conv2d", [s], "expand", 24, 8, 1, 1, **clip)
    y = layer("conv2d", [y], "depthwise", 24, 1, 3, 3, groups=24, pads=(1, 1, 1, 1), **clip)
    y = layer("conv2d", [y, s], "project", 8, 24, 1, 1)
    y = layer("conv2d", [y], "head", 16, 8, 1, 1, **clip)
    y = b.add("reduce_mean", [y], axes=(2, 3), keepdims=False)
    return prepare(b.finish([layer("linear", [y], "fc", 10, 16)]))


@pytest.mark.parametrize("act", ["clip", "hard_swish", "silu"])
@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_uniform_int8_is_as_simulated_and_close_to_float(rng, act, method):
    graph = block(rng, act)
    data = sample_inputs(graph, 12)
    ranges = calibrate(graph, data[:8], method=method, percentile=99.9)
    plan = Plan.uniform(graph, "int8")
    noise = signal = 0.0
    for inputs in data[8:]:
        planned = assert_as_simulated(graph, plan, ranges, inputs)
        want = run_reference(graph, inputs)[graph.outputs[0]]
        found = run_reference(planned, inputs)[graph.outputs[0]]
        noise, signal = noise + ((found - want) ** 2).sum(), signal + (want**2).sum()
    assert 10 * np.log10(signal / noise) > 25
    kinds = {node.name: node.type.dtype for node in planned.nodes}
    assert kinds == {
        "x.q8": "uint8",
        **dict.fromkeys(("stem", "expand", "depthwise", "project"), "uint8"),
        "head": "float32",  # only a mean reads it
        graph.nodes[5].name: "float32",
        planned.nodes[-2].name: "uint8",
        "fc": "float32",
    }
    assert all(planned.params[p].dtype != np.float32 or p.endswith(".scale") for p in planned.params)


def test_float_plans_give_the_graph_itself(rng):
    graph = block(rng)
    assert apply_plan(graph, Plan.uniform(graph, "float32"), None) is graph
    assert apply_plan(graph, Plan(graph.name, {}), None) is graph
    assert set(conversions(graph).values()) == {0}


def test_conversions_are_counted_at_their_first_reader(rng):
    graph = block(rng)
    ranges = calibrate(graph, sample_inputs(graph, 2))
    plan = Plan.uniform(graph, "int8")
    assert conversions(apply_plan(graph, plan, ranges)) == {
        **dict.fromkeys(("stem", "fc"), 1),
        **dict.fromkeys(("expand", "depthwise", "project", "head"), 0),
    }
    # A float depthwise layer in between needs its input in float32 and can write uint8 itself.
    mixed = apply_plan(graph, plan.with_choice("depthwise", "float32"), ranges)
    assert conversions(mixed)["project"] == 0
    assert mixed.node("expand").type.dtype == "float32"
    assert mixed.node("depthwise").type.dtype == "uint8"


def test_plans_and_ranges_must_fit(rng):
    graph = block(rng)
    ranges = calibrate(graph, sample_inputs(graph, 1))
    with pytest.raises(PlanError, match="calibration samples are needed"):
        apply_plan(graph, Plan.uniform(graph, "int8"), None)
    with pytest.raises(PlanError, match=r"'steem' \(did you mean stem"):
        apply_plan(graph, Plan("block", {"steem": "int8"}), ranges)
    with pytest.raises(InputError, match="made for another graph"):
        apply_plan(graph, Plan.uniform(graph, "int8"), Ranges({}, {}, Calibration(), 1))


@given(low=st.floats(-1e6, 1e6), width=st.floats(0, 1e6))
def test_zero_is_always_exact(low, width):
    params = qparams(low, low + width)
    assert params.scale > 0
    assert 0 <= params.zero <= 255
    top, bottom = (255 - params.zero) * params.scale, -params.zero * params.scale
    assert bottom <= min(low, 0) + 0.51 * params.scale
    assert top >= max(low + width, 0) - 0.51 * params.scale


def test_weights_round_to_the_nearest_step(rng):
    w = rng.normal(size=(5, 4, 3, 3)).astype(np.float32)
    bias = rng.normal(size=5).astype(np.float32)
    stored = quantise_weights("layer", w, bias, 0.02)
    scale = stored.scale.reshape(5, 1, 1, 1)
    assert stored.w.dtype == np.int8
    assert (np.abs(stored.w.reshape(5, -1)).max(1) == 127).all()
    assert (np.abs(stored.w * scale - w) <= 0.5001 * scale).all()
    np.testing.assert_allclose(stored.bias * stored.scale * 0.02, bias, atol=0.51 * stored.scale.max() * 0.02)
    assert quantise_weights("layer", w, None, 0.02).bias is None


def test_a_dead_channel_and_a_huge_bias():
    w = np.zeros((3, 2, 1, 1), np.float32)
    w[1] = 1e-4
    bias = np.array([0.0, 3e5, 5e4], np.float32)
    stored = quantise_weights("layer", w, bias, 1e-4)
    assert np.isfinite(stored.scale).all()
    assert (stored.scale > 0).all()
    assert not stored.w[0].any()
    assert not stored.w[2].any()
    assert np.abs(stored.bias.astype(np.int64)).max() <= 2**30
    np.testing.assert_allclose(stored.bias * stored.scale * 1e-4, bias, rtol=1e-6)


def test_the_bias_makes_up_for_rounded_weights(rng):
    w = rng.normal(size=(6, 5)).astype(np.float32)
    x = rng.uniform(1.0, 2.0, (4000, 5))
    means = x.mean(0)
    stored = quantise_weights("layer", w, None, 1e-4, means)
    shift = x @ (stored.w * stored.scale[:, None] - w).T + stored.bias * stored.scale * 1e-4
    np.testing.assert_allclose(shift.mean(0), 0, atol=1e-5)
    plain = quantise_weights("layer", w, None, 1e-4)
    assert np.abs((x @ (plain.w * plain.scale[:, None] - w).T).mean(0)).max() > 1e-3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_an_error_of_the_model(rng, bad):
    graph = block(rng)
    ranges = calibrate(graph, sample_inputs(graph, 1))
    broken = graph.params["expand.w"].copy()
    broken[0, 0] = bad
    graph = graph.with_nodes(graph.nodes, params={**graph.params, "expand.w": broken})
    with pytest.raises(ModelError, match="layer 'expand' has NaN or infinite weights"):
        apply_plan(graph, Plan.uniform(graph, "int8"), ranges)


def test_an_input_that_is_always_zero(rng):
    graph = block(rng)
    ranges = calibrate(graph, [{"x": np.zeros((1, 3, 12, 12), np.float32)}])
    planned = apply_plan(graph, Plan.uniform(graph, "int8"), ranges)
    inputs = {"x": np.zeros((1, 3, 12, 12), np.float32)}
    want, found = run_reference(graph, inputs)["fc.out"], run_reference(planned, inputs)["fc.out"]
    np.testing.assert_allclose(found, want, atol=0.03 * np.abs(want).max())
