"""Hears where somebody speaks in a stream of sound: silero-vad, compiled for this machine, searched to int8.

    python examples/voice_activity.py

Fetches the network from the PyPI package `silero-vad` and voices from `espeakng-loader`, and feeds it a
stream chunk by chunk, with the state that each call hands to the next. The search finds the fastest plan
that is right about at most one chunk in a hundred fewer than float32. It ends with a timeline of a stream
that took no part: what was said, where, and what each form of the network heard, beside ONNX Runtime.
Results are in out/voice_activity; a second start goes on with the search.
"""

import argparse
import itertools
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import bitsmith
import numpy as np
from bitsmith.compiler.cli.output import Output
from bitsmith.compiler.pipeline.onnx_peer import OnnxPeer
from comparison import Subject, compared, console, subject
from packages import model_file
from speech import RATE, Stream, stream

OUT = Path(__file__).resolve().parents[1] / "out" / "voice_activity"
PACKAGE, MEMBER = "silero-vad==6.2.3", "silero_vad/data/silero_vad.onnx"
CHUNK, CONTEXT = 512, 64  # samples: 32 ms, and the end of the chunk before
STATE = (2, 1, 128)
CONSTANTS = {"sr": np.array(RATE, np.int64)}
CALIBRATION, EVALUATION, HELD_OUT = range(100, 106), range(200, 206), range(300, 306)  # seeds of streams
SENTENCES, SAMPLES = 4, 200  # of a stream; chunks to calibrate on
DROP = "score_drop<=0.01"
WIDTH = 100  # characters of a line of the timeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120, help="for the search (120)")
    parser.add_argument("--trials", type=int, default=12, help="plans to measure at most (12)")
    options = parser.parse_args()
    model = model_file(PACKAGE, MEMBER)
    shapes = {"input": (1, CONTEXT + CHUNK), "state": STATE}
    graph = bitsmith.load(model, shapes=shapes, constants=CONSTANTS)
    float32 = bitsmith.compile(graph)
    console.print(f"searching for the fastest plan with {DROP}: the share of chunks that are judged right")
    with Output().progress() as progress:
        result = bitsmith.search(
            graph,
            calibration=samples(subject(float32)),
            evaluate=right_chunks,
            constraints=[DROP],
            trials=options.trials,
            timeout=options.seconds,
            out=OUT / "search",
            progress=progress,
        )
    int8 = sum(result.plan.choice(layer) == "int8" for layer in result.plan.layers)
    console.print(f"{int8} of {len(result.plan.layers)} layers are int8; constraint met: {result.met}")
    shown(
        {
            "ONNX Runtime float32": subject(OnnxPeer(model), CONSTANTS),
            "bitsmith float32": subject(float32),
            "bitsmith searched": subject(bitsmith.open(OUT / "search" / "best")),
        }
    )
    console.print(f"report: {bitsmith.report(result, OUT / 'report.html')}")


@cache
def recorded(seed: int) -> Stream:
    return stream(seed, SENTENCES)


def chunks(sound: np.ndarray) -> np.ndarray:
    """float32 [n, 576]: each chunk after the last samples of the one before."""
    count = len(sound) // CHUNK
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), sound[: count * CHUNK]])
    return np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + CHUNK)[::CHUNK].copy()


def truth(recording: Stream) -> np.ndarray:
    """Whether somebody speaks in most of each chunk: bool [n]."""
    count = len(recording.speaks) // CHUNK
    result: np.ndarray = recording.speaks[: count * CHUNK].reshape(count, CHUNK).mean(1) > 0.5
    return result


def runs(model: Subject, sound: np.ndarray) -> Iterator[tuple[Mapping[str, np.ndarray], float]]:
    """What the network reads and the probability of speech that it answers, chunk after chunk."""
    state = np.zeros(STATE, np.float32)
    for chunk in chunks(sound):
        feed = {"input": chunk[np.newaxis], "state": state}
        answer = model.run(feed)
        state = answer["stateN"]
        yield feed, answer["output"].item()


def heard(model: Subject, recording: Stream) -> np.ndarray:
    """The probability of speech in each chunk: float64 [n]."""
    return np.array([probability for _, probability in runs(model, recording.sound)])


def samples(model: Subject) -> list[Mapping[str, np.ndarray]]:
    """Chunks and states from the whole of some streams."""
    everything = [feed for seed in CALIBRATION for feed, _ in runs(model, recorded(seed).sound)]
    return everything[:: -(-len(everything) // SAMPLES)]


def right_chunks(artifact: bitsmith.Artifact) -> float:
    return right(subject(artifact), EVALUATION)


def right(model: Subject, seeds: range) -> float:
    """The share of chunks of which a model says rightly whether somebody speaks."""
    pairs = [(heard(model, recorded(seed)) > 0.5, truth(recorded(seed))) for seed in seeds]
    return float(np.mean(np.concatenate([found == real for found, real in pairs])))


def timeline(speaks: np.ndarray, width: int = WIDTH) -> str:
    """A line of `width` characters, at most as many as chunks: a block where speech fills half of them."""
    edges = np.linspace(0, len(speaks), width + 1).round().astype(int)
    parts = (speaks[a:b].mean() for a, b in itertools.pairwise(edges))
    return "".join("█" if part >= 0.5 else "·" for part in parts)


def shown(models: Mapping[str, Subject]) -> None:
    """The timeline of a stream, and the table."""
    recording = recorded(HELD_OUT[0])
    seconds = len(recording.sound) / RATE
    label = max(map(len, models)) + 1
    console.print(f"\n{seconds:.1f} seconds of sound that took no part in the search:")
    for start, text in recording.said:
        console.print(
            f"{'':{label}}{'':{round(start / seconds * WIDTH)}}| {start:.1f} s: {text}", soft_wrap=True
        )
    console.print(f"{'spoken':{label}}{timeline(truth(recording))}", soft_wrap=True)
    found = {name: heard(model, recording) for name, model in models.items()}
    for name, line in found.items():
        console.print(f"{name:{label}}{timeline(line > 0.5)}", soft_wrap=True)
    wanted = next(iter(found.values())) > 0.5
    columns = {
        "chunks right": [f"{right(model, HELD_OUT):.1%}" for model in models.values()],
        "as ONNX Runtime, of those above": [
            f"{np.mean((line > 0.5) == wanted):.1%}" for line in found.values()
        ],
    }
    feed = {"input": chunks(recording.sound)[40:41], "state": np.zeros(STATE, np.float32)}
    console.print(
        f"\n{len(HELD_OUT)} such streams; milliseconds for a chunk of {1000 * CHUNK / RATE:.0f}, one thread"
    )
    console.print(compared(models, feed, columns))


if __name__ == "__main__":
    main()
