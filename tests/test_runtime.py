"""The C runtime and the library around it, through its C ABI: results, threads, refusals, dependencies."""

import ctypes
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_program as tiny
from bitsmith.compiler.errors import InternalError, TargetError
from bitsmith.targets import link
from bitsmith.targets.emit_c import c_string, emit_model_c
from bitsmith.targets.program import Place, Program, Space

OK, BAD_ARGUMENT, BAD_VERSION, BAD_CPU, IO, BAD_WEIGHTS, NO_MEMORY, BUSY, NO_THREADS = range(9)


class Tensor(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("rank", ctypes.c_int32),
        ("bytes", ctypes.c_uint64),
    ]


class Library:
    """bitsmith.h by hand: independent of the binding in compiler/artifact."""

    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        for name in ("model_name", "step_layer", "step_kernel", "strerror", "last_error"):
            getattr(self.c, f"bitsmith_{name}").restype = ctypes.c_char_p
        self.c.bitsmith_arena_bytes.restype = self.c.bitsmith_weight_bytes.restype = ctypes.c_uint64
        self.c.bitsmith_input.restype = self.c.bitsmith_output.restype = ctypes.POINTER(Tensor)

    def open(self, weights: Path, version: int = 1) -> tuple[int, ctypes.c_void_p]:
        model = ctypes.c_void_p()
        code = self.c.bitsmith_open_weights(version, str(weights).encode(), ctypes.byref(model))
        assert bool(model) == (code == OK)
        return code, model

    def run(self, model: ctypes.c_void_p, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> int:
        return int(self.c.bitsmith_run(model, pointers(inputs), pointers(outputs)))

    @property
    def message(self) -> str:
        return str(self.c.bitsmith_last_error().decode())


def pointers(arrays: list[np.ndarray]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))


def fresh_outputs() -> list[np.ndarray]:
    return [np.full((1, 10), np.nan, np.float32) for _ in range(2)]


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> tiny.Toolbox:
    return tiny.Toolbox(tmp_path_factory.mktemp("runtime"))


@pytest.fixture(scope="module")
def library(tools: tiny.Toolbox) -> Library:
    return Library(tools.library(tiny.program(), tiny.packed_weights()[0]))


@pytest.fixture(scope="module")
def weights(tools: tiny.Toolbox) -> Path:
    path = tools.directory / "weights.bin"
    path.write_bytes(tiny.packed_weights()[0])
    return path


@pytest.fixture
def model(library: Library, weights: Path) -> Iterator[ctypes.c_void_p]:
    code, model = library.open(weights)
    assert code == OK, library.message
    yield model
    library.c.bitsmith_close(model)


def result(library: Library, model: ctypes.c_void_p, seed: int = 1) -> list[np.ndarray]:
    outputs = fresh_outputs()
    assert library.run(model, list(tiny.inputs(seed)), outputs) == OK, library.message
    return outputs


# ---- describing and running


def test_library_describes_its_model(library: Library) -> None:
    c = library.c
    assert c.bitsmith_abi_version() == 1
    assert c.bitsmith_model_name() == b'tiny "net"'
    assert (c.bitsmith_arena_bytes(), c.bitsmith_weight_bytes()) == (
        tiny.program().arena_bytes,
        len(tiny.packed_weights()[0]),
    )
    assert (c.bitsmith_input_count(), c.bitsmith_output_count(), c.bitsmith_step_count()) == (2, 2, 4)
    first = c.bitsmith_input(0).contents
    assert (first.name, first.dtype, first.shape[: first.rank], first.bytes) == (
        b"x",
        b"float32",
        [1, 19],
        76,
    )
    assert [c.bitsmith_output(i).contents.name for i in range(2)] == [b"z", b"y"]
    assert c.bitsmith_step_layer(0).decode() == tiny.ODD_LAYER
    assert c.bitsmith_step_kernel(2) == b"k_linear_37"


def test_indices_out_of_range_give_null(library: Library) -> None:
    for index in (-1, 2):
        assert not library.c.bitsmith_input(index)
        assert not library.c.bitsmith_output(index)
    assert library.c.bitsmith_step_layer(4) is None
    assert library.c.bitsmith_step_kernel(-1) is None


