"""Samples, sensitivities, the cost table and the posterior, each against its definition."""

import numpy as np
import pytest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.calibrate import calibrate
from bitsmith.compiler.errors import InputError
from bitsmith.compiler.measure.quality import mean_kl, squared_error
from bitsmith.compiler.plan import Plan, layers_of
from bitsmith.compiler.reference import run_reference
from bitsmith.passes.apply_plan import apply_plan
from bitsmith.passes.prepare import prepare
from bitsmith.search import sensitivity as sensitivity_module
from bitsmith.search.allocation import Problem
from bitsmith.search.belief import Belief, posterior
from bitsmith.search.costs import cost_table, layer_edges
from bitsmith.search.data import SEARCH_SAMPLES, split
from bitsmith.search.sensitivity import layer_effects
from synthetic_search import Synthetic


def residual_network():
    """stem -> a -> b (+ stem) -> pool -> head, in NCHW as a frontend makes it."""
    rng = np.random.default_rng(0)

    def weights(*shape):
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    b = GraphBuilder("residual")
    x = b.input("x", (1, 3, 12, 12))
    relu = {"act": "clip", "lo": 0.0}
    stem = b.add(
        "conv2d",
        [x, b.param("w0", weights(8, 3, 3, 3))],
        name="stem",
        strides=(2, 2),
        pads=(1, 1, 1, 1),
        **relu,
    )
    one = b.add(
        "conv2d", [stem, b.param("w1", weights(8, 1, 3, 3))], name="a", groups=8, pads=(1, 1, 1, 1), **relu
    )
    two = b.add("conv2d", [one, b.param("w2", weights(8, 8, 1, 1))], name="b")
    total = b.add("add", [two, stem])
    mean = b.add("reduce_mean", [total], axes=(2, 3), keepdims=False)
    y = b.add("linear", [mean, b.param("w3", weights(5, 8))], name="head")
    return prepare(b.finish([y]))


@pytest.fixture(scope="module")
def network():
    graph = residual_network()
    samples = np.random.default_rng(1).standard_normal((12, 3, 12, 12)).astype(np.float32)
    return graph, samples, calibrate(graph, samples)


def test_sensitivities_equal_whole_runs_of_one_layer_plans(network, monkeypatch):
    graph, samples, ranges = network
    base = Plan.uniform(graph, "float32")
    plans = {n.name: apply_plan(graph, base.with_choice(n.name, "int8"), ranges) for n in layers_of(graph)}
    feed = {"x": samples[:1]}
    expected = run_reference(graph, feed)
    (out,) = graph.outputs
    ran = []
    real = sensitivity_module.run_node
    monkeypatch.setattr(
        sensitivity_module, "run_node", lambda g, node, v: ran.append(node.name) or real(g, node, v)
    )
    effects = layer_effects(graph, plans, feed)
    for name, variant in plans.items():
        whole = run_reference(variant, feed)[out]
        assert effects[name].kl == pytest.approx(mean_kl(expected[out], whole), abs=1e-12)
        assert effects[name].error == pytest.approx(squared_error(expected[out], whole), rel=1e-9)
        assert effects[name].error > 0
    assert ran.count("stem") == 2, "run again only where it is int8, and where it stores for a as int8"


def test_edges_join_layers_across_other_nodes(network):
    graph, *_ = network
    assert set(layer_edges(graph)) == {("stem", "a"), ("a", "b"), ("stem", "b"), ("b", "head")}


def test_the_table_predicts_the_plans_it_was_not_made_from(network):
    """Times by rule: 10 in float32, 4 in int8, 1 more to read or write another type, 2 for a conversion."""
    graph, _, ranges = network

    def measure(int8):
        plan = Plan.uniform(graph, "float32")
        for name in int8:
            plan = plan.with_choice(name, "int8")
        planned = apply_plan(graph, plan, ranges)
        layers = {n.name for n in layers_of(graph)}
        times = {}
        for node in planned.nodes:
            quantised = planned.type_of(node.inputs[0]).dtype == "uint8"
            mixed = (node.type.dtype == "uint8") != quantised and node.name != "head"
            times[node.name] = (4.0 if quantised else 10.0) + mixed if node.name in layers else 2.0
        return planned, times

    table = cost_table(graph, measure)
    assert table.float_us == dict.fromkeys(("stem", "a", "b", "head"), 10.0)
    assert 3.0 <= min(table.int8_us.values()) and max(table.int8_us.values()) <= 7.0
    costs = {(e.source, e.target): (e.leave_us, e.enter_us) for e in table.edges}
    assert all(v >= 0 for pair in costs.values() for v in pair)
    assert sum(costs["a", "b"]) > 0


