"""One artifact for several shapes of a model: what it computes, what it shares, what is refused."""

import json
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from bitsmith import BitsmithError, Graph, compile, diff, inspect, load, measure, search
from bitsmith.compiler.analysis.roofline import Level, Peaks
from bitsmith.compiler.artifact import Artifact
from bitsmith.compiler.artifact import open as open_artifact
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.cli import main
from bitsmith.compiler.database import Database
from bitsmith.compiler.errors import InputError
from bitsmith.compiler.pipeline.buckets import share_params
from bitsmith.compiler.plan import Plan
from bitsmith.passes.prepare import prepare
from bitsmith.targets import profile
from bitsmith.targets.build import build
from bitsmith.targets.entries import own_weights, share_weights
from bitsmith.targets.lower import lower
from bitsmith.targets.target import resolve
from onnx import TensorProto
from onnx_models import model, node, onnxruntime_outputs

LENGTHS = (4, 9, 6)
SHAPES = [{"batch": 2, "seq": n} for n in LENGTHS]
WORDS, WIDTH = 40, 24


def text_model() -> onnx.ModelProto:
    """Words with places added, one masked attention, and their mean: [batch, 5]."""
    rng = np.random.default_rng(3)
    sizes = {"table": (WORDS, WIDTH), "places": (16, WIDTH), "out": (WIDTH, 5)}
    sizes |= dict.fromkeys(("q", "k", "v"), (WIDTH, WIDTH))
    weights = {name: rng.standard_normal(size).astype(np.float32) / 4 for name, size in sizes.items()}
    weights |= {"zero": np.array([0]), "axis": np.array([1]), "low": np.array(-30, np.float32)}
    nodes = [
        node("Gather", "table ids", "words"),
        node("Shape", "ids", "count", start=1, end=2),
        node("Slice", "places zero count zero", "here"),
        node("Add", "words here", "x"),
        *(node("MatMul", f"x {name}", f"x_{name}", name=f"{name}_layer") for name in ("q", "k", "v")),
        node("Transpose", "x_k", "turned", perm=[0, 2, 1]),
        node("MatMul", "x_q turned", "scores"),
        node("Unsqueeze", "mask axis", "wide"),
        node("Mul", "wide low", "bias"),
        node("Add", "scores bias", "masked"),
        node("Softmax", "masked", "shares", axis=-1),
        node("MatMul", "shares x_v", "mixed"),
        node("MatMul", "mixed out", "each", name="out_layer"),
        node("ReduceMean", "each", "y", axes=[1], keepdims=0),
    ]
    proto = model(nodes, {"ids": ("batch", "seq"), "mask": ("batch", "seq")}, weights=weights)
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    return proto


