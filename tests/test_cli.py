"""The command line: what it prints, where, and what it exits with."""

import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from bitsmith.compiler.cli import app, main
from bitsmith.compiler.cli.output import plain, size
from bitsmith.compiler.errors import ConstraintError, InputError, InternalError
from bitsmith.compiler.pipeline import data_files, open
from bitsmith.compiler.plan import Plan
from digit_net import LAYERS, SHAPE, samples, truth, write_net
from made_up_result import made_up_result
from onnx_models import model as onnx_model
from onnx_models import node
from typer.testing import CliRunner

VERBS = ("inspect", "compile", "search", "run", "bench", "diff", "report", "targets")
PROGRAM = [sys.executable, "-c", "from bitsmith.compiler.cli import main; main()"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a model, samples, and artifacts of it."""
    place = tmp_path_factory.mktemp("cli")
    write_net(place / "net.onnx")
    np.save(place / "samples.npy", samples(16))
    shape = ["--shape", "batch=1", "--quiet"]
    for name, options in (("float", []), ("int8", ["--uniform", "int8", "-c", str(place / "samples.npy")])):
        with pytest.raises(SystemExit) as stop:
            main(["compile", str(place / "net.onnx"), "-o", str(place / name), *shape, *options])
        assert not stop.value.code
    return place


@pytest.fixture
def bitsmith(home, capfd, monkeypatch):
    """Runs a command line in the folder; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(home)

    def run(*words):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out, err = capfd.readouterr()
        return stop.value.code or 0, out, err

    return run


def refused(result, code: int, *says: str) -> None:
    """The command failed with this code, one message (a list of faults has a line for each) and no trace."""
    found, out, err = result
    assert found == code, err
    assert out == ""
    assert err.startswith("bitsmith: error: ") and err.count("bitsmith: ") == 1
    assert "Traceback" not in err
    for text in says:
        assert text in err


def test_help_lists_verbs_and_each_has_examples():
    runner = CliRunner()
    top = runner.invoke(app, ["--help"])
    assert top.exit_code == 0
    for verb in VERBS:
        assert re.search(rf"^\W+{verb}\s", top.output, re.M), verb
        shown = runner.invoke(app, [verb, "--help"])
        assert shown.exit_code == 0
        assert f"$ bitsmith {verb}" in shown.output and "--json" in shown.output


def test_version(bitsmith):
    code, out, _ = bitsmith("--version")
    assert code == 0 and re.fullmatch(r"bitsmith \d+\.\d+\.\d+\n", out)


@pytest.mark.parametrize(
    "words", [["nonsense"], ["inspect"], ["compile", "x.onnx"], ["targets", "--loud"], []]
)
def test_a_wrong_command_line_is_a_usage_error(words):
    assert CliRunner().invoke(app, words).exit_code == 2


def test_inspect_a_model(bitsmith):
    code, out, err = bitsmith("inspect", "net.onnx", "--shape", "batch=1")
    assert (code, err) == (0, "")
    for word in (*LAYERS, "24x16x1x1", "float32, bfloat16, int8"):
        assert word in out
    code, out, err = bitsmith("inspect", "net.onnx", "--shape", "image=1x3x16x16", "--json")
    data = json.loads(out)
    assert (code, err) == (0, "") and [layer["layer"] for layer in data["layers"]] == list(LAYERS)
    assert data["inputs"] == [{"name": "image", "shape": list(SHAPE), "dtype": "float32"}]


def test_inspect_an_artifact(bitsmith):
    code, out, _ = bitsmith("inspect", "int8", "--json")
    data = json.loads(out)
    assert code == 0 and [row["choice"] for row in data["ledger"]] == ["int8"] * 4
    code, out, _ = bitsmith("inspect", "int8")
    assert code == 0 and "asked for by the plan" in out


def test_compile_prints_what_it_made(bitsmith, home):
    plan = Plan("net", {"stem": "float32", "depth": "int8", "point": "int8", "head": "float32"})
    plan.save(home / "plan.json")
    words = (
        "compile",
        "net.onnx",
        "-o",
        "mixed",
        "--shape",
        "batch=1",
        "--plan",
        "plan.json",
        "-c",
        "samples.npy",
    )
    code, out, err = bitsmith(*words, "--json")
    data = json.loads(out)
    assert code == 0 and [row["choice"] for row in data["artifact"]["ledger"]] == list(plan.layers.values())
    assert data["measured"]["latency"]["median_us"] > 0
    assert "calibrating: 16/16" in err
    with open(home / "mixed") as artifact:
        assert artifact.plan == plan.to_json()
    code, out, err = bitsmith(*words, "--quiet")
    assert (code, err) == (0, "") and "2 int8, 2 float32" in out


@pytest.mark.parametrize("form", ["npz", "directory", "directory of npz"])
def test_calibration_comes_in_every_form(bitsmith, home, form):
    images, place = samples(4), home / form.replace(" ", "_")
    if form == "npz":
        place = place.with_suffix(".npz")
        np.savez(place, image=images)
    else:
        place.mkdir()
        for i, image in enumerate(images):
            np.save(place / f"{i}.npy", image) if form == "directory" else np.savez(
                place / f"{i}.npz", image=image
            )
    words = ("compile", "net.onnx", "--shape", "batch=1", "--uniform", "int8", "-q")
    np.save(home / "four.npy", images)
    for out, data in (("from_array", "four.npy"), ("from_form", place)):
        code, _, err = bitsmith(*words, "-o", out, "-c", data)
        assert (code, err) == (0, "")
    with open(home / "from_array") as one, open(home / "from_form") as other:
        assert one.manifest.files == other.manifest.files


def test_uniform_bfloat16_needs_no_samples(bitsmith, home):
    words = ("compile", "net.onnx", "--shape", "batch=1", "--uniform", "bfloat16")
    code, out, err = bitsmith(*words, "-o", "narrow", "--json", "--quiet")
    assert (code, err) == (0, "")
    ledger = json.loads(out)["artifact"]["ledger"]
    assert {row["choice"] for row in ledger} <= {"bfloat16", "float32"}
    assert sum(row["weight_bytes"] for row in ledger if row["choice"] == "bfloat16") > 0
    image = samples(1, seed=9)
    expected = truth(home / "net.onnx", image)
    with open(home / "narrow") as artifact:
        (got,) = artifact.run(image).values()
    assert 0 < np.abs(got - expected).max() < 0.05 * np.abs(expected).max()


def test_run_equals_onnx_runtime(bitsmith, home):
    image = samples(1, seed=9)
    np.save(home / "image.npy", image)
    code, out, _ = bitsmith("run", "float", "--input", "image=image.npy", "-o", "out.npz", "--json")
    expected = truth(home / "net.onnx", image)
    assert code == 0
    with np.load(home / "out.npz") as outputs:
        np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)
    told = json.loads(out)["outputs"]["logits"]
    assert (told["shape"], told["largest"][0]["index"]) == ([1, 6], int(expected.argmax()))
    assert bitsmith("run", "float", "image.npy")[1] == bitsmith("run", "float", "-i", "image=image.npy")[1]
    assert (
        bitsmith("run", "float", "--random")[1] == bitsmith("run", "float", "--random", "--threads", "2")[1]
    )


