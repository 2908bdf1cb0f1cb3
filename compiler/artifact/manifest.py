"""manifest.json: what an artifact is, for which machine, and the hashes of its files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NoReturn, TypeVar

import numpy as np

from ..errors import ArtifactError

FORMAT = "bitsmith-artifact"
FORMAT_VERSION = 4
_KEPT: Mapping[str, Any] = {"states": [], "language": None}
LACKING: Mapping[int, Mapping[str, Any]] = {
    1: {"steps": [], "others": [], **_KEPT},
    2: {"others": [], **_KEPT},
    3: _KEPT,
    4: {},
}
"""Versions that can be read -> what they did not say yet."""
T = TypeVar("T")
USUAL = ("float32", "uint8", "int8", "int32", "int64", "bool")
LIBRARY, WEIGHTS, MANIFEST, HEADER = "model.so", "weights.bin", "manifest.json", "bitsmith.h"
TOKENIZER = "tokenizer.json"
"""Of a language model, in the form of the `tokenizers` library."""
RANGES = "ranges.json"
"""Calibration ranges behind the int8 layers: nothing reads them at run time, `bitsmith diff` does."""


@dataclass(frozen=True)
class ArraySpec:
    """An input or output: its name, shape, and numpy name of the element type."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def __str__(self) -> str:
        return f"{self.name!r}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 (hexadecimal) of a file of the artifact."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Entry:
    """One of the shapes that a model was compiled for. `steps` as in Manifest."""

    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]
    steps: tuple[Mapping[str, Any] | None, ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return f"{', '.join(map(str, self.inputs))} -> {', '.join(map(str, self.outputs))}"


@dataclass(frozen=True)
class Language:
    """What generating text needs to know of a language model.

    context     tokens that its caches hold, prompt and answer together
    chunk       tokens that its longest entry reads in one run; 1 where there is only the entry for one
    vocabulary  how many tokens there are, and numbers in a row of logits
    eos         tokens that end a text
    bos         the token that begins one, None without; `add_bos`: a prompt gets it in front
    """

    context: int
    chunk: int
    vocabulary: int
    eos: tuple[int, ...] = ()
    bos: int | None = None
    add_bos: bool = False


@dataclass(frozen=True)
class Manifest:
    """What manifest.json holds besides its format version.

    features      CPU features that the library needs, by their names in /proc/cpuinfo
    inputs, outputs, steps   of entry 0; `others` are the entries after it
    arena_bytes   working memory of one opened instance
    plan, ledger  JSON of compiler/plan.py and compiler/ledger.py, kept as it is
    steps         JSON of the Work (compiler/analysis/roofline.py) of each kernel call, None where it is not
                  known; empty when nobody counted
    versions      program -> version that took part in the making
    states        what an opened instance keeps from run to run
    language      of a language model, None of others
    created       time of making, ISO 8601, or ""
    files         file name -> size and hash; filled in when the artifact is written
    """

    name: str
    inputs: tuple[ArraySpec, ...]
    outputs: tuple[ArraySpec, ...]
    target: str
    features: tuple[str, ...]
    arena_bytes: int
    plan: Mapping[str, Any]
    ledger: tuple[Mapping[str, Any], ...]
    versions: Mapping[str, str]
    steps: tuple[Mapping[str, Any] | None, ...] = ()
    others: tuple[Entry, ...] = ()
    states: tuple[ArraySpec, ...] = ()
    language: Language | None = None
    created: str = ""
    files: Mapping[str, FileRecord] = field(default_factory=dict)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All shapes that it was compiled for."""
        return (Entry(self.inputs, self.outputs, self.steps), *self.others)

    def to_json(self) -> str:
        head = {"format": FORMAT, "format_version": FORMAT_VERSION}
        return json.dumps(head | asdict(self), indent=1, ensure_ascii=False) + "\n"


def _all_dtypes() -> tuple[str, ...]:
    """Asked for unusual types only: the graph's module takes longer to import than a manifest to read."""
    from ..ir import DTYPES

    return DTYPES


def parse_manifest(text: str | bytes, where: str) -> Manifest:
    """The manifest that `text` says; `where` (its path) goes into messages. Raises ArtifactError."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{where} is damaged: it is not JSON ({error}). Compile the model again"
        ) from None
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise ArtifactError(f'{where} is not a bitsmith manifest: "format" is not "{FORMAT}"')
    version = data.pop("format_version", None)
    if type(version) is int and version > FORMAT_VERSION:
        raise ArtifactError(
            f"{where} has format version {version}, this bitsmith reads up to {FORMAT_VERSION}: "
            "upgrade bitsmith, or compile the model again with this one"
        )
    if type(version) is not int or version not in LACKING:
        raise ArtifactError(f"{where} is damaged: format version {version!r}. Compile the model again")
    return _Reader(where).manifest({**LACKING[version], **data})


@dataclass(frozen=True)
class _Reader:
    """Turns JSON into a Manifest; every check that fails names the file and the field."""

    where: str

    def manifest(self, data: dict[str, Any]) -> Manifest:
        self.same_names(data, {f.name for f in fields(Manifest)}, "the manifest")
        files = {LIBRARY, WEIGHTS} | ({TOKENIZER} & set(self.typed(data["files"], dict, "files")))
        self.same_names(data["files"], files, "files")
        return Manifest(
            name=self.typed(data["name"], str, "name"),
            inputs=self.each(data["inputs"], "inputs", self.spec),
            outputs=self.each(data["outputs"], "outputs", self.spec),
            target=self.typed(data["target"], str, "target"),
            features=self.each(data["features"], "features", self.text),
            arena_bytes=self.count(data["arena_bytes"], "arena_bytes"),
            plan=self.typed(data["plan"], dict, "plan"),
            ledger=self.each(data["ledger"], "ledger", self.table),
            versions={
                k: self.text(v, "versions") for k, v in self.table(data["versions"], "versions").items()
            },
            steps=self.each(data["steps"], "steps", self.work),
            others=self.each(data["others"], "others", self.entry),
            states=self.each(data["states"], "states", self.spec),
            language=None if data["language"] is None else self.language(data["language"]),
            created=self.typed(data["created"], str, "created"),
            files={name: self.file(data["files"][name], f"files.{name}") for name in sorted(files)},
        )

    def entry(self, data: Any, path: str) -> Entry:
        self.same_names(self.table(data, path), {"inputs", "outputs", "steps"}, path)
        return Entry(
            inputs=self.each(data["inputs"], f"{path}.inputs", self.spec),
            outputs=self.each(data["outputs"], f"{path}.outputs", self.spec),
            steps=self.each(data["steps"], f"{path}.steps", self.work),
        )

    def language(self, data: Any) -> Language:
        self.same_names(self.table(data, "language"), {f.name for f in fields(Language)}, "language")
        counts = {k: self.count(data[k], f"language.{k}") for k in ("context", "chunk", "vocabulary")}
        return Language(
            **counts,
            eos=self.each(data["eos"], "language.eos", self.count),
            bos=None if data["bos"] is None else self.count(data["bos"], "language.bos"),
            add_bos=self.typed(data["add_bos"], bool, "language.add_bos"),
        )

    def work(self, data: Any, path: str) -> Mapping[str, Any] | None:
        return None if data is None else self.table(data, path)

    def spec(self, data: Any, path: str) -> ArraySpec:
        self.same_names(self.table(data, path), {"name", "shape", "dtype"}, path)
        dtype = self.text(data["dtype"], f"{path}.dtype")
        if dtype not in USUAL and dtype not in _all_dtypes():
            self.refuse(f"{path}.dtype", f"{dtype!r} is not a data type")
        shape = self.each(data["shape"], f"{path}.shape", self.count)
        if math.prod(shape) * np.dtype(dtype).itemsize > 2**48:
            self.refuse(f"{path}.shape", f"{shape} is beyond any memory")
        return ArraySpec(self.text(data["name"], f"{path}.name"), shape, dtype)

    def file(self, data: Any, path: str) -> FileRecord:
        self.same_names(self.table(data, path), {"bytes", "sha256"}, path)
        digest = self.text(data["sha256"], f"{path}.sha256")
        if not re.fullmatch("[0-9a-f]{64}", digest):
            self.refuse(f"{path}.sha256", "not a SHA-256 in hexadecimal")
        return FileRecord(self.count(data["bytes"], f"{path}.bytes"), digest)

    def count(self, value: Any, path: str) -> int:
        if type(value) is not int or value < 0:
            self.refuse(path, f"expected an integer >= 0, got {value!r}")
        return value

    def text(self, value: Any, path: str) -> str:
        return self.typed(value, str, path)

    def table(self, value: Any, path: str) -> dict[str, Any]:
        return self.typed(value, dict, path)

    def each(self, value: Any, path: str, parse: Callable[[Any, str], T]) -> tuple[T, ...]:
        return tuple(parse(item, f"{path}[{i}]") for i, item in enumerate(self.typed(value, list, path)))

    def typed(self, value: Any, kind: type, path: str) -> Any:
        if not isinstance(value, kind):
            self.refuse(path, f"expected {kind.__name__}, got {type(value).__name__}")
        return value

    def same_names(self, data: Mapping[str, Any], names: set[str], path: str) -> None:
        if set(data) != names:
            missing, unknown = sorted(names - set(data)), sorted(set(data) - names)
            self.refuse(path, f"missing {missing}, unknown {unknown}")

    def refuse(self, path: str, why: str) -> NoReturn:
        raise ArtifactError(f"{self.where} is damaged: {path}: {why}. Compile the model again")
