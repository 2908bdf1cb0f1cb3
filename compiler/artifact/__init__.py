"""A compiled model on disk and in memory: the directory, its manifest, opening it, running it. numpy only.

manifest.py    what manifest.json says, and its strict parser
store.py       writing the directory: complete or not at all
native.py      the C ABI (targets/runtime/bitsmith.h) through ctypes
artifact.py    Artifact and open
"""

from .artifact import Artifact, StepTime, check_files, open, read_manifest
from .manifest import ArraySpec, FileRecord, Manifest
from .store import check_replaceable, read_ranges, write_artifact

__all__ = [
    "ArraySpec",
    "Artifact",
    "FileRecord",
    "Manifest",
    "StepTime",
    "check_files",
    "check_replaceable",
    "open",
    "read_manifest",
    "read_ranges",
    "write_artifact",
]