def test_run_computes_what_numpy_does(library: Library, model: ctypes.c_void_p) -> None:
    for seed in range(3):
        want = tiny.reference(*tiny.inputs(seed))
        z, y = result(library, model, seed)
        np.testing.assert_allclose(z, want["z"], atol=1e-4)
        np.testing.assert_allclose(y, want["y"], atol=1e-4)


@pytest.mark.parametrize("threads", [2, 3, 8, 64])
def test_threads_do_not_change_results(library: Library, model: ctypes.c_void_p, threads: int) -> None:
    want = result(library, model)
    assert library.c.bitsmith_set_threads(model, threads) == OK
    assert library.c.bitsmith_threads(model) == threads
    for _ in range(200):
        for got, alone in zip(result(library, model), want, strict=True):
            np.testing.assert_array_equal(got, alone)


def test_threads_end_with_the_pool(library: Library, weights: Path) -> None:
    before = tiny.threads()
    _, model = library.open(weights)
    for threads, extra in ((4, 3), (2, 1), (1, 0), (3, 2)):
        assert library.c.bitsmith_set_threads(model, threads) == OK
        assert tiny.threads(before + extra) == before + extra
        result(library, model)
    library.c.bitsmith_close(model)
    assert tiny.threads(before) == before


def test_sleeping_workers_wake_for_the_next_run(library: Library, model: ctypes.c_void_p) -> None:
    want = result(library, model)
    library.c.bitsmith_set_threads(model, 3)
    for _ in range(5):
        time.sleep(0.02)  # longer than workers spin
        np.testing.assert_array_equal(result(library, model)[0], want[0])


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_nobody_waits_for_a_thread_that_is_held_up(tools: tiny.Toolbox, tmp_path: Path, threads: int) -> None:
    """Whoever is free takes over what a busy thread has not begun: here task 3, while task 2 waits for it."""
    library = Library(tools.library(tiny.waiting_program(), b""))
    (tmp_path / "none").write_bytes(b"")
    code, model = library.open(tmp_path / "none")
    assert code == OK, library.message
    assert library.c.bitsmith_set_threads(model, threads) == OK
    for _ in range(50):
        done = np.zeros(4, np.int32)
        assert library.run(model, [], [done]) == OK
        assert done.tolist() == [1, 2, 3, 4]
    library.c.bitsmith_close(model)


def test_threads_on_one_core_still_finish(library: Library, weights: Path) -> None:
    _, model = library.open(weights)
    want, cores = result(library, model), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert library.c.bitsmith_set_threads(model, 4) == OK  # they inherit the one core
        for _ in range(50):
            np.testing.assert_array_equal(result(library, model)[0], want[0])
    finally:
        os.sched_setaffinity(0, cores)
        library.c.bitsmith_close(model)


def test_threads_of_one_call(library: Library, weights: Path) -> None:
    before = tiny.threads()
    _, model = library.open(weights)
    want, arrays = result(library, model), list(tiny.inputs())
    inputs = pointers(arrays)
    for threads, running in ((1, 0), (3, 2), (2, 2), (1, 2), (4, 3)):
        outputs = fresh_outputs()
        assert library.c.bitsmith_run_threads(model, inputs, pointers(outputs), threads) == OK
        np.testing.assert_array_equal(outputs[0], want[0])
        assert tiny.threads(before + running) == before + running
        assert library.c.bitsmith_threads(model) == 1  # what later runs use is as before
    assert library.c.bitsmith_set_threads(model, 1) == OK
    assert tiny.threads(before) == before
    for threads in (0, -1, 257):
        code = library.c.bitsmith_run_threads(model, inputs, pointers(fresh_outputs()), threads)
        assert code == BAD_ARGUMENT and f"not {threads}" in library.message
    library.c.bitsmith_close(model)


