"""Files appear whole or not at all, and what hinders that is one clear error."""

import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
from bitsmith.compiler.errors import OutputError
from bitsmith.compiler.files import whole_file, write_whole
from bitsmith.compiler.pipeline.data_files import write_arrays
from bitsmith.compiler.plan import Plan
from bitsmith.compiler.report import write_page
from made_up_result import made_up_result

WRITERS = {
    "plan": lambda path: Plan("net", {}).save(path),
    "result": lambda path: made_up_result().save(path),
    "report": lambda path: write_page(made_up_result(), path),
    "arrays": lambda path: write_arrays(path, {"y": np.zeros(3)}),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_writes_where_folders_are_missing_and_replaces_what_is_there(writer, tmp_path):
    place = tmp_path / "a" / "b" / "file"
    WRITERS[writer](place)
    first = place.read_bytes()
    place.write_text("old")
    WRITERS[writer](place)
    assert place.read_bytes() == first and first
    assert [p.name for p in place.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("below", ["file/x", "file/deep/x", "folder"])
def test_a_place_that_cannot_be_written_is_named_and_left_alone(writer, below, tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=rf"cannot write the .*{below}: (Not|Is) a directory|exists"):
        WRITERS[writer](tmp_path / below)
    assert (tmp_path / "file").read_text() == "old"
    assert {p.name for p in tmp_path.rglob("*")} == {"file", "folder"}


def test_an_error_or_an_interrupt_leaves_the_old_file(tmp_path):
    place = tmp_path / "file"
    write_whole(place, "old", "it")
    for stop in (ValueError, KeyboardInterrupt):
        with pytest.raises(stop), whole_file(place, "it") as scratch:
            scratch.write_text("half")
            raise stop
    assert place.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    place = tmp_path / "file"
    place.write_text("old")
    program = "from bitsmith.compiler.files import write_whole; write_whole({!r}, 'x' * 9999, 'it')"

    def small_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    done = subprocess.run(
        [sys.executable, "-B", "-c", program.format(str(place))],
        capture_output=True,
        text=True,
        preexec_fn=small_files,
        check=False,
    )
    assert "OutputError: cannot write it" in done.stderr and "File too large" in done.stderr
    assert place.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
