"""The artifact directory: writing, opening, running, saving, and every way in which it can be wrong."""

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bitsmith
import numpy as np
import pytest
import tiny_program as tiny
from bitsmith.compiler.artifact import Artifact, check_files, check_replaceable, read_manifest
from bitsmith.compiler.artifact import open as open_artifact
from bitsmith.compiler.errors import ArtifactError, InputError, OutputError

FILES = ["bitsmith.h", "manifest.json", "model.so", "weights.bin"]


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> tiny.Toolbox:
    return tiny.Toolbox(tmp_path_factory.mktemp("artifact"))


@pytest.fixture
def place(tools: tiny.Toolbox, tmp_path: Path) -> Path:
    return tools.artifact(tmp_path / "model", tiny.program(), tiny.packed_weights()[0])


@pytest.fixture
def artifact(place: Path) -> Iterator[Artifact]:
    with open_artifact(place) as opened:
        yield opened


def check_result(artifact: Artifact, seed: int = 1) -> None:
    x, extra = tiny.inputs(seed)
    got, want = artifact.run(x, extra), tiny.reference(x, extra)
    assert list(got) == ["z", "y"]
    for name in want:
        assert got[name].dtype == np.float32
        np.testing.assert_allclose(got[name], want[name], atol=1e-4)


# ---- opening and running


def test_package_opens_artifacts() -> None:
    assert bitsmith.open is open_artifact


def test_artifact_describes_itself(artifact: Artifact, place: Path) -> None:
    assert [(s.name, s.shape, s.dtype) for s in artifact.inputs] == [
        ("x", (1, 19), "float32"),
        ("extra", (10,), "float32"),
    ]
    assert [s.name for s in artifact.outputs] == ["z", "y"]
    assert artifact.plan == {"version": 1, "layers": {}}
    assert artifact.ledger[0]["layer"] == "head"
    assert artifact.arena_bytes == tiny.program().arena_bytes
    assert artifact.size_bytes == sum((place / n).stat().st_size for n in FILES if n != "bitsmith.h")
    assert sorted(os.listdir(place)) == FILES
    assert (
        artifact.manifest.files["weights.bin"].sha256 == hashlib.sha256(tiny.packed_weights()[0]).hexdigest()
    )
    assert "'tiny \"net\"' for x86-64-tiny" in repr(artifact) and "float32[1, 19]" in repr(artifact)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_run_computes_what_numpy_does(artifact: Artifact, threads: int) -> None:
    alone = artifact.run(*tiny.inputs())
    artifact.set_threads(threads)
    assert artifact.threads == threads
    check_result(artifact)
    for name, array in artifact.run(*tiny.inputs()).items():
        np.testing.assert_array_equal(array, alone[name])


def test_outputs_are_new_arrays(artifact: Artifact) -> None:
    first = artifact.run(*tiny.inputs(1))
    kept = first["z"].copy()
    artifact.run(*tiny.inputs(2))
    np.testing.assert_array_equal(first["z"], kept)


def test_inputs_by_name_and_by_position(artifact: Artifact) -> None:
    x, extra = tiny.inputs()
    want = artifact.run(x, extra)["z"]
    np.testing.assert_array_equal(artifact.run(extra=extra, x=x)["z"], want)
    np.testing.assert_array_equal(artifact.run(x, extra=extra)["z"], want)


def test_awkward_arrays_are_copied(artifact: Artifact) -> None:
    x, extra = tiny.inputs()
    want = artifact.run(x, extra)["z"]
    strided = np.zeros((1, 38), np.float32)[:, ::2]
    strided[:] = x
    misaligned = np.zeros(80, np.uint8)[1:77].view(np.float32).reshape(1, 19)
    misaligned[:] = x
    for view in (strided, misaligned, x.astype(">f4"), np.asfortranarray(x)):
        np.testing.assert_array_equal(artifact.run(view, extra)["z"], want)


@pytest.mark.parametrize("dtype", ["float16", "uint8", "int8", "int16", "bool"])
def test_types_that_lose_nothing_are_converted(artifact: Artifact, dtype: str) -> None:
    x, extra = tiny.inputs()
    x = np.round(np.abs(x)).astype(dtype)
    np.testing.assert_array_equal(artifact.run(x, extra)["z"], artifact.run(x.astype(np.float32), extra)["z"])


@pytest.mark.parametrize("dtype", ["float64", "int32", "int64", "complex64", "U3", "object"])
def test_types_that_could_lose_are_refused(artifact: Artifact, dtype: str) -> None:
    with pytest.raises(InputError, match=r"input 'x' must be float32, got .*; use array.astype\('float32'\)"):
        artifact.run(np.zeros((1, 19), dtype), np.zeros(10, np.float32))


