"""The library functions, on a real network: ONNX Runtime is the truth."""

import json
from dataclasses import replace

import bitsmith
import numpy as np
import pytest
from bitsmith.compiler import pipeline
from bitsmith.compiler.artifact import Artifact
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.errors import (
    ArtifactError,
    InputError,
    ModelError,
    OutputError,
    PlanError,
    TargetError,
)
from bitsmith.compiler.ledger import LedgerRow
from bitsmith.compiler.plan import Plan
from bitsmith.passes.prepare import prepare
from bitsmith.targets.lower import lower
from bitsmith.targets.relax_kernels import RelaxSpec
from bitsmith.targets.target import resolve
from digit_net import LAYERS, samples, truth, write_net
from made_up_result import made_up_result


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_net(tmp_path_factory.mktemp("net") / "net.onnx")


@pytest.fixture(scope="module")
def graph(model):
    return pipeline.load(model, shapes={"batch": 1})


@pytest.fixture(scope="module")
def float32(graph):
    with pipeline.compile(graph) as artifact:
        yield artifact


@pytest.fixture(scope="module")
def int8(graph):
    with pipeline.compile(graph, plan=Plan.uniform(graph, "int8"), calibration=samples(24)) as artifact:
        yield artifact


def logits(artifact: Artifact, images: np.ndarray) -> np.ndarray:
    return np.concatenate([artifact.run(image[None])["logits"] for image in images])


def noise_db(expected: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10(np.sum(expected**2) / np.sum((expected - found) ** 2)))


def test_the_package_offers_the_functions():
    for name in ("load", "compile", "open", "measure", "inspect", "report"):
        assert getattr(bitsmith, name) is getattr(pipeline, name)


def test_load_compile_run_equals_onnx_runtime(model, float32):
    images = samples(5, seed=1)
    np.testing.assert_allclose(logits(float32, images), truth(model, images), atol=1e-5)


def test_int8_is_close_and_smaller(model, float32, int8):
    images = samples(40, seed=2)
    assert noise_db(truth(model, images), logits(int8, images)) > 25
    assert int8.manifest.files["weights.bin"].bytes < float32.manifest.files["weights.bin"].bytes


def test_a_loaded_module_gives_the_same_artifact(graph, float32):
    with pipeline.compile(graph, plan=Plan.uniform(graph, "float32")) as again:
        assert again.manifest.files == float32.manifest.files


def test_the_ledger_counts_all_that_is_stored(int8, float32):
    rows = {row["layer"]: LedgerRow.from_json(row) for row in int8.ledger}
    assert tuple(rows) == LAYERS
    point = rows["point"]
    # 24 x 16 weights of one byte; bias and scale of four bytes for each of 24 channels
    assert (point.weight_bytes, point.float_bytes) == (384 + 192, 4 * (384 + 24))
    assert point.bits == pytest.approx(8 * (384 + 192) / 384)
    assert (point.choice, point.shape, point.macs) == ("int8", (1, 8, 8, 24), 8 * 8 * 24 * 16)
    assert all(r.measured_us > 0 and r.reason for r in rows.values())
    floats = {row["layer"]: row for row in float32.ledger}
    assert floats["stem"]["bits"] == pytest.approx(32 * (432 + 16) / 432)
    assert {row["choice"] for row in floats.values()} == {"float32"}


def test_the_ledger_survives_saving(int8, tmp_path):
    with pipeline.open(int8.save(tmp_path / "kept")) as kept:
        assert kept.ledger == int8.ledger
        assert kept.plan == int8.plan
    assert pipeline.inspect(tmp_path / "kept").ledger == int8.ledger


def test_a_plan_file_mixes_types(graph, model, tmp_path):
    plan = Plan.uniform(graph, "int8").with_choice("stem", "float32").with_choice("head", "float32")
    plan.save(tmp_path / "plan.json")
    with pipeline.compile(graph, plan=tmp_path / "plan.json", calibration=samples(24)) as mixed:
        assert [row["choice"] for row in mixed.ledger] == ["float32", "int8", "int8", "float32"]
        assert mixed.plan == plan.to_json()
        images = samples(20, seed=3)
        assert noise_db(truth(model, images), logits(mixed, images)) > 25


def test_a_candidate_of_a_search_is_a_plan(graph):
    best = replace(made_up_result().best, plan=Plan("net", {"point": "int8"}))
    with pipeline.compile(graph, plan=best, calibration=samples(4)) as artifact:
        assert [row["choice"] for row in artifact.ledger] == ["float32", "float32", "int8", "float32"]
    with pytest.raises(InputError, match="dict"):
        pipeline.compile(graph, plan={"point": "int8"}, calibration=samples(4))


def test_progress_tells_stages(graph):
    seen = []
    plan = Plan.uniform(graph, "int8")
    pipeline.compile(
        graph, plan=plan, calibration=samples(3), progress=lambda *step: seen.append(step)
    ).close()
    assert [step for step in seen if step[0] == "calibrating"] == [("calibrating", i, 3) for i in (1, 2, 3)]


