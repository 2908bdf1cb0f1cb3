"""Language models from checkpoints: what an artifact keeps of them, and what `inspect` says."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..artifact import Language
from ..errors import InputError
from ..formats import Coded, Format
from ..frontends.language.model import LanguageModel
from ..ir import Graph
from ..plan import Plan, layers_of, tables_of
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
        cache=model.keeps,
        cache_bytes=sum(graph.type_of(before).nbytes for before, _ in graph.states),
        eos=c.eos,
        tokenizer=model.checkpoint.tokenizer is not None,
    )


KnownCodes = Callable[[Mapping[str, tuple[Format, str]]], dict[str, Coded]]
"""Plan.coded -> the codes that are there already."""


def known_codes(subject: object, given: Mapping[str, Coded] | None) -> KnownCodes:
    """Those `given`, and those that a language model's file holds in the very format that a plan asks for."""

    def find(wanted: Mapping[str, tuple[Format, str]]) -> dict[str, Coded]:
        found = {layer: (given or {})[layer] for layer in wanted if layer in (given or {})}
        if isinstance(subject, LanguageModel):
            rest = {layer for layer in wanted if layer not in found}
            stored = file_codes(subject, rest)
            found |= {layer: coded for layer, coded in stored.items() if coded.format == wanted[layer][0]}
        return found

    return find


def file_codes(model: LanguageModel, layers: Collection[str]) -> dict[str, Coded]:
    """Of these layers, what the model's file holds in a format of ours. What layers share is one object."""
    read: dict[int, Coded | None] = {}
    found: dict[str, Coded] = {}
    for layer, reader in model.checkpoint.codes.items():
        if layer in layers:
            key = id(reader)
            read[key] = read[key] if key in read else reader()
            if (coded := read[key]) is not None:
                found[layer] = coded
    return found


def kept_plan(model: LanguageModel, plan: Plan | None = None) -> Plan:
    """The plan, with weights left as the codes of the file where a format of ours has the same values.

    They are multiplied in float32: results are those of the decoded weights. Layers that the plan names stay
    as it says. Raises InputError for a file without such codes.
    """
    graph = model.graph(1, 1)
    names = [node.name for node in (*layers_of(graph), *tables_of(graph))]
    kept = {layer: f"{coded.format}@float32" for layer, coded in file_codes(model, names).items()}
    if not kept:
        raise InputError(f"{model.name} holds no codes that can be kept: GGUF files of Q4_0 and Q8_0 do")
    base = plan or Plan(graph.name, {})
    return replace(base, layers={**kept, **base.layers})


def language_of(model: LanguageModel) -> Language:
    """What generating text needs to know of it."""
    c = model.config
    return Language(model.context, model.chunk, c.vocabulary, c.eos, c.bos, model.adds_bos)


def entries_of(
    subject: Graph | Sequence[Graph] | LanguageModel, plan: Plan | None = None
) -> tuple[tuple[Graph, ...], dict[str, Any]]:
    """The graphs of an artifact, and what it keeps of a language model: `language` and `tokenizer`."""
    if not isinstance(subject, LanguageModel):
        return one_or_more(subject), {}
    text = subject.tokenizer
    kept = {"language": language_of(subject), "tokenizer": None if text is None else text.encode()}
    return with_usual_cache(subject, plan).graphs(), kept


def with_usual_cache(model: LanguageModel, plan: Plan | None) -> LanguageModel:
    """The model, with float16 caches where none were asked for and the plan compresses it anyway: they move
    logits by a hundredth, at half the memory."""
    compressed = plan is not None and any(choice != "float32" for choice in plan.layers.values())
    return replace(model, cache="float16") if model.cache is None and compressed else model
