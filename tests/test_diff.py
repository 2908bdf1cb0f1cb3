"""diff finds the layer that is wrong, measures rightly how far off all are, and refuses what does not fit."""

import json
import math
import shutil

import bitsmith
import numpy as np
import onnx
import pytest
from bitsmith.compiler import pipeline
from bitsmith.compiler.analysis.difference import Spread
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.calibrate import Ranges
from bitsmith.compiler.cli import main
from bitsmith.compiler.errors import ArtifactError, InputError
from bitsmith.compiler.plan import Plan
from bitsmith.passes.apply_plan import apply_plan
from bitsmith.passes.prepare import prepare
from bitsmith.targets.build import build
from bitsmith.targets.exposed import changed_weights, expose
from bitsmith.targets.lower import lower
from bitsmith.targets.program import Space
from bitsmith.targets.target import resolve
from digit_net import LAYERS, samples, truth, write_net
from onnx import numpy_helper

KINDS = ("float32", "int8")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the model, samples and an artifact of either kind."""
    place = tmp_path_factory.mktemp("diff")
    graph = pipeline.load(write_net(place / "net.onnx"), shapes={"batch": 1})
    np.save(place / "samples.npy", samples(4, seed=3))
    for kind in KINDS:
        with pipeline.compile(graph, plan=Plan.uniform(graph, kind), calibration=samples(24)) as artifact:
            artifact.save(place / kind)
    return place


@pytest.fixture(scope="module")
def graph(place):
    return pipeline.load(place / "net.onnx", shapes={"batch": 1})


def planned(graph, artifact_place):
    """The graph that an artifact of this folder runs."""
    with pipeline.open(artifact_place) as artifact:
        plan = Plan.from_json(artifact.plan)
    file = artifact_place / "ranges.json"
    ranges = Ranges.from_json(json.loads(file.read_text())) if file.exists() else None
    return apply_plan(prepare(graph), plan, ranges, pair_bound=resolve("host").pair_bound), plan, ranges


def damaged(graph, place, kind, layer, to):
    """The artifact with every seventh byte of one layer's weights inverted, its hashes and checksum right."""
    made, plan, ranges = planned(graph, place / kind)
    lowered = lower(made, resolve("host"))
    starts = [offset for offset, _ in lowered.weights]
    ends = dict(zip(starts, [*starts[1:], lowered.program.weights_bytes], strict=True))
    (step,) = [s for s in lowered.program.steps if s.layer == layer]
    first = next(p.offset for p in step.places if p.space is Space.WEIGHTS)
    weights = np.fromfile(place / kind / "weights.bin", np.uint8)
    weights[first : ends[first] : 7] ^= 0x5B
    build(made, resolve("host"), to, plan=plan.to_json(), ranges=ranges, weights=weights).close()
    return to


def changed_model(place, to, **factors):
    """The model with some of its parameters multiplied."""
    model = onnx.load(place / "net.onnx")
    for tensor in model.graph.initializer:
        if tensor.name in factors:
            array = numpy_helper.to_array(tensor) * np.float32(factors[tensor.name])
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, to)
    return pipeline.load(to, shapes={"batch": 1})