def test_threads_are_set(graph):
    with pipeline.compile(graph, threads=2) as artifact:
        assert artifact.threads == 2


def test_int8_needs_calibration(graph):
    with pytest.raises(InputError, match=r"4 layer\(s\) int8.*calibration.*image: float32\[1, 3, 16, 16\]"):
        pipeline.compile(graph, plan=Plan.uniform(graph, "int8"))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"plan": Plan("net", {"stemm": "int8"}), "calibration": samples(2)}, PlanError, "did you mean stem"),
        ({"plan": "no-such-plan.json"}, PlanError, "no-such-plan.json"),
        ({"target": "z80"}, TargetError, "x86-64-avx2"),
        ({"threads": 0}, InputError, "threads"),
        ({"plan": Plan("net", {"stem": "int8"}), "calibration": samples(2)[:, :2]}, InputError, "image"),
    ],
)
def test_compile_refuses(graph, options, error, says):
    with pytest.raises(error, match=says):
        pipeline.compile(graph, **options)


def foreign_target():
    """A target that this machine cannot run, if there is one."""
    return next((t.name for t in pipeline.targets() if not t.runs_here), None)


@pytest.mark.skipif(foreign_target() is None, reason="this machine runs every target")
def test_another_machines_target_is_written_not_opened(graph, tmp_path):
    name = foreign_target()
    with pytest.raises(TargetError, match="cross_compile"):
        pipeline.compile(graph, target=name)
    place = pipeline.cross_compile(graph, tmp_path / "far", target=name)
    info = pipeline.inspect(place)
    assert (info.target, len(info.ledger)) == (name, 4)
    assert all(row["measured_us"] is None for row in info.ledger)
    with pytest.raises(ArtifactError, match="lacks"):
        pipeline.open(place)


def test_cross_compile_for_an_older_machine_runs_here(graph, model, tmp_path):
    images = samples(3, seed=4)
    with pipeline.open(pipeline.cross_compile(graph, tmp_path / "old", target="x86-64")) as artifact:
        np.testing.assert_allclose(logits(artifact, images), truth(model, images), atol=1e-5)


