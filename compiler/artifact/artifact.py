"""Opening a compiled model and running it."""

from __future__ import annotations

import operator
import os
import time
import weakref
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import ArtifactError, InputError
from .manifest import (
    LIBRARY,
    MANIFEST,
    ArraySpec,
    Entry,
    Manifest,
)
from .native import MAX_THREADS, Native
from .store import check_files, copy_artifact, read_manifest


@dataclass(frozen=True)
class StepTime:
    """One kernel call of the compiled model: the layer it belongs to, the kernel, its median time."""

    layer: str
    kernel: str
    nanoseconds: float


def open(path: str | os.PathLike[str], *, temporary: bool = False) -> Artifact:
    """The compiled model in the directory `path`, checked and ready to run on one thread.

    Checked are the manifest, the sizes of the files, the SHA-256 of the library, and the CPU's features; the
    weights by the checksum that is compiled into the library: their SHA-256 (`check_files`) would take longer
    than the first run, to find the same damage. The weights are mapped, not copied. With `temporary` the
    directory is deleted when the artifact is closed or collected. Raises ArtifactError.
    """
    place = Path(os.path.abspath(path))
    manifest = read_manifest(place)
    check_files(place, manifest, hashed=(LIBRARY,))
    native = Native(place, manifest.target)
    entries = tuple((entry.inputs, entry.outputs) for entry in manifest.entries)
    if native.description != (entries, manifest.arena_bytes, manifest.states):
        native.close()
        raise ArtifactError(
            f"{place}: model.so and manifest.json describe different models: compile it again"
        )
    return Artifact(place, manifest, native, place if temporary else None)


