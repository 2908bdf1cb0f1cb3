"""The kernel cache: what is there is used, what is damaged is made again, whoever else is at work."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.errors import OutputError, TargetError
from bitsmith.compiler.ir import Graph
from bitsmith.compiler.reference import run_reference
from bitsmith.targets import objects, tir
from bitsmith.targets.build import build
from bitsmith.targets.call import kernel_symbol
from bitsmith.targets.isa import ISAS
from bitsmith.targets.kernels.pointwise import PointwiseSpec
from bitsmith.targets.objects import JOBS, PARALLEL, is_whole, kernel_objects, most_processes, object_path
from bitsmith.targets.target import resolve

ISA = ISAS["x86-64"]


@pytest.fixture(autouse=True)
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOBS, "2")


def specs(count: int, first: int = 1) -> dict[str, PointwiseSpec]:
    """Small kernels, no two alike."""
    made = [PointwiseSpec(ISA.lanes, n, (("float32", 1.0, 0),), "clip") for n in range(first, first + count)]
    return {kernel_symbol(spec): spec for spec in made}


def no_compiler(*args: Any) -> bytes:
    raise AssertionError("compiled what the cache has")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that this process compiles from here on."""
    names: list[str] = []
    real = tir.compile_kernel

    def record(function: Any, isa: Any) -> bytes:
        names.append(str(function.attrs["global_symbol"]))
        return real(function, isa)

    monkeypatch.setattr(tir, "compile_kernel", record)
    return names


def symbols_of(path: Path) -> str:
    return subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout


def test_what_is_there_is_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = specs(2)
    first = kernel_objects(kernels, ISA, tmp_path)
    assert [path.stem for path in first] == list(kernels) and all(map(is_whole, first))
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in first]
    monkeypatch.setattr(tir, "compile_kernel", no_compiler)
    assert kernel_objects(kernels, ISA, tmp_path) == first
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in first] == before


def test_an_instruction_set_has_its_own_objects(tmp_path: Path, compiled: list[str]) -> None:
    kernels = specs(1)
    kernel_objects(kernels, ISAS["avx2"], tmp_path)
    kernel_objects(kernels, ISA, tmp_path)
    assert compiled == [*kernels, *kernels]