def test_bench_beside_onnx_runtime(bitsmith):
    words = ("bench", "float", "int8", "--against", "onnxruntime", "--model", "net.onnx", "--repeats", "5")
    code, out, _ = bitsmith(*words, "--threads", "1,2", "--json", "--profile")
    data = json.loads(out)
    assert code == 0 and data["baseline"] == "onnxruntime"
    rows = [(row["name"], row["threads"]) for row in data["rows"]]
    assert rows == [(name, n) for n in (1, 2) for name in ("onnxruntime", "float", "int8")]
    profile = data["profiles"]["int8"]
    assert set(LAYERS) <= {row["layer"] for row in profile["rows"]}
    assert profile["run_us"] == pytest.approx(profile["kernels_us"] + profile["outside_us"])
    assert profile["kernels_us"] == pytest.approx(sum(row["microseconds"] for row in profile["rows"]))
    assert {"float32", "L1"} <= {*profile["peaks"]["rates"], *(x["name"] for x in profile["peaks"]["levels"])}
    code, out, _ = bitsmith(*words, "--profile")
    assert code == 0 and "x onnxruntime" in out and "depthwise" in out
    assert "outside of them" in out and "limits of this machine" in out


def test_bench_compiles_a_model(bitsmith):
    code, out, err = bitsmith(
        *("bench", "net.onnx", "--shape", "batch=1", "--repeats", "5", "--json", "--profile")
    )
    assert code == 0, err
    data = json.loads(out)
    assert [row["name"] for row in data["rows"]] == ["net.onnx"]
    assert {"float32 rate"} & {row["limit"] for row in data["profiles"]["net.onnx"]["rows"]}


