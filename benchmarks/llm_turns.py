"""Judging and timing language models through their workers (llm_worker.py)."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bitsmith.compiler.measure.quality import mean_kl
from peer_turns import PeerError, Worker, interleave

HERE = Path(__file__).resolve().parent
WINDOW, PROMPT, CONTEXT = 256, 128, 512
VERBS = ("prefill", "decode")
Key = tuple[str, int, str]
"""(name of the model, threads, verb)."""


@dataclass(frozen=True)
class Model:
    """One thing that is compared: a GGUF file for llama_cpp, an artifact's directory for bitsmith."""

    engine: str
    form: str
    place: Path
    bytes: int

    @property
    def name(self) -> str:
        return f"{self.engine} {self.form}"


@dataclass(frozen=True)
class Quality:
    """Means over `tokens` predictions: KL from the float model in nats, share of equal likeliest tokens."""

    tokens: int
    kl: float
    agreement: float


@dataclass(frozen=True)
class Speeds:
    """Seconds by (name, threads, verb), round by round; the reasons of those that failed."""

    rounds: Mapping[Key, Sequence[Sequence[float]]]
    failed: Mapping[Key, str]


@dataclass(frozen=True)
class Verb:
    """A worker as `interleave` wants it, for one kind of request."""

    worker: Worker
    verb: str

    def run(self, count: int) -> list[float]:
        return list(self.worker.ask(f"{self.verb} {count}"))

    def settle(self) -> float:
        return self.worker.settle()


def worker(model: Model, python: Path, threads: int, scratch: Path, env: Mapping[str, str]) -> Worker:
    """The model in a process of its own. Raises PeerError."""
    spec = {"engine": model.engine, "model": str(model.place), "threads": threads}
    spec |= {"prompt": PROMPT, "context": CONTEXT}
    command = [str(python), str(HERE / "llm_worker.py"), json.dumps(spec)]
    log = scratch / f"{model.name.replace('/', '_')}-{threads}.log"
    return Worker(command, log, env=env)


def judged(
    models: Sequence[Model],
    whole: Path,
    pythons: Mapping[str, Path],
    text: str,
    tokens: int,
    scratch: Path,
    stack: ExitStack,
    env: Mapping[str, str],
    say: Callable[[str], None],
) -> dict[str, Quality]:
    """By name, on the text's first tokens in windows that are read from an empty memory."""
    import bitsmith
    from bitsmith.compiler.pipeline.reading import Reader, Speech

    with bitsmith.open(whole) as artifact:
        ids = Speech(artifact).tokens(text)[:tokens]
        reader, workers = Reader(artifact), {}
        for model in models:
            made = worker(model, pythons[model.engine], 1, scratch, env)
            workers[model.name] = stack.enter_context(made)
        sums = {model.name: np.zeros(2) for model in models}
        for begin in range(0, len(ids), WINDOW):
            window = ids[begin : begin + WINDOW]
            reader.clear()
            wanted = np.stack([row.copy() for row in reader.score(window)])
            for name, each in workers.items():
                sums[name] += distance(wanted, scored(each, window, scratch))
            say(f"judging {min(begin + WINDOW, len(ids))}/{len(ids)}")
        for each in workers.values():
            each.close()
    count = len(ids)
    return {name: Quality(count, *(float(each) / count for each in total)) for name, total in sums.items()}


def scored(from_worker: Worker, window: Sequence[int], scratch: Path) -> np.ndarray:
    """float32 [tokens, vocabulary]. Raises PeerError."""
    source, place = scratch / "tokens.npy", scratch / "logits.npy"
    np.save(source, np.asarray(window, np.int64))
    if from_worker.ask(f"logits {source} {place}") != len(window):
        raise PeerError("a worker gave logits of another number of tokens")
    found: np.ndarray = np.load(place)
    place.unlink()
    return found


def distance(wanted: np.ndarray, found: np.ndarray) -> np.ndarray:
    """float64 [2]: sums over rows of logits [n, vocabulary] of KL(wanted || found) and of equal maxima."""
    kl = mean_kl(wanted, found) * len(wanted)
    return np.array([kl, float((wanted.argmax(1) == found.argmax(1)).sum())])


def timed(
    models: Sequence[Model],
    pythons: Mapping[str, Path],
    threads: Sequence[int],
    rounds: int,
    scratch: Path,
    stack: ExitStack,
    env: Mapping[str, str],
    say: Callable[[str], None],
) -> Speeds:
    """All models, prefill and decode, in turns, for one number of threads after the other."""
    found: dict[Key, list[list[float]]] = {}
    failed: dict[Key, str] = {}
    for count in threads:
        turns: dict[Key, Verb] = {}
        for model in models:
            try:
                made = stack.enter_context(worker(model, pythons[model.engine], count, scratch, env))
            except PeerError as error:
                failed |= {(model.name, count, verb): str(error) for verb in VERBS}
                continue
            turns |= {(model.name, count, verb): Verb(made, verb) for verb in VERBS}

        def told(done: int, count: int = count) -> None:
            say(f"{count} threads: round {done}/{rounds}")

        seconds, _, broken = interleave(turns, rounds=rounds, on_round=told)
        found, failed = found | seconds, failed | broken
        for each in {id(turn.worker): turn.worker for turn in turns.values()}.values():
            each.close()
    return Speeds(found, failed)
