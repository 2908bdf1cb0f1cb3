"""Peak memory of running an artifact, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass

from ..errors import ArtifactError

PROBE_SECONDS = 300


@dataclass(frozen=True)
class Memory:
    """peak_bytes   highest resident memory of a Python process that opened the artifact and ran it
    own_bytes    the same without the interpreter and numpy; mapped weights are included
    """

    peak_bytes: int
    own_bytes: int


def measure_memory(path: str | os.PathLike[str], *, threads: int = 1) -> Memory:
    """Opens the artifact in a new process, runs it twice on zeros, and reads the kernel's high-water mark.

    Linux. Raises ArtifactError with the process's message when it fails.
    """
    command = [sys.executable, "-m", f"{__package__}.memory_probe", os.fspath(path), str(threads)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        raise ArtifactError(f"{path}: a run took more than {PROBE_SECONDS} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        why = lines[-1] if lines else f"the process ended with code {done.returncode}"
        raise ArtifactError(f"{path}: measuring its memory failed: {why}")
    before, peak = json.loads(done.stdout)
    return Memory(peak, max(0, peak - before))
