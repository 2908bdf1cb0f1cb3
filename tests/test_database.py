"""The measurement database: what is stored comes back, from many processes at once, and damage is named."""

import multiprocessing
import sqlite3
from pathlib import Path

import pytest
from bitsmith.compiler.database import Database, KernelTime, default_path, timed_now
from bitsmith.compiler.errors import InputError, OutputError

TIME = KernelTime(12.5, 0.5, 40, 1.7e9)


def test_what_is_stored_comes_back(tmp_path):
    path = tmp_path / "new" / "m.db"
    times = {f"k{i}": KernelTime(i + 0.25, 0.5, i + 1, 1.7e9) for i in range(1000)}
    Database(path).put_many("zen3", "llvm20", times)
    db = Database(path)
    assert db.get_many("zen3", "llvm20", [*times, "unknown", "k1"]) == times
    assert db.count() == 1000


def test_target_kernel_and_toolchain_are_all_part_of_the_key(tmp_path):
    db = Database(tmp_path / "m.db")
    keys = [("a", "x"), ("b", "x"), ("a", "y")]
    for i, (target, toolchain) in enumerate(keys):
        db.put_many(target, toolchain, {"k": KernelTime(float(i), 0.0, 1, 0.0)})
    assert [db.get_many(t, c, ["k"])["k"].median_us for t, c in keys] == [0.0, 1.0, 2.0]


def test_a_new_time_replaces_the_old(tmp_path):
    db = Database(tmp_path / "m.db")
    db.put_many("t", "c", {"k": TIME})
    newer = timed_now(3.0, 0.1, 7)
    db.put_many("t", "c", {"k": newer})
    assert db.get_many("t", "c", ["k"]) == {"k": newer}


@pytest.mark.parametrize(
    "bad", [KernelTime(float("nan"), 0, 1, 0), KernelTime(-1, 0, 1, 0), KernelTime(1, 0, 0, 0)]
)
def test_a_bad_time_stores_nothing(tmp_path, bad):
    db = Database(tmp_path / "m.db")
    with pytest.raises(InputError, match="bad_kernel"):
        db.put_many("t", "c", {"good": TIME, "bad_kernel": bad})
    assert db.count() == 0


def write_some(path, worker):
    for i in range(40):
        Database(path).put_many("t", "c", {f"w{worker}.{i}": TIME, "shared": TIME})


def test_processes_write_at_once_without_losing_anything(tmp_path):
    path = tmp_path / "m.db"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=write_some, args=(path, i)) for i in range(3)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert [w.exitcode for w in workers] == [0, 0, 0]
    assert Database(path).count() == 3 * 40 + 1


def test_a_damaged_file_is_named_with_what_to_do(tmp_path):
    path = tmp_path / "m.db"
    path.write_bytes(b"this is not a database, but it is long enough to be read as one" * 100)
    with pytest.raises(InputError, match="m.db is damaged.*delete it"):
        Database(path)


def test_damage_inside_is_found_when_it_is_read(tmp_path):
    path = tmp_path / "m.db"
    Database(path).put_many("t", "c", {f"k{i}": TIME for i in range(2000)})
    raw = bytearray(path.read_bytes())
    raw[4096:] = b"\x5a" * (len(raw) - 4096)
    path.write_bytes(raw)
    with pytest.raises(InputError, match="damaged"):
        Database(path).get_many("t", "c", ["k1"])


def test_another_program_s_database_is_left_alone(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE precious (x)")
    with pytest.raises(InputError, match="no measurement database"):
        Database(path)
    with sqlite3.connect(path) as db:
        assert [r[0] for r in db.execute("SELECT name FROM sqlite_master")] == ["precious"]


def test_limits_come_back_and_are_replaced(tmp_path):
    db = Database(tmp_path / "m.db")
    assert db.get_peaks("t", "c") is None
    db.put_peaks("t", "c", {"rates": {"float32": 1.5}})
    db.put_peaks("t", "c", {"rates": {"float32": 2.5}})
    assert db.get_peaks("t", "c") == {"rates": {"float32": 2.5}}
    assert db.get_peaks("other", "c") is None and db.get_peaks("t", "other") is None


def test_a_file_from_before_limits_were_kept_gains_them(tmp_path):
    path = tmp_path / "m.db"
    Database(path).put_many("t", "c", {"k": TIME})
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE peaks")
    again = Database(path)
    again.put_peaks("t", "c", {"rates": {}})
    assert again.get_peaks("t", "c") == {"rates": {}} and again.get_many("t", "c", ["k"]) == {"k": TIME}


def test_another_version_is_refused(tmp_path):
    path = tmp_path / "m.db"
    Database(path)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(InputError, match="version 99"):
        Database(path)


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="BITSMITH_CACHE"):
        Database(tmp_path / "file" / "m.db")


def test_a_path_with_odd_characters_works(tmp_path):
    path = tmp_path / "50%?#" / "m.db"
    Database(path).put_many("t", "c", {"k": TIME})
    assert path.exists() and Database(path).count() == 1


def test_default_path_follows_the_environment():
    assert default_path({"BITSMITH_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a/measurements.db")
    assert default_path({"XDG_CACHE_HOME": "/b"}) == Path("/b/bitsmith/measurements.db")
    assert default_path({}) == Path.home() / ".cache/bitsmith/measurements.db"