@pytest.mark.parametrize(
    "shape, message",
    [
        ((19,), r"must have shape \(1, 19\), got \(19,\); add the batch axis: array\[None\]"),
        ((2, 19), r"must have shape \(1, 19\), got \(2, 19\)$"),
        ((19, 1), r"got \(19, 1\)$"),
        ((), r"got \(\)$"),
    ],
)
def test_wrong_shapes_are_refused(artifact: Artifact, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        artifact.run(np.zeros(shape, np.float32), np.zeros(10, np.float32))


def test_wrong_names_and_counts_are_refused(artifact: Artifact) -> None:
    x, extra = tiny.inputs()
    inputs = r"the model's inputs are 'x': float32\[1, 19\], 'extra': float32\[10\]"
    for message, call in [
        ("3 arrays given", lambda: artifact.run(x, extra, x)),
        ("input 'extra' is missing", lambda: artifact.run(x)),
        ("input 'x', 'extra' is missing", lambda: artifact.run()),
        ("no input is called 'y'", lambda: artifact.run(x, y=extra)),
        ("input 'x' is given by position and by name", lambda: artifact.run(x, x=x)),
    ]:
        with pytest.raises(InputError, match=f"{message}; {inputs}"):
            call()


@pytest.mark.parametrize("threads", [0, 257, 1.5, True, "2"])
def test_bad_thread_counts_are_refused(artifact: Artifact, threads: Any) -> None:
    with pytest.raises(InputError, match=f"from 1 to 256, got {threads!r}"):
        artifact.set_threads(threads)
    with pytest.raises(InputError, match=f"from 1 to 256, got {threads!r}"):
        artifact.run_threads(threads, *tiny.inputs())


def test_threads_of_one_call_are_for_that_call(artifact: Artifact) -> None:
    before, tasks = artifact.run(*tiny.inputs()), tiny.threads()
    for threads in (3, 1, 2):
        after = artifact.run_threads(threads, *tiny.inputs())
        np.testing.assert_array_equal(after["z"], before["z"])
        assert artifact.threads == 1
    assert tiny.threads(tasks + 2) == tasks + 2
    artifact.set_threads(1)
    assert tiny.threads(tasks) == tasks


def test_an_older_library_has_no_threads_for_one_call(artifact: Artifact) -> None:
    artifact._native._run_threads = None  # what opening one finds
    with pytest.raises(ArtifactError, match="compile it again, or use set_threads"):
        artifact.run_threads(2, *tiny.inputs())
    artifact.set_threads(2)
    np.testing.assert_allclose(
        artifact.run(*tiny.inputs())["z"], tiny.reference(*tiny.inputs())["z"], atol=1e-4
    )


def test_profile_names_every_step(artifact: Artifact) -> None:
    times = artifact.profile(*tiny.inputs(), repeats=3)
    assert [(t.layer, t.kernel) for t in times] == [(s.layer, s.symbol) for s in tiny.program().steps]
    assert all(0 <= t.nanoseconds < 1e9 for t in times) and sum(t.nanoseconds for t in times) > 0
    with pytest.raises(InputError, match="repeats must be an integer >= 1, got 0"):
        artifact.profile(*tiny.inputs(), repeats=0)


def test_one_instance_serves_many_threads(artifact: Artifact) -> None:
    def use(seed: int) -> None:
        for _ in range(300):
            check_result(artifact, seed)

    with ThreadPoolExecutor(3) as users:
        assert list(users.map(use, range(3))) == [None] * 3


def test_a_closed_artifact_refuses(place: Path) -> None:
    artifact = open_artifact(place)
    artifact.close()
    artifact.close()
    for call in (
        lambda: artifact.run(*tiny.inputs()),
        lambda: artifact.profile(*tiny.inputs()),
        lambda: artifact.set_threads(2),
        lambda: artifact.threads,
    ):
        with pytest.raises(ArtifactError, match="closed"):
            call()
    assert artifact.inputs[0].name == "x"


def test_closing_lets_go_of_library_and_weights(place: Path) -> None:
    def mapped() -> list[str]:
        return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(place) in line]

    artifact = open_artifact(place)
    assert any("weights.bin" in line and " r--" in line for line in mapped())
    artifact.close()
    assert not mapped()
    open_artifact(place)  # collected at once
    assert not mapped()


def test_a_temporary_artifact_is_deleted(place: Path) -> None:
    with open_artifact(place, temporary=True) as artifact:
        check_result(artifact)
    assert not place.exists()


def test_a_replaced_artifact_is_not_mixed_with_the_old(tools: tiny.Toolbox, place: Path) -> None:
    old = open_artifact(place)
    program, blob = tiny.program(), bytearray(tiny.packed_weights()[0])
    blob[:4] = np.float32(100).tobytes()
    tools.artifact(place, program, bytes(blob))
    with open_artifact(place) as new:
        x, extra = np.eye(1, 19, dtype=np.float32), tiny.inputs()[1]
        assert not np.allclose(old.run(x, extra)["z"], new.run(x, extra)["z"])
        check_result(old)
    old.close()


