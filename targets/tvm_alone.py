"""TVM without torch, which it would import to exchange tensors: 2 s and 0.2 GB that no kernel needs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any


class _NotHere:
    """An import finder by which one thread finds no torch; the others do."""

    def __init__(self) -> None:
        self.thread = get_ident()

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        if name == "torch" and get_ident() == self.thread:
            raise ModuleNotFoundError("torch is left out of this import", name=name)


@contextmanager
def without_torch() -> Iterator[None]:
    """What this thread imports meanwhile finds no torch, unless it is loaded already."""
    finder = _NotHere()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
