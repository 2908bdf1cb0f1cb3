"""Several runs at once that change shared state as if they came one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Condition


class Stopped(Exception):
    """An earlier run has failed: this one need not go on."""


class Turns:
    """Keeps runs in order wherever they meet: at each key, run i goes after run i - 1.

    Every run must take its turn at the same keys. What is done there then has the same result, to the last
    bit, as one run after the other, whatever the threads' speed.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._next: dict[str, int] = {}
        self._failed = math.inf

    @contextmanager
    def at(self, key: str, run: int) -> Iterator[None]:
        """Waits until the run before has been here. Raises Stopped when an earlier run has failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._failed < run or self._next.get(key, 0) == run)
            if self._failed < run:
                raise Stopped
        yield
        with self._changed:
            self._next[key] = run + 1
            self._changed.notify_all()

    def fail(self, run: int) -> None:
        """No later run goes on. Earlier ones do: they might have failed themselves, and come first."""
        with self._changed:
            self._failed = min(self._failed, run)
            self._changed.notify_all()


def run_in_turns(
    runs: int, threads: int, work: Callable[[int, Turns], None], done: Callable[[int], None]
) -> None:
    """`work(i, turns)` for each i < runs on so many threads; `done(i)` in order, on the caller's thread.

    Raises what the first run that failed has raised, as one thread would.
    """
    turns = Turns()

    def guarded(run: int) -> None:
        try:
            work(run, turns)
        except BaseException:
            turns.fail(run)
            raise

    pool = ThreadPoolExecutor(threads)
    try:
        for run, future in enumerate([pool.submit(guarded, i) for i in range(runs)]):
            future.result()
            done(run)
    finally:
        turns.fail(-1)
        pool.shutdown(cancel_futures=True)
