"""model.so through ctypes: the functions of bitsmith.h, with error codes turned into exceptions."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArtifactError, InputError
from .manifest import LIBRARY, ArraySpec

ABI_VERSION = 1
ALIGNMENT = 16  # of inputs and outputs, in bytes
MAX_THREADS = 256
_BAD_ARGUMENT, _BAD_CPU, _BAD_VALUE = 1, 3, 9
Signature = tuple[type | None, tuple[type, ...]]
"""Result and arguments of a C function."""


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("rank", ctypes.c_int32),
        ("bytes", ctypes.c_uint64),
    ]


class Native:
    """One opened instance of the library in `directory`. Calls wait for each other.

    Raises ArtifactError when the library does not load, or refuses its weights or this machine.
    """

    def __init__(self, directory: Path, target: str) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        self._model = ctypes.c_void_p()
        try:
            self._library = ctypes.CDLL(_unique_spelling(directory / LIBRARY), mode=ctypes.RTLD_LOCAL)
            _declare(self._library, _signatures())
            self._run_threads = _run_threads(self._library)
            self._entries = _entry_count(self._library)
        except (OSError, AttributeError) as error:
            raise ArtifactError(
                f"{directory / LIBRARY} does not load: {error}. It was compiled for target {target!r}; "
                "compile the model for this machine (--target host)"
            ) from None
        code = self._library.bitsmith_open(ABI_VERSION, os.fsencode(directory), ctypes.byref(self._model))
        if code:
            message = self._message()
            self._unload()
            remedy = "compile the model again"
            if code == _BAD_CPU:
                remedy = f"it was compiled for target {target!r}; compile it for this machine: --target host"
            raise ArtifactError(f"{directory}: {message}; {remedy}")
        entries = [(self._specs("input", e), self._specs("output", e)) for e in range(self._entries)]
        self.states = _state_specs(self._library)
        self.description = (tuple(entries), self._library.bitsmith_arena_bytes(), self.states)

    def steps(self, entry: int = 0) -> tuple[tuple[str, str], ...]:
        """(layer, kernel) of each step of an entry, in order."""
        with self._lock:
            self._opened()
            count = self._of_entry("step_count", entry)
            layer, kernel = (partial(self._of_entry, f"step_{what}", entry) for what in ("layer", "kernel"))
            return tuple((layer(i).decode(), kernel(i).decode()) for i in range(count))

    @property
    def threads(self) -> int:
        with self._lock:
            return int(self._library.bitsmith_threads(self._opened()))

    def set_threads(self, threads: int) -> None:
        with self._lock:
            self._check(self._library.bitsmith_set_threads(self._opened(), threads))

    def run(
        self,
        inputs: Sequence[np.ndarray],
        outputs: Sequence[np.ndarray],
        threads: int | None = None,
        entry: int = 0,
    ) -> None:
        """Fills `outputs`. Arrays are contiguous, of the entry's types and shapes, outputs aligned; inputs
        that are not are copied. `threads` is for this call; None: as many as `set_threads` said.
        """
        readable, given = _aligned(inputs)
        made = _pointers(_addresses(outputs))
        with self._lock:
            if entry:
                run = self._library.bitsmith_run_entry
                self._check(run(self._opened(), entry, given, made, threads or 0))
            elif threads is None:
                self._check(self._library.bitsmith_run(self._opened(), given, made))
            else:
                self._check(self._of_call()(self._opened(), given, made, threads))
        del readable  # alive until here: `given` points into them

    def _of_call(self) -> Callable[..., int]:
        """The function that takes threads for one call; libraries from before it exist."""
        if self._run_threads is None:
            raise ArtifactError(
                f"{self.directory}: this artifact was compiled before threads could be given for one call: "
                "compile it again, or use set_threads"
            )
        return self._run_threads

    def profile(
        self,
        inputs: Sequence[np.ndarray],
        outputs: Sequence[np.ndarray],
        step_ns: np.ndarray,
        entry: int = 0,
    ) -> None:
        """The same, and writes nanoseconds of each step to `step_ns`, uint64[steps]."""
        readable, given = _aligned(inputs)
        made = _pointers(_addresses(outputs))
        with self._lock:
            times = ctypes.c_void_p(step_ns.ctypes.data)
            if entry:
                profile = self._library.bitsmith_profile_entry
                self._check(profile(self._opened(), entry, given, made, times))
            else:
                self._check(self._library.bitsmith_profile(self._opened(), given, made, times))
        del readable

    def reset(self) -> None:
        """All states are zeros again."""
        with self._lock:
            if self.states:
                self._check(self._library.bitsmith_reset(self._opened()))

    def close(self) -> None:
        with self._lock:
            if self._model:
                self._library.bitsmith_close(self._model)
                self._model = ctypes.c_void_p()
                self._unload()

    def _opened(self) -> ctypes.c_void_p:
        if not self._model:
            raise ArtifactError("the artifact is closed: open it again")
        return self._model

    def _check(self, code: int) -> None:
        if code:
            own = code in (_BAD_ARGUMENT, _BAD_VALUE)
            raise (InputError if own else ArtifactError)(self._message())

    def _message(self) -> str:
        return str(self._library.bitsmith_last_error().decode(errors="replace"))

    def _of_entry(self, what: str, entry: int, *arguments: int) -> Any:
        """A function about entries; libraries from before there were any have those about the only one."""
        if entry:
            return getattr(self._library, f"bitsmith_entry_{what}")(entry, *arguments)
        return getattr(self._library, f"bitsmith_{what}")(*arguments)

    def _specs(self, kind: str, entry: int) -> tuple[ArraySpec, ...]:
        count = getattr(self._library, f"bitsmith_{kind}_count")()
        tensors = [self._of_entry(kind, entry, i).contents for i in range(count)]
        return tuple(map(_spec, tensors))

    def _unload(self) -> None:
        # A search opens hundreds of libraries; ctypes never unloads one by itself.
        ctypes.CDLL(None).dlclose(ctypes.c_void_p(self._library._handle))


def _unique_spelling(path: Path) -> str:
    """`path`, spelt so that two files never share a spelling.

    The dynamic loader takes a path it has seen for the library it has loaded, even when the file was replaced
    since. While a library is loaded nothing else gets its inode number, so that number, as a row of `/` and
    `/.` between directory and file, tells the two apart; and it opens the same file.
    """
    inode = os.stat(path).st_ino
    return f"{path.parent}{''.join('/.' if bit == '1' else '/' for bit in f'{inode:b}')}/{path.name}"


def _aligned(arrays: Sequence[np.ndarray]) -> tuple[Sequence[np.ndarray], ctypes.Array[ctypes.c_void_p]]:
    """The arrays, copied if the library could not read them in place, and pointers to them."""
    addresses = _addresses(arrays)
    for address in addresses:  # not any(...): a generator costs ten microseconds where the caches are cold
        if address % ALIGNMENT:
            arrays = [array.copy() for array in arrays]
            return arrays, _pointers(_addresses(arrays))
    return arrays, _pointers(addresses)


def _addresses(arrays: Sequence[np.ndarray]) -> list[int]:
    return [array.__array_interface__["data"][0] for array in arrays]


def _pointers(addresses: Sequence[int]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(addresses))(*addresses)


def _spec(tensor: _Tensor) -> ArraySpec:
    return ArraySpec(tensor.name.decode(), tuple(tensor.shape[: tensor.rank]), tensor.dtype.decode())


def _state_specs(library: ctypes.CDLL) -> tuple[ArraySpec, ...]:
    """What it keeps from run to run; nothing in libraries from before there were states."""
    if getattr(library, "bitsmith_state_count", None) is None:
        return ()
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    _declare(
        library,
        {
            "state_count": (number, ()),
            "state": (ctypes.POINTER(_Tensor), (number,)),
            "reset": (number, (pointer,)),
        },
    )
    return tuple(_spec(library.bitsmith_state(i).contents) for i in range(library.bitsmith_state_count()))


def _run_threads(library: ctypes.CDLL) -> Callable[..., int] | None:
    function = getattr(library, "bitsmith_run_threads", None)
    if function is not None:
        pointer, number = ctypes.c_void_p, ctypes.c_int32
        function.restype, function.argtypes = number, (pointer, pointer, pointer, number)
    return function


def _entry_count(library: ctypes.CDLL) -> int:
    """How many entries it has, whose functions are declared; 1 in libraries from before there were any."""
    if getattr(library, "bitsmith_entry_count", None) is None:
        return 1
    text, pointer, number = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int32
    _declare(
        library,
        {
            "entry_count": (number, ()),
            "entry_input": (ctypes.POINTER(_Tensor), (number, number)),
            "entry_output": (ctypes.POINTER(_Tensor), (number, number)),
            "entry_step_count": (number, (number,)),
            "entry_step_layer": (text, (number, number)),
            "entry_step_kernel": (text, (number, number)),
            "run_entry": (number, (pointer, number, pointer, pointer, number)),
            "profile_entry": (number, (pointer, number, pointer, pointer, pointer)),
        },
    )
    return int(library.bitsmith_entry_count())


def _signatures() -> dict[str, Signature]:
    text, pointer, number, size = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_uint64
    return {
        "open": (number, (number, text, pointer)),
        "close": (None, (pointer,)),
        "set_threads": (number, (pointer, number)),
        "threads": (number, (pointer,)),
        "run": (number, (pointer, pointer, pointer)),
        "profile": (number, (pointer, pointer, pointer, pointer)),
        "last_error": (text, ()),
        "arena_bytes": (size, ()),
        "input_count": (number, ()),
        "output_count": (number, ()),
        "input": (ctypes.POINTER(_Tensor), (number,)),
        "output": (ctypes.POINTER(_Tensor), (number,)),
        "step_count": (number, ()),
        "step_layer": (text, (number,)),
        "step_kernel": (text, (number,)),
    }


def _declare(library: ctypes.CDLL, signatures: Mapping[str, Signature]) -> None:
    for name, (result, arguments) in signatures.items():
        function = getattr(library, f"bitsmith_{name}")
        function.restype, function.argtypes = result, arguments