def test_targets(bitsmith):
    code, out, _ = bitsmith("targets", "--json")
    assert code == 0 and "x86-64" in {target["name"] for target in json.loads(out)}
    assert "yes (host)" in bitsmith("targets")[1]


def test_report(bitsmith, home):
    (home / "found").mkdir()
    made_up_result().save(home / "found" / "search.json")
    code, out, _ = bitsmith("report", "found", "-o", "page.html", "--json")
    assert code == 0 and json.loads(out) == {"report": "page.html"}
    assert "made_up_net" in (home / "page.html").read_text()


def searching(monkeypatch, result):
    """Replaces the search by one that is over at once, and returns what it was asked."""
    asked = {}

    def search(graph, **options):
        asked.update(options)
        options["progress"]("trials", 1, 2)
        return result

    monkeypatch.setattr("bitsmith.compiler.pipeline.search", search)
    return asked


def test_search_passes_on_what_was_asked(bitsmith, home, monkeypatch):
    asked = searching(monkeypatch, made_up_result())
    (home / "labels.txt").write_text("1\n0\n3\n")
    options = ("--trials", "7", "--timeout", "60", "--objective", "latency", "--study", "sqlite:///x.db")
    bounds = ("--constraint", "agreement>=0.98", "--constraint", "latency<=8ms")
    words = (
        "search",
        "net.onnx",
        "-o",
        "found2",
        "-c",
        "samples.npy",
        "-e",
        "samples.npy",
        "--labels",
        "labels.txt",
    )
    code, out, err = bitsmith(*words, *options, *bounds, "--shape", "batch=1")
    assert code == 0 and "trials: 1/2" in err
    assert "trial-" in out and "agreement>=0.98" in out and "met" in out
    assert (home / "found2" / "report.html").exists()
    assert asked["labels"].tolist() == [1, 0, 3]
    assert asked["constraints"] == ("agreement>=0.98", "latency<=8ms")
    assert (asked["trials"], asked["timeout"], asked["objectives"]) == (7, 60.0, ("latency",))
    assert (asked["study"], asked["out"], asked["threads"]) == ("sqlite:///x.db", Path("found2"), 1)
    assert asked["calibration"].shape == (16, 3, 16, 16)


def test_search_that_meets_nothing_says_so_after_its_result(bitsmith, home, monkeypatch):
    searching(monkeypatch, made_up_result(met=False))
    code, out, err = bitsmith(
        "search", "net.onnx", "-o", "found3", "-c", "samples.npy", "--shape", "batch=1", "--json"
    )
    assert code == ConstraintError.exit_code
    assert json.loads(out)["met"] is False
    assert "no plan met" in err and "found3" in err


