"""An artifact's directory: written beside its place, then moved there, so that it is complete or absent; and
checked when it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArtifactError, OutputError
from .manifest import (
    FORMAT,
    HEADER,
    LIBRARY,
    MANIFEST,
    RANGES,
    TOKENIZER,
    WEIGHTS,
    FileRecord,
    Manifest,
    parse_manifest,
)

Content = bytes | memoryview | np.ndarray | Path
_OURS = {LIBRARY, WEIGHTS, MANIFEST, HEADER, RANGES, TOKENIZER}
_CHUNK = 1 << 20


def write_artifact(
    directory: str | os.PathLike[str],
    manifest: Manifest,
    *,
    library: Content,
    weights: Content,
    header: Content,
    ranges: Content | None = None,
    tokenizer: Content | None = None,
) -> Path:
    """Writes an artifact to `directory` and returns its path.

    `library`, `weights`, `header` (bitsmith.h), `ranges` and `tokenizer` (tokenizer.json) are contents or
    files to copy; `manifest.files` is filled in. An artifact that is there already is replaced. Raises
    OutputError when the place cannot be written or holds anything else; then it is as it was before.
    """
    contents = {LIBRARY: library, WEIGHTS: weights, HEADER: header}
    if tokenizer is not None:
        contents[TOKENIZER] = tokenizer
    with _staged(Path(directory)) as stage:
        records = {name: _write(stage / name, content) for name, content in contents.items()}
        del records[HEADER]  # documentation: nothing reads it at run time
        if ranges is not None:
            _write(stage / RANGES, ranges)
        _write(stage / MANIFEST, replace(manifest, files=records).to_json().encode())
    return Path(directory)


def copy_artifact(source: Path, directory: str | os.PathLike[str], files: Mapping[str, FileRecord]) -> Path:
    """Copies the artifact at `source`, whose files must be `files`. Raises OutputError, ArtifactError."""
    with _staged(Path(directory)) as stage:
        for name in sorted(_OURS):
            if name not in (*files, MANIFEST) and not (source / name).exists():
                continue
            record = _write(stage / name, source / name)
            if record != files.get(name, record):
                raise ArtifactError(
                    f"{source / name} has changed since it was opened: compile the model again"
                )
    return Path(directory)


def read_ranges(place: Path) -> Any | None:
    """The JSON of ranges.json, see calibrate.Ranges; None without the file. Raises ArtifactError."""
    try:
        return json.loads((place / RANGES).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{place} is damaged: {RANGES}: {error}. Compile the model again") from None


def read_manifest(place: Path) -> Manifest:
    """The manifest of the artifact at `place`, whatever machine it is for. Raises ArtifactError."""
    if not place.is_dir():
        what = "is a file" if place.exists() else "does not exist"
        raise ArtifactError(f"{place} {what}: an artifact is the directory that `bitsmith compile` writes")
    path = place / MANIFEST
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{place} is not an artifact: cannot read {path.name}: {error.strerror}"
        ) from None
    return parse_manifest(text, str(path))


def check_files(place: Path, manifest: Manifest, hashed: Collection[str] = (LIBRARY, WEIGHTS)) -> None:
    """Raises ArtifactError when library or weights are not those that the manifest describes.

    Sizes are always compared, contents (by SHA-256) of the files that `hashed` names.
    """
    for name in manifest.files:
        path, record = place / name, manifest.files[name]
        try:
            size = path.stat().st_size
            matches = name not in hashed or (size == record.bytes and sha256_file(path) == record.sha256)
        except OSError as error:
            raise ArtifactError(f"{place} is damaged: cannot read {name}: {error.strerror}") from None
        if size != record.bytes:
            raise ArtifactError(
                f"{place} is damaged: {name} has {size} bytes, not {record.bytes}: copy or compile it again"
            )
        if not matches:
            raise ArtifactError(
                f"{place} is damaged: {name} is not the file that the manifest describes (SHA-256 differs): "
                "copy or compile it again"
            )


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _staged(directory: Path) -> Iterator[Path]:
    """A fresh directory that takes the place of `directory` when the block succeeds, else vanishes."""
    import shutil

    place = Path(os.path.realpath(directory))
    stage = place.with_name(f".bitsmith-{os.urandom(8).hex()}.tmp")
    try:
        check_replaceable(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        stage.mkdir()
        yield stage
        _move(stage, place)
    except OutputError:
        raise
    except OSError as error:
        reason = f"{error.strerror or error} ({error.filename or stage})"
        raise OutputError(
            f"cannot write the artifact {directory}: {reason}. Nothing was left there"
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def check_replaceable(place: Path) -> None:
    """Raises OutputError when something other than an artifact or an empty directory is at `place`, or when
    no directory can be made there.
    """
    if not os.path.lexists(place):
        _check_above(place)
        return
    if not place.is_dir():
        raise OutputError(
            f"cannot write the artifact {place}: a file of that name exists; choose another place"
        )
    found = set(os.listdir(place))
    if found and not (found <= _OURS and _is_manifest(place / MANIFEST)):
        other = sorted(found - _OURS) or sorted(found)
        raise OutputError(
            f"cannot write the artifact {place}: it holds something else ({', '.join(other[:3])}); "
            "choose another place, or delete it first"
        )


def _check_above(place: Path) -> None:
    above = next(p for p in Path(os.path.abspath(place)).parents if os.path.lexists(p))
    if not above.is_dir():
        raise OutputError(f"cannot write the artifact {place}: {above} is no directory")
    if not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write the artifact {place}: no permission to write to {above}")


def _is_manifest(path: Path) -> bool:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and data.get("format") == FORMAT


def _write(path: Path, content: Content) -> FileRecord:
    digest, size = hashlib.sha256(), 0
    with open(path, "wb") as out:
        for chunk in _chunks(content):
            digest.update(chunk)
            size += out.write(chunk)
    return FileRecord(size, digest.hexdigest())


def _chunks(content: Content) -> Iterator[bytes | memoryview]:
    if isinstance(content, Path):
        with open(content, "rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
        return
    whole = (
        np.ascontiguousarray(content) if isinstance(content, np.ndarray) else np.frombuffer(content, np.uint8)
    )
    yield whole.reshape(-1).view(np.uint8).data


def _move(stage: Path, place: Path) -> None:
    """Renames `stage` to `place`; what was there comes back if that fails."""
    if not place.exists():
        os.rename(stage, place)
        return
    import shutil

    old = stage.with_suffix(".old")
    os.rename(place, old)
    try:
        os.rename(stage, place)
    except OSError:
        os.rename(old, place)
        raise
    shutil.rmtree(old, ignore_errors=True)
