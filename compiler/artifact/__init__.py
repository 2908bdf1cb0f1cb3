"""A compiled model on disk and in memory: the directory, its manifest, opening it, running it. numpy only.

manifest.py    what manifest.json says, and its strict parser
store.py       the directory: written complete or not at all, checked when read
native.py      the C ABI (targets/runtime/bitsmith.h) through ctypes
artifact.py    Artifact and open
"""

from .artifact import Artifact, StepTime, open
from .manifest import (
    ArraySpec,
    Entry,
    FileRecord,
    Language,
    Manifest,
)
from .store import (
    check_files,
    check_replaceable,
    read_manifest,
    read_ranges,
    write_artifact,
)

__all__ = [
    "ArraySpec",
    "Artifact",
    "Entry",
    "FileRecord",
    "Language",
    "Manifest",
    "StepTime",
    "check_files",
    "check_replaceable",
    "open",
    "read_manifest",
    "read_ranges",
    "write_artifact",
]