def test_a_real_search_from_start_to_report(bitsmith, home):
    words = ("search", "net.onnx", "-o", "real", "-c", "samples.npy", "--shape", "batch=1", "--json")
    options = ("--constraint", "sqnr>=10dB", "--trials", "2")
    code, out, err = bitsmith(*words, *options)
    data = json.loads(out)
    assert code == 0 and data["met"]
    assert "trials: 2/2" in err and "finalists" in err
    assert {row["layer"] for row in data["ledger"]} == set(LAYERS)
    page = (home / "real" / "report.html").read_text()
    assert all(row["reason"] in html.unescape(page) for row in data["ledger"])
    with open(data["best"]["artifact"]) as best:
        assert best.plan == data["best"]["plan"]
    again = ("compile", "net.onnx", "-o", "again", "--shape", "batch=1", "--plan", "real/plan.json", "-q")
    assert bitsmith(*again, "-c", "samples.npy")[0] == 0
    assert json.loads(bitsmith("inspect", "again", "--json")[1])["plan"] == data["best"]["plan"]
    code, out, _ = bitsmith(*words, *options)
    resumed = json.loads(out)
    assert code == 0 and len(resumed["trials"]) >= len(data["trials"])
    assert any("went on from" in note for note in resumed["notes"])


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["inspect", "none.onnx"], 3, "no such file"),
        (["inspect", "broken.onnx"], 3, "broken.onnx"),
        (["inspect", "odd.onnx"], 4, "Whatever"),
        (["inspect", "net.onnx"], 5, "batch"),
        (["inspect", "net.onnx", "--shape", "batch"], 5, "name=value"),
        (["inspect", "net.onnx", "--shape", "batch=none"], 5, "1x3x224x224"),
        (["inspect", "net.onnx", "--shape", "batch=1", "--target", "z80"], 7, "z80"),
        (["inspect", "nowhere"], 8, "does not exist"),
        (["inspect", "float", "--target", "z80"], 5, "float is an artifact, compiled for"),
        (["inspect", "float", "--target", "host"], 5, "Leave it out"),
        (["inspect", "float", "--shape", "batch=1"], 5, "--shape is for models"),
        (["run", "float"], 5, "--random"),
        (["run", "float", "--input", "image=samples.npy"], 5, "shape"),
        (["run", "float", "--input", "image=none.npy"], 5, "no such file"),
        (["run", "float", "--input", "image=pickle.npy"], 5, "pickle.npy"),
        (["run", "float", "--input", "picture=image1.npy"], 5, "picture"),
        (["run", "float", "image1.npy", "--random"], 5, "--random"),
        (["run", "float", "image1.npy", "--input", "image=image1.npy"], 5, "by position and by name"),
        (["run", "damaged", "--random"], 8, "damaged"),
        (["inspect", "cut"], 8, "weights.bin has 5 bytes"),
        (["inspect", "odd-ledger"], 8, "the ledger in its manifest"),
        (["run", "float", "--random", "-o", "broken.onnx/out.npz"], 9, "out.npz"),
        (["bench", "float", "--against", "onnxruntime"], 5, "--model"),
        (["bench", "float", "--threads", "1,x"], 5, "1,2"),
        (["report", "nowhere"], 5, "nowhere"),
        (["compile", "net.onnx", "-o", "new", "--shape", "batch=1", "--uniform", "int8"], 5, "--calibration"),
        (["compile", "net.onnx", "-o", "new", "--shape", "batch=1", "--plan", "bad.json"], 6, "bad.json"),
        (["compile", "net.onnx", "-o", "new", "--plan", "bad.json", "--uniform", "int8"], 5, "exclude"),
        (["compile", "net.onnx", "-o", "broken.onnx", "--shape", "batch=1"], 9, "broken.onnx"),
        (["compile", "net.onnx", "-o", "broken.onnx/x", "--shape", "batch=1"], 9, "broken.onnx"),
        (["compile", "net.onnx", "-o", ".", "--shape", "batch=1"], 9, "something else"),
        (["search", "net.onnx", "-o", "new", "-c", "none.npy"], 5, "none.npy"),
        (["search", "net.onnx", "-o", "new", "-c", "samples.npy", "--labels", "bad.json"], 5, "class number"),
    ],
)
def test_mistakes_end_with_one_message_and_their_code(bitsmith, home, words, code, says):
    (home / "broken.onnx").write_bytes(b"\x08\x07\x12 not a model")
    odd = onnx_model([node("Whatever", "x", domain="my.own")], {"x": (1, 4)}, domains=("my.own",))
    onnx.save(odd, home / "odd.onnx")
    (home / "bad.json").write_text('{"version": 1')
    np.save(home / "pickle.npy", np.array([{"a": 1}], object), allow_pickle=True)
    np.save(home / "image1.npy", samples(1))
    (home / "damaged").mkdir(exist_ok=True)
    (home / "damaged" / "manifest.json").write_text('{"format": "bitsmith-artifact"')
    for name in ("cut", "odd-ledger"):
        shutil.copytree(home / "float", home / name, dirs_exist_ok=True)
    (home / "cut" / "weights.bin").write_bytes(b"short")
    manifest = json.loads((home / "float" / "manifest.json").read_text())
    (home / "odd-ledger" / "manifest.json").write_text(json.dumps({**manifest, "ledger": [{"a": 1}]}))
    refused(bitsmith(*words), code, says)
    assert not (home / "new").exists()


@pytest.mark.parametrize(
    "words", [("run", "float", "--random", "--seed", "-1"), ("bench", "float", "--repeats", "0")]
)
def test_numbers_out_of_range_are_mistakes_of_the_command_line(bitsmith, words):
    code, out, err = bitsmith(*words)
    assert (code, out) == (2, "") and words[2 if "--random" not in words else 3] in err


def test_debug_shows_the_trace(bitsmith):
    code, _, err = bitsmith("inspect", "none.onnx", "--debug")
    assert code == 3 and "Traceback" in err and err.splitlines()[-1].startswith("bitsmith: error: ")
    assert "Traceback" in bitsmith("--debug", "inspect", "none.onnx")[2]