@pytest.mark.parametrize("kind", KINDS)
def test_a_healthy_artifact_is_found_healthy(place, graph, kind):
    images = samples(4, seed=3)
    report = bitsmith.diff(graph, place / kind, inputs=images)
    assert report.ok and report.reproduced
    assert (report.departs, report.noisy, report.changed) == (None, None, ())
    assert (report.inputs, report.samples, report.model) == ("given", 4, "net")
    rows = {row.layer: row for row in report.layers}
    assert set(LAYERS) < set(rows) and {rows[name].choice for name in LAYERS} == {kind}
    with pipeline.open(place / kind) as artifact:
        found = np.concatenate([artifact.run(image[None])["logits"] for image in images])
    expected = truth(place / "net.onnx", images)
    assert rows["head"].float_error == pytest.approx(np.abs(found - expected).max(), rel=0.05)
    if kind == "float32":
        assert report.noisiest is None and min(row.sqnr_db for row in report.layers) > 100
    else:
        noise = 10 * np.log10(np.sum(expected**2) / np.sum((found - expected) ** 2))
        assert rows["head"].sqnr_db == pytest.approx(noise, abs=0.05)
        assert rows["stem"].dtype == "uint8" and rows["stem"].sqnr_db < 60
        assert rows[report.noisiest].added_noise == max(row.added_noise for row in report.layers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", ["depth", "head"])
def test_the_layer_with_damaged_weights_is_found(place, graph, tmp_path, kind, layer):
    broken = damaged(graph, place, kind, layer, tmp_path / "broken")
    report = bitsmith.diff(graph, broken, inputs=samples(2, seed=3))
    rows = {row.layer: row for row in report.layers}
    assert not report.ok and report.departs == layer and report.changed == (layer,)
    assert report.reproduced, "the values that were compared are those of the damaged artifact"
    assert [row.layer for row in report.layers if row.departs] == [layer], "the layers behind it are healthy"
    assert rows[layer].weight_bytes_changed > 0 and rows[layer].relative > 1e-2
    assert rows["head"].float_relative > 1e-2


def test_other_weights_in_one_layer_are_found(place, graph, tmp_path):
    other = changed_model(place, tmp_path / "other.onnx", w3=1.5)
    with pipeline.compile(other) as artifact:
        report = bitsmith.diff(graph, artifact, inputs=samples(2))
    assert (report.departs, report.changed, report.ok) == ("point", ("point",), False)


def test_the_tolerance_decides(place, graph):
    strict = bitsmith.diff(graph, place / "float32", tolerance=1e-12)
    worst = [row for row in strict.layers if row.relative > 1e-12]
    assert not strict.ok and strict.departs == worst[0].layer
    assert (strict.inputs, strict.samples) == ("random", 1)


def test_a_bound_on_the_noise_names_the_first_below_it(place, graph):
    free = bitsmith.diff(graph, place / "int8", inputs=samples(2))
    bound = sorted(row.sqnr_db for row in free.layers)[1]
    report = bitsmith.diff(graph, place / "int8", inputs=samples(2), least_sqnr=bound)
    below = [row.layer for row in free.layers if row.sqnr_db < bound]
    assert below == [report.noisy] and not report.ok and report.departs is None


def test_a_library_that_computes_something_else_is_noticed(place, graph, monkeypatch):
    with pipeline.open(place / "float32") as artifact:
        true_run = artifact.run
        monkeypatch.setattr(
            artifact, "run", lambda **feed: {k: v * 1.01 for k, v in true_run(**feed).items()}
        )
        report = bitsmith.diff(graph, artifact)
    assert not report.reproduced and not report.ok and report.departs is None


def test_progress_is_told(place, graph):
    told = []
    bitsmith.diff(graph, place / "float32", inputs=samples(3), progress=lambda *step: told.append(step))
    assert told[-4:] == [("comparing layers", i, 3) for i in range(4)]


# ---- what does not belong together


def test_a_model_with_other_inputs_is_refused(place, graph):
    other = pipeline.load(place / "net.onnx", shapes={"batch": 2})
    with pytest.raises(InputError, match=r"'net' is not what .*float32 was compiled from: its inputs are"):
        bitsmith.diff(other, place / "float32")


def test_another_training_of_the_model_is_refused(place, tmp_path):
    other = changed_model(place, tmp_path / "other.onnx", w1=2.0, w2=0.5, w3=-1.0, w4=3.0)
    for kind in KINDS:
        with pytest.raises(InputError, match="other weights in all 4 layers .* another training"):
            bitsmith.diff(other, place / kind)


def rewritten(place, to, change):
    model = onnx.load(place / "net.onnx")
    change(model.graph.node)
    onnx.save(model, to)
    return pipeline.load(to, shapes={"batch": 1})


def test_a_model_of_other_layers_is_refused(place, tmp_path):
    def rename(nodes):
        next(node for node in nodes if node.name == "point").name = "dot"

    with pytest.raises(InputError, match="it has no layer 'point', which the artifact's plan names"):
        bitsmith.diff(rewritten(place, tmp_path / "other.onnx", rename), place / "float32")


def test_a_model_that_runs_other_kernels_is_refused(place, tmp_path):
    def smoother(nodes):
        for node in nodes:
            node.op_type = "Sigmoid" if node.op_type == "Relu" else node.op_type

    with pytest.raises(ArtifactError, match="from 'stem' on its kernels are not those .* Compile it again"):
        bitsmith.diff(rewritten(place, tmp_path / "other.onnx", smoother), place / "float32")


def test_an_int8_artifact_without_its_ranges_is_refused(place, graph, tmp_path):
    shutil.copytree(place / "int8", tmp_path / "old")
    for content, message in (
        ('{"values": {}}', "ranges.json: these are no calibration ranges"),
        ("{", "is damaged: ranges.json"),
        (None, "has int8 layers and no ranges.json"),
    ):
        file = tmp_path / "old" / "ranges.json"
        file.unlink() if content is None else file.write_text(content)
        with pytest.raises(ArtifactError, match=message):
            bitsmith.diff(graph, tmp_path / "old")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "tolerance must be above 0"),
        ({"inputs": np.zeros((2, 3, 8, 8), np.float32)}, "expected"),
    ],
)
def test_options_that_do_not_fit(place, graph, options, message):
    with pytest.raises(InputError, match=message):
        bitsmith.diff(graph, place / "float32", **options)


