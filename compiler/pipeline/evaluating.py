"""evaluate: how well a compiled language model predicts a text, and how far it is from another."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..artifact import Artifact, open
from ..artifact.manifest import MANIFEST
from ..errors import InputError
from ..measure.quality import log_softmax
from .reading import Reader, Speech

Progress = Callable[[str, int, int], None]
WINDOW = 512
"""Tokens that are read in one go: a text is cut, and every piece is judged from an empty memory."""


@dataclass(frozen=True)
class Evaluation:
    """Means over `predictions` tokens, in nats.

    perplexity          exp(the mean of -log of what the model gave to the token that came)
    against_perplexity  the same of the other model; `kl`: mean of KL(other || this) of the shares of all
                        tokens; `agreement`: share of predictions where both find the same token likeliest;
                        None without another
    """

    predictions: int
    perplexity: float
    kl: float | None = None
    agreement: float | None = None
    against_perplexity: float | None = None


def evaluate(
    artifact: Artifact | str | os.PathLike[str],
    text: str,
    against: Artifact | str | os.PathLike[str] | None = None,
    *,
    tokens: int | None = None,
    window: int = WINDOW,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Perplexity of a language model on a text, and its distance from another model with the same tokens.

    artifact, against   opened, or paths of artifacts; the other is usually the float model: the path of a
             checkpoint is compiled in float32, with caches in float32
    tokens   judge only so many tokens, from the beginning
    window   tokens that are read in one go (the context where that is less): the text is cut into such
             pieces, and the first token of each is given, not predicted
    threads  of a run; None leaves it as it is

    Logarithms are computed in float64. Raises InputError (an empty text, models with other tokens),
    ArtifactError.
    """
    with ExitStack() as stack:
        made = functools.partial(_opened, window=window, threads=threads, progress=progress, stack=stack)
        subject, other = (made(each) for each in (artifact, against))
        assert subject is not None
        pieces = _pieces(subject, other, text, tokens, window)
        total = sum(len(piece) - 1 for piece in pieces)
        sums = np.zeros(4)
        for done, row in enumerate(_rows(subject, other, pieces)):
            sums += row
            if progress is not None:
                progress("evaluating", done + 1, total)
        loss, own_loss, kl, same = (float(value) / total for value in sums)
        if other is None:
            return Evaluation(total, float(np.exp(loss)))
        return Evaluation(total, float(np.exp(loss)), kl, same, float(np.exp(own_loss)))


def _opened(
    given: Artifact | str | os.PathLike[str] | None,
    *,
    window: int,
    threads: int | None,
    progress: Progress | None,
    stack: ExitStack,
) -> Artifact | None:
    if given is None:
        return None
    opened = given if isinstance(given, Artifact) else stack.enter_context(_found(given, window, progress))
    if threads is not None:
        stack.callback(opened.set_threads, opened.threads)
        opened.set_threads(threads)
    return opened


def _found(place: str | os.PathLike[str], window: int, progress: Progress | None) -> Artifact:
    """The artifact there; that of the checkpoint there, in float32."""
    if (Path(place) / MANIFEST).exists():
        return open(place)
    from ..frontends.language.model import is_language_model, load_language_model
    from .models import compile

    if not is_language_model(place):
        return open(place)  # says what is missing
    trained = load_language_model(place).config.context
    model = load_language_model(place, context=min(max(1, window), trained), cache="float32")
    return compile(model, progress=progress)


def _pieces(
    subject: Artifact, other: Artifact | None, text: str, tokens: int | None, window: int
) -> list[list[int]]:
    """The text's tokens in pieces that are read from an empty memory, each of two tokens at least."""
    speech = Speech(subject)
    language, found = speech.language, speech.tokens(text)
    if other is not None and Speech(other).tokens(text) != found:
        raise InputError(
            f"{subject.path} and {other.path} cut the text into other tokens: they are compared token by "
            "token, which needs models with one tokenizer"
        )
    bos = found[:1] if language.add_bos else []
    found = found[len(bos) :][:tokens]
    contexts = [Reader(each).language.context for each in (subject, other) if each is not None]
    size = min(window, *contexts) - len(bos)
    if size + len(bos) < 2:
        raise InputError(f"a window of {window} tokens leaves nothing to predict: give 2 or more")
    pieces = [bos + found[i : i + size] for i in range(0, len(found), size)]
    pieces = [piece for piece in pieces if len(piece) > 1]
    if not pieces:
        raise InputError(f"the text has {len(found)} tokens: there is nothing to predict. Give a longer one")
    return pieces


def _rows(subject: Artifact, other: Artifact | None, pieces: list[list[int]]) -> Iterator[np.ndarray]:
    """Of each prediction: -log of what came, by this and by the other, KL, and whether they agree."""
    reader, peer = Reader(subject), None if other is None else Reader(other)
    for piece in pieces:
        reader.clear()
        ours = map(log_softmax, reader.score(piece[:-1]))
        if peer is None:
            yield from (
                np.array([-mine[token], 0, 0, 0]) for mine, token in zip(ours, piece[1:], strict=True)
            )
            continue
        peer.clear()
        theirs = map(log_softmax, peer.score(piece[:-1]))
        for mine, given, (_, token) in zip(ours, theirs, pairwise(piece), strict=True):
            if mine.shape != given.shape:
                raise InputError(
                    f"the models have {mine.size} and {given.size} tokens: they cannot be compared"
                )
            kl = float(np.exp(given) @ (given - mine))
            yield np.array([-mine[token], -given[token], kl, mine.argmax() == given.argmax()])
