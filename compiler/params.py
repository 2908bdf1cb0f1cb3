"""Parameters by name, each an array or the way to read one.

The weights of a language model are larger than memory: a graph knows their types and reads a weight when
somebody computes with it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import partial

import numpy as np


class Stored:
    """An array that is read when it is asked for, and again when nobody holds it any more.

    `read()` gives it with this shape and dtype (or numpy's name of it), the same each time.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str | np.dtype, read: Callable[[], np.ndarray]) -> None:
        self.shape = shape
        self.dtype: np.dtype = np.dtype(dtype)
        self._read = read
        self._held: weakref.ref[np.ndarray] | None = None

    def array(self) -> np.ndarray:
        """The array, read-only; one object for all who hold it at a time."""
        found = self._held() if self._held else None
        if found is None:
            found = self._read()
            found.flags.writeable = False
            self._held = weakref.ref(found)
        return found


Entry = np.ndarray | Stored


def entry_of(array: np.ndarray, source: Entry | None = None) -> Entry:
    """The array in C order; or, where it shows the elements of a stored `source`, these so that they are read
    when asked for: transposed, reshaped or cut in the same way.
    """
    if isinstance(source, Stored):
        whole = source.array()
        if array is whole:
            return source
        if array.base is whole:
            offset = array.ctypes.data - whole.ctypes.data
            read = partial(_shown, source, array.dtype, array.shape, offset, array.strides)
            return Stored(array.shape, array.dtype, read)
    return np.ascontiguousarray(array).reshape(array.shape)


def _shown(
    source: Stored, dtype: np.dtype, shape: tuple[int, ...], offset: int, strides: tuple[int, ...]
) -> np.ndarray:
    return np.array(np.ndarray(shape, dtype, source.array(), offset, strides), order="C")


class Params(Mapping[str, np.ndarray]):
    """Name -> array. Reading an item reads a stored array; names and `entries` read nothing."""

    def __init__(self, params: Mapping[str, np.ndarray] | Mapping[str, Entry]) -> None:
        self._entries: dict[str, Entry] = dict(entries(params))

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        return entry.array() if isinstance(entry, Stored) else entry

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> Mapping[str, Entry]:
        """As they are held."""
        return self._entries


class OpenParams(Params, MutableMapping[str, np.ndarray]):
    """The same while a graph is made: items can be set."""

    def __setitem__(self, name: str, entry: Entry) -> None:
        self._entries[name] = entry

    def __delitem__(self, name: str) -> None:
        del self._entries[name]


def entries(params: Mapping[str, np.ndarray] | Mapping[str, Entry]) -> Mapping[str, Entry]:
    """Of any mapping, without reading what is stored."""
    return params.entries if isinstance(params, Params) else params
