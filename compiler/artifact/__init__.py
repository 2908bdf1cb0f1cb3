"""A compiled model on disk and in memory: the directory, its manifest, opening it, running it. numpy only.

manifest.py    what manifest.json says, and its strict parser
store.py       writing the directory: complete or not at all
native.py      the C ABI (targets/runtime/bitsmith.h) through ctypes
artifact.py    Artifact and open
"""

from .artifact import Artifact, StepTime, open
from .manifest import ArraySpec, FileRecord, Manifest
from .store import write_artifact

__all__ = ["ArraySpec", "Artifact", "FileRecord", "Manifest", "StepTime", "open", "write_artifact"]
