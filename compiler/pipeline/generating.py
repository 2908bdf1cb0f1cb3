"""generate: text from a compiled language model, as it comes. Imports numpy and tokenizers, nothing else."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..artifact import Artifact, open
from ..errors import InputError
from .reading import Reader, Speech


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the most likely where `temperature` is 0, else by chance, with logits
    divided by it. `top_k` > 0: among so many; `top_p` < 1: among the likeliest that have this share together.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature must be 0 or more, got {self.temperature}")
        if self.top_k < 0:
            raise InputError(f"top_k must be 0 (all) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.seed < 0:
            raise InputError(f"seed must be 0 or more, got {self.seed}")

    def choose(self, logits: np.ndarray, chance: np.random.Generator) -> int:
        """A token, by logits float32 [vocabulary]."""
        if self.temperature == 0:
            return int(logits.argmax())
        among = np.arange(logits.size)
        if 0 < self.top_k < logits.size:
            among = np.argpartition(-logits, self.top_k - 1)[: self.top_k]
        if self.top_p < 1:
            among = among[np.argsort(-logits[among], kind="stable")]
        scaled = logits[among].astype(np.float64) / self.temperature
        reached = np.exp(scaled - scaled.max()).cumsum()
        if self.top_p < 1:  # as many as reach the share, that which crosses it included
            reached = reached[: int(np.searchsorted(reached, self.top_p * reached[-1])) + 1]
        at = int(np.searchsorted(reached, chance.random() * reached[-1], side="right"))
        return int(among[min(at, reached.size - 1)])


@dataclass(frozen=True)
class Pace:
    """What was done so far. `stopped`: why it ended: "end" (the model's own), "length", "context"; "" before
    that.
    """

    prompt_tokens: int
    tokens: int
    prefill_seconds: float
    decode_seconds: float
    stopped: str

    @property
    def prefill_per_second(self) -> float:
        """Tokens of the prompt per second."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_per_second(self) -> float:
        """New tokens per second, without the first: that comes with the prompt."""
        return (self.tokens - 1) / self.decode_seconds if self.decode_seconds else 0.0


class Generation(Iterator[str]):
    """Pieces of text, made when they are asked for; `pace` and `text` say how far it is."""

    def __init__(
        self, artifact: Artifact, prompt: str, max_tokens: int, sampling: Sampling, *, owned: bool = False
    ) -> None:
        from tokenizers.decoders import DecodeStream

        self._artifact, self._owned = artifact, owned
        self._reader, speech = Reader(artifact), Speech(artifact)
        self._tokenizer, self._sampling, self._most = speech.tokenizer, sampling, max_tokens
        self._prompt = speech.tokens(prompt)
        if len(self._prompt) > self._reader.room:
            raise InputError(
                f"the prompt has {len(self._prompt)} tokens, more than the context of {self._reader.room} "
                f"that {artifact.path} was compiled for: shorten it, or compile with a larger context"
            )
        if not self._prompt:
            raise InputError(
                "the prompt is empty, and this model has no token that begins a text: say something"
            )
        self._stream = DecodeStream(ids=list(self._prompt), skip_special_tokens=True)
        self._chance = np.random.default_rng(sampling.seed)
        self._tokens: list[int] = []
        self._times = [0.0, 0.0]
        self._stopped = ""
        self.text = ""

    @property
    def pace(self) -> Pace:
        prefill, decode = self._times
        return Pace(len(self._prompt), len(self._tokens), prefill, decode, self._stopped)

    def __next__(self) -> str:
        while not self._stopped:
            piece = self._step()
            if piece:
                self.text += piece
                return piece
        self.close()
        raise StopIteration

    def _step(self) -> str:
        """One token more; what it adds to the text, which may be nothing yet."""
        if len(self._tokens) >= self._most:
            self._stopped = "length"
            return ""
        if self._tokens and self._reader.room < 1:
            self._stopped = "context"
            return ""
        start = time.perf_counter()
        token = self._sampling.choose(self._reader.read(self._tokens[-1:] or self._prompt), self._chance)
        self._times[bool(self._tokens)] += time.perf_counter() - start
        if token in self._reader.language.eos:
            self._stopped = "end"
            return ""
        self._tokens.append(token)
        return self._stream.step(self._tokenizer, token) or ""

    def close(self) -> None:
        """Closes the artifact if `generate` opened it."""
        if self._owned:
            self._artifact.close()


def generate(
    artifact: Artifact | str | os.PathLike[str],
    prompt: str,
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    threads: int | None = None,
) -> Generation:
    """What a language model says after `prompt`: an iterator over pieces of text, each when it is made.

    artifact     opened, or its path; nobody else may run it meanwhile
    max_tokens   tokens to make at most; it also ends where the model does, or at the end of its context
    temperature  0 takes the likeliest token each time; above it one by chance, the same for the same `seed`
    top_k, top_p   among the likeliest so many (0: all), or those that have this share together
    threads      of a run; None leaves it as it is

    Raises InputError (a prompt longer than the context, options out of range), ArtifactError.
    """
    sampling = Sampling(temperature, top_k, top_p, seed)
    if max_tokens < 0:
        raise InputError(f"max_tokens must be 0 or more, got {max_tokens}")
    owned = not isinstance(artifact, Artifact)
    opened = artifact if isinstance(artifact, Artifact) else open(artifact)
    try:
        if threads is not None:
            opened.set_threads(threads)
        return Generation(opened, prompt, max_tokens, sampling, owned=owned)
    except BaseException:
        if owned:
            opened.close()
        raise
