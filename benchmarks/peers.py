"""bitsmith against ONNX Runtime and OpenVINO on this machine, turn by turn in one run.

    python benchmarks/peers.py                             EfficientNet-Lite0, compiled here
    python benchmarks/peers.py --peers onnxruntime --threads 1      quicker: the README's table
    python benchmarks/peers.py --models a.onnx b.onnx      other models, timed on noise
    python benchmarks/peers.py --artifact float32=a.bitsmith --artifact searched=b.bitsmith      made before

Each engine, precision and thread count is a process of its own (peer_worker.py); only one works at a time.
Times are wall-clock seconds around one inference from Python, numpy in, numpy out. Ratios are formed within
each round. The first run installs the peers, about 900 MB, below ~/.cache/bitsmith/peers.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from bitsmith.compiler.errors import BitsmithError, InputError
from bitsmith.compiler.machine import this_machine
from bitsmith.targets.scratch import scratch_folder
from peer_bench import Bench, bench
from peer_env import PEERS, cache_dir, environment
from peer_model import Subject, efficientnet, subject
from peer_table import OURS, sentences, table, to_json
from peer_turns import PeerError
from rich.console import Console


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", nargs="+", type=Path, default=[], metavar="ONNX", help="default: EfficientNet-Lite0")
    add(
        "--artifact",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="ours, instead of compiling; repeatable",
    )
    add(
        "--calibration",
        nargs="+",
        type=Path,
        default=[],
        metavar="NPY",
        help="[n, ...], one for each model input",
    )
    add(
        "--evaluation",
        nargs="+",
        type=Path,
        default=[],
        metavar="NPY",
        help="as --calibration, other samples",
    )
    add("--pictures", type=Path, metavar="DIR", help="calibrate and judge on these; 123.jpg shows class 123")
    add(
        "--peers",
        nargs="*",
        choices=PEERS,
        default=list(PEERS),
        help="engines to compare with (default: all)",
    )
    add("--threads", nargs="+", type=int, default=[1, 2])
    add("--rounds", type=int, default=30)
    add("--env", type=Path, default=cache_dir(), metavar="DIR", help="for environments and prepared models")
    add("--json", type=Path, metavar="FILE", help="write all that was measured")
    chosen = parser.parse_args(words)
    if chosen.rounds < 1 or min(chosen.threads) < 1:
        parser.error("--rounds and --threads must be at least 1")
    if chosen.artifact and len(chosen.models) > 1:
        parser.error("--artifact needs a single model")
    return chosen


def artifacts(pairs: list[str]) -> dict[str, Path]:
    """NAME=PATH words as a mapping. Raises InputError for other words and for paths that do not exist."""
    found: dict[str, Path] = {}
    for pair in pairs:
        name, _, path = pair.partition("=")
        if not name or not path or not Path(path).exists():
            raise InputError(f"--artifact {pair}: expected NAME=PATH with the path of an existing artifact")
        found[name] = Path(path)
    return found


def pythons(engines: list[str], root: Path, say: Callable[[str], None]) -> dict[str, Path | PeerError]:
    """The interpreter of each engine, or the reason why there is none."""
    found: dict[str, Path | PeerError] = {}
    for engine in [OURS, *engines]:
        try:
            found[engine] = environment(engine, root, say)
        except PeerError as error:
            found[engine] = error
    return found


def subjects(chosen: argparse.Namespace, scratch: Path) -> list[Subject]:
    """One for each model, each with a folder in `scratch`. Raises BitsmithError for what does not fit."""
    made = []
    for i, source in enumerate(chosen.models or [efficientnet(chosen.env)]):
        folder = scratch / str(i)
        folder.mkdir()
        data: dict[str, Any] = {"calibration": chosen.calibration, "evaluation": chosen.evaluation}
        made.append(
            subject(source, folder, **data, pictures=chosen.pictures, example_pictures=not chosen.models)
        )
    return made


def compare(
    chosen: argparse.Namespace, say: Callable[[str], None], show: Callable[[Any], None]
) -> dict[str, Any]:
    """Benchmarks every model, shows its table, and returns what --json writes."""
    ours = artifacts(chosen.artifact)
    chosen.env.mkdir(parents=True, exist_ok=True)
    results, before = [], os.getloadavg()
    with scratch_folder() as scratch:
        say("reading the models")
        all_subjects = subjects(chosen, scratch)
        run = Bench(pythons(chosen.peers, chosen.env, say), chosen.env, chosen.threads, chosen.rounds, say)
        for i, one in enumerate(all_subjects):
            measured = bench(run, one, scratch / str(i), ours)
            show(table(one, measured.rows))
            for sentence in sentences(measured):
                show(sentence)
            results.append(to_json(one, measured))
    load = {"before": before, "after": os.getloadavg()}
    return {"machine": this_machine().to_json(), "load_average": load, "models": results}


def ours_failed(result: Mapping[str, Any]) -> bool:
    rows = [row for model in result["models"] for row in model["rows"]]
    return any(row["engine"] == OURS and row["failed"] for row in rows)


def measured(
    chosen: argparse.Namespace,
    compare: Callable[[argparse.Namespace, Callable[[str], None], Callable[[Any], None]], dict[str, Any]],
) -> int:
    """Runs a benchmark and writes --json. 0: measured; 1: one of ours could not be; 130: interrupted; else
    the error's own code."""
    err = Console(stderr=True)
    # A pipe has no width: the table's own, so that nothing is cut.
    out = Console() if sys.stdout.isatty() else Console(width=110)
    try:
        with err.status("") if err.is_terminal else nullcontext() as status:
            say = status.update if status else err.print
            result = compare(chosen, say, lambda what: out.print(what, soft_wrap=isinstance(what, str)))
        if chosen.json:
            chosen.json.write_text(json.dumps(result, indent=1))
    except BitsmithError as error:
        err.print(f"error: {error}", style="red", markup=False)
        return error.exit_code
    except KeyboardInterrupt:
        err.print("interrupted; every worker has been ended")
        return 130
    return 1 if ours_failed(result) else 0


if __name__ == "__main__":
    sys.exit(measured(arguments(), compare))
