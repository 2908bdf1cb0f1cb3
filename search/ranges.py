"""The calibration of a search, kept beside its study: a search that goes on does not calibrate again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..compiler.calibrate import Ranges, calibrate
from ..compiler.errors import InputError
from ..compiler.files import write_whole
from ..compiler.ir import Graph
from ..compiler.plan import Calibration
from .data import Data
from .evaluator import Progress

RANGES_FILE = "ranges.json"
STAGE = "calibration"
FORMAT = 2
"""Goes up when the same samples give other ranges: those that an older version kept are made again."""


def stored_ranges(graph: Graph, data: Data, folder: Path | None, tell: Progress) -> Ranges:
    """The ranges of the prepared graph's values from the calibration samples.

    They are read from the folder when they were made there for the same graph, samples and method; else made,
    and written there (None: not kept). Raises InputError for samples that do not fit, OutputError.
    """
    key = _key(graph, data)
    place = None if folder is None else folder / RANGES_FILE
    known = None if place is None else _read(place, key)
    if known is not None:
        tell(STAGE, known.samples, known.samples)
        return known
    ranges = calibrate(graph, data.calibration, progress=lambda done, total: tell(STAGE, done, total))
    if place is not None:
        write_whole(place, json.dumps({"key": key, "ranges": ranges.to_json()}) + "\n", "the ranges")
    return ranges


def _key(graph: Graph, data: Data) -> str:
    method = Calibration()
    text = f"{FORMAT} {graph.content_hash} {data.calibration_digest} {method.method} {method.percentile}"
    return hashlib.sha256(text.encode()).hexdigest()


def _read(place: Path, key: str) -> Ranges | None:
    """None when the file is missing, damaged or of something else: it can be made again."""
    try:
        found: Any = json.loads(place.read_text(encoding="utf-8"))
        return Ranges.from_json(found["ranges"]) if found["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return None
