"""Kernel objects, compiled once and kept: a directory keyed by kernel, instruction set and toolchain."""

from __future__ import annotations

import hashlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..compiler.database import default_path
from ..compiler.errors import InternalError, OutputError
from .isa import ISAS, Isa

PARALLEL = 8
"""So many missing kernels pay for the start of a second compiler process (about a second)."""
_GENERATORS = ("kernels/*.py", "relax_kernels.py", "tir.py")

Progress = Callable[[int, int], None]


def default_cache() -> Path:
    """Where objects are kept: beside the measurement database."""
    return default_path().parent / "kernels"


@cache
def toolchain() -> str:
    """Names what turns a spec into code: TVM's version and our generators, hashed."""
    digest = hashlib.sha256(version("apache-tvm").encode())
    here = Path(__file__).parent
    for pattern in _GENERATORS:
        for path in sorted(here.glob(pattern)):
            digest.update(path.read_bytes())
    return f"tvm-{version('apache-tvm')}-{digest.hexdigest()[:12]}"


def object_path(folder: Path, symbol: str, isa: Isa) -> Path:
    return folder / toolchain() / isa.name / f"{symbol}.o"


def kernel_objects(
    kernels: Mapping[str, Any], isa: Isa, folder: Path | None = None, progress: Progress | None = None
) -> list[Path]:
    """Object files of the kernels (symbol -> spec), in order; missing ones are compiled.

    `progress(done, total)` counts the missing ones. Raises OutputError when the cache cannot be written.
    """
    folder = folder or default_cache()
    paths = {symbol: object_path(folder, symbol, isa) for symbol in kernels}
    missing = [symbol for symbol, path in paths.items() if not path.exists()]
    if missing:
        try:
            paths[missing[0]].parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot write the kernel cache {folder}: {error}. Set BITSMITH_CACHE to another place"
            ) from None
        _compile_missing({s: (kernels[s], paths[s]) for s in missing}, isa, progress)
    return [paths[symbol] for symbol in kernels]


def compile_here(
    jobs: Mapping[str, tuple[Any, Path]], isa: Isa, done: Callable[[], None] = lambda: None
) -> None:
    """Compile each (spec, path) in this process; a file appears complete or not at all."""
    from .kernels.table import EMITTERS
    from .relax_kernels import RelaxSpec, emit_relax
    from .tir import compile_kernel

    for symbol, (spec, path) in jobs.items():
        emitter = emit_relax if isinstance(spec, RelaxSpec) else EMITTERS[type(spec)]
        data = compile_kernel(emitter(spec, symbol), isa)
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            scratch.write_bytes(data)
            scratch.replace(path)
        except OSError as error:
            scratch.unlink(missing_ok=True)
            raise OutputError(
                f"cannot write the kernel cache {path}: {error}. Set BITSMITH_CACHE to another place"
            ) from None
        done()


def _compile_missing(jobs: dict[str, tuple[Any, Path]], isa: Isa, progress: Progress | None) -> None:
    """In this process, and when there are many in a second one too."""

    def done() -> None:
        if progress:
            progress(sum(path.exists() for _, path in jobs.values()), len(jobs))

    if len(jobs) < PARALLEL or (os.cpu_count() or 1) < 2:
        return compile_here(jobs, isa, done)
    # The heaviest come first in a network; dealing them out in turn balances the two halves.
    ours = {s: job for i, (s, job) in enumerate(jobs.items()) if i % 2 == 0}
    theirs = {s: job for s, job in jobs.items() if s not in ours}
    helper = subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.compile_worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert helper.stdin is not None
    try:
        helper.stdin.write(pickle.dumps((theirs, isa.name)))
        helper.stdin.close()
        compile_here(ours, isa, done)
        assert helper.stderr is not None
        error = helper.stderr.read().decode(errors="replace")
        if helper.wait():
            left = {s: job for s, job in theirs.items() if not job[1].exists()}
            if not left:
                raise InternalError(f"the second compiler process failed: {error[-2000:]}")
            compile_here(left, isa, done)  # says why in our own process, or mends it
        done()
    finally:
        helper.kill()
        helper.wait()
        if helper.stderr:
            helper.stderr.close()


def worker() -> None:
    """Entry of the second process: jobs come pickled on standard input from our own parent."""
    jobs, isa = pickle.load(sys.stdin.buffer)
    compile_here(jobs, ISAS[isa])
