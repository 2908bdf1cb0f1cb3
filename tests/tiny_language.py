"""A random network of the Llama family, small enough to compile in a test, and a tokenizer of letters."""

from __future__ import annotations

import string
from functools import cache
from pathlib import Path

import numpy as np
from bitsmith.compiler.artifact import Language
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.ir import Graph
from bitsmith.targets.build import write
from bitsmith.targets.target import resolve

LETTERS = string.ascii_lowercase + " .,!?"
END, BEGIN = len(LETTERS), len(LETTERS) + 1
VOCABULARY = len(LETTERS) + 2
WIDTH, HEADS, SHARED, FEATURES, LAYERS = 32, 4, 2, 8, 2
CAPACITY, CHUNK = 40, 8
LANGUAGE = Language(CAPACITY, CHUNK, VOCABULARY, eos=(END,), bos=BEGIN, add_bos=True)


@cache
def weights() -> dict[str, np.ndarray]:
    """Of one network: its graphs for several shapes share them."""
    rng = np.random.default_rng(11)
    kv = SHARED * FEATURES
    shapes = {"embedding": (VOCABULARY, WIDTH), "norm": (WIDTH,), "head": (VOCABULARY, WIDTH)}
    for i in range(LAYERS):
        shapes |= {f"{i}.norm1": (WIDTH,), f"{i}.norm2": (WIDTH,), f"{i}.o": (WIDTH, WIDTH)}
        shapes |= {f"{i}.q": (WIDTH, WIDTH), f"{i}.k": (kv, WIDTH), f"{i}.v": (kv, WIDTH)}
        shapes |= {f"{i}.gate": (48, WIDTH), f"{i}.up": (48, WIDTH), f"{i}.down": (WIDTH, 48)}
    made = {n: rng.standard_normal(s) * (1 if len(s) == 1 else 2 * s[1] ** -0.5) for n, s in shapes.items()}
    angles = np.outer(np.arange(CAPACITY), 100.0 ** (-np.arange(FEATURES // 2) / 4))
    made |= {"cos": np.cos(angles), "sin": np.sin(angles)}
    return {name: array.astype(np.float32) for name, array in made.items()}


def language_graph(tokens: int, rows: int, cache: str = "float16", capacity: int = CAPACITY) -> Graph:
    """Inputs, outputs and states as `bitsmith generate` needs them."""
    b = GraphBuilder("tiny")
    w = {name: b.param(name, array) for name, array in weights().items()}
    ids, position = b.input("tokens", (tokens,), "int64"), b.input("position", (1,), "int64")
    chosen = b.input("rows", (rows,), "int64")
    x = b.add("gather", [w["embedding"], ids], axis=0)
    for i in range(LAYERS):
        n = b.add("rms_norm", [x, w[f"{i}.norm1"]])
        q, k, v = (
            b.add("reshape", [b.add("linear", [n, w[f"{i}.{name}"]])], shape=(tokens, heads, FEATURES))
            for name, heads in (("q", HEADS), ("k", SHARED), ("v", SHARED))
        )
        q, k = (b.add("rope", [t, w["cos"], w["sin"], position]) for t in (q, k))
        kept = [_kept(b, f"{i}.{n}", new, position, cache, capacity) for n, new in (("k", k), ("v", v))]
        (k, *k_scale), (v, *v_scale) = kept
        y = b.add("cached_attention", [q, k, v, position, *k_scale, *v_scale], scale=FEATURES**-0.5)
        x = b.add("linear", [y, w[f"{i}.o"], "", x])
        n = b.add("rms_norm", [x, w[f"{i}.norm2"]])
        gate = b.add("silu", [b.add("linear", [n, w[f"{i}.gate"]])])
        inner = b.add("mul", [gate, b.add("linear", [n, w[f"{i}.up"]])])
        x = b.add("linear", [inner, w[f"{i}.down"], "", x])
    x = b.add("rms_norm", [b.add("gather", [x, chosen], axis=0), w["norm"]])
    return b.finish([b.add("linear", [x, w["head"]], output="logits")])


def _kept(b: GraphBuilder, name: str, new: str, position: str, cache: str, capacity: int) -> tuple[str, ...]:
    states = [b.input(f"{name}_cache", (SHARED, capacity, FEATURES), cache)]
    if cache == "int8":
        states.append(b.input(f"{name}_scale", (SHARED, capacity)))
    made = b.add_all("cache_write", [states[0], new, position, *states[1:]])
    for before, after in zip(states, made, strict=True):
        b.keep(before, after)
    return made


def tokenizer_json() -> bytes:
    """One token for each of LETTERS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    table = {letter: i for i, letter in enumerate(LETTERS)} | {"<end>": END, "<begin>": BEGIN}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<end>", "<begin>"])
    return tokenizer.to_str().encode()


def write_language(directory: Path, cache: str = "float16") -> Path:
    """The network compiled, with entries for one token, a chunk, and a chunk with all its logits."""
    first, *others = (language_graph(*size, cache=cache) for size in ((1, 1), (CHUNK, 1), (CHUNK, CHUNK)))
    return write(
        first, resolve("host"), directory, others=others, language=LANGUAGE, tokenizer=tokenizer_json()
    )