def test_profile_times_every_step(library: Library, model: ctypes.c_void_p) -> None:
    times, outputs = np.full(4, 2**63, np.uint64), fresh_outputs()
    start = time.perf_counter_ns()
    code = library.c.bitsmith_profile(
        model, pointers(list(tiny.inputs())), pointers(outputs), ctypes.c_void_p(times.ctypes.data)
    )
    elapsed = time.perf_counter_ns() - start
    assert code == OK
    assert times.sum() <= elapsed  # every entry was written: 2^63 is longer
    np.testing.assert_array_equal(outputs[0], result(library, model)[0])


def test_two_instances_run_at_the_same_time(library: Library, weights: Path) -> None:
    wants = [tiny.reference(*tiny.inputs(seed))["z"] for seed in range(2)]
    failures: list[str] = []

    def use(seed: int) -> None:
        _, model = library.open(weights)
        library.c.bitsmith_set_threads(model, 1 + seed)
        for _ in range(2000):
            outputs = fresh_outputs()
            code = library.run(model, list(tiny.inputs(seed)), outputs)
            if code or not np.allclose(outputs[0], wants[seed], atol=1e-4):
                failures.append(f"instance {seed}: code {code}, {outputs[0]}")
                break
        library.c.bitsmith_close(model)

    users = [threading.Thread(target=use, args=(seed,)) for seed in range(2)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert not failures


def test_a_second_call_on_a_busy_instance_is_refused(tools: tiny.Toolbox, tmp_path: Path) -> None:
    library = Library(tools.library(tiny.holding_program(), b""))
    (tmp_path / "none").write_bytes(b"")
    code, model = library.open(tmp_path / "none")
    assert code == OK, library.message
    go, state, other = (np.zeros(4, np.int32) for _ in range(3))
    codes: list[int] = []
    user = threading.Thread(target=lambda: codes.append(library.run(model, [go], [state])))
    user.start()
    while not state[0]:
        time.sleep(0.001)
    assert library.run(model, [go], [other]) == BUSY
    assert "another thread is using this instance" in library.message
    assert library.c.bitsmith_set_threads(model, 2) == BUSY
    go[0] = 5
    user.join()
    assert codes == [OK] and state[1] == 5 and not other.any()
    assert library.run(model, [go], [other]) == OK
    library.c.bitsmith_close(model)


def test_a_forked_child_gets_threads_of_its_own(library: Library, model: ctypes.c_void_p) -> None:
    want = result(library, model)
    library.c.bitsmith_set_threads(model, 3)
    result(library, model)
    child = os.fork()
    if not child:
        outputs = fresh_outputs()
        fine = library.run(model, list(tiny.inputs()), outputs) == OK and np.array_equal(outputs[0], want[0])
        fine = fine and library.c.bitsmith_set_threads(model, 2) == OK
        library.c.bitsmith_close(model)
        os._exit(0 if fine else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(result(library, model)[0], want[0])


# ---- refusals


def test_another_abi_version_is_refused(library: Library, weights: Path) -> None:
    assert library.open(weights, version=2)[0] == BAD_VERSION
    assert "version 2 of bitsmith.h, this library has version 1" in library.message


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_bad_thread_counts_are_refused(library: Library, model: ctypes.c_void_p, threads: int) -> None:
    assert library.c.bitsmith_set_threads(model, threads) == BAD_ARGUMENT
    assert f"threads must be 1 to 256, not {threads}" in library.message
    assert library.c.bitsmith_threads(model) == 1


def test_bad_pointers_are_refused(library: Library, model: ctypes.c_void_p) -> None:
    x, extra = tiny.inputs()
    odd = np.zeros(80, np.uint8)[1:77]
    assert library.run(model, [odd, extra], fresh_outputs()) == BAD_ARGUMENT
    assert "input 0 ('x') is not aligned to 16 bytes" in library.message
    assert library.c.bitsmith_run(model, pointers([x, extra]), (ctypes.c_void_p * 2)()) == BAD_ARGUMENT
    assert "output 0 ('z') is null" in library.message
    assert library.c.bitsmith_run(None, None, None) == BAD_ARGUMENT
    assert library.c.bitsmith_run(model, None, None) == BAD_ARGUMENT
    assert library.c.bitsmith_profile(model, None, None, None) == BAD_ARGUMENT
    library.c.bitsmith_close(None)


def test_messages_belong_to_their_thread(library: Library, model: ctypes.c_void_p) -> None:
    library.c.bitsmith_set_threads(model, 0)
    theirs: list[str] = []
    other = threading.Thread(target=lambda: theirs.append(library.message))
    other.start()
    other.join()
    assert theirs == [""] and "threads must be" in library.message


def _cut(blob: bytes) -> bytes:
    return blob[:-1]


def _flip(blob: bytes) -> bytes:
    return blob[:100] + bytes([blob[100] ^ 4]) + blob[101:]


def _flip_last(blob: bytes) -> bytes:
    return blob[:-1] + b"?"


def _swap_words(blob: bytes) -> bytes:
    return blob[8:16] + blob[:8] + blob[16:]


@pytest.mark.parametrize("damage", [_cut, _flip, _flip_last, _swap_words])
def test_damaged_weights_are_refused(
    library: Library, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(damage(tiny.packed_weights()[0]))
    assert library.open(path)[0] == BAD_WEIGHTS
    assert str(path) in library.message


def test_missing_weights_are_refused(library: Library, tmp_path: Path) -> None:
    assert library.open(tmp_path / "no.bin")[0] == IO
    assert library.message == f"cannot read {tmp_path}/no.bin: No such file or directory"
    assert library.open(tmp_path)[0] == BAD_WEIGHTS  # a directory


def test_missing_cpu_features_are_named(tools: tiny.Toolbox, weights: Path) -> None:
    lacking = sorted({"avx512_fp16", "avx_vnni", "avx512_bf16"} - tiny.cpu_flags())
    program = tiny.program(features=("popcnt", *lacking, "avx9000"))
    refused = Library(tools.library(program, tiny.packed_weights()[0]))
    assert refused.open(weights)[0] == BAD_CPU
    assert refused.message.endswith(f"this machine lacks: {', '.join([*lacking, 'avx9000'])}")


def test_every_code_has_a_meaning(library: Library) -> None:
    meanings = {library.c.bitsmith_strerror(code) for code in range(10)}
    assert len(meanings) == 10
    assert library.c.bitsmith_strerror(10) == library.c.bitsmith_strerror(-1) == b"unknown error code"


# ---- what is inside, against an independent truth


@pytest.fixture(scope="module")
def insides(tools: tiny.Toolbox) -> ctypes.CDLL:
    """The runtime's own functions, made visible."""
    source = tools.directory / "insides.c"
    source.write_text(
        '#include "bitsmith.c"\nuint64_t test_hash(const char *d, uint64_t n) { return hash64(d, n); }\n'
        + "const bs_model bs_the_model;\n"
    )
    made = tools.directory / "insides.so"
    runtime = link.RUNTIME
    files = [source, runtime / "pool.c", runtime / "cpu.c", runtime / "support.c"]
    flags = ["-std=gnu11", "-fPIC", "-shared", "-I", str(runtime), "-o", str(made)]
    subprocess.run([*link.find_compiler(), *flags, *map(str, files), "-lpthread"], check=True)
    loaded = ctypes.CDLL(str(made))
    loaded.test_hash.restype = ctypes.c_uint64
    return loaded


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 64, 100, 8 << 16, (8 << 16) + 3])
def test_hash_is_the_same_in_c_and_numpy(insides: ctypes.CDLL, size: int, tmp_path: Path) -> None:
    data = np.random.default_rng(size).bytes(size)
    want = insides.test_hash(data, ctypes.c_uint64(size))
    (tmp_path / "data").write_bytes(data)
    assert link.hash64(data) == link.hash64(np.frombuffer(data, np.uint8)) == want
    assert link.hash64(tmp_path / "data") == want
    assert size == 0 or link.hash64(data[:-1] + bytes([data[-1] ^ 128])) != want


def test_cpu_features_are_those_that_linux_reports(insides: ctypes.CDLL) -> None:
    table = set(re.findall(r'^    \{"(\w+)"', (link.RUNTIME / "cpu.c").read_text(), re.MULTILINE))
    flags = tiny.cpu_flags()
    if not flags & table:
        pytest.skip("not an x86 machine: libraries list no features")
    assert {name for name in table if insides.bs_has_feature(name.encode())} == table & flags


# ---- the library file


def _readelf(path: Path, what: str) -> str:
    return subprocess.run(
        ["readelf", "-W", what, str(path)], capture_output=True, text=True, check=True
    ).stdout


def test_library_shows_and_needs_only_what_it_must(tools: tiny.Toolbox) -> None:
    path = tools.library(tiny.program(), tiny.packed_weights()[0])
    defined = [line.split() for line in _readelf(path, "--dyn-syms").splitlines() if " GLOBAL " in line]
    shown = {words[-1] for words in defined if words[6] != "UND"}
    declared = set(re.findall(r"\b(bitsmith_\w+)\(", link.HEADER.read_text()))
    assert shown == declared
    dynamic = _readelf(path, "-d")
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic))
    assert all(re.match(r"(libc|libm|libpthread|ld-linux.*)\.so", name) for name in needed), needed
    assert "SONAME" in dynamic and "[model.so]" in dynamic
    stack = next(line for line in _readelf(path, "-l").splitlines() if "GNU_STACK" in line)
    assert "RWE" not in stack