class Artifact:
    """A compiled model, opened: made by `bitsmith.open` and `bitsmith.compile`.

    May be used from several threads; calls then wait for each other. Open it twice to run in parallel. As a
    context manager it closes itself.
    """

    def __init__(self, path: Path, manifest: Manifest, native: Native, delete: Path | None) -> None:
        self.path = path
        self.manifest = manifest
        self._native = native
        self._signatures = tuple(_typed(entry.inputs) for entry in manifest.entries)
        self._results = tuple(spec.name for spec in manifest.outputs)
        self._forms = tuple(tuple((s.shape, kind) for s, kind in _typed(e.outputs)) for e in manifest.entries)
        shapes = [tuple(spec.shape for spec in entry.inputs) for entry in manifest.entries]
        self._by_shapes = {key: i for i, key in reversed(list(enumerate(shapes)))}
        self._release = weakref.finalize(self, _release, native, delete)

    @property
    def inputs(self) -> tuple[ArraySpec, ...]:
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[ArraySpec, ...]:
        return self.manifest.outputs

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The shapes that it was compiled for; the artifact's `inputs` and `outputs` are the first's."""
        return self.manifest.entries

    @property
    def states(self) -> tuple[ArraySpec, ...]:
        """What it keeps from run to run, for all entries, until `reset`; each opened artifact has its own."""
        return self.manifest.states

    @property
    def plan(self) -> Mapping[str, Any]:
        """The Plan that it was compiled with, as JSON data."""
        return self.manifest.plan

    @property
    def ledger(self) -> tuple[Mapping[str, Any], ...]:
        """One row per layer, as JSON data."""
        return self.manifest.ledger

    @property
    def size_bytes(self) -> int:
        """Bytes on disk of all that is needed to run: library, weights and manifest."""
        return sum(r.bytes for r in self.manifest.files.values()) + (self.path / MANIFEST).stat().st_size

    @property
    def arena_bytes(self) -> int:
        """Bytes of working memory, beside the mapped weights, states, and the caller's inputs and outputs."""
        return self.manifest.arena_bytes

    @property
    def threads(self) -> int:
        return self._native.threads

    def set_threads(self, threads: int) -> None:
        """Runs from now on use `threads` threads, the caller's included (1 to 256). Raises InputError."""
        _check_threads(threads)
        self._native.set_threads(threads)

    def run(self, /, *arrays: np.ndarray, **named: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the model on its inputs, in order or by name; returns a new array for each output, by name.

        Arrays need the exact shapes of one of `entries`. Another data type is converted when no value can
        change (numpy's "safe" rule: float16 or uint8 to float32, but not float64); a view that the library
        cannot read in place is copied. What the model keeps from run to run (`states`) is no input: a run
        reads and changes it, unless it is refused. Raises InputError.
        """
        return self._run(None, arrays, named)

    def run_threads(self, threads: int, /, *arrays: np.ndarray, **named: np.ndarray) -> dict[str, np.ndarray]:
        """As `run`, with so many threads for this call alone (1 to 256), whatever `set_threads` said.

        Threads that it starts are kept, asleep, for the next such call, until `set_threads` or `close`.
        Raises InputError; ArtifactError for an artifact that was compiled before this existed.
        """
        _check_threads(threads)
        return self._run(threads, arrays, named)

    def _run(
        self, threads: int | None, arrays: Sequence[np.ndarray], named: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        entry, inputs, outputs = self._bind(arrays, named)
        self._native.run(inputs, outputs, threads, entry)
        return dict(zip(self._results, outputs, strict=True))

    def profile(self, /, *arrays: np.ndarray, repeats: int = 20, **named: np.ndarray) -> list[StepTime]:
        """The median time of each step over `repeats` runs, after one to warm up. Inputs as for `run`."""
        if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
            raise InputError(f"repeats must be an integer >= 1, got {repeats!r}")
        entry, inputs, outputs = self._bind(arrays, named)
        steps = self._native.steps(entry)
        times = np.zeros((repeats, len(steps)), np.uint64)
        self._native.run(inputs, outputs, entry=entry)
        for row in times:
            self._native.profile(inputs, outputs, row, entry)
        medians = np.median(times, axis=0)
        return [StepTime(*step, float(ns)) for step, ns in zip(steps, medians, strict=True)]

    def trace(self, /, *arrays: np.ndarray, **named: np.ndarray) -> tuple[int, np.ndarray]:
        """One run: nanoseconds of the whole call, as `run` makes it, and of each step, uint64[steps].

        What is beside the steps is the call itself: looking at the inputs, making the outputs, the loop over
        the steps. Inputs as for `run`.
        """
        times = np.zeros(len(self.steps(self._bind(arrays, named)[0])), np.uint64)
        start = time.perf_counter_ns()
        entry, inputs, outputs = self._bind(arrays, named)
        self._native.profile(inputs, outputs, times, entry)
        dict(zip(self._results, outputs, strict=True))
        return time.perf_counter_ns() - start, times

    def steps(self, entry: int = 0) -> tuple[tuple[str, str], ...]:
        """(layer, kernel) of each step of an entry, in the order of a run."""
        return self._native.steps(entry)

    def entry_for(self, /, *arrays: np.ndarray, **named: np.ndarray) -> int:
        """Which of `entries` a run on these inputs uses. Raises InputError when none has their shapes."""
        return self._pick(self._in_order(arrays, named))

    def padded(self, /, *arrays: np.ndarray, **named: np.ndarray) -> dict[str, np.ndarray]:
        """Inputs by name for `run`, filled up with zeros at the end of each axis to the smallest of `entries`
        that holds them all; as they are when one fits.

        A run's outputs then have that entry's shapes, and are those of the filled inputs: right only where
        the model is told what counts, as by an attention mask. Raises InputError when no entry is large
        enough.
        """
        given = [np.asarray(array) for array in self._in_order(arrays, named)]
        shapes = [array.shape for array in given]
        fits = [e for e in self.entries if all(map(_holds, (s.shape for s in e.inputs), shapes))]
        if not fits:
            raise InputError(self._no_entry(shapes, "is large enough for"))
        chosen = min(fits, key=lambda entry: sum(spec.nbytes for spec in entry.inputs)).inputs
        gaps = [
            [(0, most - size) for most, size in zip(spec.shape, array.shape, strict=True)]
            for spec, array in zip(chosen, given, strict=True)
        ]
        return {s.name: np.pad(a, gap) for s, a, gap in zip(chosen, given, gaps, strict=True)}

    def reset(self) -> None:
        """Makes all `states` zeros again, as they are after opening."""
        self._native.reset()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Copies the artifact to the directory `path`, which appears complete or not at all, and returns it.

        Replaces an artifact that is there; anything else is left alone. Raises OutputError.
        """
        return copy_artifact(self.path, path, self.manifest.files)

    def close(self) -> None:
        """Frees its memory and threads. It cannot run any more; closing twice is allowed."""
        self._release()

    def __enter__(self) -> Artifact:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        ins, outs = ", ".join(map(str, self.inputs)), ", ".join(map(str, self.outputs))
        more = f" and {len(self.entries) - 1} more" if len(self.entries) > 1 else ""
        return f"<Artifact {self.manifest.name!r} for {self.manifest.target}: {ins} -> {outs}{more}>"

    def _bind(
        self, arrays: Sequence[np.ndarray], named: Mapping[str, np.ndarray]
    ) -> tuple[int, list[np.ndarray], list[np.ndarray]]:
        """The entry, one array for each input, as the library reads it, but for its alignment, and new
        outputs.
        """
        entry, signature = 0, self._signatures[0]
        if named or len(arrays) != len(signature):
            arrays = self._in_order(arrays, named)
        if len(self._signatures) > 1:
            entry = self._pick(arrays)
            signature = self._signatures[entry]
        inputs = [
            array if _fits(array, spec, dtype) else _converted(spec, array)
            for (spec, dtype), array in zip(signature, arrays, strict=True)
        ]
        return entry, inputs, [np.empty(shape, dtype) for shape, dtype in self._forms[entry]]

    def _pick(self, arrays: Sequence[np.ndarray]) -> int:
        shapes = tuple(np.shape(array) for array in arrays)
        entry = self._by_shapes.get(shapes)
        if entry is None:
            raise InputError(
                f"{self._no_entry(shapes, 'has the shapes of')}\nPad the inputs to one of these (`padded` "
                "does it with zeros; command line: --pad), or compile for their shapes too"
            )
        return entry

    def _no_entry(self, shapes: Sequence[tuple[int, ...]], why: str) -> str:
        told = ", ".join(f"{s.name!r} {shape}" for s, shape in zip(self.inputs, shapes, strict=True))
        listed = "\n".join(
            f"  entry {i}: {', '.join(map(str, e.inputs))}" for i, e in enumerate(self.entries)
        )
        return f"nothing that was compiled {why} the inputs {told}:\n{listed}"

    def _in_order(self, arrays: Sequence[np.ndarray], named: Mapping[str, np.ndarray]) -> tuple[Any, ...]:
        names = [spec.name for spec in self.inputs]
        if problem := _name_problem(names, len(arrays), named):
            raise InputError(f"{problem}; the model's inputs are {', '.join(map(str, self.inputs))}")
        return (*arrays, *(named[name] for name in names[len(arrays) :]))


def _typed(specs: Sequence[ArraySpec]) -> tuple[tuple[ArraySpec, np.dtype[Any]], ...]:
    return tuple((spec, np.dtype(spec.dtype)) for spec in specs)


def _holds(shape: Sequence[int], other: Sequence[int]) -> bool:
    """An array of shape `other` can be filled up to `shape`."""
    return len(shape) == len(other) and all(map(operator.ge, shape, other))


def _check_threads(threads: int) -> None:
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
        raise InputError(f"threads must be an integer from 1 to {MAX_THREADS}, got {threads!r}")


def _name_problem(names: Sequence[str], positional: int, named: Collection[str]) -> str | None:
    """Why `positional` arrays and those in `named` are not one for each of `names`; None when they are."""
    if positional > len(names):
        return f"{positional} arrays given"
    if unknown := [name for name in named if name not in names]:
        return f"no input is called {', '.join(map(repr, unknown))}"
    if twice := [name for name in names[:positional] if name in named]:
        return f"input {twice[0]!r} is given by position and by name"
    if missing := [name for name in names[positional:] if name not in named]:
        return f"input {', '.join(map(repr, missing))} is missing"
    return None


def _fits(value: Any, spec: ArraySpec, dtype: np.dtype[Any]) -> bool:
    """Needs no conversion. What nearly every call comes with: the look costs a microsecond."""
    return (
        type(value) is np.ndarray
        and value.dtype == dtype
        and value.shape == spec.shape
        and value.flags.c_contiguous
    )


def _converted(spec: ArraySpec, value: Any) -> np.ndarray:
    """`value` as the library reads it: contiguous, of the input's type. Raises InputError."""
    array = np.asarray(value)
    if array.shape != spec.shape:
        batch = array.shape == spec.shape[1:] and spec.shape[0] == 1
        hint = "; add the batch axis: array[None]" if batch else ""
        raise InputError(f"input {spec.name!r} must have shape {spec.shape}, got {array.shape}{hint}")
    if array.dtype != spec.dtype and not np.can_cast(array.dtype, spec.dtype, "safe"):
        raise InputError(
            f"input {spec.name!r} must be {spec.dtype}, got {array.dtype}, which does not convert without "
            f"loss; use array.astype({spec.dtype!r}) if that is meant"
        )
    return np.ascontiguousarray(array, spec.dtype).reshape(spec.shape)


def _release(native: Native, delete: Path | None) -> None:
    native.close()
    if delete is not None:
        import shutil  # with its compression formats it costs 3 ms, and what is opened rarely needs it

        shutil.rmtree(delete, ignore_errors=True)