# ---- the parts


def test_an_artifact_keeps_the_ranges_of_its_int8_layers(place, graph, tmp_path):
    assert not (place / "float32" / "ranges.json").exists()
    plan = Plan.uniform(graph, "float32").with_choice("point", "int8")
    with pipeline.compile(graph, plan=plan, calibration=samples(8)) as artifact:
        kept = Ranges.from_json(json.loads((artifact.path / "ranges.json").read_text()))
        saved = artifact.save(tmp_path / "saved")
        assert list(kept.means) == ["point"] and kept.samples == 8
        assert bitsmith.diff(graph, saved).ok
        files = [saved / name for name in ("model.so", "weights.bin", "manifest.json")]
        assert artifact.size_bytes == sum(file.stat().st_size for file in files)


def test_the_exposed_graph_uses_the_same_weights(place, graph):
    made, _, _ = planned(graph, place / "int8")
    exposed = expose(made)
    assert exposed.outputs[0] == "logits" and len(exposed.outputs) == len(set(exposed.outputs))
    assert set(exposed.outputs) == {v for node in made.nodes for v in node.outputs}
    ours, shown = (lower(g, resolve("host")) for g in (made, exposed))
    np.testing.assert_array_equal(ours.weight_bytes(), shown.weight_bytes())
    counts = changed_weights(ours, ours.weight_bytes())
    assert {layer for layer, _ in counts.items()} == set(LAYERS)
    assert all(changed == 0 < size for changed, size in counts.values())


def test_nodes_that_are_computed_together_stay_together():
    b = GraphBuilder("chain")
    x = b.input("x", (1, 40))
    h = b.add("linear", [x, b.param("w", np.eye(40, dtype=np.float32))], name="fc")
    y = b.add("mul", [b.add("exp", [b.add("neg", [h])]), x], name="last")
    graph = b.finish([b.add("linear", [y, b.param("v", np.ones((3, 40), np.float32))], name="head")])
    data = np.linspace(-2, 2, 40, dtype=np.float32)[None]
    with bitsmith.compile(graph) as artifact:
        assert len(artifact.steps()) == 3, "neg, exp and mul are one kernel"
        report = bitsmith.diff(graph, artifact, inputs=data)
        (found,) = artifact.run(data).values()
    assert report.ok and [row.layer for row in report.layers] == ["fc", "last", "head"]
    np.testing.assert_allclose(found, np.full((1, 3), np.sum(np.exp(-data) * data)), rtol=1e-5)


def test_errors_are_measured_by_their_definitions():
    spread = Spread()
    spread.add(np.array([1.0, -3.0, 5.0]), np.array([1.5, -3.0, 5.0]))
    spread.add(np.array([7.0]), np.array([6.0]))
    assert (spread.error, spread.share_unequal) == (1.0, 0.5)
    assert spread.relative == pytest.approx(1 / 10)
    assert spread.sqnr_db == pytest.approx(10 * math.log10((1 + 9 + 25 + 49) / (0.25 + 1)))
    assert spread.noise_share == pytest.approx(1.25 / 84)


