"""One model through every engine: prepare, keep the fastest int8 form, time in turns, judge the outputs."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from bitsmith.compiler.measure import Quality, quality
from peer_env import HERE, PEERS, QUIET, requirements
from peer_model import Subject
from peer_stats import Spread, paired_ratio
from peer_turns import PeerError, Worker, busy_cpu_s, interleave

ENTRIES = (
    ("bitsmith", "float32"),
    ("bitsmith", "int8"),
    ("onnxruntime", "float32"),
    ("onnxruntime", "int8"),
    ("openvino", "float32"),
    ("openvino", "default"),
    ("openvino", "int8"),
)
SAME_SPEED = (
    1.02  # forms this close to the fastest are told apart by their quality instead: it is about the noise
)


@dataclass(frozen=True)
class Entry:
    """A model in one engine's form; `failed` says why there is none."""

    engine: str
    precision: str
    path: Path | None = None
    variant: str = ""
    failed: str = ""

    @property
    def size_bytes(self) -> int | None:
        """Bytes on disk: of all files of a directory, or of a file and its namesakes (.xml and .bin)."""
        if self.path is None:
            return None
        files = self.path.rglob("*") if self.path.is_dir() else self.path.parent.glob(f"{self.path.stem}.*")
        return sum(file.stat().st_size for file in files if file.is_file())


@dataclass(frozen=True)
class Row:
    """An entry at one thread count. `rounds`: seconds of each run, a list for each round.

    idle_cpu_s is what its threads burn after a turn, when they have nothing to do.
    """

    entry: Entry
    threads: int
    facts: Mapping[str, Any]
    rounds: Sequence[Sequence[float]]
    idle_cpu_s: float
    quality: Quality | None
    failed: str

    @property
    def latency(self) -> Spread | None:
        return Spread.of([s for seconds in self.rounds for s in seconds]) if self.rounds else None


@dataclass(frozen=True)
class Measured:
    """`others_cores`: how many processors, on average, other processes kept busy during the turns."""

    rows: Sequence[Row]
    others_cores: float


@dataclass(frozen=True)
class Bench:
    """What is the same for all models. `pythons`: engine -> interpreter, or the reason why there is none."""

    pythons: Mapping[str, Path | PeerError]
    cache: Path
    threads: Sequence[int]
    rounds: int
    say: Callable[[str], None]

    def python(self, engine: str) -> Path:
        found = self.pythons[engine]
        if isinstance(found, PeerError):
            raise found
        return found


def bench(run: Bench, subject: Subject, folder: Path, artifacts: Mapping[str, Path]) -> Measured:
    """All rows of one model; a row that could not be measured says why. Scratch files go to `folder`.

    `artifacts` (name -> path) stand in for what would be compiled here.
    """
    given = [Entry("bitsmith", name, path) for name, path in artifacts.items()]
    wanted = [pair for pair in ENTRIES if pair[0] in run.pythons and not (given and pair[0] == "bitsmith")]
    forms = [prepare(run, subject, folder, engine, precision) for engine, precision in wanted]
    flat = [entry for entries in forms for entry in entries]
    reference = reference_outputs(run, subject, folder, flat)
    entries = given + [fastest(run, subject, folder, entries, reference) for entries in forms]
    return measure(run, subject, folder, entries, reference)


def prepare(run: Bench, subject: Subject, folder: Path, engine: str, precision: str) -> list[Entry]:
    """The engine's forms of the model: one, or ONNX Runtime's int8 variants. A peer's are kept by content."""
    run.say(f"{subject.name}: preparing {engine} {precision}")
    script = HERE / "peer_prepare.py"
    out = folder / f"{engine}-{precision}"
    if engine in PEERS:
        key = subject.key(requirements(engine).read_text() + script.read_text())
        out = run.cache / "prepared" / f"{engine}-{precision}-{key}"
    listing = out / "files.json"
    try:
        if not listing.exists():
            part = out.with_name(f"{out.name}.{os.getpid()}.part")
            part.mkdir(parents=True)
            try:
                _prepare_into(run, subject, engine, precision, part, script)
                shutil.rmtree(out, ignore_errors=True)
                part.rename(out)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        files = json.loads(listing.read_text())["files"]
        return [Entry(engine, precision, out / name, variant) for variant, name in files.items()]
    except (PeerError, OSError) as error:
        return [Entry(engine, precision, failed=str(error))]


def _prepare_into(run: Bench, subject: Subject, engine: str, precision: str, out: Path, script: Path) -> None:
    spec = {
        "engine": engine,
        "precision": precision,
        "model": str(subject.model),
        "calibration": [str(path) for path in subject.calibration],
        "batch": subject.batch,
        "out": str(out),
    }
    command = [str(run.python(engine)), str(script), json.dumps(spec)]
    done = subprocess.run(command, capture_output=True, text=True, env=_env(engine))
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise PeerError(said[-1] if said else f"preparing it ended with status {done.returncode}")
    (out / "files.json").write_text(done.stdout)


