"""Language models: a checkpoint on disk -> LanguageModel -> graphs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...errors import InputError, ModelError
from ...formats import Coded
from ...ir import Graph
from ...params import Stored
from .checkpoint import Checkpoint, check_weights
from .config import LmConfig
from .graph import CACHES, cached_graph, whole_graph

CHUNK = 128
"""Tokens of a prompt that one run reads."""
USUAL_CONTEXT = 2048


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A decoder whose weights stay on disk until they are read.

    name      the graphs' name
    config    its sizes
    weights   tensor name -> float32 array, read when asked for
    context   tokens that its caches have room for
    cache     what they hold keys and values in: "float16", "int8" (a scale for each row) or "float32"; None:
              float32, which is exact, unless who compiles a compressed model chooses another
    """

    name: str
    config: LmConfig
    weights: Mapping[str, Stored]
    context: int
    cache: str | None
    checkpoint: Checkpoint

    @property
    def keeps(self) -> str:
        """The type of keys and values in the caches of `graph`."""
        return self.cache or "float32"

    @property
    def chunk(self) -> int:
        """Tokens of the entries that read a prompt."""
        return min(CHUNK, self.context)

    def graph(self, tokens: int, rows: int) -> Graph:
        """Inputs tokens int64 [tokens], position int64 [1] of the first, rows int64 [rows], the tokens whose
        logits are wanted, and caches as states; output logits float32 [rows, vocabulary]. Raises InputError.
        """
        if not 1 <= tokens <= self.context or rows < 1:
            raise InputError(
                f"a graph of {self.name} takes 1 to {self.context} tokens and gives at least one row of "
                f"logits, not {tokens} and {rows}"
            )
        return cached_graph(
            self.name,
            self.config,
            self.weights,
            tokens=tokens,
            rows=rows,
            context=self.context,
            cache=self.keeps,
        )

    def graphs(self) -> tuple[Graph, ...]:
        """An artifact's entries: one token, a chunk of a prompt, a chunk with the logits of all tokens."""
        sizes = dict.fromkeys(((1, 1), (self.chunk, 1), (self.chunk, self.chunk)))
        return tuple(self.graph(*size) for size in sizes)

    def graph_whole(self, tokens: int) -> Graph:
        """Input tokens int64 [tokens], output logits float32 [tokens, vocabulary]: without caches, with the
        same layers.
        """
        if tokens < 1:
            raise InputError(f"a text has at least one token, not {tokens}")
        return whole_graph(self.name, self.config, self.weights, tokens=tokens)

    @cached_property
    def tokenizer(self) -> str | None:
        """tokenizer.json, as the `tokenizers` library reads it; None for a checkpoint without. Raises
        ModelError for one that it cannot read, UnsupportedError for a kind that is not known.
        """
        return None if self.checkpoint.tokenizer is None else self.checkpoint.tokenizer()

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer puts the first token of a text in front."""
        if self.tokenizer is None or self.config.bos is None:
            return False
        return self.tokens_of("")[:1] == [self.config.bos]

    def tokens_of(self, text: str) -> list[int]:
        """The text as the model reads it. Raises ModelError without a tokenizer, and for one that cannot be
        read.
        """
        from tokenizers import Tokenizer

        if self.tokenizer is None:
            raise ModelError(f"{self.name} has no tokenizer: a text cannot be read with it")
        try:
            tokenizer = Tokenizer.from_str(self.tokenizer)
        except Exception as error:  # noqa: BLE001 (the library raises nothing narrower)
            raise ModelError(f"{self.name}: the tokenizer cannot be read: {error}") from None
        return list(tokenizer.encode(text).ids)

    def codes(self, layer: str) -> Coded | None:
        """The weight of a layer as the file holds it, where a format has these very values; else None."""
        read = self.checkpoint.codes.get(layer)
        return None if read is None else read()


def is_language_model(source: object) -> bool:
    """Whether it is the path of a checkpoint: a GGUF file, or a directory with a config.json."""
    if not isinstance(source, str | os.PathLike):
        return False
    path = Path(source)
    return path.suffix.lower() == ".gguf" or (path / "config.json").is_file()


def load_language_model(
    path: str | os.PathLike[str], *, context: int | None = None, cache: str | None = None
) -> LanguageModel:
    """The model of a directory (config.json, *.safetensors, tokenizer.json) or of a GGUF file.

    `context` None: 2048, or what the model was made for, where that is less. Raises InputError (a longer
    context than the model was made for), ModelError (missing or damaged files,
    missing tensors), UnsupportedError (a family, a rope scaling or a format of weights that is not known).
    """
    if cache is not None and cache not in CACHES:
        raise InputError(f"cache {cache!r} is not one of {', '.join(CACHES)}")
    if context is not None and (isinstance(context, bool) or not isinstance(context, int) or context < 1):
        raise InputError(f"context is {context!r}, must be a number of tokens")
    place = Path(path)
    checkpoint = _read(place)
    weights = check_weights(checkpoint, str(place))
    trained = checkpoint.config.context
    if context is not None and context > trained:
        raise InputError(
            f"{place}: a context of {context} tokens is asked for, but the model was made for {trained}, and "
            f"writes nonsense beyond: give at most {trained}"
        )
    context = min(USUAL_CONTEXT, trained) if context is None else context
    return LanguageModel(checkpoint.name, checkpoint.config, weights, context, cache, checkpoint)


def _read(place: Path) -> Checkpoint:
    if place.suffix.lower() == ".gguf":
        from .gguf import read_gguf

        return read_gguf(place)
    from .huggingface import read_directory

    return read_directory(place)
