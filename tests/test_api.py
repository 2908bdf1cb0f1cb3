"""The interface as an outsider uses it: `import bitsmith` alone, the forms that docs/api.md promises."""

import inspect
import json

import bitsmith
import numpy as np
import onnx
import pytest
import torch
from digit_net import samples, truth, write_net

SIGNATURES = {
    "load": (["source"], ["shapes", "inputs"]),
    "compile": (["graph"], ["target", "plan", "calibration", "threads"]),
    "open": (["path"], []),
    "search": (
        ["graph"],
        ["target", "calibration", "evaluate", "objectives", "constraints", "trials", "timeout", "study"],
    ),
    "measure": (["artifact"], []),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    write_net(folder / "net.onnx")
    return folder


@pytest.fixture(scope="module")
def graph(place):
    return bitsmith.load(str(place / "net.onnx"), shapes={"batch": 1})


@pytest.fixture(scope="module")
def result(graph, place):
    return bitsmith.search(
        graph,
        target="host",
        calibration=samples(16),
        evaluate=samples(24, seed=1),
        objectives=["quality", "latency"],
        constraints=["kl<=0.1"],
        trials=2,
        timeout=60,
        study=f"sqlite:///{place / 'my-study.db'}",
    )


@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_go_by_the_documented_names(name):
    positional, keywords = SIGNATURES[name]
    parameters = inspect.signature(getattr(bitsmith, name)).parameters
    kinds = inspect.Parameter
    assert [n for n, p in parameters.items() if p.kind is kinds.POSITIONAL_OR_KEYWORD] == positional
    assert set(keywords) <= {n for n, p in parameters.items() if p.kind is kinds.KEYWORD_ONLY}


def test_load_takes_a_path_a_proto_and_a_module(place, graph):
    path = place / "net.onnx"
    same = [
        bitsmith.load(source=path, shapes={"image": (1, 3, 16, 16)}),
        bitsmith.load(onnx.load(path), inputs=[samples(1)]),
        bitsmith.load(path, inputs={"image": samples(1)}),
    ]
    assert all(g.nodes == graph.nodes and g.inputs == graph.inputs for g in same)
    assert isinstance(graph, bitsmith.Graph)
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval()
    assert bitsmith.load(module, inputs=(torch.zeros(1, 4),)).inputs[0][1].shape == (1, 4)


def test_compile_run_save_open(place, graph):
    x = samples(1, seed=5)
    wanted = truth(place / "net.onnx", x)
    with bitsmith.compile(graph, threads=2) as made:
        assert made.threads == 2
        outputs = made.run(x)
        assert type(outputs) is dict and list(outputs) == ["logits"]
        np.testing.assert_allclose(outputs["logits"], wanted, atol=1e-4)
        np.testing.assert_array_equal(made.run(image=x)["logits"], outputs["logits"])
        made.save(place / "saved.bitsmith")
    with bitsmith.open(path=str(place / "saved.bitsmith")) as again:
        assert isinstance(again, bitsmith.Artifact)
        np.testing.assert_array_equal(again.run(x)["logits"], outputs["logits"])
        with pytest.raises(bitsmith.BitsmithError, match="shape"):
            again.run(x[0])


def test_a_uniform_plan_of_the_loaded_graph_fits_the_compiled_one(place, graph):
    plan = bitsmith.Plan.uniform(graph, "int8")
    made = bitsmith.compile(graph, target="host", plan=plan, calibration=samples(20))
    assert {row["choice"] for row in made.ledger} == {"int8"}
    images = samples(40, seed=9)
    found = np.concatenate([made.run(x[None])["logits"] for x in images])
    wanted = truth(place / "net.onnx", images)
    assert (found.argmax(1) == wanted.argmax(1)).mean() >= 0.9
    plan.save(place / "plan.json")
    twin = bitsmith.compile(graph, plan=place / "plan.json", calibration=list(samples(20)))
    np.testing.assert_array_equal(twin.run(images[:1])["logits"], found[:1])


def test_a_search_gives_best_front_and_ledger(result, graph):
    assert isinstance(result, bitsmith.SearchResult) and result.met
    assert result.best.name in [c.name for c in result.front]
    assert [row.layer for row in result.ledger] == list(bitsmith.Plan.uniform(graph, "int8").layers)
    assert all(row.choice == result.best.plan.choice(row.layer) and row.reason for row in result.ledger)
    made = bitsmith.compile(graph, plan=result.best, calibration=samples(16))
    same = bitsmith.compile(graph, plan=result.best.plan, calibration=samples(16))
    assert made.plan == same.plan == result.best.plan.to_json()


def test_the_study_is_where_the_caller_wants_it(result, place):
    assert (place / "my-study.db").stat().st_size > 0
    assert {c.name for c in result.trials} >= {"float32", "int8"}


def test_measure_an_artifact_or_its_path(place, graph):
    with bitsmith.compile(graph) as made:
        made.save(place / "measured.bitsmith")
        here = bitsmith.measure(made, evaluate=samples(8), reference=graph)
    there = bitsmith.measure(place / "measured.bitsmith")
    assert here.quality.agreement == 1.0 and there.quality is None
    assert here.latency.median_us > 0 and here.size_bytes == there.size_bytes > 0


def test_a_report_of_a_result(result, place):
    page = bitsmith.report(result, place / "report.html")
    text = page.read_text(encoding="utf-8")
    assert result.best.name in text and "http://" not in text.replace("http://www.w3.org", "")


def test_every_error_of_a_user_is_a_bitsmith_error(graph, place):
    (place / "plan-bad.json").write_text(json.dumps({"version": 9, "graph": "net", "layers": {}}))
    for fault in (
        lambda: bitsmith.load("nowhere.onnx"),
        lambda: bitsmith.open("nowhere"),
        lambda: bitsmith.compile(graph, target="z80"),
        lambda: bitsmith.compile(graph, plan=place / "plan-bad.json"),
        lambda: bitsmith.compile(graph, plan=bitsmith.Plan.uniform(graph, "int8")),
        lambda: bitsmith.Plan.uniform(graph, "int1"),
        lambda: bitsmith.search(graph, calibration=samples(8), constraints=["accuracy>=0.5"]),
        lambda: bitsmith.search(graph, calibration=samples(8)[:, :, :3]),
        lambda: bitsmith.report(place / "nowhere", place / "page.html"),
    ):
        with pytest.raises(bitsmith.BitsmithError):
            fault()
