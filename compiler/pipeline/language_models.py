"""Language models from checkpoints: what an artifact keeps of them, and what `inspect` says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..artifact import Language
from ..frontends.lm import LanguageModel
from ..ir import Graph
from .buckets import one_or_more


@dataclass(frozen=True)
class LanguageInfo:
    """A language model as its checkpoint describes it.

    parameters    weights of the whole model; a tied embedding counts once
    trained       tokens that it was made for; `context` are those that its caches have room for
    window        tokens that its layers with a sliding window see; 0 without such layers
    cache         type of keys and values in the caches; `cache_bytes` of all of them
    eos           tokens that end a text
    tokenizer     whether the checkpoint brings one
    """

    family: str
    parameters: int
    blocks: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    trained: int
    context: int
    window: int
    cache: str
    cache_bytes: int
    eos: tuple[int, ...]
    tokenizer: bool


def language_info(model: LanguageModel) -> LanguageInfo:
    """Reads no weight."""
    c, graph = model.config, model.graph(1, 1)
    return LanguageInfo(
        family=c.family,
        parameters=sum(math.prod(shape) for shape in c.shapes().values()),
        blocks=len(c.layers),
        hidden=c.hidden,
        heads=c.heads,
        kv_heads=c.kv_heads,
        head_size=c.head_size,
        vocabulary=c.vocabulary,
        trained=c.context,
        context=model.context,
        window=max(layer.window for layer in c.layers),
        cache=model.cache,
        cache_bytes=sum(graph.type_of(before).nbytes for before, _ in graph.states),
        eos=c.eos,
        tokenizer=model.checkpoint.tokenizer is not None,
    )


def language_of(model: LanguageModel) -> Language:
    """What generating text needs to know of it."""
    c = model.config
    return Language(model.context, model.chunk, c.vocabulary, c.eos, c.bos, model.adds_bos)


def entries_of(subject: Graph | Sequence[Graph] | LanguageModel) -> tuple[tuple[Graph, ...], dict[str, Any]]:
    """The graphs of an artifact, and what it keeps of a language model: `language` and `tokenizer`."""
    if not isinstance(subject, LanguageModel):
        return one_or_more(subject), {}
    text = subject.tokenizer
    kept = {"language": language_of(subject), "tokenizer": None if text is None else text.encode()}
    return subject.graphs(), kept
