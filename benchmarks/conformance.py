"""ONNX's own backend tests, operator by operator: what passes, and why the rest does not.

    python benchmarks/conformance.py                              all of them, and writes docs/operators.md
    python benchmarks/conformance.py --filter '^test_reduce'      some of them, and writes nothing
    python benchmarks/conformance.py --json results.json          one row for each test besides

Ends with 1 when a test is wrong or fails in another way than by the importer's message.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from conformance_run import Outcome, cases, run_all, run_compiled, run_reference_executor
from conformance_table import document, totals
from rich.console import Console
from rich.progress import Progress

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "operators.md"


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--filter", default="", metavar="REGEX", help="run the tests whose name it matches")
    parser.add_argument(
        "--reference", action="store_true", help="do not compile: the reference executor runs; writes no page"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all outcomes there")
    return parser.parse_args(words)


def run(pattern: str, reference: bool, console: Console) -> list[Outcome]:
    outcomes = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("tests", total=None if pattern else len(cases()))
        for outcome in run_all(pattern, run_reference_executor if reference else run_compiled):
            outcomes.append(outcome)
            if outcome.status in ("wrong", "error"):
                progress.print(f"{outcome.status}  {outcome.name}: {outcome.reason}", markup=False)
            progress.update(task, advance=1, description=outcome.name)
    return outcomes


def main(words: list[str] | None = None) -> int:
    options = arguments(words)
    console = Console(stderr=True)
    outcomes = run(options.filter, options.reference, console)
    if options.json:
        options.json.write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n", encoding="utf-8")
    if not options.filter and not options.reference:
        DOCUMENT.write_text(document(outcomes), encoding="utf-8")
    print(totals(outcomes))
    return int(any(o.status in ("wrong", "error") for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