# ---- damage


def _edit(place: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    (place / name).write_bytes(change((place / name).read_bytes()))


def _edit_manifest(place: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((place / "manifest.json").read_text())
    change(data)
    (place / "manifest.json").write_text(json.dumps(data))


def _flip(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[: at % len(data)] + bytes([data[at] ^ 1]) + data[at % len(data) + 1 :]


def _swap(first: int, second: int) -> Callable[[bytes], bytes]:
    """Two words of eight bytes change places."""

    def change(data: bytes) -> bytes:
        words = [data[i : i + 8] for i in range(0, len(data), 8)]
        words[first], words[second] = words[second], words[first]
        return b"".join(words)

    return change


@pytest.mark.parametrize("name", ["model.so", "weights.bin"])
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda data: data[:-1], "has [0-9]+ bytes, not"),
        (lambda data: b"", "has 0 bytes"),
        (lambda data: data + b"x", "has [0-9]+ bytes, not"),
        (_flip(0), ""),
        (_flip(1000), ""),
        (_flip(-1), ""),
        (_swap(0, 5), ""),
        (lambda data: bytes(len(data)), ""),
    ],
)
def test_damaged_files_are_refused(
    place: Path, name: str, change: Callable[[bytes], bytes], message: str
) -> None:
    """By `open`, whose checksum of the weights is the library's own, and by `check_files`."""
    _edit(place, name, change)
    checksum = "weights.bin is damaged or another model's: its checksum"
    with pytest.raises(
        ArtifactError, match=f"is damaged: {name} .*{message or 'SHA-256 differs'}|{checksum}"
    ):
        open_artifact(place)
    with pytest.raises(ArtifactError, match=f"is damaged: {name} .*{message or 'SHA-256 differs'}"):
        check_files(place, read_manifest(place))


@pytest.mark.parametrize("name", ["model.so", "weights.bin", "manifest.json"])
def test_missing_files_are_named(place: Path, name: str) -> None:
    (place / name).unlink()
    with pytest.raises(ArtifactError, match=f"cannot read {name}: No such file"):
        open_artifact(place)


def test_places_that_are_no_artifacts(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        open_artifact(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="is a file"):
        open_artifact(tmp_path / "file")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.update(format_version=5), "format version 5, this bitsmith reads up to 4: upgrade"),
        (lambda d: d.update(format_version="1"), "format version '1'"),
        (lambda d: d.pop("format"), "is not a bitsmith manifest"),
        (lambda d: d.pop("inputs"), r"missing \['inputs'\]"),
        (lambda d: d.update(extra=1), r"unknown \['extra'\]"),
        (
            lambda d: d["inputs"][0].update(shape=[1, -19]),
            r"inputs\[0\].shape\[1\]: expected an integer >= 0",
        ),
        (lambda d: d["inputs"][0].update(shape=[1, True]), r"inputs\[0\].shape\[1\]: expected an integer"),
        (lambda d: d["inputs"][0].update(shape=[10**9] * 3), r"inputs\[0\].shape: .* beyond any memory"),
        (lambda d: d["inputs"][0].update(dtype="float99"), "'float99' is not a data type"),
        (lambda d: d.update(arena_bytes=None), "arena_bytes: expected an integer >= 0, got None"),
        (lambda d: d.update(plan=[]), "plan: expected dict, got list"),
        (lambda d: d.update(features="avx2"), "features: expected list, got str"),
        (lambda d: d["files"].pop("model.so"), r"files: missing \['model.so'\]"),
        (lambda d: d["files"]["model.so"].update(sha256="0"), "files.model.so.sha256: not a SHA-256"),
        (
            lambda d: d["inputs"][0].update(shape=[1, 18]),
            "model.so and manifest.json describe different models",
        ),
        (lambda d: d["outputs"].reverse(), "model.so and manifest.json describe different models"),
    ],
)
def test_wrong_manifests_are_refused(
    place: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    _edit_manifest(place, change)
    with pytest.raises(ArtifactError, match=message):
        open_artifact(place)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"NaN"])
def test_manifests_that_are_not_json_are_refused(place: Path, text: bytes) -> None:
    (place / "manifest.json").write_bytes(text)
    with pytest.raises(ArtifactError, match="manifest.json is (damaged|not a bitsmith manifest)"):
        open_artifact(place)


def test_features_that_the_cpu_lacks_are_named(tools: tiny.Toolbox, tmp_path: Path) -> None:
    place = tools.artifact(tmp_path / "m", tiny.program(("avx9000",)), tiny.packed_weights()[0])
    with pytest.raises(ArtifactError, match="lacks: avx9000; .* target 'x86-64-tiny'; .* --target host"):
        open_artifact(place)


