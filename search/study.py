"""The search's memory: an Optuna study, by default in an SQLite file, which a killed search continues.

Every plan is a trial: one categorical parameter per layer, its `Candidate` as a user attribute, its
constraints' excess. What else is dear (sensitivities, the baseline's reference time) is kept as attributes
of the study. Any storage that Optuna knows will do; several searches may work on one study at once.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compiler.errors import InputError, InternalError, OutputError
from .result import Candidate

if TYPE_CHECKING:
    import optuna

CHOICES = ("float32", "int8")
IDENTITY, RECORD, WORKER, ORIGIN = "bitsmith:identity", "candidate", "worker", "origin"
UNCLAIMED_SECONDS = 10.0  # the most that lies between asking for a trial and writing who works on it


@dataclass(frozen=True)
class Proposal:
    """A plan to measure: `choices` by layer, where it comes from, the trial's number and Optuna's handle."""

    choices: Mapping[str, str]
    origin: str
    number: int
    handle: Any


class Study:
    """Made by `open_study`. All methods may raise OutputError when the storage fails."""

    def __init__(self, study: optuna.Study, layers: Sequence[str], name: str) -> None:
        self._study, self._layers, self.name = study, tuple(layers), name

    def recall(self, key: str) -> Any:
        """What `remember` stored under the key, None if nothing."""
        return self._study.user_attrs.get(key)

    def remember(self, key: str, value: Any) -> None:
        """Stores JSON data; it survives the process from here on."""
        with _storage_errors(self.name):
            self._study.set_user_attr(key, value)

    def finished(self) -> list[Candidate]:
        """Every plan measured so far, each once, in order."""
        from optuna.trial import TrialState

        with _storage_errors(self.name):
            trials = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        found: dict[str, Candidate] = {}
        for trial in trials:
            if RECORD in trial.user_attrs:
                candidate = Candidate.from_json(trial.user_attrs[RECORD])
                found.setdefault(candidate.name, candidate)
        return list(found.values())

    def waiting(self) -> int:
        """Number of plans in the queue."""
        from optuna.trial import TrialState

        with _storage_errors(self.name):
            return len(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def enqueue(self, choices: Mapping[str, str], origin: str) -> None:
        """Queues a plan, which is measured before any that the sampler proposes."""
        with _storage_errors(self.name):
            self._study.enqueue_trial(dict(choices), user_attrs={ORIGIN: origin})

    def use(self, propose: Callable[[], Mapping[str, str]]) -> None:
        """From now on, `propose` makes the plans that are not queued: choices by layer."""
        self._study.sampler = _sampler(propose, self._layers)

    def ask(self) -> Proposal:
        """The next plan: of the queue, else from the sampler."""
        with _storage_errors(self.name):
            trial = self._study.ask()
            trial.set_user_attr(WORKER, this_worker())
            origin = trial.user_attrs.get(ORIGIN, "optuna")
            choices = {layer: trial.suggest_categorical(layer, CHOICES) for layer in self._layers}
        return Proposal(choices, origin, trial.number, trial)

    def tell(
        self, proposal: Proposal, candidate: Candidate, values: Sequence[float], excess: Mapping[str, float]
    ) -> None:
        """Finishes a trial: values to minimise, and how far each constraint is exceeded (<= 0: met)."""
        with _storage_errors(self.name):
            proposal.handle.set_user_attr(RECORD, candidate.to_json())
            for constraint, amount in excess.items():
                proposal.handle.set_constraint(constraint, amount)
            self._study.tell(proposal.handle, list(values))

    def give_up(self, proposal: Proposal) -> None:
        """Marks a trial as failed."""
        from optuna.trial import TrialState

        with _storage_errors(self.name):
            self._study.tell(proposal.handle, state=TrialState.FAIL)

    def register(self) -> None:
        """Tells other processes that this one works on the study."""
        self.remember(f"{WORKER}:{this_worker()}", True)

    def workers(self) -> list[str]:
        """All processes that have ever worked on the study."""
        return [
            key.removeprefix(f"{WORKER}:") for key in self._study.user_attrs if key.startswith(f"{WORKER}:")
        ]

    def recover(self) -> int:
        """Marks trials whose process has died as failed, queues their plans again, returns their number."""
        from optuna.trial import TrialState

        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        others = [w for w in self.workers() if w != this_worker() and not has_ended(w)]
        dead = [t for t in running if _is_dead(t, alone=not others)]
        for trial in dead:
            with _storage_errors(self.name):
                self._study.tell(trial.number, state=TrialState.FAIL)
            choices = trial.system_attrs.get("fixed_params") or trial.params
            if set(choices) == set(self._layers):
                self.enqueue(choices, trial.user_attrs.get(ORIGIN, "optuna"))
        return len(dead)


def open_study(
    storage: str | os.PathLike[str] | None,
    name: str,
    identity: Mapping[str, str],
    layers: Sequence[str],
    objectives: Sequence[str],
) -> Study:
    """The study of that name in the storage, made when it is not there.

    `storage`: a path (SQLite file), an Optuna storage URL (has `://`), or None: in memory, lost at the end.
    Raises InputError when the storage cannot be read, or when the study there was made with another
    network, target, data or question, naming the differences.
    """
    import optuna

    place = "memory" if storage is None else os.fspath(storage)
    with _quiet_optuna(), _storage_errors(place):
        study = optuna.create_study(
            storage=None if storage is None else _backend(place),
            study_name=name,
            directions=["minimize"] * len(objectives),
            load_if_exists=True,
        )
        known = study.user_attrs.get(IDENTITY)
        if known is None:
            study.set_user_attr(IDENTITY, dict(identity))
    if known is not None and known != dict(identity):
        _explain_difference(place, known, identity)
    return Study(study, layers, place)


def _sampler(propose: Callable[[], Mapping[str, str]], layers: Sequence[str]) -> optuna.samplers.BaseSampler:
    """`propose` as a sampler of Optuna."""
    import optuna

    space = {layer: optuna.distributions.CategoricalDistribution(CHOICES) for layer in layers}

    class Proposing(optuna.samplers.BaseSampler):
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return dict(space)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            return dict(propose())

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            raise InternalError(f"layer {param_name!r} was not proposed")

    return Proposing()


def _backend(place: str) -> Any:
    import optuna

    if "://" in place:
        return optuna.storages.get_storage(place)
    path = Path(place).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent}: cannot be made: {error.strerror}") from None
    # A write-ahead log makes the many small commits of a trial several times faster, and survives kill -9
    # as well.
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = WAL")
    db.close()
    return optuna.storages.RDBStorage(
        f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}}, skip_table_creation=False
    )


def _explain_difference(place: str, known: Mapping[str, str], asked: Mapping[str, str]) -> None:
    keys = [k for k in dict.fromkeys((*known, *asked)) if known.get(k) != asked.get(k)]
    lines = "; ".join(f"{k}: {known.get(k, 'none')} there, {asked.get(k, 'none')} here" for k in keys)
    raise InputError(
        f"study {place} was begun with something else ({lines}): repeat that to continue it, or give "
        "another study or output directory"
    )


def this_worker() -> str:
    """Names this process: host, number, and start time, as numbers are reused."""
    return f"{socket.gethostname()} {os.getpid()} {_started(os.getpid())}"


def _started(pid: int) -> str:
    """Start time of a process in clock ticks since boot, "" when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def has_ended(worker: str) -> bool:
    """Whether that process ran on this host and is gone; one on another host may always be alive."""
    host, pid, started = worker.split(" ")
    return host == socket.gethostname() and _started(int(pid)) != started


def _is_dead(trial: Any, alone: bool) -> bool:
    """Whether nobody works on the trial any more. `alone`: no other process works on the study."""
    worker = trial.user_attrs.get(WORKER)
    if worker is not None:
        return has_ended(worker)
    age = time.time() - trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    return alone or age > UNCLAIMED_SECONDS


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Optuna reports every study on stderr; what a search has to say, it says through `progress`."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


@contextmanager
def _storage_errors(place: str) -> Iterator[None]:
    """Errors of the storage as ours."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError

    try:
        yield
    except (sqlite3.OperationalError, StorageInternalError) as error:
        raise OutputError(f"study {place}: {_first_line(error)}") from None
    except (sqlite3.DatabaseError, DatabaseError) as error:
        raise InputError(
            f"study {place} is damaged or no study ({_first_line(error)}): delete it, or "
            "give another study or output directory"
        ) from None
    except (ArgumentError, NoSuchModuleError, ImportError, RuntimeError) as error:
        raise InputError(f"study {place}: cannot be opened: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
