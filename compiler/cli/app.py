"""The program: its verbs, and what an error looks like and exits with."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from ..errors import BitsmithError, InternalError
from . import language, verbs
from .examples import EXAMPLES
from .output import Output

STOPPED = {130: "interrupted", 143: "terminated"}  # as shells count: 128 and the number of SIGINT, SIGTERM

app = typer.Typer(
    name="bitsmith",
    help="Fits a neural network to a chip: searched per layer, measured, compiled to run without Python.",
    epilog="bitsmith VERB --help shows the options of a verb, with examples.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: list[str] | None = None) -> None:
    """The console script. Always ends with SystemExit."""
    words = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in words
    try:
        with _terminable():
            app(args=words, prog_name="bitsmith")
    except SystemExit as end:
        if end.code in STOPPED:
            goes_on = "; the same command goes on from here" if "search" in words[:2] else ""
            print(f"bitsmith: {STOPPED[end.code]}{goes_on}", file=sys.stderr)
        raise
    except Exception as error:
        raise SystemExit(_refuse(error, debug)) from error


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the program as an exception does: what is half written goes."""

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse(error: Exception, debug: bool) -> int:
    """Says on stderr what went wrong; returns the exit code. The stack trace only shows when asked for."""
    if debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, BitsmithError) and not isinstance(error, InternalError):
        print(f"bitsmith: error: {error}", file=sys.stderr)
        return error.exit_code
    text = str(error) if isinstance(error, InternalError) else f"{type(error).__name__}: {error}"
    print(f"bitsmith: internal error: {text}", file=sys.stderr)
    print(
        "This is a fault of bitsmith: please report it, with the trace that --debug shows.", file=sys.stderr
    )
    return InternalError.exit_code


def _print_version(wanted: bool) -> None:
    if wanted:
        from ... import __version__

        Output().out.print(f"bitsmith {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the stack trace of an error.")] = False,
) -> None:
    """Options that come before the verb."""


VERBS = (
    verbs.inspect,
    verbs.compile,
    verbs.search,
    verbs.run,
    verbs.bench,
    verbs.diff,
    language.generate,
    language.eval,
    verbs.report,
    verbs.targets,
)
for verb in VERBS:
    lines = "\n\n".join(["[bold]Examples[/bold]", *(f"$ {line}" for line in EXAMPLES[verb.__name__])])
    app.command(verb.__name__, epilog=lines)(verb)