def feed(length: int, seed: int = 0, batch: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    hidden = (rng.random((batch, length)) < 0.2).astype(np.float32)
    return {"ids": rng.integers(0, WORDS, (batch, length)), "mask": hidden}


@pytest.fixture(scope="module")
def graphs() -> tuple[Graph, ...]:
    return load(text_model(), shapes=SHAPES)


@pytest.fixture(scope="module")
def artifact(graphs):
    with compile(graphs) as made:
        yield made


def assert_like_onnxruntime(artifact: Artifact, feeds: dict[str, np.ndarray], most: float) -> None:
    (expected,) = onnxruntime_outputs(text_model(), feeds)
    error = np.abs(artifact.run(**feeds)["y"] - expected).max() / np.ptp(expected)
    assert error <= most


@pytest.mark.parametrize("length", LENGTHS)
def test_every_shape_computes_what_onnxruntime_does(artifact, length):
    for seed in range(3):
        assert_like_onnxruntime(artifact, feed(length, seed), 1e-5)


def test_one_calibration_serves_all_shapes(graphs):
    samples = [feed(LENGTHS[0], seed) for seed in range(20)]
    plan = Plan.uniform(graphs[0], "int8")
    with compile(graphs, plan=plan, calibration=samples) as several:
        with compile(graphs[0], plan=plan, calibration=samples) as one:
            for each in samples[:3]:
                np.testing.assert_array_equal(several.run(**each)["y"], one.run(**each)["y"])
        for length in LENGTHS:
            assert_like_onnxruntime(several, feed(length), 0.05)
        assert diff(graphs[0], several, inputs=samples[:2]).ok
        for entry, length in enumerate(LENGTHS):
            report = diff(graphs[: entry + 1], several, inputs=[feed(length)])
            assert (report.ok, report.reproduced, report.entry) == (True, True, entry)
        with pytest.raises(InputError, match=r"'ids' has shape \[2, 9\], expected \[2, 4\]"):
            compile(graphs, plan=plan, calibration=[feed(LENGTHS[1])])


def test_the_weights_of_each_entry_are_found_in_the_file(graphs, tmp_path):
    """What `diff` runs an entry on: a changed byte of the file is a changed byte of who reads it."""
    parts = [lower(prepare(graph), resolve("host")) for graph in graphs]
    share_weights(parts, tmp_path / "weights.bin")
    weights = np.fromfile(tmp_path / "weights.bin", np.uint8)
    for n in range(1, len(parts) + 1):
        assert np.array_equal(own_weights(parts[:n], weights), parts[n - 1].weight_bytes())
    weights[-LENGTHS[2] * WIDTH * 4 :] ^= 0xFF  # the places of the last length, which the others do not read
    assert np.array_equal(own_weights(parts[:2], weights), parts[1].weight_bytes())
    assert not np.array_equal(own_weights(parts, weights), parts[2].weight_bytes())


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (slice(1, 2), r"its inputs are 'ids': int64\[2, 9\].*, those of its entry 0 'ids': int64\[2, 4\]"),
        (slice(0, 0), "no graph"),
        ((0, 1, 2, 0), "no entry 3: it has entries 0 to 2"),
        ((0, 2), "those of its entry 1"),
    ],
)
def test_graphs_that_diff_refuses(graphs, artifact, chosen, message):
    given = graphs[chosen] if isinstance(chosen, slice) else [graphs[i] for i in chosen]
    with pytest.raises(InputError, match=message):
        diff(given, artifact)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--entry", "1"], 0, '"entry": 1'),
        (["--entry", "3"], InputError.exit_code, "has no entry 3: it has entries 0 to 2"),
        (["--entry", "1", "--shape", "ids=2x9"], InputError.exit_code, "two ways to say which shapes"),
    ],
)
def test_the_command_line_compares_any_entry(artifact, tmp_path, capsys, options, code, said):
    onnx.save(text_model(), tmp_path / "text.onnx")
    artifact.save(tmp_path / "text.bitsmith")
    with pytest.raises(SystemExit) as ended:
        main(["diff", str(tmp_path / "text.onnx"), str(tmp_path / "text.bitsmith"), "--json", *options])
    assert ended.value.code == code
    assert said in "".join(capsys.readouterr())


