"""Several programs in one library: the C ABI from Python and from C++, and the tables that are written."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_program as tiny
from bitsmith.compiler.artifact import ArraySpec, Artifact, Entry, Manifest, write_artifact
from bitsmith.compiler.artifact import open as open_artifact
from bitsmith.compiler.errors import ArtifactError, InputError, InternalError
from bitsmith.targets.emit_c import emit_model_c
from bitsmith.targets.link import HEADER, hash64, link_library
from bitsmith.targets.program import Place, Program, Space, Step, TensorSpec

SIZES = (4, 10, 7)
ADDED = np.arange(10, dtype=np.float32) - 3


def adding(n: int) -> Program:
    """float32[n] + 2 * ADDED[:n], by way of the arena."""
    hidden, added = Place(Space.ARENA, 0), Place(Space.WEIGHTS, 0)
    return Program(
        name="adding",
        inputs=(TensorSpec("x", (n,), "float32"),),
        outputs=(TensorSpec("y", (n,), "float32"),),
        steps=(
            Step("once", "k_add", (Place(Space.INPUT, 0), added, hidden), n),
            Step(f"again {n}", "k_add", (hidden, added, Place(Space.OUTPUT, 0)), n),
        ),
        arena_bytes=n * 4,
        weights_bytes=ADDED.nbytes,
        features=(),
    )


def specs(program: Program) -> Entry:
    ins, outs = (
        tuple(ArraySpec(s.name, s.shape, s.dtype) for s in each) for each in (program.inputs, program.outputs)
    )
    return Entry(ins, outs)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of three entries."""
    root = tmp_path_factory.mktemp("entries")
    first, *others = map(adding, SIZES)
    blob = ADDED.tobytes()
    kernels = tiny.Toolbox(root).kernels
    link_library(root / "model.so", [kernels], first, hash64(blob), others=others, cache=root / "cache")
    manifest = Manifest(
        name=first.name,
        inputs=specs(first).inputs,
        outputs=specs(first).outputs,
        target="x86-64-tiny",
        features=(),
        arena_bytes=40,
        plan={},
        ledger=(),
        versions={},
        others=tuple(map(specs, others)),
    )
    made = root / "adding.bitsmith"
    return write_artifact(made, manifest, library=root / "model.so", weights=blob, header=HEADER)


@pytest.fixture
def artifact(place: Path):  # type: ignore[no-untyped-def]
    with open_artifact(place) as opened:
        yield opened


def want(x: np.ndarray) -> np.ndarray:
    return x + 2 * ADDED[: len(x)]


def test_a_run_takes_the_entry_of_its_shapes(artifact: Artifact) -> None:
    for k, n in enumerate(SIZES):
        x = np.random.default_rng(n).standard_normal(n).astype(np.float32)
        assert artifact.entry_for(x) == k
        np.testing.assert_allclose(artifact.run(x)["y"], want(x), rtol=1e-6)
        np.testing.assert_allclose(artifact.run_threads(3, x=x)["y"], want(x), rtol=1e-6)
        assert [t.layer for t in artifact.profile(x, repeats=2)] == ["once", f"again {n}"]
        assert artifact.trace(x)[1].shape == (2,)
        assert artifact.steps(k) == (("once", "k_add"), (f"again {n}", "k_add"))
    assert artifact.arena_bytes == 40 and [e.inputs[0].shape for e in artifact.entries] == [(4,), (10,), (7,)]
    assert "and 2 more" in repr(artifact)


def test_shapes_that_were_not_compiled_are_refused(artifact: Artifact) -> None:
    with pytest.raises(
        InputError, match=r"the inputs 'x' \(5,\):\n  entry 0: 'x': float32\[4\]\n  entry 1: "
    ):
        artifact.run(np.zeros(5, np.float32))
    with pytest.raises(InputError, match="does not convert"):
        artifact.run(np.zeros(7, np.float64))
    with pytest.raises(InputError, match="is missing"):
        artifact.run()


@pytest.mark.parametrize(("size", "chosen"), [(1, 4), (4, 4), (5, 7), (7, 7), (8, 10)])
def test_padding_takes_the_smallest_that_holds_it(artifact: Artifact, size: int, chosen: int) -> None:
    x = np.arange(1, size + 1, dtype=np.float32)
    filled = artifact.padded(x)
    np.testing.assert_array_equal(filled["x"], np.concatenate([x, np.zeros(chosen - size, np.float32)]))
    np.testing.assert_allclose(artifact.run(**filled)["y"][:size], want(x), rtol=1e-6)


