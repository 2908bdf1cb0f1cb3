"""Finds lines of text on pages with PP-OCRv6's detector, compiled for this machine and searched to int8.

    python examples/find_text.py

Fetches the network from the PyPI package `rapidocr`, renders pages of text, and searches the fastest plan
that marks the same pixels as float32 but for one in a hundred. int8 everywhere marks two in a hundred
otherwise, so the search has to choose. It ends with a page on which the boxes are drawn, and with how well
each form of the network finds the lines of other pages, beside ONNX Runtime in the same run. Results are in
out/find_text; a second start goes on with the search.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import bitsmith
import numpy as np
from bitsmith.compiler.cli.output import Output
from bitsmith.compiler.pipeline.onnx_peer import OnnxPeer
from comparison import Subject, compared, console, subject
from packages import model_file
from text_pages import SIDE, Box, boxes_of, found_well, marked, page, pixels, same_pixels

OUT = Path(__file__).resolve().parents[1] / "out" / "find_text"
PACKAGE, MEMBER = "rapidocr==3.10.0", "rapidocr/models/PP-OCRv6_det_small.onnx"
CALIBRATION, EVALUATION, HELD_OUT = range(1000, 1060), range(2000, 2060), range(3000, 3060)  # seeds of pages
CONSTRAINT = "score>=0.99"  # share of the pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=400, help="for the search (400)")
    parser.add_argument("--trials", type=int, default=16, help="plans to measure at most (16)")
    options = parser.parse_args()
    model = model_file(PACKAGE, MEMBER)
    graph = bitsmith.load(model, shapes={"x": (1, 3, SIDE, SIDE)})
    float32 = bitsmith.compile(graph)
    console.print(f"searching for the fastest plan with {CONSTRAINT}: the share of equal pixels of text")
    with Output().progress() as progress:
        result = bitsmith.search(
            graph,
            calibration=np.stack([pixels(page(seed)[0]) for seed in CALIBRATION]),
            evaluate=same_as(subject(float32), EVALUATION),
            constraints=[CONSTRAINT],
            trials=options.trials,
            timeout=options.seconds,
            out=OUT / "search",
            progress=progress,
        )
    int8 = sum(result.plan.choice(layer) == "int8" for layer in result.plan.layers)
    console.print(f"{int8} of {len(result.plan.layers)} layers are int8; constraint met: {result.met}")
    shown(
        {
            "ONNX Runtime float32": subject(OnnxPeer(model)),
            "bitsmith float32": subject(float32),
            "bitsmith searched": subject(bitsmith.open(OUT / "search" / "best")),
        }
    )
    console.print(f"report: {bitsmith.report(result, OUT / 'report.html')}")


def same_as(model: Subject, seeds: range) -> Callable[[bitsmith.Artifact], float]:
    """The share of text pixels that an artifact marks as the model does."""
    reference = maps(model, seeds)
    return lambda artifact: same_pixels(maps(subject(artifact), seeds), reference)


@cache
def rendered(seed: int) -> tuple[np.ndarray, list[Box]]:
    image, boxes = page(seed)
    return pixels(image)[None], boxes


def maps(model: Subject, seeds: range) -> list[np.ndarray]:
    """The probability of text for each pixel of each page."""
    answers = (model.run({"x": rendered(seed)[0]}) for seed in seeds)
    return [next(iter(answer.values()))[0, 0] for answer in answers]


def shown(models: Mapping[str, Subject]) -> None:
    """The table, and a page with the boxes of each drawn on it."""
    answers = {name: maps(model, HELD_OUT) for name, model in models.items()}
    found = {name: [boxes_of(one) for one in answer] for name, answer in answers.items()}
    real = [rendered(seed)[1] for seed in HELD_OUT]
    wanted = next(iter(answers.values()))
    columns = {
        "F-measure of boxes": [f"{found_well(boxes, real):.1%}" for boxes in found.values()],
        "same pixels": [f"{same_pixels(answer, wanted):.2%}" for answer in answers.values()],
        f"on the first page ({len(real[0])} lines)": [f"{len(boxes[0])} boxes" for boxes in found.values()],
    }
    console.print(f"\n{len(HELD_OUT)} pages that took no part in the search; one thread")
    console.print(compared(models, {"x": rendered(HELD_OUT[0])[0]}, columns))
    for name, boxes in found.items():
        path = OUT / f"{name}.png"
        marked(page(HELD_OUT[0])[0], boxes[0]).save(path)
        console.print(f"the first page: {path}")


if __name__ == "__main__":
    main()