def test_linking_is_deterministic_and_reuses_the_runtime(tools: tiny.Toolbox, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for name in ("a.so", "b.so"):
        link.link_library(tmp_path / name, [tools.kernels.read_bytes()], tiny.program(), 1, cache=cache)
        made = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
        if name == "a.so":
            first = made
    assert made == first and len(made) == len(link._SOURCES)
    assert (tmp_path / "a.so").read_bytes() == (tmp_path / "b.so").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.so", "b.so", "cache"]


def test_a_kernel_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="k_linear_19"):
        link.link_library(tmp_path / "model.so", [], tiny.program(), 1)
    assert not list(tmp_path.iterdir())


def test_no_compiler_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(TargetError, match="none of cc, gcc, clang .*apt install gcc"):
        link.find_compiler()
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    with pytest.raises(TargetError, match="'no-such-compiler -m64' is not on the PATH"):
        link.find_compiler()


def test_the_compiler_of_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    found = link.find_compiler("cc -pipe")
    assert found[0].endswith("/cc") and found[1:] == ("-pipe",)
    monkeypatch.setenv("CC", f"{found[0]} -g0")
    assert link.find_compiler() == (found[0], "-g0")


# ---- model.c


def test_strings_survive_the_c_compiler() -> None:
    assert c_string('a"b\\') == '"a\\042b\\134"'
    assert c_string("ü?\n") == '"\\303\\274\\077\\012"'


