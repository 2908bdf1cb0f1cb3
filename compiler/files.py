"""Writing a file whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputError


@contextmanager
def whole_file(path: str | os.PathLike[str], what: str) -> Iterator[Path]:
    """A scratch file that takes the place of `path` when the block has written it, and vanishes otherwise.

    Missing folders are made. Raises OutputError, which says `what` could not be written, for an OSError.
    """
    place = Path(path)
    scratch = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        yield scratch
        os.replace(scratch, place)
    except OSError as error:
        raise OutputError(f"cannot write {what} {place}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            scratch.unlink()


def write_whole(path: str | os.PathLike[str], text: str, what: str) -> None:
    """The text as UTF-8, as `whole_file` writes. Raises OutputError."""
    with whole_file(path, what) as scratch:
        scratch.write_text(text, encoding="utf-8")
