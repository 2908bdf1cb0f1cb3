"""From a pretrained network to a measured library: EfficientNet-Lite0, searched for this machine.

    make demo

Exports the network, compiles it in float32 and with int8 everywhere, and searches a data type for each of
its layers: the fastest plan that loses at most half of what int8 everywhere was just measured to lose.
(Stopped and started again, the search goes on where it was.) Then it measures all of them beside ONNX
Runtime, in turns. Results are in out/demo. The pictures that quality is reported on took no part in
calibration, bound or search.
"""

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import bitsmith
from bitsmith.compiler.cli.output import Output
from bitsmith.compiler.files import write_whole
from bitsmith.compiler.measure import Latency, Quality, decibels, measure_latency, quality
from bitsmith.compiler.pipeline import targets
from bitsmith.compiler.pipeline.onnx_peer import OnnxPeer
from efficientnet import export_onnx
from onnxruntime_int8 import quantise
from pictures import calibration_pictures, evaluation_pictures, held_out_pictures
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

OUT = Path(__file__).resolve().parents[1] / "out" / "demo"
# A rule and not a number of its own, which could only be chosen by looking at these photographs. It bounds
# the divergence of the probabilities and not the share of equal top classes: on four of ten of these crops
# no class has a probability of 0.4, so that equal answers are a matter of near ties, and of few pictures.
SHARE = 0.5  # of the KL divergence that int8 everywhere costs
CALIBRATION, EVALUATION, HELD_OUT = 42, 420, 410  # pictures; the last two are all crops of all photographs
PEERS = ("ONNX Runtime float32", "ONNX Runtime int8")
TITLES = (*PEERS, "bitsmith float32", "bitsmith uniform int8", "bitsmith searched")
console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


@dataclass(frozen=True)
class Row:
    """One model, measured on the held-out pictures."""

    name: str
    size_bytes: int
    latency: Latency
    quality: Quality


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180, help="for the search (180)")
    parser.add_argument("--trials", type=int, default=24, help="plans to measure at most (24)")
    parser.add_argument("--repeats", type=int, default=100, help="rounds of the last measurement (100)")
    options = parser.parse_args()
    start = time.monotonic()
    OUT.mkdir(parents=True, exist_ok=True)
    with step("exporting EfficientNet-Lite0 to ONNX"):
        model = exported(OUT / "efficientnet_lite0.onnx")
    uniform = {"float32": compiled(model, "float32"), "uniform int8": compiled(model, "int8")}
    constraint = bound(uniform["float32"], uniform["uniform int8"])
    result = searched(model, constraint, options.seconds, options.trials)
    page = bitsmith.report(result, OUT / "report.html")
    best = bitsmith.open(OUT / "search" / "best")
    best.save(OUT / "searched.bitsmith")
    ours = {f"bitsmith {name}": made for name, made in {**uniform, "searched": best}.items()}
    subjects = ours | peers(model)
    with step("measuring all of them in turns"):
        rows = measured(subjects, options.repeats)
    shown(rows, result)
    console.print(f"artifact: {OUT / 'searched.bitsmith'}\nreport:   {page}")
    console.print(f"took {time.monotonic() - start:.0f} s on {result.machine.cpu}")


@contextmanager
def step(what: str) -> Iterator[None]:
    start = time.monotonic()
    with console.status(what):
        yield
    console.print(f"{what}: {time.monotonic() - start:.0f} s", style="dim")


