"""bitsmith against ONNX Runtime and OpenVINO on six networks, each as peers.py does it, and their mean.

    python benchmarks/networks.py                                        all of them
    python benchmarks/networks.py --only resnet50 minilm --threads 1     some
    python benchmarks/networks.py --peers onnxruntime --rounds 10        quicker

EfficientNet-Lite0 at 224 x 224, PP-OCRv6's detector at 480 x 480 and recogniser at 48 x 320, PP-OCR's
classifier of directions at 48 x 192, all-MiniLM-L6-v2 at 128 tokens, ResNet-50 at 224 x 224 with random
weights. The first run fetches what is missing of them; the networks are kept where the peers are.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bitsmith.compiler.machine import this_machine
from bitsmith.targets.scratch import scratch_folder
from network_set import NETWORKS
from peer_bench import Bench, Measured, bench
from peer_env import PEERS, cache_dir
from peer_model import subject
from peer_table import sentences, table, to_json, verdicts
from peers import measured, pythons
from rich.table import Table

Group = tuple[int, str, str]
"""Threads, precision, peer."""


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="networks (default: all)")
    add(
        "--peers",
        nargs="+",
        choices=PEERS,
        default=list(PEERS),
        help="engines to compare with (default: all)",
    )
    add("--threads", nargs="+", type=int, default=[1, 2])
    add("--rounds", type=int, default=20)
    add("--env", type=Path, default=cache_dir(), metavar="DIR", help="for environments and networks")
    add("--json", type=Path, metavar="FILE", help="write all that was measured")
    chosen = parser.parse_args(words)
    if chosen.rounds < 1 or min(chosen.threads) < 1:
        parser.error("--rounds and --threads must be at least 1")
    return chosen


def ratios_of(measured: Measured) -> dict[Group, float]:
    """Our time / that of each peer at the same precision and number of threads."""
    return {(v["threads"], v["precision"], v["peer"]): v["ratio"] for v in verdicts(measured.rows)}


def geometric_mean(values: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))


def summary(ratios: Mapping[str, Mapping[Group, float]]) -> Table:
    """One line for each network, our time / each peer's, and their geometric mean."""
    groups = sorted({group for found in ratios.values() for group in found})
    made = Table(title="our time / the peer's", title_justify="left")
    made.add_column("network", no_wrap=True)
    for threads, precision, peer in groups:
        made.add_column(f"{peer}\n{precision}\n{threads} thr", justify="right")
    for name, found in ratios.items():
        made.add_row(name, *(f"{found[group]:.2f}" if group in found else "–" for group in groups))
    made.add_section()
    columns = [[found[group] for found in ratios.values() if group in found] for group in groups]
    made.add_row("geometric mean", *(f"{geometric_mean(column):.2f}" for column in columns), style="bold")
    return made


def compare(chosen: argparse.Namespace, say: Any, show: Any) -> dict[str, Any]:
    """Benchmarks the chosen networks and shows their tables; returns what --json writes."""
    chosen.env.mkdir(parents=True, exist_ok=True)
    ratios, results = {}, []
    with scratch_folder() as scratch:
        run = Bench(pythons(chosen.peers, chosen.env, say), chosen.env, chosen.threads, chosen.rounds, say)
        for name in chosen.only:
            say(f"{name}: making the network and its samples")
            folder = scratch / name
            folder.mkdir()
            source, calibration, evaluation = NETWORKS[name](chosen.env, folder)
            one = subject(source, folder, calibration=calibration, evaluation=evaluation)
            found = bench(run, one, folder, {})
            show(table(one, found.rows))
            for sentence in sentences(found):
                show(sentence)
            ratios[name] = ratios_of(found)
            results.append(to_json(one, found))
    show(summary(ratios))
    return {"machine": this_machine().to_json(), "models": results}


if __name__ == "__main__":
    sys.exit(measured(arguments(), compare))