def test_weights_are_stored_once(graphs, artifact):
    def stored(made: Artifact) -> int:
        return made.manifest.files["weights.bin"].bytes

    with compile(graphs[0]) as one:
        alone = np.fromfile(one.path / "weights.bin", np.uint8)
        assert one.arena_bytes < artifact.arena_bytes  # enough for the longest
    places = sum(-(-n * WIDTH * 4 // 64) * 64 for n in LENGTHS[1:])  # what the others have of their own
    shared = np.fromfile(artifact.path / "weights.bin", np.uint8)
    assert len(alone) < len(shared) <= len(alone) + places
    np.testing.assert_array_equal(shared[: len(alone)], alone)


def test_programs_point_into_the_shared_weights(graphs, tmp_path):
    parts = [lower(prepare(graph), resolve("host")) for graph in graphs]
    programs = share_weights(parts, tmp_path / "weights")
    data = np.fromfile(tmp_path / "weights", np.uint8)
    assert {program.weights_bytes for program in programs} == {len(data)}
    for part, program in zip(parts, programs, strict=True):
        packed = {offset: make().reshape(-1).view(np.uint8) for offset, make in part.weights}
        for old, new in zip(part.program.steps, program.steps, strict=True):
            for before, after in zip(old.places, new.places, strict=True):
                if before.space.value == "weights":
                    array = packed[before.offset]
                    np.testing.assert_array_equal(data[after.offset : after.offset + array.size], array)
                else:
                    assert before == after


def test_graphs_hold_equal_parameters_once(graphs):
    first, second, _ = graphs
    same = [name for name in first.params if second.params.get(name) is first.params[name]]
    assert {"table", "q", "out"} <= set(same)
    (alone,) = share_params([first])
    assert alone.content_hash == first.content_hash


def test_threads_may_run_different_shapes_at_once(artifact):
    expected = {n: onnxruntime_outputs(text_model(), feed(n))[0] for n in LENGTHS}
    wrong: list[int] = []

    def work(length: int) -> None:
        for _ in range(50):
            y = artifact.run_threads(2, **feed(length))["y"]
            if not np.allclose(y, expected[length], atol=1e-5):
                wrong.append(length)

    workers = [threading.Thread(target=work, args=(n,)) for n in LENGTHS]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_inputs_are_padded_where_that_is_asked_for(artifact):
    given = feed(5)
    with pytest.raises(InputError, match=r"'ids' \(2, 5\), 'mask' \(2, 5\):\n  entry 0"):
        artifact.run(**given)
    filled = artifact.padded(**given)
    assert {name: array.shape for name, array in filled.items()} == {"ids": (2, 6), "mask": (2, 6)}
    assert artifact.entry_for(**filled) == 2
    assert_like_onnxruntime(artifact, filled, 1e-5)


def test_it_is_saved_and_opened_and_measured(artifact, tmp_path):
    artifact.save(tmp_path / "text")
    with open_artifact(tmp_path / "text") as again:
        assert again.entries == artifact.entries and len(again.entries) == 3
        for length in LENGTHS:
            given = feed(length)
            np.testing.assert_array_equal(again.run(**given)["y"], artifact.run(**given)["y"])
    told = measure(artifact, reference=artifact, evaluate=[feed(LENGTHS[1])], repeats=5)
    assert told.quality is not None and told.quality.agreement == 1
    with pytest.raises(InputError, match="fit no other entry .*\n  entry 0: .*\n  entry 1: .*\n  entry 2: "):
        measure(artifact, reference=artifact, evaluate=[feed(8)], repeats=5)


def test_a_torch_module_for_several_shapes():
    found = load(torch.nn.ReLU(), shapes=[{"input": (1, 3)}, {"input": (4, 5)}])
    assert [graph.inputs[0][1].shape for graph in found] == [(1, 3), (4, 5)]


def test_a_roofline_counts_the_work_of_its_shapes(artifact, monkeypatch, tmp_path):
    peaks = Peaks({"float32": 100.0}, (Level("L1", 2**15, 100.0, 100.0), Level("memory", 0, 10.0, 5.0)))
    monkeypatch.setattr(profile, "machine_peaks", lambda *given, **named: peaks)
    of_entry = [
        profile.artifact_roofline(artifact, feed(length), Database(tmp_path / "times.db"), rounds=5)
        for length in LENGTHS[:2]
    ]
    short, long = (sum(row.work.operations or 0 for row in found.rows if row.work) for found in of_entry)
    assert 0 < short < long


def test_what_does_not_go_together_is_refused(graphs):
    other = load(model([node("Relu", "x")], {"x": (2, 3)}))
    wide = load(model([node("MatMul", "x w")], {"x": (2, 3)}, weights={"w": np.ones((3, 4), np.float32)}))
    deep = load(model([node("MatMul", "x w")], {"x": (4, 5)}, weights={"w": np.ones((5, 4), np.float32)}))
    with pytest.raises(InputError, match="their inputs differ, as in .*ids"):
        compile([graphs[0], other])
    with pytest.raises(InputError, match="their layers differ"):
        compile([wide, deep])
    with pytest.raises(InputError, match="shapes 0 and 2 give the inputs the same shapes, ids: int64"):
        compile([*graphs[:2], graphs[0]])
    with pytest.raises(InputError, match="no graph"):
        compile([])
    with pytest.raises(
        InputError, match="search takes one graph, not a tuple.*plan that a search for one of them found"
    ):
        search(graphs, calibration=[feed(LENGTHS[0])])
    with pytest.raises(InputError, match="inspect takes one graph"):
        inspect(graphs)
    with pytest.raises(InputError, match="empty list"):
        load(text_model(), shapes=[])
    with pytest.raises(BitsmithError, match="input dimensions are open"):
        load(text_model(), shapes=[{"batch": 1, "seq": 4}, {"batch": 1}])


# ---- command line


@pytest.fixture(scope="module")
def home(artifact, tmp_path_factory) -> Path:
    """A folder with the model, arrays of five words and of nine, and the artifact for all lengths."""
    place = tmp_path_factory.mktemp("buckets")
    onnx.save(text_model(), place / "text.onnx")
    for length in (5, 9):
        for name, array in feed(length).items():
            np.save(place / f"{name}{length}.npy", array)
    np.savez(place / "nine.npz", **{name: array[None] for name, array in feed(9).items()})
    artifact.save(place / "text")
    return place


@pytest.fixture
def bitsmith(home, capfd, monkeypatch):
    """Runs a command line in the folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(home)

    def run(*words):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(list(words))
        return stop.value.code or 0, *capfd.readouterr()

    return run


def test_compile_takes_several_sizes_of_a_dimension(bitsmith, artifact):
    lengths = ",".join(map(str, LENGTHS))
    words = ("compile", "text.onnx", "-o", "made", "--shape", "batch=2", "--shape", f"seq={lengths}")
    code, out, err = bitsmith(*words)
    assert code == 0 and "entry 0" in out and "int64[2, 9]" in out, err
    with open_artifact("made") as made:
        assert made.entries == artifact.entries


def test_inspect_lists_the_entries(bitsmith):
    code, out, _ = bitsmith("inspect", "text", "--json")
    found = json.loads(out)["entries"]
    assert code == 0 and [entry["inputs"][0]["shape"] for entry in found] == [[2, n] for n in LENGTHS]
    assert found[1]["outputs"] == [{"name": "y", "shape": [2, 5], "dtype": "float32"}]
    code, out, _ = bitsmith("inspect", "text")
    assert code == 0 and "int64[2, 6]" in out


def test_run_says_which_entry_it_used(bitsmith):
    code, out, err = bitsmith("run", "text", "ids9.npy", "mask9.npy")
    assert code == 0 and "entry 1 of 3: ids 2x9, mask 2x9" in out, err
    code, out, _ = bitsmith("run", "text", "ids5.npy", "mask5.npy")
    assert code == 5 and not out
    code, out, err = bitsmith("run", "text", "ids5.npy", "-i", "mask=mask5.npy", "--pad", "--json")
    told = json.loads(out)
    assert code == 0 and (told["entry"], told["entries"]) == (2, 3), err
    assert told["padded"] == {"ids": [2, 5], "mask": [2, 5]} and told["shapes"]["ids"] == [2, 6]
    code, out, _ = bitsmith("run", "text", "ids5.npy", "mask5.npy", "--pad")
    assert "padded with zeros: ids 2x5 to 2x6" in out


def test_bench_says_which_entry_it_timed(bitsmith):
    words = ("bench", "text", "--repeats", "3")
    assert json.loads(bitsmith(*words, "--json")[1])["entries"] == {"text": 0}
    code, out, err = bitsmith(*words, "--inputs", "nine.npz")
    assert code == 0 and "entry 1 of text" in out, err


def test_only_compile_takes_several_shapes(bitsmith):
    code, _, err = bitsmith("inspect", "text.onnx", "--shape", "batch=2", "--shape", "seq=4,6")
    assert code == 5 and "only `bitsmith compile` takes that" in err
    words = ("compile", "text.onnx", "-o", "new", "--shape", "batch=2,3,4", "--shape", "seq=4,6")
    code, _, err = bitsmith(*words)
    assert code == 5 and "batch has 3, seq has 2 sizes" in err


def test_one_token_and_many_read_one_copy_of_the_weights(tmp_path):
    """As the entries of a language model do."""
    rng = np.random.default_rng(5)
    w, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((192, 160), (192,)))

    def linear(rows):
        builder = GraphBuilder("linear")
        x = builder.input("x", (rows, 160))
        made = builder.add("linear", [x, builder.param("w", w), builder.param("b", b)])
        return builder.finish([made])

    with build(linear(1), resolve("host"), tmp_path / "made", others=[linear(128)]) as artifact:
        assert (tmp_path / "made" / "weights.bin").stat().st_size == w.nbytes + b.nbytes
        for rows in (1, 128):
            x = rng.standard_normal((rows, 160)).astype(np.float32)
            (y,) = artifact.run(x).values()
            wanted = x.astype(np.float64) @ w.T.astype(np.float64) + b
            assert np.abs(y - wanted).max() <= 5e-6 * np.abs(wanted).max()
