"""The program: its verbs, and what an error looks like and exits with."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..errors import BitsmithError, InternalError
from . import verbs
from .examples import EXAMPLES
from .output import Output

INTERRUPTED = 130  # as shells count: 128 and SIGINT's number

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
        app(args=words, prog_name="bitsmith")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        raise SystemExit(_refuse(error, debug)) from error


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


for verb in (verbs.inspect, verbs.compile, verbs.search, verbs.run, verbs.bench, verbs.report, verbs.targets):
    lines = "\n\n".join(["[bold]Examples[/bold]", *(f"$ {line}" for line in EXAMPLES[verb.__name__])])
    app.command(verb.__name__, epilog=lines)(verb)
