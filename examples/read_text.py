"""Reads lines of text with PP-OCRv6's recogniser, compiled for this machine in float32 and searched to int8.

    python examples/read_text.py

Fetches the network from the PyPI package `rapidocr`, renders lines of text, and searches the fastest plan
whose share of characters read right is at most one in a hundred below float32's, judged on lines that it
does not see again. It ends with what both read on other lines, beside ONNX Runtime in the same run.
Results are in out/read_text; a second start goes on with the search.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import bitsmith
import numpy as np
from bitsmith.compiler.cli.output import Output
from bitsmith.compiler.measure import measure_latency
from bitsmith.compiler.pipeline.onnx_peer import OnnxPeer
from packages import model_file
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from text_lines import HEIGHT, WIDTH, alphabet, decoded, picture, pixels, random_lines, right_characters

OUT = Path(__file__).resolve().parents[1] / "out" / "read_text"
PACKAGE, MEMBER = "rapidocr==3.10.0", "rapidocr/models/PP-OCRv6_rec_small.onnx"
CALIBRATION, EVALUATION, HELD_OUT = (100, 0), (100, 1), (100, 2)  # lines, seed
DROP = "score_drop<=0.01"
console = Console(highlight=False)

Runner = bitsmith.Artifact | OnnxPeer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="for the search (300)")
    parser.add_argument("--trials", type=int, default=12, help="plans to measure at most (12)")
    options = parser.parse_args()
    model = model_file(PACKAGE, MEMBER)
    characters = alphabet(model)
    graph = bitsmith.load(model, shapes={"x": (1, 3, HEIGHT, WIDTH)})
    console.print(f"searching for the fastest plan with {DROP}: the share of characters read right")
    with Output().progress() as progress:
        result = bitsmith.search(
            graph,
            calibration=samples(*CALIBRATION),
            evaluate=reader(characters, *EVALUATION),
            constraints=[DROP],
            trials=options.trials,
            timeout=options.seconds,
            out=OUT / "search",
            progress=progress,
        )
    best = bitsmith.open(OUT / "search" / "best")
    int8 = sum(result.plan.choice(layer) == "int8" for layer in result.plan.layers)
    console.print(f"{int8} of {len(result.plan.layers)} layers are int8")
    float32 = bitsmith.compile(graph)
    shown(
        {"ONNX Runtime float32": OnnxPeer(model), "bitsmith float32": float32, "bitsmith searched": best},
        characters,
    )
    console.print(f"report: {bitsmith.report(result, OUT / 'report.html')}")


def samples(n: int, seed: int) -> np.ndarray:
    return np.stack([pixels(picture(line, i)) for i, line in enumerate(random_lines(n, seed))])


def reader(characters: list[str], n: int, seed: int) -> Callable[[bitsmith.Artifact], float]:
    """The share of characters that an artifact reads right on `n` lines."""
    lines = random_lines(n, seed)
    pictures = samples(n, seed)

    def score(artifact: bitsmith.Artifact) -> float:
        return right_characters([read(artifact, one, characters) for one in pictures], lines)

    return score


def read(model: Runner, pixels: np.ndarray, characters: list[str]) -> str:
    (scores,) = model.run(pixels[None]).values()
    return decoded(scores[0], characters)


def shown(models: dict[str, Runner], characters: list[str]) -> None:
    """What each reads, how well and how fast, one thread, in turns."""
    lines, pictures = random_lines(*HELD_OUT), samples(*HELD_OUT)
    texts = {name: [read(model, one, characters) for one in pictures] for name, model in models.items()}
    calls = {name: (lambda feed, run=model.run: run(feed["x"])) for name, model in models.items()}
    latencies = measure_latency(calls, [{"x": pictures[0][None]}], repeats=40)
    table = Table(box=SIMPLE)
    for head in ("", "MB", "ms", "characters right", "reads the first line as"):
        table.add_column(head)
    for name, model in models.items():
        share = right_characters(texts[name], lines)
        size, ms = f"{model.size_bytes / 1e6:.1f}", f"{latencies[name].median_us / 1e3:.1f}"
        table.add_row(name, size, ms, f"{share:.1%}", texts[name][0])
    console.print(f"\n{len(lines)} lines, the first of which says “{lines[0]}”; one thread")
    console.print(table)


if __name__ == "__main__":
    main()
