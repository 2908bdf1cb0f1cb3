"""Kernel objects, compiled once and kept: a directory keyed by kernel, instruction set and toolchain."""

from __future__ import annotations

import ctypes
import hashlib
import os
import pickle
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..compiler.database import default_path
from ..compiler.errors import OutputError, TargetError
from ..compiler.files import whole_file
from .isa import ISAS, Isa

PARALLEL = 16
"""So many missing kernels pay for the start of one more process: 1.2 s, where a kernel takes about 0.1 s."""
JOBS = "BITSMITH_JOBS"
"""Environment variable: how many processes may compile at once; by default as many as there are cores."""
PR_SET_PDEATHSIG = 1  # prctl(2): send this process a signal when the thread that started it ends
_GENERATORS = ("kernels/**/*.py", "relax_*.py", "tir.py", "isa.py", "../compiler/ops/*.py")

Progress = Callable[[int, int], None]
Jobs = Mapping[str, tuple[Any, Path]]
"""Symbol -> (spec, where its object goes)."""


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
    """Object files of the kernels (symbol -> spec), in order; missing and damaged ones are compiled.

    `progress(done, total)` counts these. Raises OutputError when the cache cannot be written.
    """
    folder = folder or default_cache()
    paths = {symbol: object_path(folder, symbol, isa) for symbol in kernels}
    missing = {symbol: (kernels[symbol], path) for symbol, path in paths.items() if not is_whole(path)}
    if missing:
        _compile_missing(missing, isa, progress)
    return list(paths.values())


def is_whole(path: Path) -> bool:
    """Whether an ELF object is there and not cut off: its section table is the last thing in the file."""
    try:
        with open(path, "rb") as file:
            header = file.read(64)
            size = os.fstat(file.fileno()).st_size
    except OSError:
        return False
    if len(header) < 64 or header[:4] != b"\x7fELF":
        return False
    (table,) = struct.unpack_from("<Q", header, 40)
    entry, count = struct.unpack_from("<HH", header, 58)
    return bool(table and table + entry * count <= size)


def compile_here(jobs: Jobs, isa: Isa, done: Callable[[], None] = lambda: None) -> None:
    """Compile in this process, one thread at a time; a file appears complete or not at all."""
    from .kernels.table import EMITTERS
    from .relax_kernels import RelaxSpec, emit_relax
    from .tir import COMPILING, compile_kernel

    for symbol, (spec, path) in jobs.items():
        emitter = emit_relax if isinstance(spec, RelaxSpec) else EMITTERS[type(spec)]
        with COMPILING:
            if not is_whole(path):
                _store(path, compile_kernel(emitter(spec, symbol), isa))
        done()


def _store(path: Path, data: bytes) -> None:
    try:
        with whole_file(path, "the kernel cache") as scratch:
            scratch.write_bytes(data)
    except OutputError as error:
        raise OutputError(f"{error}. Set BITSMITH_CACHE to another folder") from None


def most_processes(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes may compile at once. Raises TargetError for a JOBS that is no number above zero."""
    text = environment.get(JOBS, "")
    if text and not (text.isascii() and text.isdigit() and int(text)):
        raise TargetError(f"{JOBS}={text}: set it to how many processes may compile at once, 1 or more")
    return int(text) if text else len(os.sched_getaffinity(0))


def _compile_missing(jobs: Jobs, isa: Isa, progress: Progress | None) -> None:
    """In this process, and when there are many in others too."""

    told = 0

    def done() -> None:
        nonlocal told
        whole = sum(is_whole(path) for _, path in jobs.values()) if progress and told < len(jobs) else told
        if progress and whole > told:
            told = whole
            progress(whole, len(jobs))

    processes = min(most_processes(), len(jobs) // PARALLEL + 1)
    if processes == 1 or isa != ISAS.get(isa.name):
        return compile_here(jobs, isa, done)
    # The heaviest come first in a network; dealing them out in turn balances the parts.
    ours, *theirs = (dict(list(jobs.items())[i::processes]) for i in range(processes))
    others = [_start_worker(part, isa) for part in theirs]
    try:
        compile_here(ours, isa, done)
        # What the others have not come to, from the end of their parts. What they failed at is tried again,
        # to see its error.
        for part in theirs:
            compile_here(dict(reversed(part.items())), isa, done)
    finally:
        for process in filter(None, others):
            process.kill()
            process.wait()


def _start_worker(jobs: Jobs, isa: Isa) -> subprocess.Popen[bytes] | None:
    """A process that compiles beside this one and finds the same modules; None if it does not start."""
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.compile_worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    except OSError:
        return None
    assert process.stdin is not None
    try:
        with process.stdin as pipe:
            pipe.write(pickle.dumps((dict(jobs), isa.name)))
    except BrokenPipeError:
        process.kill()
        process.wait()
        return None
    return process


def worker(parent: int) -> None:
    """Entry of another process: jobs come pickled on standard input from our own parent.

    It ends with its parent, however that ends. A kernel may take seconds: the operating system sees to it.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before
        sys.exit(1)
    jobs, isa = pickle.load(sys.stdin.buffer)
    compile_here(jobs, ISAS[isa])