def test_a_fault_of_ours_is_owned(bitsmith, monkeypatch):
    def broken(*args, **options):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("bitsmith.compiler.pipeline.targets", broken)
    code, out, err = bitsmith("targets")
    assert code == InternalError.exit_code == 70 and out == ""
    assert "ZeroDivisionError: division by zero" in err and "report" in err and "Traceback" not in err
    assert "Traceback" in bitsmith("targets", "--debug")[2]


@pytest.mark.parametrize(
    ("number", "code", "says"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_an_interrupt_leaves_nothing(home, tmp_path, number, code, says):
    np.save(tmp_path / "many.npy", samples(5000))
    words = ["compile", "net.onnx", "-o", str(tmp_path / "new"), "--shape", "batch=1", "--uniform", "int8"]
    command = [*PROGRAM, *words, "-c", str(tmp_path / "many.npy")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, cwd=home, stderr=subprocess.PIPE, text=True, env=environment) as process:
        first = process.stderr.readline()
        assert first.startswith("calibrating"), first
        process.send_signal(number)
        rest = process.stderr.read()
    assert process.returncode == code
    assert rest.splitlines()[-1] == f"bitsmith: {says}" and "Traceback" not in rest
    assert [f.name for f in tmp_path.iterdir()] == ["many.npy"]


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_reader_that_goes_away_is_no_fault(flags):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*PROGRAM, "targets", *flags], stdout=writer, stderr=subprocess.PIPE, text=True, env=environment
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_json_has_no_infinity():
    assert plain({"a": float("inf"), "b": np.float32(1.5), "c": (np.arange(2), Path("x"))}) == {
        "a": None,
        "b": 1.5,
        "c": [[0, 1], "x"],
    }


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (38_149, "38.1 kB"), (4_610_000, "4.61 MB")],
)
def test_sizes_read_well(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ([], None),
        (["x=1x3x224x224", "batch=4"], {"x": (1, 3, 224, 224), "batch": 4}),
        (["x=1x5", "y=7x", "a=b=3"], {"x": (1, 5), "y": (7,), "a=b": 3}),
    ],
)
def test_shapes_are_parsed(options, shapes):
    assert data_files.parse_shapes(options) == shapes


@pytest.mark.parametrize("option", ["x", "=3", "x=", "x=0", "x=1x-2", "x=1xx2", "x=1,", "x=1,2"])
def test_bad_shapes_are_refused(option):
    with pytest.raises(InputError, match="--shape"):
        data_files.parse_shapes([option])


@pytest.mark.parametrize(
    ("options", "buckets"),
    [
        ([], [{}]),
        (["batch=1", "seq=32,64"], [{"batch": 1, "seq": 32}, {"batch": 1, "seq": 64}]),
        (["h=8,16", "w=4,2"], [{"h": 8, "w": 4}, {"h": 16, "w": 2}]),
        (["x=1x3x4,1x3x8"], [{"x": (1, 3, 4)}, {"x": (1, 3, 8)}]),
    ],
)
def test_several_shapes_are_parsed(options, buckets):
    assert data_files.parse_buckets(options) == buckets


def test_several_shapes_go_together():
    with pytest.raises(InputError, match="h has 2, w has 3 sizes"):
        data_files.parse_buckets(["h=8,16", "w=4,2,1", "batch=1"])


def test_an_option_given_twice_is_refused(home):
    with pytest.raises(InputError, match="twice"):
        data_files.parse_shapes(["x=1", "x=2"])
    with pytest.raises(InputError, match="twice"):
        data_files.read_named([f"x={home / 'samples.npy'}"] * 2)


@pytest.mark.parametrize("text", ["", "a", "1.5", "1 2\nx"])
def test_bad_labels_are_refused(tmp_path, text):
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(InputError, match="labels"):
        data_files.read_labels(tmp_path / "labels.txt")


def test_labels_from_either_file(tmp_path):
    np.save(tmp_path / "labels.npy", np.array([3, 1], np.uint8))
    (tmp_path / "labels.txt").write_text("3\n1\n")
    for name in ("labels.npy", "labels.txt"):
        labels = data_files.read_labels(tmp_path / name)
        assert labels.dtype == np.int64 and labels.tolist() == [3, 1]


def test_arrays_are_written_whole_whatever_their_names(tmp_path):
    arrays = {"file": np.arange(3), "a/b": np.ones((2, 2), np.float32)}
    data_files.write_arrays(tmp_path / "sub" / "out.npz", arrays)
    with np.load(tmp_path / "sub" / "out.npz") as back:
        assert {name: back[name].tolist() for name in back} == {k: v.tolist() for k, v in arrays.items()}
