"""Runs an artifact and prints this process's memory: what `measure_memory` starts as a program."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from ..artifact import open as open_artifact
from ..errors import BitsmithError


def status_bytes(field: str) -> int:
    """A field of this process's /proc/self/status, such as VmHWM, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def _probe(path: str, threads: int) -> tuple[int, int]:
    before = status_bytes("VmRSS")
    with open_artifact(path) as artifact:
        artifact.set_threads(threads)
        inputs = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in artifact.inputs}
        for _ in range(2):
            artifact.run(**inputs)
        return before, status_bytes("VmHWM")


if __name__ == "__main__":
    try:
        print(json.dumps(_probe(sys.argv[1], int(sys.argv[2]))))
    except BitsmithError as error:
        sys.exit(str(error))