def test_a_library_of_another_machine_is_refused(place: Path) -> None:
    _edit(place, "model.so", lambda data: data[:18] + b"\xf3\x00" + data[20:])  # ELF machine: RISC-V
    digest = hashlib.sha256((place / "model.so").read_bytes()).hexdigest()
    _edit_manifest(place, lambda data: data["files"]["model.so"].update(sha256=digest))
    with pytest.raises(ArtifactError, match="does not load: .* compiled for target 'x86-64-tiny'"):
        open_artifact(place)


def test_weights_of_another_model_are_refused(place: Path) -> None:
    """Library and weights that each fit the manifest, but not each other."""
    _edit(place, "weights.bin", _flip(5))
    digest = hashlib.sha256((place / "weights.bin").read_bytes()).hexdigest()
    _edit_manifest(place, lambda data: data["files"]["weights.bin"].update(sha256=digest))
    with pytest.raises(ArtifactError, match="its checksum is not the one in the library"):
        open_artifact(place)


# ---- saving


def test_save_copies_everything(artifact: Artifact, place: Path, tmp_path: Path) -> None:
    saved = artifact.save(tmp_path / "new" / "copy")
    assert saved == tmp_path / "new" / "copy"
    for name in FILES:
        assert (saved / name).read_bytes() == (place / name).read_bytes()
    assert os.listdir(saved.parent) == ["copy"]
    with open_artifact(saved) as copy:
        check_result(copy)


def test_save_replaces_artifacts_and_empty_directories(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        saved = artifact.save(tmp_path / "empty")
        assert sorted(os.listdir(saved)) == FILES
    assert artifact.save(artifact.path) == artifact.path  # onto itself
    with open_artifact(artifact.path) as again:
        check_result(again)
    assert sorted(os.listdir(tmp_path)) == ["empty", "model"]


def test_save_leaves_other_things_alone(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text('{"name": "a web page"}')
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "manifest.json").write_bytes((artifact.path / "manifest.json").read_bytes())
    (tmp_path / "mixed" / "notes.txt").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name, why in [
        ("file", "a file of that name exists"),
        ("folder", "holds something else .thesis.tex"),
        ("app", "holds something else"),
        ("mixed", "holds something else .notes.txt"),
    ]:
        with pytest.raises(OutputError, match=why):
            artifact.save(tmp_path / name)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_unwritable_places_say_why(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file" / "model", Path("/proc/bitsmith/model"), tmp_path / ("x" * 300)):
        with pytest.raises(OutputError, match="cannot write the artifact .*: "):
            artifact.save(bad)
    assert sorted(os.listdir(tmp_path)) == ["file", "model"]


@pytest.mark.parametrize("below", ["file/model", "file/deep/model"])
def test_a_place_below_a_file_is_refused_before_anything_is_compiled(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=f"{below}: {tmp_path / 'file'} is no directory"):
        check_replaceable(tmp_path / below)
    check_replaceable(tmp_path / "new" / "deep" / "model")
    assert os.listdir(tmp_path) == ["file"]


def test_a_source_that_changed_is_not_saved(artifact: Artifact, tmp_path: Path) -> None:
    replaced = tmp_path / "weights"
    replaced.write_bytes(b"other")
    replaced.rename(artifact.path / "weights.bin")
    with pytest.raises(ArtifactError, match="weights.bin has changed since it was opened"):
        artifact.save(tmp_path / "copy")
    assert os.listdir(tmp_path) == ["model"]


def _python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=tiny.package_environment(), check=False
    )


def test_a_full_disk_leaves_what_was_there(place: Path, tmp_path: Path) -> None:
    """The limit on file sizes stands for the disk: writing beyond it fails in the same way."""
    code = """
        import resource, sys
        import bitsmith
        artifact = bitsmith.open(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        for place in sys.argv[2:]:
            try:
                artifact.save(place)
            except bitsmith.BitsmithError as error:
                print(error)
    """
    other = tmp_path / "other"
    with open_artifact(place) as artifact:
        artifact.save(other)
    done = _python(code, place, tmp_path / "new", other)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("File too large") == done.stdout.count("Nothing was left there") == 2
    assert sorted(os.listdir(tmp_path)) == ["model", "other"]
    with open_artifact(other) as kept:
        check_result(kept)


def test_running_imports_nothing_but_numpy(place: Path) -> None:
    code = """
        import sys
        import numpy as np
        import bitsmith
        with bitsmith.open(sys.argv[1]) as artifact:
            artifact.run(np.zeros((1, 19), np.float32), np.zeros(10, np.float32))
        heavy = {"torch", "tvm", "tvm_ffi", "onnx", "onnxruntime", "optuna", "networkx", "plotly"}
        print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
    """
    done = _python(code, place)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
