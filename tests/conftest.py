"""Shared by all tests: where the repository is, a seeded generator, few threads."""

import gc
import os
import signal
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


ONE_EACH = ("BITSMITH_JOBS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""How many compilers and threads each of several test processes uses: the cores are taken."""


def pytest_configure(config: pytest.Config) -> None:
    """A shell's background jobs ignore Ctrl-C, and so would the programs that tests start and interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("numprocesses", None):
        for name in ONE_EACH:
            os.environ.setdefault(name, "1")


def pytest_collection_finish() -> None:
    """All modules are in: what they hold stays, and no garbage collection needs to look at it again."""
    gc.freeze()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(20240607)


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the AVX-512 instructions that kernels asked for; they are written out in AVX2's."""
    from emulated_avx512 import emulate

    return emulate(monkeypatch)
