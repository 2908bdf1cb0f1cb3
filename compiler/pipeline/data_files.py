"""Arrays and options as the command line names them: .npy and .npz files, directories of those, label files,
`name=value`.

Errors are InputErrors that name the file or the option. No file may hold Python objects (pickles are
refused).
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import InputError
from ..files import whole_file

FileSamples = np.ndarray | dict[str, np.ndarray] | list[np.ndarray | dict[str, np.ndarray]]
Sizes = dict[str, int | tuple[int, ...]]
ARRAY_SUFFIXES = (".npy", ".npz")


def read_samples(path: str | Path) -> FileSamples:
    """Sample inputs: one array [n, ...] (.npy), arrays by input name, each [n, ...] (.npz), or a directory.

    A directory holds one run's inputs per file, .npy (a single input) or .npz (by name), in order of file
    names.
    """
    place = Path(path)
    if not place.is_dir():
        return read_arrays(place)
    files = sorted(f for f in place.iterdir() if f.suffix in ARRAY_SUFFIXES)
    if not files:
        raise InputError(f"{place}: the directory holds no .npy or .npz file")
    return [read_arrays(file) for file in files]


def read_arrays(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    """The array of a .npy file, or the arrays by name of a .npz file."""
    if path.suffix not in ARRAY_SUFFIXES:
        raise InputError(
            f"{path}: expected a .npy or .npz file, or a directory of them (numpy.save, numpy.savez)"
        )
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {name: loaded[name] for name in loaded}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise InputError(f"{path}: cannot be read as a {path.suffix} file: {error}") from None


def read_array(path: Path) -> np.ndarray:
    """The array of a .npy file."""
    loaded = read_arrays(path)
    if isinstance(loaded, dict):
        raise InputError(f"{path}: holds several arrays; give a .npy file for each input")
    return loaded


def read_labels(path: str | Path) -> np.ndarray:
    """Class numbers, int64[n]: a .npy file, or text with one number per line."""
    place = Path(path)
    if place.suffix == ".npy":
        labels = read_array(place)
    else:
        try:
            labels = np.array([int(word) for word in place.read_text("utf-8").split()], np.int64)
        except OSError as error:
            raise InputError(f"labels: {place}: {error.strerror or error}") from None
        except ValueError as error:
            raise InputError(f"labels: {place}: expected one class number per line: {error}") from None
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.size == 0:
        raise InputError(f"labels: {place}: expected integers [n], found {labels.dtype}{list(labels.shape)}")
    return labels.astype(np.int64)


def read_named(options: Sequence[str]) -> dict[str, np.ndarray]:
    """`name=file.npy` options -> arrays by name."""
    arrays: dict[str, np.ndarray] = {}
    for option in options:
        name, path = split_option(option, "--input", "x=image.npy")
        if name in arrays:
            raise InputError(f"--input {name}: given twice")
        arrays[name] = read_array(Path(path))
    return arrays


def parse_shapes(options: Sequence[str]) -> Sizes | None:
    """`input=1x3x224x224` and `dimension=1` options -> the `shapes` of `load`; None when there are none."""
    found = parse_buckets(options)
    if len(found) > 1:
        raise InputError(
            "--shape with several sizes compiles them into one artifact: only `bitsmith compile` takes that. "
            "Give one size here; the plan that a search finds for it (plan.json) fits all: compile them with "
            "--plan"
        )
    return found[0] or None


def parse_buckets(options: Sequence[str]) -> list[Sizes]:
    """`seq=32,64,128` options -> the `shapes` of `load` for each: the k-th sizes of all names go together; a
    name with one size has it in all.
    """
    columns: dict[str, list[int | tuple[int, ...]]] = {}
    for option in options:
        name, text = split_option(option, "--shape", "image=1x3x224x224 or batch=1", last=True)
        if name in columns:
            raise InputError(f"--shape {name}: given twice (several sizes go into one: {name}=32,64)")
        columns[name] = [_one_size(option, part) for part in text.split(",")]
    several = {name: len(sizes) for name, sizes in columns.items() if len(sizes) > 1}
    if len(set(several.values())) > 1:
        told = ", ".join(f"{name} has {n}" for name, n in several.items())
        raise InputError(
            f"--shape: {told} sizes: the first of each go together, then the second: give as many of each"
        )
    count = max(several.values(), default=1)
    return [{name: sizes[k % len(sizes)] for name, sizes in columns.items()} for k in range(count)]


def _one_size(option: str, text: str) -> int | tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.lower().removesuffix("x").split("x"))
    except ValueError:
        raise InputError(
            f"--shape {option}: expected numbers with x between, such as 1x3x224x224 (a comma goes between "
            "several such: 1x3x224x224,1x3x320x320)"
        ) from None
    if any(n < 1 for n in numbers):
        raise InputError(f"--shape {option}: every dimension must be at least 1")
    return numbers if "x" in text.lower() else numbers[0]


def parse_threads(text: str) -> tuple[int, ...]:
    """`1,2` -> (1, 2)."""
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--threads {text}: expected numbers with commas between, such as 1,2") from None
    if any(n < 1 for n in counts) or len(set(counts)) != len(counts):
        raise InputError(f"--threads {text}: expected different numbers of at least 1")
    return counts


def read_text(path: Path) -> str:
    """A text file in UTF-8. Raises InputError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the text {path}: {error}") from None


def split_option(option: str, flag: str, example: str, *, last: bool = False) -> tuple[str, str]:
    """Name and value of `name=value`; with `last` the name may have `=` in it, else the value."""
    name, equals, value = option.rpartition("=") if last else option.partition("=")
    if not (name and equals and value):
        raise InputError(f"{flag} {option}: expected name=value, such as {example}")
    return name, value


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """The arrays by name as a .npz file, whole or not at all. Raises OutputError."""
    with whole_file(path, "the outputs") as scratch, scratch.open("wb") as file:
        _write_zip(file, arrays)


def _write_zip(file: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """As numpy.savez, which cannot take an array that is called like one of its own arguments."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
