"""Measured kernel times, kept between runs: a SQLite file that all searches on a machine share.

A time is known by (target fingerprint, kernel key, toolchain): the chip with its instruction sets, what the
kernel computes and how it was generated, and the compiler that made it. The limits of a machine
(targets/peaks.py) are known by fingerprint and toolchain. Several processes may read and write
at once (write-ahead log, short transactions); whoever writes last wins. The file holds nothing that cannot be
measured again.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .errors import InputError, OutputError

SCHEMA_VERSION = 1
BUSY_SECONDS = 30.0
SLICE = 400  # keys per query: SQLite limits the number of parameters
CREATE = (
    """
CREATE TABLE IF NOT EXISTS kernel_times (
    target TEXT NOT NULL, kernel TEXT NOT NULL, toolchain TEXT NOT NULL,
    median_us REAL NOT NULL, spread_us REAL NOT NULL, n INTEGER NOT NULL, measured_at REAL NOT NULL,
    PRIMARY KEY (target, kernel, toolchain)
) WITHOUT ROWID
""",
    """
CREATE TABLE IF NOT EXISTS peaks (
    target TEXT NOT NULL, toolchain TEXT NOT NULL, found TEXT NOT NULL, measured_at REAL NOT NULL,
    PRIMARY KEY (target, toolchain)
) WITHOUT ROWID
""",
)


@dataclass(frozen=True)
class KernelTime:
    """One kernel, one thread.

    median_us     microseconds per call
    spread_us     interquartile range, microseconds
    n             calls timed
    measured_at   seconds since the epoch
    """

    median_us: float
    spread_us: float
    n: int
    measured_at: float


def default_path(environment: Mapping[str, str] = os.environ) -> Path:
    """$BITSMITH_CACHE, else $XDG_CACHE_HOME/bitsmith, else ~/.cache/bitsmith; in it measurements.db."""
    if own := environment.get("BITSMITH_CACHE"):
        return Path(own) / "measurements.db"
    base = environment.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "bitsmith" / "measurements.db"


class Database:
    """The file at `path`, made when missing, with its folders. Each call is a transaction of its own.

    Raises InputError when the file is damaged, is not a measurement database or is of another version, and
    OutputError when it cannot be made or written.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = default_path() if path is None else Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self.path.parent}: cannot be made ({error.strerror}); set BITSMITH_CACHE to another"
            ) from None
        with self._transaction() as db:
            self._check_version(db)
            for table in CREATE:
                db.execute(table)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def get_many(self, target: str, toolchain: str, kernels: Iterable[str]) -> dict[str, KernelTime]:
        """Times of those kernels that are known."""
        wanted = list(dict.fromkeys(kernels))
        found: dict[str, KernelTime] = {}
        with self._transaction() as db:
            for i in range(0, len(wanted), SLICE):
                part = wanted[i : i + SLICE]
                rows = db.execute(
                    "SELECT kernel, median_us, spread_us, n, measured_at FROM kernel_times "
                    f"WHERE target = ? AND toolchain = ? AND kernel IN ({','.join('?' * len(part))})",
                    (target, toolchain, *part),
                )
                found.update((row[0], KernelTime(*row[1:])) for row in rows)
        return found

    def put_many(self, target: str, toolchain: str, times: Mapping[str, KernelTime]) -> None:
        """Stores all or none; a kernel that is there already is replaced."""
        for kernel, t in times.items():
            if not (t.median_us >= 0 and t.spread_us >= 0 and t.n > 0):  # also refuses NaN
                raise InputError(f"kernel {kernel}: {t} is not a measurement")
        with self._transaction() as db:
            db.executemany(
                "INSERT OR REPLACE INTO kernel_times VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (target, kernel, toolchain, t.median_us, t.spread_us, t.n, t.measured_at)
                    for kernel, t in times.items()
                ],
            )

    def get_peaks(self, target: str, toolchain: str) -> dict[str, Any] | None:
        """The limits of a machine as they were put; None when they are not known."""
        query = "SELECT found FROM peaks WHERE target = ? AND toolchain = ?"
        with self._transaction() as db:
            row = db.execute(query, (target, toolchain)).fetchone()
        return None if row is None else dict(json.loads(row[0]))

    def put_peaks(self, target: str, toolchain: str, found: Mapping[str, Any]) -> None:
        """Stores the limits of a machine, JSON data, in place of those that are there."""
        values = (target, toolchain, json.dumps(found, allow_nan=False), time.time())
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO peaks VALUES (?, ?, ?, ?)", values)

    def count(self) -> int:
        """Number of times stored, over all targets."""
        with self._transaction() as db:
            return int(db.execute("SELECT COUNT(*) FROM kernel_times").fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection whose changes are committed at the end, or undone on an error."""
        try:
            with closing(self._connect()) as db, db:
                yield db
        except sqlite3.OperationalError as error:
            raise OutputError(
                f"{self.path}: {error}; close what locks it, or set BITSMITH_CACHE elsewhere"
            ) from None
        except sqlite3.DatabaseError as error:
            raise InputError(
                f"{self.path} is damaged or not a measurement database ({error}): delete it; the times "
                "in it will be measured again"
            ) from None

    def _connect(self) -> sqlite3.Connection:
        uri = f"file:{quote(str(self.path.absolute()))}?mode=rwc"
        db = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(
            "PRAGMA synchronous = NORMAL"
        )  # safe with a write-ahead log; saves a disk flush per transaction
        return db

    def _check_version(self, db: sqlite3.Connection) -> None:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if version == 0 and not tables:
            return
        if version != SCHEMA_VERSION or "kernel_times" not in tables:
            what = f"version {version}" if "kernel_times" in tables else "no measurement database"
            raise InputError(
                f"{self.path} is {what}, this bitsmith reads version {SCHEMA_VERSION}: delete the "
                "file, or set BITSMITH_CACHE to another folder"
            )


def timed_now(median_us: float, spread_us: float, n: int) -> KernelTime:
    """A measurement made just now."""
    return KernelTime(median_us, spread_us, n, time.time())