@pytest.mark.parametrize("shape", [(11,), (1, 4), ()])
def test_what_no_entry_holds_is_not_padded(artifact: Artifact, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="nothing that was compiled is large enough for the inputs 'x'"):
        artifact.padded(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    "change",
    [
        lambda m: replace(m, others=m.others[:1]),
        lambda m: replace(m, others=m.others[::-1]),
        lambda m: replace(m, others=(m.others[0], replace(m.others[1], outputs=()))),
    ],
)
def test_a_manifest_of_other_entries_is_refused(
    place: Path, tmp_path: Path, change: Callable[[Manifest], Manifest]
) -> None:
    with open_artifact(place) as opened:
        changed = change(opened.manifest)
    parts = {"library": place / "model.so", "weights": place / "weights.bin", "header": HEADER}
    with pytest.raises(ArtifactError, match="describe different models"):
        open_artifact(write_artifact(tmp_path / "other", changed, **parts))


# ---- the C ABI


def test_indices_of_entries_out_of_range(place: Path) -> None:
    c = ctypes.CDLL(str(place / "model.so"))
    for name in ("entry_input", "entry_output", "entry_step_layer", "entry_step_kernel"):
        function = getattr(c, f"bitsmith_{name}")
        function.restype = ctypes.c_void_p
        assert function(2, 0) and not any(function(*at) for at in ((-1, 0), (3, 0), (0, 2), (0, -1)))
    assert c.bitsmith_entry_count() == 3
    assert [c.bitsmith_entry_step_count(i) for i in (-1, 0, 2, 3)] == [0, 2, 2, 0]
    c.bitsmith_last_error.restype = ctypes.c_char_p
    for entry in (-1, 3):
        assert c.bitsmith_run_entry(None, entry, None, None, 0) == 1
        assert c.bitsmith_last_error() == f"entry {entry}: model 'adding' has entries 0 to 2".encode()
    assert c.bitsmith_run_entry(None, 1, None, None, -1) == 1
    assert c.bitsmith_last_error() == b"threads must be 1 to 256, not -1"
    assert c.bitsmith_run_entry(None, 1, None, None, 0) == 1
    assert c.bitsmith_last_error() == b"the model is null"


PROGRAM = """
#include "bitsmith.h"
#include <cstdio>
#include <thread>
#include <vector>

// Runs every entry on 0, 1, 2, ... with an instance of its own, all at the same time.
static void run(const char *directory, int entry, std::vector<float> *y) {
    bitsmith_model *model;
    if (bitsmith_open(BITSMITH_ABI_VERSION, directory, &model)) return;
    std::vector<float> x(bitsmith_entry_input(entry, 0)->shape[0]);
    for (size_t i = 0; i < x.size(); i++) x[i] = i;
    std::vector<float> made(bitsmith_entry_output(entry, 0)->bytes / sizeof(float));
    const void *inputs[] = {x.data()};
    void *outputs[] = {made.data()};
    for (int i = 0; i < 200; i++)
        if (bitsmith_run_entry(model, entry, inputs, outputs, 1 + i % 2)) return;
    std::vector<uint64_t> times(bitsmith_entry_step_count(entry));
    if (bitsmith_profile_entry(model, entry, inputs, outputs, times.data())) return;
    bitsmith_close(model);
    *y = made;
}

int main(int, char **arguments) {
    const int count = bitsmith_entry_count();
    std::vector<std::vector<float>> results(count);
    std::vector<std::thread> threads;
    for (int i = 0; i < count; i++) threads.emplace_back(run, arguments[1], i, &results[i]);
    for (auto &thread : threads) thread.join();
    for (int i = 0; i < count; i++) {
        std::printf("%s:", bitsmith_entry_step_layer(i, 1));
        for (float value : results[i]) std::printf(" %g", value);
        std::printf("\\n");
    }
}
"""


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++")
def test_cpp_runs_all_entries(place: Path, tmp_path: Path) -> None:
    source, program = tmp_path / "entries.cpp", tmp_path / "entries"
    source.write_text(PROGRAM)
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{place}", f"-Wl,-rpath,{place}", "-pthread"]
    command = ["g++", *flags, str(source), str(place / "model.so"), "-o", str(program)]
    subprocess.run(command, check=True)
    printed = subprocess.run([program, place], capture_output=True, text=True, check=True).stdout
    for n, line in zip(SIZES, printed.splitlines(), strict=True):
        layer, values = line.split(":")
        assert layer == f"again {n}"
        np.testing.assert_array_equal(
            np.array(values.split(), np.float32), want(np.arange(n, dtype=np.float32))
        )


# ---- model.c


def test_equal_calls_of_entries_share_a_stub() -> None:
    assert emit_model_c(adding(4), 0, [adding(7)]).count("static void call") == 2


@pytest.mark.parametrize(
    "other",
    [
        replace(adding(7), weights_bytes=44),
        replace(adding(7), features=("avx2",)),
        replace(adding(7), name="other"),
        replace(adding(7), inputs=(TensorSpec("x", (7,), "int32"),)),
        replace(adding(7), outputs=()),
    ],
)
def test_programs_that_differ_in_more_than_shapes_are_refused(other: Program) -> None:
    with pytest.raises(InternalError, match="differ in more than shapes|lies outside"):
        emit_model_c(adding(4), 0, [other])
