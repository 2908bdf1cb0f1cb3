"""A search that compiles: a small network, this machine, real measurements; no time is asserted."""

import json
from pathlib import Path

import numpy as np
import pytest
from bitsmith.compiler.artifact import open as open_artifact
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.database import Database
from bitsmith.compiler.errors import InputError, TargetError
from bitsmith.compiler.machine import this_machine
from bitsmith.compiler.measure import measure_memory, quality
from bitsmith.compiler.pipeline import diff
from bitsmith.compiler.plan import Plan, layers_of
from bitsmith.compiler.reference import run_reference
from bitsmith.passes.prepare import prepare
from bitsmith.search import ranges
from bitsmith.search.compiled import CompiledEvaluator
from bitsmith.search.data import split
from bitsmith.search.evaluator import Names
from bitsmith.search.ranges import stored_ranges
from bitsmith.search.result import SearchResult
from bitsmith.search.run import search
from bitsmith.targets.target import TARGETS


def small_network():
    rng = np.random.default_rng(0)

    def weights(*shape):
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    b = GraphBuilder("small")
    x = b.input("x", (1, 3, 16, 16))
    relu = {"act": "clip", "lo": 0.0, "hi": 6.0}
    y = b.add(
        "conv2d",
        [x, b.param("w0", weights(16, 3, 3, 3))],
        name="stem",
        strides=(2, 2),
        pads=(1, 1, 1, 1),
        **relu,
    )
    y = b.add("conv2d", [y, b.param("w1", weights(64, 16, 1, 1))], name="wide", **relu)
    mean = b.add("reduce_mean", [y], axes=(2, 3), keepdims=False)
    return b.finish([b.add("linear", [mean, b.param("w2", weights(10, 64))], name="head")])