def test_another_toolchain_compiles_again(
    tmp_path: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = specs(1)
    kernel_objects(kernels, ISA, tmp_path)
    monkeypatch.setattr(objects, "toolchain", lambda: "tvm-of-tomorrow")
    kernel_objects(kernels, ISA, tmp_path)
    assert compiled == [*kernels, *kernels]


def cut_off(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "no header": lambda data: data[:20],
    "cut off": cut_off,
    "last byte missing": lambda data: data[:-1],
    "zeros": lambda data: bytes(len(data)),
    "text": lambda data: b"<html>" + data,
}


@pytest.fixture(scope="module")
def one_object(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mapping[str, PointwiseSpec], bytes]:
    kernels = specs(1, 77)
    (path,) = kernel_objects(kernels, ISA, tmp_path_factory.mktemp("one"))
    return kernels, path.read_bytes()


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_objects_are_made_again(
    kind: str, tmp_path: Path, one_object: tuple[Mapping[str, PointwiseSpec], bytes]
) -> None:
    kernels, whole = one_object
    place = object_path(tmp_path, next(iter(kernels)), ISA)
    place.parent.mkdir(parents=True)
    place.write_bytes(DAMAGE[kind](whole))
    assert not is_whole(place)
    assert kernel_objects(kernels, ISA, tmp_path) == [place]
    assert place.read_bytes() == whole


def test_progress_counts_what_was_missing(tmp_path: Path) -> None:
    kernels = specs(3)
    told: list[tuple[int, int]] = []
    kernel_objects(dict(list(kernels.items())[:1]), ISA, tmp_path)
    kernel_objects(kernels, ISA, tmp_path, lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]
    kernel_objects(kernels, ISA, tmp_path, lambda done, total: pytest.fail("nothing was missing"))


@pytest.mark.parametrize("count", [1, PARALLEL + 1])
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, count: int) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file where the folder should be")
    with pytest.raises(OutputError) as caught:
        kernel_objects(specs(count), ISA, taken)
    assert str(taken) in str(caught.value) and "BITSMITH_CACHE" in str(caught.value)
    assert taken.read_text() == "a file where the folder should be"


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(self: Path, data: bytes) -> int:
        with open(self, "wb") as file:
            file.write(data[:100])
        raise OSError(28, "No space left on device")

    kernels = specs(1)
    monkeypatch.setattr(Path, "write_bytes", disk_full)
    with pytest.raises(OutputError, match="No space left on device.*BITSMITH_CACHE"):
        kernel_objects(kernels, ISA, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("processes", [2, 3])
def test_many_kernels_are_shared_with_other_processes(
    processes: int, tmp_path: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This one waits at its first kernel until each of the others has made one."""
    monkeypatch.setenv(JOBS, str(processes))
    kernels = specs((processes - 1) * PARALLEL)
    paths = {symbol: object_path(tmp_path, symbol, ISA) for symbol in kernels}
    firsts = list(paths.values())[1:processes]
    record = tir.compile_kernel

    def patient(function: Any, isa: Any) -> bytes:
        wait_until(lambda: all(map(is_whole, firsts)))
        return record(function, isa)

    monkeypatch.setattr(tir, "compile_kernel", patient)
    told: list[tuple[int, int]] = []
    made = kernel_objects(kernels, ISA, tmp_path, lambda done, total: told.append((done, total)))
    assert made == list(paths.values())
    assert compiled[0] == next(iter(kernels)) and not {path.stem for path in firsts} & set(compiled)
    for symbol, path in paths.items():
        assert is_whole(path) and f" T {symbol}\n" in symbols_of(path)
    assert told[-1] == (len(kernels), len(kernels)) and told == sorted(set(told))


def test_one_process_may_be_asked_for(
    tmp_path: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(JOBS, "1")
    kernels = specs(PARALLEL)
    kernel_objects(kernels, ISA, tmp_path)
    assert compiled == list(kernels)


def test_how_many_processes_compile() -> None:
    assert most_processes({JOBS: "5"}) == 5
    assert most_processes({}) == most_processes({JOBS: ""}) == len(os.sched_getaffinity(0))
    for wrong in ("0", "-1", "two", "1.5", "\u0662"):
        with pytest.raises(TargetError, match=f"{JOBS}={wrong}: set it"):
            most_processes({JOBS: wrong})


ENDS = {"dies": "kill -9 $$", "is slow": "exec sleep 3600"}


@pytest.mark.parametrize("second", ["/bin/false", "/does/not/exist", "", "dies", "is slow"])
def test_without_a_second_process_all_is_compiled_here(
    second: str, tmp_path: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if second in ENDS:  # after reading its jobs
        script = tmp_path / "python"
        script.write_text(f"#!/bin/sh\ncat >/dev/null\n{ENDS[second]}\n")
        script.chmod(0o755)
        second = str(script)
    monkeypatch.setattr(sys, "executable", second)
    kernels = specs(PARALLEL)
    paths = kernel_objects(kernels, ISA, tmp_path / "cache")
    assert all(map(is_whole, paths)) and sorted(compiled) == sorted(kernels)


def test_an_error_in_the_second_process_is_seen(tmp_path: Path) -> None:
    kernels: dict[str, Any] = specs(PARALLEL)
    wrong = PointwiseSpec(ISA.lanes, 5, (("float32", 1.0, 0),), "no_such_activation")
    kernels[list(kernels)[1]] = wrong
    with pytest.raises(KeyError, match="no_such_activation"):
        kernel_objects(kernels, ISA, tmp_path)


ENDLESS = """
import os, pathlib, sys, time
from bitsmith.targets import objects
from bitsmith.targets.isa import ISAS

class Endless:
    def __reduce__(self):  # a kernel that takes for ever, as far as the second process can tell
        return exec, (f"import time; open({sys.argv[1]!r}, 'w').close(); time.sleep(3600)",)

second = objects._start_worker({"k": (Endless(), pathlib.Path("k.o"))}, ISAS["avx2"])
print(second.pid, flush=True)
time.sleep(3600)
"""


def test_the_second_process_ends_in_the_middle_of_a_kernel_when_its_parent_is_killed(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", ENDLESS, str(tmp_path / "begun")]
    parent = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    second = int(parent.stdout.readline())
    wait_until((tmp_path / "begun").exists)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not lives(second))


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(true: Callable[[], bool]) -> None:
    """Fails after two minutes, which no machine needs."""
    for _ in range(1200):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("waited in vain")


def network(count: int) -> Graph:
    """A few kernels of our own and of Relax."""
    b = GraphBuilder("shared")
    x = b.input("x", (4, count))
    w = b.param("w", np.random.default_rng(0).standard_normal((9, count)).astype(np.float32))
    y = b.add("linear", [x, w])
    return b.finish([b.add("softmax", [y], axis=1), b.add("exp", [y]), b.add("silu", [y])])


def test_two_processes_may_fill_one_cache(tmp_path: Path) -> None:
    """Both compile the same kernels at the same time."""
    kernels = specs(4)
    jobs = {symbol: (spec, object_path(tmp_path, symbol, ISA)) for symbol, spec in kernels.items()}
    both = [objects._start_worker(jobs, ISA) for _ in range(2)]
    assert [process.wait(120) for process in both if process] == [0, 0]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == sorted(f"{symbol}.o" for symbol in kernels)
    assert all(map(is_whole, files))


def test_two_threads_may_compile_at_once(tmp_path: Path) -> None:
    """Graphs with kernels in common, one cache: all are right, no kernel is half of another."""
    graphs = [network(7), network(7), network(8)]
    feeds = [
        {"x": np.random.default_rng(i).standard_normal(g.types["x"].shape)} for i, g in enumerate(graphs)
    ]
    feeds = [{"x": feed["x"].astype(np.float32)} for feed in feeds]
    got: dict[int, dict[str, np.ndarray] | BaseException] = {}
    start = threading.Barrier(len(graphs))

    def work(index: int) -> None:
        start.wait()
        try:
            with build(graphs[index], resolve("host"), cache=tmp_path) as artifact:
                got[index] = artifact.run(**feeds[index])
        except BaseException as error:  # noqa: BLE001 - it belongs to the main thread, which asserts
            got[index] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(graphs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for index, graph in enumerate(graphs):
        result = got[index]
        assert isinstance(result, dict), result
        want = run_reference(graph, feeds[index])
        for name, array in want.items():
            np.testing.assert_allclose(result[name], array, rtol=1e-5, atol=1e-5)