@pytest.mark.parametrize(
    ("right", "found", "relative", "sqnr"),
    [
        ([np.nan, np.inf, 1.0], [np.nan, np.inf, 1.0], 0.0, 200.0),
        ([np.nan, 1.0], [0.0, 1.0], math.inf, -200.0),
        ([1.0, 2.0], [1.0, np.inf], math.inf, -200.0),
        ([4.0, 4.0], [4.0, 5.0], 25.0, 10 * math.log10(32)),
        ([-9.0, 11.0], [-9.0, 11.5], 0.025, 10 * math.log10(202 / 0.25)),
        ([0.0, 0.0], [0.0, 0.5], 0.5, -200.0),
        ([], [], 0.0, 200.0),
    ],
)
def test_errors_of_unusual_values(right, found, relative, sqnr):
    spread = Spread()
    spread.add(np.array(right), np.array(found))
    assert spread.relative == relative and spread.sqnr_db == pytest.approx(sqnr)


@pytest.mark.parametrize(
    ("dtype", "size", "wrong", "by", "departs"),
    [
        ("uint8", 1000, 9, 1, False),
        ("uint8", 1000, 11, 1, True),
        ("uint8", 10, 1, 1, False),
        ("uint8", 10, 1, 2, True),
        ("int64", 1000, 1, 1, True),
        ("bool", 10, 0, 1, False),
    ],
)
def test_integers_may_only_differ_by_ties_in_rounding(dtype, size, wrong, by, departs):
    right = np.arange(size) % 100
    found = right + np.where(np.arange(size) < wrong, by, 0)
    spread = Spread()
    spread.add(right, found)
    assert spread.departs(dtype, 1e-4) is departs


# ---- the command line


@pytest.fixture
def command(place, capfd, monkeypatch):
    monkeypatch.chdir(place)

    def run(*words):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["diff", *map(str, words)])
        out, err = capfd.readouterr()
        return stop.value.code or 0, out, err

    return run


def test_the_command_says_that_all_is_well(command):
    code, out, err = command("net.onnx", "int8", "--inputs", "samples.npy")
    assert code == 0 and "every layer computes what it should" in out and "most noise is added by" in out
    assert all(layer in out for layer in LAYERS) and "comparing layers: 4/4" in err
    code, out, err = command("net.onnx", "int8", "--inputs", "samples.npy", "--json", "--quiet")
    data = json.loads(out)
    assert (code, err, data["ok"], data["samples"]) == (0, "", True, 4)
    assert {row["layer"] for row in data["layers"]} > set(LAYERS)


def test_the_command_names_the_layer_and_exits_with_a_code(command, graph, place, tmp_path):
    broken = damaged(graph, place, "int8", "point", tmp_path / "broken")
    code, out, err = command("net.onnx", broken, "--inputs", "samples.npy", "--quiet")
    assert code == 11 and "the first layer that departs from its reference is 'point' (conv2d): by" in out
    assert (
        err.startswith("bitsmith: error: ")
        and "weights.bin is not what the model compiles to in 'point'" in err
    )
    code, out, err = command("net.onnx", "int8", "--sqnr", "70", "--json", "--quiet")
    data = json.loads(out)
    assert code == 11 and data["departs"] is None and f"{data['noisy']!r}" in err


def test_the_command_refuses_a_model_of_other_inputs(command, tmp_path):
    model = onnx.load("net.onnx")
    for node in model.graph.node:
        node.input[:] = ["picture" if name == "image" else name for name in node.input]
    model.graph.input[0].name = "picture"
    onnx.save(model, tmp_path / "other.onnx")
    code, out, err = command(tmp_path / "other.onnx", "float32")
    assert (code, out) == (5, "") and "is not what float32 was compiled from" in err and "'image'" in err
    code, out, err = command("net.onnx", "float32", "--shape", "batch=2")
    assert (code, out) == (5, "") and "its inputs are" in err
    code, out, err = command("net.onnx", "samples.npy")
    assert (code, out) == (8, "") and "an artifact is the directory" in err