@pytest.fixture(scope="module")
def samples():
    return np.random.default_rng(1).standard_normal((60, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def found(tmp_path_factory, samples):
    """The network, the search's result and its directory."""
    place = tmp_path_factory.mktemp("search")
    graph = small_network()
    result = search(
        graph,
        calibration=samples[:20],
        evaluate=samples[20:50],
        labels=np.arange(30) % 10,
        constraints=["kl<=0.05", "size<=1x"],
        trials=3,
        out=place / "out",
        database=Database(place / "times.db"),
    )
    return graph, result, place


def test_it_meets_the_constraints_on_samples_it_did_not_see(found, samples):
    graph, result, place = found
    assert result.met and result.best.feasible
    with open_artifact(result.best.artifact) as artifact:
        outputs = [artifact.run(x[None]) for x in samples[50:]]
    judged = quality([run_reference(graph, {"x": x[None]}) for x in samples[50:]], outputs)
    assert judged.kl <= 0.05 and judged.sqnr_db > 15


def test_what_it_says_is_what_lies_in_the_directory(found):
    graph, result, place = found
    out = place / "out"
    assert SearchResult.load(out / "search.json") == result
    assert {layer.layer for layer in result.ledger} <= {row.layer for row in result.roofline.rows}
    assert result.roofline.unknown == 0 and result.roofline.floor_us > 0
    with open_artifact(out / "best") as artifact:
        assert artifact.plan == result.best.plan.to_json() == Plan.load(out / "plan.json").to_json()
        assert [row["layer"] for row in artifact.ledger] == [n.name for n in layers_of(prepare(graph))]
        assert [row["choice"] for row in artifact.ledger] == [row.choice for row in result.ledger]
    for candidate in result.front:
        if candidate.artifact is not None:
            with open_artifact(candidate.artifact) as artifact:
                assert artifact.plan == candidate.plan.to_json()
                assert artifact.size_bytes == candidate.size_bytes or candidate.name == result.best.name


def test_diff_can_look_into_what_it_writes(found, samples):
    graph, result, _ = found
    assert diff(graph, result.best.artifact, inputs=samples[50:52]).ok
    kept = [c.artifact for c in (*result.front, result.best) if c.artifact is not None and c.int8_layers]
    assert kept and all(Path(place, "ranges.json").exists() for place in kept)


def test_every_candidate_was_measured(found):
    _, result, _ = found
    assert len(result.trials) == 5
    for candidate in (*result.trials, *result.baselines, result.best):
        assert candidate.latency.n >= 5 and candidate.latency_us > 0 and candidate.size_bytes > 0
        assert candidate.quality.accuracy is not None
    assert result.best.quality.n == 30 and result.trials[0].quality.n == 15
    assert result.int8.quality.kl > 0 and result.float32.quality.kl == 0
    assert {a.candidate for a in result.additivity} >= {"float32", "int8"}
    assert all(a.predicted_us > 0 for a in result.additivity)


def test_the_ledger_counts_what_the_planned_graph_stores(found):
    graph, result, _ = found
    for row in result.ledger:
        weights = graph.params[graph.node(row.layer).inputs[1]]
        extra = 8 * len(weights) if row.choice == "int8" else 0
        least = weights.size * {"int8": 1, "bfloat16": 2, "float32": 4}[row.choice]
        assert least <= row.weight_bytes <= least + max(extra, 4 * len(weights))
        assert row.measured_us > 0 and row.reason.startswith(row.choice)
        assert row.choice == "bfloat16" or row.predicted_us > 0


def test_kernel_times_are_taken_from_the_database(found, samples, monkeypatch):
    from bitsmith.targets import latency

    graph, first, place = found
    before = Database(place / "times.db").count()
    assert before > 0
    monkeypatch.setattr(latency, "_measure", lambda *args: pytest.fail("a known kernel was measured again"))
    again = search(
        graph,
        calibration=samples[:20],
        evaluate=samples[20:50],
        labels=np.arange(30) % 10,
        constraints=["kl<=0.05", "size<=1x"],
        trials=3,
        out=place / "out",
        database=Database(place / "times.db"),
    )
    assert [(c.plan, c.quality, c.latency) for c in again.trials] == [
        (c.plan, c.quality, c.latency) for c in first.trials
    ]
    assert Database(place / "times.db").count() == before


def evaluator_of(graph, target, place, samples):
    chip, prepared, data = TARGETS[target], prepare(graph), split(graph, samples, None, None)
    names = Names(graph.name, graph.content_hash, chip.name, chip.fingerprint, this_machine())
    base = stored_ranges(prepared, data, None, lambda stage, done, total: None)
    return CompiledEvaluator(prepared, base, chip, data, names, {}, Database(place / "times.db"))


def network_with_a_large_head():
    b = GraphBuilder("large")
    w = np.ones((24, 3, 3, 3), np.float32)
    y = b.add("conv2d", [b.input("x", (1, 3, 16, 16)), b.param("w0", w)], name="stem", pads=(1, 1, 1, 1))
    y = b.add("conv2d", [y, b.param("w1", np.ones((24, 1, 3, 3), np.float32))], name="alone", groups=24)
    mean = b.add("reduce_mean", [y], axes=(2, 3), keepdims=False)
    y = b.add("linear", [mean, b.param("w2", np.ones((8192, 24), np.float32))], name="head")
    return b.finish([b.add("linear", [y, b.param("w3", np.ones((5, 8192), np.float32))], name="last")])


@pytest.mark.parametrize(
    ("target", "smallest", "slower", "expected"),
    [
        ("x86-64-avx2", False, {}, {"head"}),  # the others' weights stay in the cache
        ("x86-64-avx2", False, {"head": 1.0}, set()),
        ("x86-64-avx512-bf16", False, {}, {"stem", "head", "last"}),  # never the depthwise one
        ("x86-64-avx512-bf16", False, {"stem": 0.98}, {"head", "last"}),
        ("x86-64-avx2", True, {"last": 1.2, "stem": 1.3}, {"head", "last"}),
    ],
)
def test_layers_become_bfloat16_where_that_pays(target, smallest, slower, expected, samples, tmp_path):
    """`slower`: what a layer takes in bfloat16 of its time in float32; 0.5 for the others."""
    evaluator = evaluator_of(network_with_a_large_head(), target, tmp_path, samples[:8])

    def times(planned):
        narrow = {n.name for n in layers_of(planned) if planned.type_of(n.inputs[1]).dtype == "bfloat16"}
        return {n.name: slower.get(n.name, 0.5) if n.name in narrow else 1.0 for n in planned.nodes}

    evaluator._kernel_times = times
    plan = evaluator.narrowed(evaluator.base_plan, smallest)
    assert {x for x, choice in (plan.layers if plan else {}).items() if choice == "bfloat16"} == expected


def test_its_memory_can_be_measured(found):
    _, result, _ = found
    memory = measure_memory(result.best.artifact)
    with open_artifact(result.best.artifact) as artifact:
        needed = artifact.arena_bytes
    assert memory.peak_bytes > memory.own_bytes >= 0 and memory.peak_bytes > needed


def test_a_function_may_judge(samples, tmp_path):
    asked = []

    def score(artifact):
        asked.append(artifact.size_bytes)
        return float(-artifact.run(samples[0][None])["head"].std())

    result = search(
        small_network(),
        calibration=samples[:20],
        evaluate=score,
        trials=0,
        database=Database(tmp_path / "times.db"),
    )
    assert result.constraints == ("score_drop<=0.01",)
    assert len(asked) >= 4 and result.best.quality.score is not None and result.best.artifact is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"constraints": ["agreement=1"]}, "takes >="),
        ({"constraints": ["accuracy>=0.9"]}, "labels="),
        ({"constraints": ["score>=1"]}, "a function that returns a score"),
        ({"objectives": ["beauty"]}, "beauty"),
        ({"trials": -1}, "trials"),
        ({"timeout": -1.0}, "timeout"),
        ({"threads": 0}, "threads"),
        ({"labels": [1]}, "evaluate="),
        ({"calibration": np.zeros((3, 5), np.float32)}, "shape"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(samples, options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        search(small_network(), **{"calibration": samples[:8], "out": tmp_path / "out", **options})
    assert not (tmp_path / "out").exists()


def test_a_target_that_does_not_run_here_is_refused(samples):
    foreign = next((name for name, t in TARGETS.items() if not t.runs_here), None)
    if foreign is None:
        pytest.skip("this machine runs every target")
    with pytest.raises(TargetError, match="a search measures"):
        search(small_network(), target=foreign, calibration=samples[:8])


def test_a_search_that_goes_on_does_not_calibrate_again(samples, tmp_path, monkeypatch):
    graph, data = prepare(small_network()), split(small_network(), samples[:8], samples[8:16], None)
    made = stored_ranges(graph, data, tmp_path, lambda *step: None)
    monkeypatch.setattr(ranges, "calibrate", lambda *args, **options: pytest.fail("calibrated again"))
    steps = []
    assert stored_ranges(graph, data, tmp_path, lambda *step: steps.append(step)) == made
    assert steps == [("calibration", 8, 8)]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": "", "ranges": {}}', '{"key": 1}', "nul\0"])
def test_ranges_that_are_damaged_or_of_other_data_are_made_again(samples, tmp_path, damage):
    graph, data = prepare(small_network()), split(small_network(), samples[:8], samples[8:16], None)
    other = split(small_network(), samples[20:28], samples[8:16], None)
    first = stored_ranges(graph, other, tmp_path, lambda *step: None)
    second = stored_ranges(graph, data, tmp_path, lambda *step: None)
    assert first.values != second.values
    (tmp_path / ranges.RANGES_FILE).write_text(damage)
    assert stored_ranges(graph, data, tmp_path, lambda *step: None) == second
    assert json.loads((tmp_path / ranges.RANGES_FILE).read_text())["ranges"] == second.to_json()