def start(run: Bench, subject: Subject, folder: Path, entry: Entry, threads: int) -> Worker:
    """A worker for the entry. Raises PeerError with the entry's own reason, or with the worker's."""
    if entry.failed:
        raise PeerError(entry.failed)
    spec = {
        "engine": entry.engine,
        "model": str(entry.path),
        "threads": threads,
        "precision": entry.precision,
        "inputs": [str(path) for path in subject.evaluation],
        "batch": subject.batch,
    }
    command = [str(run.python(entry.engine)), str(HERE / "peer_worker.py"), json.dumps(spec)]
    name = f"{entry.engine}-{entry.precision}{entry.variant.replace(' ', '_')}-{threads}.log"
    return Worker(command, folder / name, env=_env(entry.engine))


def reference_outputs(run: Bench, subject: Subject, folder: Path, entries: Sequence[Entry]) -> Path | None:
    """ONNX Runtime's float32 outputs for the evaluation samples; None when it cannot give them."""
    for entry in entries:
        if (entry.engine, entry.precision, entry.failed) == ("onnxruntime", "float32", ""):
            path = folder / "reference.npz"
            try:
                with start(run, subject, folder, entry, max(run.threads)) as worker:
                    worker.outputs(path)
                return path
            except PeerError:
                return None  # Its row fails for the same reason and shows it.
    return None


def fastest(
    run: Bench, subject: Subject, folder: Path, entries: Sequence[Entry], reference: Path | None
) -> Entry:
    """The fastest variant at the first thread count; of those as fast within the noise, the closest."""
    if len(entries) == 1:
        return entries[0]
    run.say(f"{subject.name}: choosing {entries[0].engine}'s fastest {entries[0].precision} form")
    with ExitStack() as stack:
        try:
            workers = {
                e.variant: stack.enter_context(start(run, subject, folder, e, run.threads[0]))
                for e in entries
            }
        except PeerError as error:
            return Entry(entries[0].engine, entries[0].precision, failed=str(error))
        rounds, _, failed = interleave(workers, rounds=9)
        if not rounds:
            return replace(entries[0], failed=next(iter(failed.values())))
        first = next(iter(rounds.values()))
        speed = {variant: paired_ratio(seconds, first).median for variant, seconds in rounds.items()}
        limit = SAME_SPEED * min(speed.values())
        close = [entry for entry in entries if speed.get(entry.variant, limit + 1) <= limit]
        try:
            found = {e.variant: judged(workers[e.variant], subject, folder, reference) for e in close}
        except PeerError as error:
            return replace(close[0], failed=str(error))
    return max(close, key=lambda e: q.sqnr_db if (q := found[e.variant]) else -speed[e.variant])


def measure(
    run: Bench, subject: Subject, folder: Path, entries: Sequence[Entry], reference: Path | None
) -> Measured:
    """Times every entry at every thread count, all in turns; quality once for each entry."""
    keys = [(entry, threads) for threads in run.threads for entry in entries]
    with ExitStack() as stack:
        workers: dict[tuple[Entry, int], Worker] = {}
        failed: dict[tuple[Entry, int], str] = {}
        for entry, threads in keys:
            run.say(f"{subject.name}: starting {entry.engine} {entry.precision}, threads: {threads}")
            try:
                worker = start(run, subject, folder, entry, threads)
                workers[entry, threads] = stack.enter_context(worker)
            except PeerError as error:
                failed[entry, threads] = str(error)
        start_s, others_s = time.perf_counter(), busy_cpu_s() - _own_cpu_s(workers.values())
        rounds, idle, broke = interleave(
            workers,
            rounds=run.rounds,
            on_round=lambda done: run.say(f"{subject.name}: round {done} of {run.rounds}"),
        )
        others_s = busy_cpu_s() - _own_cpu_s(workers.values()) - others_s
        others_cores = others_s / (time.perf_counter() - start_s)
        failed.update(broke)
        judgement: dict[Entry, Quality | None] = {}
        for entry, threads in rounds:
            if entry not in judgement:
                run.say(f"{subject.name}: judging {entry.engine} {entry.precision}")
                try:
                    judgement[entry] = judged(workers[entry, threads], subject, folder, reference)
                except PeerError as error:
                    judgement[entry], failed[entry, threads] = None, str(error)
        facts = {key: worker.ready for key, worker in workers.items()}
    rows = [
        Row(
            entry=key[0],
            threads=key[1],
            facts=facts.get(key, {}),
            rounds=rounds.get(key, []),
            idle_cpu_s=idle.get(key, 0.0),
            quality=judgement.get(key[0]),
            failed=failed.get(key, ""),
        )
        for key in keys
    ]
    return Measured(rows, max(0.0, others_cores))


def judged(worker: Worker, subject: Subject, folder: Path, reference: Path | None) -> Quality | None:
    """Quality against the reference, if there is one. Raises PeerError when the outputs do not compare."""
    if reference is None:
        return None
    path = folder / "outputs.npz"
    try:
        worker.outputs(path)
        with np.load(reference) as exact, np.load(path) as found:
            return quality([dict(exact)], [dict(found)], subject.labels)
    except ValueError as error:
        raise PeerError(f"its outputs do not compare: {error}") from error


def _own_cpu_s(workers: Iterable[Worker]) -> float:
    return time.process_time() + sum(worker.cpu_s() for worker in workers)


def _env(engine: str) -> dict[str, str]:
    """A peer must find its own packages only, not those of the project."""
    hidden = ("PYTHONPATH", "PYTHONHOME") if engine in PEERS else ()
    return {**{name: value for name, value in os.environ.items() if name not in hidden}, **QUIET}
