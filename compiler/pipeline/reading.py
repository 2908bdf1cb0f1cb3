"""What a language model's artifact has read, and what it expects to come next.

Tokens go in chunk by chunk, through the entry for many, or one by one; the artifact keeps their keys and
values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..artifact import Artifact, Language
from ..artifact.manifest import TOKENIZER
from ..errors import ArtifactError, InputError

FEEDS = ("tokens", "position", "rows")
"""Inputs of a language model: int64 [tokens]; [1], where the first of them stands; [rows], whose logits to
give."""
WORTH = 8
"""A chunk takes no longer than an eighth of its tokens take one by one: weights are read once for all."""


class Reader:
    """One text in one opened artifact. Only one reader may use an artifact at a time."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.language = language_of(artifact)
        self.tokens: list[int] = []
        self.done = 0  # so many of them are in the caches; fewer than all where a call was interrupted
        sizes = [tuple(spec.shape[0] for spec in entry.inputs) for entry in artifact.entries]
        sizes = [size for size in sizes if size[0] <= self.language.context]
        self.chunks = sorted({t for t, _, rows in sizes if t > 1 and rows == 1}, reverse=True)
        self.scored = max((t for t, _, rows in sizes if t == rows > 1), default=0)
        if (1, 1, 1) not in sizes:
            raise ArtifactError(f"{artifact.path} has no entry for a single token: compile the model again")

    @property
    def room(self) -> int:
        """How many tokens can still be read."""
        return self.language.context - len(self.tokens)

    def clear(self) -> None:
        """Begin a new text. What the artifact keeps of the old one is never read again."""
        self.tokens, self.done = [], 0

    def read(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits float32 [vocabulary] of what follows the tokens, of which there is at least one.

        Raises InputError when there are more than `room`, or one that is not in the vocabulary.
        """
        self._check(tokens)
        self.tokens += tokens
        logits = self._read_some()
        while self.done < len(self.tokens):
            logits = self._read_some()
        return logits

    def _read_some(self) -> np.ndarray:
        """Reads some of the tokens that are not read yet; the logits of the last."""
        left = len(self.tokens) - self.done
        size = next((size for size in reversed(self.chunks) if size >= left), max(self.chunks, default=1))
        if size == 1 or left < max(2, size // WORTH):
            start, count, size = self.done, 1, 1
        else:
            start, count = self._chunk(size)
        logits = self._run(start, size, [count - 1])[0]
        self.done = start + count
        return logits

    def _chunk(self, size: int) -> tuple[int, int]:
        """Where a chunk with the next token begins, and how many it has. One that would go beyond the end of
        the caches begins earlier: what it reads again stays as it was."""
        start = min(self.done, self.language.context - size)
        return start, min(size, len(self.tokens) - start)

    def _run(self, start: int, size: int, rows: Sequence[int]) -> np.ndarray:
        """Logits [rows, vocabulary]; a chunk is filled up with zeros, which the tokens to come replace."""
        given = np.zeros(size, np.int64)
        chunk = self.tokens[start : start + size]
        given[: len(chunk)] = chunk
        feed = dict(zip(FEEDS, (given, np.array([start]), np.array(rows)), strict=True))
        (logits,) = self.artifact.run(**feed).values()
        if not np.isfinite(logits).all():
            raise ArtifactError(
                f"{self.artifact.path}: the logits after token {start} are not all numbers: its weights do "
                "not fit its network. Compile the model again"
            )
        return logits

    def score(self, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """Logits float32 [vocabulary] after each of the tokens, in order. Raises InputError as `read`."""
        self._check(tokens)
        first, size = len(self.tokens), self.scored or 1
        self.tokens += tokens
        while self.done < len(self.tokens):
            (start, count), done = self._chunk(size), self.done
            logits = self._run(start, size, range(size))
            self.done = start + count
            yield from logits[max(first, done) - start : count]

    def _check(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise InputError(
                "there is nothing to read: the text is empty, and this model has no token for it"
            )
        if len(tokens) > self.room:
            said = f"{len(tokens)} tokens" + (f" after {len(self.tokens)}" if self.tokens else "")
            raise InputError(
                f"{said} do not fit the context of {self.language.context} that {self.artifact.path} was "
                "compiled for: shorten the text, or compile the model with a larger context"
            )
        strange = [t for t in tokens if not 0 <= t < self.language.vocabulary]
        if strange:
            raise InputError(f"token {strange[0]} is not in the vocabulary of {self.language.vocabulary}")


def language_of(artifact: Artifact) -> Language:
    """What is known of a language model. Raises InputError for another model's artifact."""
    found = artifact.manifest.language
    if found is None:
        raise InputError(f"{artifact.path} is no language model's artifact: `bitsmith run` runs it on arrays")
    names = tuple(spec.name for spec in artifact.inputs)
    if names != FEEDS or len(artifact.outputs) != 1:
        raise ArtifactError(f"{artifact.path}: a language model has inputs {FEEDS}, this one {names}")
    return found


class Speech:
    """Text and tokens of one artifact. Raises ArtifactError when its tokenizer is missing or damaged."""

    def __init__(self, artifact: Artifact) -> None:
        from tokenizers import Tokenizer

        path = artifact.path / TOKENIZER
        self.language = language_of(artifact)
        try:
            self.tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ArtifactError(
                f"{artifact.path} has no {TOKENIZER}: compile the model from a checkpoint that has one"
            ) from None
        except Exception as error:  # the library has no exceptions of its own
            raise ArtifactError(f"{path} cannot be read: {error}. Compile the model again") from error

    def tokens(self, text: str) -> list[int]:
        """The text's tokens, with the one that begins a text where the model wants it."""
        first = [self.language.bos] if self.language.add_bos and self.language.bos is not None else []
        return first + list(self.tokenizer.encode(text, add_special_tokens=False).ids)