def test_load_refuses_what_is_no_model(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        pipeline.load(tmp_path / "none.onnx")


@pytest.mark.parametrize("name", ["nowhere", "nowhere.onnx", "nowhere.gguf"])
def test_a_missing_model_is_missing_first(tmp_path, name):
    """Not a model of the wrong kind for the options that came with it."""
    with pytest.raises(bitsmith.BitsmithError, match=rf"{name}: no such file|cannot read .*{name}"):
        bitsmith.load(tmp_path / name, context=100)


def test_context_is_for_language_models(model):
    with pytest.raises(bitsmith.BitsmithError, match=rf"{model.name} is no language model"):
        bitsmith.load(model, context=100)


def test_run_takes_an_artifact_or_its_path(model, float32, tmp_path):
    image = samples(1, seed=5)
    place = float32.save(tmp_path / "kept")
    expected = truth(model, image)
    np.testing.assert_allclose(pipeline.run(float32, image)["logits"], expected, atol=1e-5)
    np.testing.assert_allclose(pipeline.run(place, image=image)["logits"], expected, atol=1e-5)


def test_measure_judges_against_the_float_model(graph, float32, int8):
    images = samples(16, seed=6)
    own = pipeline.measure(int8, reference=int8, evaluate=images, repeats=5)
    assert (own.quality.agreement, own.quality.kl, own.quality.n) == (1.0, 0.0, 16)
    judged = pipeline.measure(int8, reference=graph, evaluate=images, repeats=5)
    assert 20 < judged.quality.sqnr_db < 80
    by_artifact = pipeline.measure(int8, reference=float32, evaluate=images, repeats=5)
    assert by_artifact.quality.sqnr_db == pytest.approx(judged.quality.sqnr_db, abs=0.1)
    assert judged.size_bytes == int8.size_bytes
    assert judged.latency.n == 5 and judged.latency.median_us > 0
    assert judged.memory.own_bytes > 0


def test_measure_counts_labels(graph, float32, model):
    images = samples(8, seed=7)
    labels = truth(model, images).argmax(axis=1)
    labels[:2] = (labels[:2] + 1) % 6
    found = pipeline.measure(float32, reference=graph, evaluate=images, labels=labels, repeats=5)
    assert found.quality.accuracy == 6 / 8


def test_measure_wants_samples_and_reference_together(graph, int8):
    with pytest.raises(InputError, match="reference"):
        pipeline.measure(int8, evaluate=samples(2))
    with pytest.raises(InputError, match="evaluate"):
        pipeline.measure(int8, reference=graph)


def test_bench_takes_turns_with_onnx_runtime(model, float32, int8):
    float32.set_threads(1)
    report = pipeline.bench([float32, int8], against="onnxruntime", model=model, threads=(1, 2), repeats=7)
    names = ["onnxruntime", str(float32.path), str(int8.path)]
    assert [(row.name, row.threads) for row in report.rows] == [(n, t) for t in (1, 2) for n in names]
    assert report.baseline == "onnxruntime"
    assert {row.latency.n for row in report.rows} == {7}
    assert [row.latency.ratio_to_first for row in report.rows if row.name == "onnxruntime"] == [1.0, 1.0]
    assert report.rows[0].size_bytes == model.stat().st_size
    assert float32.threads == 1, "bench leaves the artifact as it was"


def test_bench_profiles_every_step(int8, tmp_path):
    place = int8.save(tmp_path / "kept")
    report = pipeline.bench(place, inputs=samples(3), repeats=5, profile=True)
    profile = report.profiles[str(place)]
    assert set(LAYERS) <= {row.layer for row in profile.rows}
    assert all(row.microseconds > 0 and row.work is not None for row in profile.rows)
    assert (report.inputs, report.baseline) == ("given", str(place))


@pytest.mark.parametrize(
    ("artifacts", "options", "says"),
    [
        ([], {}, "at least one artifact"),
        ("kept", {"against": "onnxruntime"}, "--model"),
        ("kept", {"inputs": samples(2)[:, :1]}, "image"),
    ],
)
def test_bench_refuses(int8, tmp_path, artifacts, options, says):
    subjects = int8.save(tmp_path / "kept") if artifacts == "kept" else artifacts
    with pytest.raises(InputError, match=says):
        pipeline.bench(subjects, repeats=5, **options)


def test_bench_refuses_a_model_that_onnx_runtime_cannot_load(int8, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"broken\.onnx"):
        pipeline.bench(int8, against="onnxruntime", model=broken, repeats=5)


def test_inspect_counts_a_model(graph):
    info = pipeline.inspect(graph)
    layers = {layer.layer: layer for layer in info.layers}
    assert tuple(layers) == LAYERS
    macs = {"stem": 64 * 16 * 27, "depth": 64 * 16 * 9, "point": 64 * 24 * 16, "head": 24 * 6}
    assert {name: layer.macs for name, layer in layers.items()} == macs
    assert info.macs == sum(macs.values())
    assert layers["depth"].weights == (16, 1, 3, 3)
    assert layers["head"].formats == ("float32", "bfloat16", "int8")
    assert layers["depth"].formats == ("float32", "int8")
    assert info.operators["conv2d"] == 3
    assert info.inputs[0].shape == (1, 3, 16, 16)
    assert info.hash == graph.content_hash
    assert not set(info.fallback) & set(LAYERS)


def test_inspect_names_what_goes_through_the_generic_lowering():
    b = GraphBuilder("mixed")
    x, z = b.input("x", (2, 6)), b.input("z", (2, 6))
    y = b.add("reshape", [b.add("fmod", [x, z])], shape=(3, 4))
    graph = b.finish([b.add("exp", [y])])
    lowered = lower(prepare(graph), resolve("host"))
    generic = {s.layer for s in lowered.program.steps if isinstance(lowered.kernels[s.symbol], RelaxSpec)}
    info = pipeline.inspect(graph)
    assert set(info.fallback) == generic and len(info.fallback) == len(generic) >= 1
    assert info.operators["reshape"] >= 1


def test_inspect_reads_an_artifact(int8):
    info = pipeline.inspect(int8)
    assert (info.name, info.size_bytes, info.arena_bytes) == (
        int8.manifest.name,
        int8.size_bytes,
        int8.arena_bytes,
    )
    assert info.outputs[0].shape == (1, 6)
    with pytest.raises(ArtifactError, match="does not exist"):
        pipeline.inspect("nowhere")
    with pytest.raises(InputError, match=f"compiled for {info.target} already"):
        pipeline.inspect(int8, target="host")


def test_targets_name_this_machine():
    found = pipeline.targets()
    assert sum(t.host for t in found) == 1
    host = next(t for t in found if t.host)
    assert host.runs_here and pipeline.runs_here("host") and pipeline.runs_here(host.name)


def test_report_reads_what_a_search_left(tmp_path):
    result = made_up_result()
    result.save(tmp_path / "search.json")
    pages = [
        pipeline.report(source, tmp_path / f"{i}.html").read_text()
        for i, source in enumerate((result, tmp_path, tmp_path / "search.json", str(tmp_path)))
    ]
    assert len(set(pages)) == 1 and "made_up_net" in pages[0]


def test_report_says_what_it_cannot_read_or_write(tmp_path):
    with pytest.raises(InputError, match=r"search\.json"):
        pipeline.report(tmp_path, tmp_path / "page.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"page\.html"):
        pipeline.report(made_up_result(), tmp_path / "file" / "page.html")
    old = json.loads(json.dumps(replace(made_up_result(), notes=()).to_json()))
    (tmp_path / "search.json").write_text(json.dumps({**old, "version": 99}))
    with pytest.raises(InputError, match="version"):
        pipeline.report(tmp_path, tmp_path / "page.html")
