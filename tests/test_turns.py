"""Runs on several threads behave as one after the other, whatever their speed."""

import random
import threading
import time

import pytest
from bitsmith.compiler.turns import Turns, run_in_turns

KEYS = ("a", "b", "c", "d")


def slow_run(log, speeds, fails):
    """Work that takes its turn at every key; `fails`: run -> the key behind which it raises."""

    def work(run: int, turns: Turns) -> None:
        for key in KEYS:
            time.sleep(speeds.random() / 300)
            with turns.at(key, run):
                log[key].append(run)
            if fails.get(run) == key:
                raise ValueError(f"run {run}")

    return work


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_key_sees_the_runs_in_order(threads):
    log, told = {key: [] for key in KEYS}, []
    run_in_turns(12, threads, slow_run(log, random.Random(threads), {}), told.append)
    assert all(seen == list(range(12)) for seen in log.values())
    assert told == list(range(12))


@pytest.mark.parametrize("seed", range(6))
def test_the_first_run_that_fails_is_the_one_reported(seed):
    """Run 3 fails early, run 2 late: one after the other, only the failure of run 2 would ever be seen."""
    log = {key: [] for key in KEYS}
    work = slow_run(log, random.Random(seed), {2: "d", 3: "a", 5: "b"})
    with pytest.raises(ValueError, match="run 2"):
        run_in_turns(50, 3, work, lambda run: None)
    assert len(log["d"]) <= 4, "runs after the failure went on"


def test_runs_overlap():
    """Two runs meet at a barrier, which one thread after the other would never pass."""
    barrier = threading.Barrier(2, timeout=20)
    met = []

    def meet(run: int, turns: object) -> None:
        barrier.wait()
        met.append(run)

    run_in_turns(4, 2, meet, lambda run: None)
    assert sorted(met) == [0, 1, 2, 3]


def test_an_interrupt_stops_what_has_not_begun():
    begun = []

    def interrupted(run: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_turns(200, 2, lambda run, turns: begun.append(run) or time.sleep(0.01), interrupted)
    assert len(begun) < 50