def feeds(n):
    return np.arange(n, dtype=np.float32)[:, None] * np.ones((1, 4), np.float32)


def tiny_graph():
    b = GraphBuilder("tiny")
    x = b.input("x", (1, 4))
    return b.finish([b.add("linear", [x, b.param("w", np.ones((3, 4), np.float32))])])


def seen(part):
    return [int(feed["x"][0, 0]) for feed in part]


def test_evaluation_samples_are_split_and_the_calibration_kept_whole():
    data = split(tiny_graph(), feeds(40), feeds(20), np.arange(20) % 3)
    assert seen(data.calibration) == list(range(40)) and len(data.sensitivity) == 16
    assert seen(data.search.feeds) == list(range(0, 20, 2)) and seen(data.confirm.feeds) == list(range(20))
    assert data.search.labels.tolist() == [i % 3 for i in range(0, 20, 2)]
    assert "10 judge the trials" in data.notes[-1] and "10 held-out" in data.notes[-1]


def test_without_evaluation_samples_half_of_the_others_judge():
    data = split(tiny_graph(), feeds(40), None, None)
    assert not set(seen(data.calibration)) & set(seen(data.confirm.feeds))
    assert sorted(seen(data.calibration) + seen(data.confirm.feeds)) == list(range(40))
    assert "of 40 calibration samples 20 calibrate" in data.notes[0]


def test_few_samples_are_not_split_and_that_is_said():
    data = split(tiny_graph(), feeds(3), None, None)
    assert seen(data.calibration) == seen(data.search.feeds) == seen(data.confirm.feeds) == [0, 1, 2]
    assert "only 3" in data.notes[0]


def test_trials_see_a_bounded_number_of_many_samples():
    data = split(tiny_graph(), feeds(8), feeds(1000), None)
    assert len(data.search.feeds) == SEARCH_SAMPLES and len(data.confirm.feeds) == 1000


def test_a_function_judges_and_agreement_is_still_measured():
    data = split(tiny_graph(), feeds(40), lambda artifact: 0.5, None)
    assert data.score is not None and len(data.search.feeds) == 10


@pytest.mark.parametrize(
    ("evaluate", "labels", "message"),
    [
        (None, [1], "evaluate="),
        (feeds(4), [1, 2], "one per evaluation sample"),
        (feeds(2), [0.5, 1.0], "integers"),
        (np.zeros((4, 7), np.float32), None, "shape"),
    ],
)
def test_samples_that_do_not_fit_are_refused(evaluate, labels, message):
    with pytest.raises(InputError, match=message):
        split(tiny_graph(), feeds(8), evaluate, labels)


def test_the_digest_sees_every_sample_and_label():
    digests = {
        split(tiny_graph(), feeds(9), feeds(8), None).digest,
        split(tiny_graph(), feeds(8), feeds(8), None).digest,
        split(tiny_graph(), feeds(9), feeds(8) + 1, None).digest,
        split(tiny_graph(), feeds(9), feeds(8), np.zeros(8, int)).digest,
        split(tiny_graph(), feeds(9), feeds(8), np.ones(8, int)).digest,
    }
    assert len(digests) == 5


def test_the_posterior_is_that_of_bayes():
    """Against the information form: precision = prior precision + x' x / noise^2."""
    rng = np.random.default_rng(0)
    x, noise = rng.integers(0, 2, (7, 4)).astype(float), np.full(7, 0.3)
    prior, variance, y = rng.random(4), rng.random(4) + 0.1, rng.random(7)
    mean, covariance = posterior(prior, variance, x, y, noise)
    precision = np.diag(1 / variance) + x.T @ x / 0.09
    np.testing.assert_allclose(covariance, np.linalg.inv(precision), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(mean, np.linalg.solve(precision, prior / variance + x.T @ y / 0.09), rtol=1e-9)


def test_proposals_are_new_plans_while_there_are_any():
    from bitsmith.search.engine import run_search
    from bitsmith.search.objectives import parse_constraints
    from bitsmith.search.session import Settings

    network = Synthetic(count=5)
    asked = Settings(constraints=parse_constraints(["kl<=0.01"]), trials=10)
    trials = run_search(network, asked).trials
    known = {c.int8_layers: c for c in trials}
    table = network.costs(print)
    problem = Problem(
        tuple(network.kl),
        table.float_us,
        table.int8_us,
        network.kl,
        dict.fromkeys(network.kl, 4),
        dict.fromkeys(network.kl, 1),
        table.edges,
    )
    belief = Belief(
        problem, ("quality", "latency"), None, sum(table.float_us.values()), np.random.default_rng(0)
    )
    proposals = [belief.propose(known) for _ in range(20)]
    assert all(p <= set(network.kl) for p in proposals)
    assert sum(p not in known for p in proposals) >= 15