def test_equal_calls_share_a_stub() -> None:
    program = tiny.program()
    doubled = replace(program, steps=program.steps * 2)
    assert emit_model_c(doubled, 0).count("static void call") == len(program.steps)


def _with_place(place: Place) -> Program:
    program = tiny.program()
    return replace(program, steps=(replace(program.steps[1], places=(place,)),))


@pytest.mark.parametrize(
    "broken, why",
    [
        (_with_place(Place(Space.ARENA, 4096)), "lies outside of 212"),
        (_with_place(Place(Space.INPUT, 2)), "lies outside of 2"),
        (_with_place(Place(Space.WEIGHTS, -1)), "lies outside"),
        (replace(tiny.program(), steps=(replace(tiny.program().steps[1], tasks=0),)), "0 tasks"),
        (replace(tiny.program(), steps=(replace(tiny.program().steps[1], symbol="k relu"),)), "not a name"),
        (replace(tiny.program(), steps=(replace(tiny.program().steps[1], symbol="bs_fail"),)), "not a name"),
        (
            replace(
                tiny.program(), steps=(*tiny.program().steps, replace(tiny.program().steps[3], places=()))
            ),
            "0 buffers, but 3",
        ),
    ],
)
def test_broken_programs_are_refused(broken: Program, why: str) -> None:
    with pytest.raises(InternalError, match=why):
        emit_model_c(broken, 0)