def exported(path: Path) -> Path:
    if path.exists():
        return path
    unfinished = path.with_suffix(".part")
    import torch.onnx  # first: importing torch sets the levels of its logs

    # It warns that it misses torchvision, which nothing here needs.
    logging.getLogger(f"{torch.onnx.__name__}._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about torch's own insides
        export_onnx(unfinished)
    return unfinished.replace(path)


def compiled(model: Path, precision: str) -> bitsmith.Artifact:
    """The network with all layers in one precision."""
    with step(f"compiling {precision} everywhere"):
        graph = bitsmith.load(model)
        plan = bitsmith.Plan.uniform(graph, precision)
        artifact = bitsmith.compile(graph, plan=plan, calibration=calibration_pictures(CALIBRATION))
    artifact.save(OUT / f"{precision}.bitsmith")
    return artifact


def bound(float32: bitsmith.Artifact, int8: bitsmith.Artifact) -> str:
    """The constraint, from what int8 costs on the pictures that the search judges plans on.

    Kept in a file: a search that goes on must be asked for the same.
    """
    place = OUT / "constraint.txt"
    if not place.exists():
        with step("measuring what int8 everywhere costs"):
            pictures = [picture[None] for picture in evaluation_pictures(EVALUATION)]
            exact, rounded = ([model.run(picture) for picture in pictures] for model in (float32, int8))
            loss = quality(exact, rounded)
        assert loss.kl is not None, "the network is a classifier"
        write_whole(place, f"kl<={SHARE * loss.kl:.2g}", "the constraint")
        console.print(f"int8 everywhere: KL {loss.kl:.2e} to float32, {loss.agreement:.1%} equal top classes")
    return place.read_text()


def searched(model: Path, constraint: str, seconds: float, trials: int) -> bitsmith.SearchResult:
    console.print(
        f"searching for the fastest plan with {SHARE:.0%} of the loss of int8 everywhere: {constraint}"
    )
    console.print("a second `make demo` goes on from here", style="dim")
    start = time.monotonic()
    with Output().progress() as progress:
        result = bitsmith.search(
            bitsmith.load(model),
            calibration=calibration_pictures(CALIBRATION),
            evaluate=evaluation_pictures(EVALUATION),
            constraints=[constraint],
            trials=trials,
            timeout=seconds,
            out=OUT / "search",
            progress=progress,
        )
    console.print(f"search: {len(result.trials)} plans, {time.monotonic() - start:.0f} s", style="dim")
    return result


def peers(model: Path) -> dict[str, OnnxPeer]:
    """ONNX Runtime on the same file, and on its own int8 form of it, calibrated with the same pictures."""
    quantised = OUT / "efficientnet_lite0.int8.onnx"
    if not quantised.exists():
        with step("quantising for ONNX Runtime"):
            host = next(target for target in targets() if target.host)
            vnni = any("vnni" in feature for feature in host.features)
            quantise(model, quantised, calibration_pictures(CALIBRATION), vnni)
    return {name: OnnxPeer(path) for name, path in zip(PEERS, (model, quantised), strict=True)}


def measured(subjects: Mapping[str, bitsmith.Artifact | OnnxPeer], repeats: int) -> list[Row]:
    """Latency of one thread, all in turns; quality against ONNX Runtime's float32 on unseen pictures."""
    pictures = [picture[None] for picture in held_out_pictures(HELD_OUT)]
    calls = {name: (lambda feed, run=subjects[name].run: run(feed["x"])) for name in TITLES}
    latencies = measure_latency(calls, [{"x": pictures[0]}], repeats=repeats)
    answers = {name: [subjects[name].run(picture) for picture in pictures] for name in TITLES}
    truth = [{"y": next(iter(a.values()))} for a in answers[TITLES[0]]]
    rows = []
    for name in TITLES:
        own = [{"y": next(iter(a.values()))} for a in answers[name]]
        rows.append(Row(name, subjects[name].size_bytes, latencies[name], quality(truth, own)))
    return rows


def shown(rows: list[Row], result: bitsmith.SearchResult) -> None:
    head = f"EfficientNet-Lite0, one thread; quality on {HELD_OUT} held-out pictures"
    console.print(f"\n[bold]{head}[/bold]")
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for head in ("", "MB", "ms", "x", "agrees", "KL", "SQNR dB"):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for row in rows:
        t, q, first = row.latency, row.quality, row is rows[0]
        table.add_row(
            row.name,
            f"{row.size_bytes / 1e6:.2f}",
            f"{t.median_us / 1e3:.2f} ± {t.spread_us / 2e3:.2f}",
            f"{t.ratio_to_first:.2f}",
            f"{q.agreement:.1%}",
            "-" if first else f"{q.kl:.1e}",
            "-" if first else decibels(q.sqnr_db),
            style="bold" if row is rows[-1] else None,
        )
    console.print(table)
    console.print(f"ms: median latency ± half the interquartile range of {rows[0].latency.n} rounds in turns")
    console.print(f"x: latency over that of {rows[0].name}; agrees: same top class as it")
    verdict = "met" if result.met else "not met: this is the closest plan"
    layers = f"{len(result.best.int8_layers)} of {len(result.ledger)} layers"
    console.print(f"searched: {layers} in int8; {', '.join(result.constraints)} {verdict}\n")


if __name__ == "__main__":
    main()
