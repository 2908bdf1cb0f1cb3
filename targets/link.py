"""Makes `model.so` out of kernel objects: the user's C compiler adds tables and runtime, and links."""

import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..compiler.errors import TargetError
from .emit_c import emit_model_c
from .program import Program
from .scratch import scratch_folder

RUNTIME = Path(__file__).parent / "runtime"
HEADER = RUNTIME / "bitsmith.h"
_SOURCES = ("bitsmith.c", "pool.c", "cpu.c", "support.c", "workspace.c")
_COMPILERS = ("cc", "gcc", "clang")
_CFLAGS = ("-std=gnu11", "-O2", "-fPIC", "-ffunction-sections", "-fdata-sections")
# Only bitsmith_* is visible, and the library's own calls stay in it, whatever else the process has loaded.
_VERSION_SCRIPT = "{ global: bitsmith_*; local: *; };\n"
_LDFLAGS = (
    "-shared",
    "-Wl,-soname,model.so",
    "-Wl,--gc-sections",
    "-Wl,--strip-debug",  # TVM describes every kernel to debuggers: half of the library
    "-Wl,-z,noexecstack",
    "-Wl,-z,defs",
    "-Wl,-Bsymbolic",
)
_LIBRARIES = ("-Wl,--as-needed", "-lm", "-lpthread")


def link_library(
    out_so: Path,
    objects: Sequence[Path | bytes],
    program: Program,
    weights_hash: int,
    *,
    others: Sequence[Program] = (),
    cc: str | None = None,
    cache: Path | None = None,
) -> None:
    """Writes the library of `program` to `out_so`, which appears complete or not at all.

    `objects` are object files, or their contents, that define every kernel symbol; `weights_hash` is `hash64`
    of the weights; `others` are the network for other shapes (emit_c.py). `cc` is a compiler command
    (default: $CC, else cc, gcc or clang on the PATH). Compiled runtime objects are kept in the directory
    `cache`. Raises TargetError if there is no compiler or it fails.
    """
    compiler = find_compiler(cc)
    with scratch_folder() as work:
        (work / "model.c").write_text(emit_model_c(program, weights_hash, others))
        (work / "exports.map").write_text(_VERSION_SCRIPT)
        _compile(compiler, work / "model.c", work / "model.o")
        runtime = [_runtime_object(compiler, source, cache or work) for source in _SOURCES]
        kernels = [_as_file(item, work / f"kernel{i}.o") for i, item in enumerate(objects)]
        linked = out_so.with_name(f".{out_so.name}.{os.getpid()}.tmp")
        inputs = [str(path) for path in (work / "model.o", *runtime, *kernels)]
        try:
            script = f"-Wl,--version-script={work / 'exports.map'}"
            _call([*compiler, *_LDFLAGS, script, "-o", str(linked), *inputs, *_LIBRARIES])
            os.replace(linked, out_so)
        finally:
            linked.unlink(missing_ok=True)


def find_compiler(cc: str | None = None) -> tuple[str, ...]:
    """The C compiler's command: `cc`, else $CC, else the first of cc, gcc, clang. Raises TargetError."""
    asked = cc or os.environ.get("CC")
    for command in (asked,) if asked else _COMPILERS:
        words = shlex.split(command)
        program = shutil.which(words[0]) if words else None
        if program:
            return (program, *words[1:])
    looked_for = f"{asked!r} is not" if asked else f"none of {', '.join(_COMPILERS)} is"
    raise TargetError(
        f"no C compiler: {looked_for} on the PATH. Install one (Debian, Ubuntu: `apt install gcc`; "
        "Fedora: `dnf install gcc`) or name one in the environment variable CC"
    )


def hash64(data: bytes | memoryview | np.ndarray | Path) -> int:
    """The checksum of `weights.bin`, or of its contents, that the library checks: the same function as in
    runtime/bitsmith.c.
    """
    total, size, tail = 0, 0, np.zeros(0, np.uint8)
    for octets in _blocks(data):
        size, tail = size + octets.size, octets[octets.size // 8 * 8 :]  # only the last block has a tail
        words = octets[: octets.size // 8 * 8].view("<u8")
        total += _mixed(words, (size - octets.size) // 8)
    last = np.concatenate([tail, np.zeros(8 - size % 8, np.uint8)]).view("<u8")
    total = (total + size * 0x9E3779B97F4A7C15 + _mixed(last, size // 8)) % 2**64
    return total ^ (total >> 29)


def _blocks(data: bytes | memoryview | np.ndarray | Path) -> Iterator[np.ndarray]:
    """Its bytes in pieces whose temporaries stay in the cache."""
    block = 1 << 19
    if isinstance(data, Path):
        with open(data, "rb") as file:
            while piece := file.read(block):
                yield np.frombuffer(piece, np.uint8)
        return
    array = np.ascontiguousarray(data) if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    octets = array.reshape(-1).view(np.uint8)
    for start in range(0, octets.size, block):
        yield octets[start : start + block]


def _mixed(words: np.ndarray, start: int) -> int:
    """Sum of the mixed words; the first is number `start` of the file. uint64 wraps as in C."""
    position = np.arange(start + 1, start + 1 + words.size, dtype=np.uint64) * np.uint64(0xD6E8FEB86659FD93)
    mixed = (words ^ position) * np.uint64(0xFF51AFD7ED558CCD)
    mixed ^= mixed >> np.uint64(32)
    return int((mixed * np.uint64(0xC4CEB9FE1A85EC53)).sum(dtype=np.uint64))


def _runtime_object(compiler: tuple[str, ...], source: str, cache: Path) -> Path:
    """The compiled form of one runtime file, named by the sources, the flags and the compiler."""
    digest = hashlib.sha256(repr((compiler, _CFLAGS, source)).encode())
    binary = os.stat(compiler[0])
    digest.update(f"{binary.st_size} {binary.st_mtime_ns}".encode())
    for path in sorted(RUNTIME.iterdir()):
        if path.suffix in (".c", ".h"):
            digest.update(path.read_bytes())
    made = cache / f"{Path(source).stem}-{digest.hexdigest()[:32]}.o"
    if made.exists():
        return made
    cache.mkdir(parents=True, exist_ok=True)
    fresh = made.with_name(f"{made.name}.{os.getpid()}.tmp")
    try:
        _compile(compiler, RUNTIME / source, fresh)
        os.replace(fresh, made)
    finally:
        fresh.unlink(missing_ok=True)
    return made


def _as_file(item: Path | bytes, path: Path) -> Path:
    if isinstance(item, Path):
        return item
    path.write_bytes(item)
    return path


def _compile(compiler: tuple[str, ...], source: Path, out: Path) -> None:
    _call([*compiler, *_CFLAGS, "-I", str(RUNTIME), "-c", str(source), "-o", str(out)])


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-20:])
        raise TargetError(f"the C compiler {command[0]} failed with code {done.returncode}:\n{said}")
