"""How the command line speaks: results on stdout (tables, or JSON and nothing else), progress and notes on
stderr.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

ProgressCall = Callable[[str, int, int], None]
READER_GONE = 141  # as shells count: 128 and SIGPIPE's number
PIPE_WIDTH = 160  # columns of a table that goes to a file or another program
QUIET_SECONDS = 10.0  # between two progress lines of one stage, where no bar can be drawn


class _Screen(Console):
    """A console whose reader may go away, as `head` does: the program ends, and drops what it had to say."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        # Python would complain about the closed pipe when it flushes on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(READER_GONE)


class Output:
    """Where a verb puts its result and its progress."""

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self.out = _Screen(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
        self.err = _Screen(stderr=True, highlight=False)

    def emit(self, data: Any, *shown: RenderableType) -> None:
        """The result: `data` as JSON when that was asked for, else what is `shown`."""
        if self.as_json:
            try:
                print(json.dumps(plain(data), indent=2, allow_nan=False), flush=True)
            except BrokenPipeError:
                self.out.on_broken_pipe()
            return
        for part in shown:
            self.out.print(part)

    def note(self, text: str) -> None:
        if not self.quiet:
            self.err.print(text, markup=False)

    @contextmanager
    def progress(self) -> Iterator[ProgressCall]:
        """A function `progress(stage, done, total)`: a bar on a terminal, a line now and then elsewhere."""
        if self.quiet:
            yield lambda stage, done, total: None
        elif self.err.is_terminal:
            with _bars(self.err) as call:
                yield call
        else:
            yield _Lines(self.err)


@contextmanager
def _bars(console: Console) -> Iterator[ProgressCall]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def call(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield call


class _Lines:
    """Progress for logs: a stage's first and last step, and one line in QUIET_SECONDS between."""

    def __init__(self, console: Console) -> None:
        self.console, self.stage, self.last = console, "", 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self.stage or done >= total or now - self.last >= QUIET_SECONDS:
            self.console.print(f"{stage}: {done}/{total}", markup=False)
            self.stage, self.last = stage, now


def plain(value: Any) -> Any:
    """Results as JSON values: dataclasses are objects, arrays lists, paths text, infinity and NaN null."""
    if hasattr(value, "to_json") and not isinstance(value, type):
        made = value.to_json()
        return plain(json.loads(made) if isinstance(made, str) else made)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):  # a numpy array or number; --help must not wait for numpy
        return plain(value.tolist())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(title: str, *heads: str) -> Table:
    """A table; a heading that starts with `>` makes a right-aligned column (numbers)."""
    made = Table(title=title or None, title_justify="left", header_style="bold")
    for i, head in enumerate(heads):
        right = head.startswith(">")
        made.add_column(
            head.lstrip(">"),
            justify="right" if right else "left",
            no_wrap=right,
            overflow="fold" if i else "ellipsis",
        )
    return made


def size(count: float) -> str:
    """Bytes in a unit that reads well: 512 B, 38.1 kB, 4.61 MB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.3g} GB"


def milliseconds(microseconds: float) -> str:
    return f"{microseconds / 1000:.3f} ms"


def number(value: float | None, form: str = ".1f") -> str:
    return "-" if value is None else format(value, form)
