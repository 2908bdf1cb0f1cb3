"""Temporary folders: gone at the end of the process, and when it was killed at the start of the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.errors import OutputError
from bitsmith.targets import scratch
from bitsmith.targets.build import build
from bitsmith.targets.scratch import PREFIX, scratch_folder, scratch_place, sweep
from bitsmith.targets.target import resolve

HOLDER = """
import sys
from bitsmith.targets.scratch import scratch_place
place = scratch_place()
place.mkdir()
(place / "model.so").write_text("large")
print(place, flush=True)
sys.stdin.read()
"""
Start = Callable[..., tuple["subprocess.Popen[str]", Path]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a program with `tmp_path` as its temporary folder; returns it and the path that it says."""
    running: list[subprocess.Popen[str]] = []

    def begin(program: str = HOLDER) -> tuple[subprocess.Popen[str], Path]:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "TMPDIR": str(tmp_path),
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen([sys.executable, "-c", program], env=environment, **pipes)
        running.append(process)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    yield begin
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process's temporary folder too."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_what_a_killed_process_left_goes_and_what_a_living_one_holds_stays(start: Start, here: Path) -> None:
    (dead, left), (_, held) = start(), start()
    kill(dead)
    assert left.exists(), "nothing was left to sweep"
    with scratch_folder() as folder:
        assert folder.is_dir() and not left.parent.exists()
        assert (held / "model.so").read_text() == "large"
    assert not folder.exists()
    assert set(here.iterdir()) == {folder.parent, held.parent}


def test_a_killed_compile_is_swept_by_the_next_one(start: Start, here: Path) -> None:
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
from test_scratch import small
artifact = small()
print(artifact.path, flush=True)
sys.stdin.read()
"""
    process, left = start(program)
    assert (left / "model.so").exists()
    kill(process)
    with small() as artifact:
        assert not left.exists() and not left.parent.exists()
        assert artifact.run(np.array([0.0], np.float32))["y"].tolist() == [1.0]
    assert not artifact.path.exists()


def small():
    b = GraphBuilder("small")
    x = b.input("x", (1,))
    return build(b.finish([b.add("exp", [x], name="y", output="y")]), resolve("host"))


def test_a_process_that_ends_by_itself_leaves_nothing(start: Start, tmp_path: Path) -> None:
    process, place = start()
    assert place.exists()
    process.communicate()
    assert process.returncode == 0 and not list(tmp_path.iterdir())


def test_a_fork_has_a_folder_of_its_own_and_takes_no_others(here: Path) -> None:
    ours = scratch_place()
    ours.mkdir()
    child = os.fork()
    if child == 0:
        os._exit(scratch_place().parent == ours.parent)
    assert os.waitpid(child, 0)[1] == 0
    sweep(here)
    assert ours.is_dir()
    assert list(here.iterdir()) == [ours.parent]


def test_other_folders_are_left_alone(here: Path) -> None:
    (here / "bitsmith-results").mkdir()
    (here / f"{PREFIX}unlocked").mkdir()
    (here / f"{PREFIX}unlocked" / "data").write_text("not ours to judge")
    (here / f"{PREFIX}link").symlink_to(here / "bitsmith-results")
    (here / f"{PREFIX}empty").mkdir()  # its maker was killed before it could lock it
    sweep(here)
    names = {path.name for path in here.iterdir()}
    assert names == {"bitsmith-results", f"{PREFIX}unlocked", f"{PREFIX}link"}


def test_a_folder_that_something_deleted_is_made_again(here: Path) -> None:
    with scratch_folder() as folder:
        pass
    scratch._delete(folder.parent)
    with scratch_folder() as again:
        assert again.is_dir() and again.parent != folder.parent


def test_no_temporary_folder_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(OutputError, match="TMPDIR"):
        scratch_place()
