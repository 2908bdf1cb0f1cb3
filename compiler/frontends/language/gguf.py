"""A language model in one GGUF file, as llama.cpp writes and reads it.

Tensors get the names of `transformers`. What llama.cpp's converter did to them is undone where the graph
needs it: it turns the rows of Llama's queries and keys from halves to neighbouring pairs. Gemma's norms hold
1 + w.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ModelError, UnsupportedError
from ...formats import Coded
from ...params import Stored
from .checkpoint import Checkpoint
from .config import (
    MOST_BLOCKS,
    MOST_HEAD,
    Layer,
    LmConfig,
    Rope,
)
from .gguf_codes import kept_codes
from .gguf_file import GgufFile, GgufTensor, open_gguf
from .gguf_tokenizer import gguf_tokenizer
from .rope import LENGTH, divided_rope, plain_rope, scaled_rope


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp reads one.

    paired    rows of queries and keys are in neighbouring pairs
    pattern   each n-th layer sees all tokens, the others a window; 0: all layers have the file's window
    caps      the soft caps of scores and logits that it falls back to
    by_width  at this number of blocks scores are scaled by hidden / heads instead of the size of a head
    """

    family: str
    paired: bool = False
    gemma: bool = False
    sandwich: bool = False
    pattern: int = 0
    window: int = 0
    caps: tuple[float, float] = (0.0, 0.0)
    theta: float = 10_000.0
    local_theta: float | None = None
    by_width: int = 0


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", paired=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma": Architecture("gemma", gemma=True),
    "gemma2": Architecture(
        "gemma2", gemma=True, sandwich=True, pattern=2, window=4096, caps=(50.0, 30.0), by_width=46
    ),
    "gemma3": Architecture(
        "gemma3_text",
        gemma=True,
        sandwich=True,
        pattern=6,
        window=4096,
        theta=1_000_000.0,
        local_theta=10_000.0,
        by_width=62,
    ),
}
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
SANDWICH = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
FACTORS = "rope_freqs.weight"
"""What llama3's scaling divides each frequency by."""
IGNORED = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd\.freqs")


def read_gguf(path: Path) -> Checkpoint:
    """Raises ModelError, UnsupportedError."""
    file = open_gguf(path)
    kind = str(file.fields.get("general.architecture"))
    if kind not in ARCHITECTURES:
        raise UnsupportedError(
            f"{path}: architecture {kind!r} is not supported; {', '.join(ARCHITECTURES)} are"
        )
    names = {old: _renamed(old, ARCHITECTURES[kind]) for old in file.tensors if not IGNORED.fullmatch(old)}
    config = _Metadata(file, kind).config(frozenset(names.values()))
    weights, codes = {}, {}
    for old, new in names.items():
        tensor, rows = file.tensors[old], partial(_order, new, config, ARCHITECTURES[kind])
        weights[new] = Stored(tensor.shape, "float32", _reader(tensor, rows))
        if new.endswith(".weight"):
            codes[new.removesuffix(".weight")] = _coder(tensor, rows)
    if config.tied and "model.embed_tokens" in codes:
        codes["lm_head"] = codes["model.embed_tokens"]
    return Checkpoint(
        name=path.stem,
        config=config,
        weights=weights,
        tokenizer=_tokenizer(file),
        template=file.fields.get("tokenizer.chat_template"),
        codes=codes,
    )


def _renamed(name: str, kind: Architecture) -> str:
    """As `transformers` calls it; the name itself where that is not known."""
    table = NAMES | SANDWICH if kind.sandwich else NAMES
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in table:
        return name
    block = "" if match[1] is None else f"model.layers.{match[1]}."
    return f"{block}{table[match[2]]}.{match[3]}"


def _order(name: str, config: LmConfig, kind: Architecture) -> np.ndarray | None:
    """Which stored row each row is; None where they lie as they should."""
    part = name.split(".")[-2]
    if not kind.paired or part not in ("q_proj", "k_proj"):
        return None
    heads = config.heads if part == "q_proj" else config.kv_heads
    stored = np.arange(heads * config.head_size).reshape(heads, config.head_size // 2, 2)
    return stored.swapaxes(1, 2).reshape(-1)


Rows = Callable[[], np.ndarray | None]


def _reader(tensor: GgufTensor, rows: Rows) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        order = rows()
        return tensor.array() if order is None else tensor.array()[order]

    return read


def _coder(tensor: GgufTensor, rows: Rows) -> Callable[[], Coded | None]:
    return lambda: kept_codes(tensor, rows())


def _tokenizer(file: GgufFile) -> Callable[[], str] | None:
    if "tokenizer.ggml.tokens" not in file.fields:
        return None
    return lambda: gguf_tokenizer(file.fields, str(file.path))


class _Metadata:
    def __init__(self, file: GgufFile, kind: str) -> None:
        self.file, self.kind, self.rules = file, kind, ARCHITECTURES[kind]

    def config(self, names: frozenset[str]) -> LmConfig:
        rules = self.rules
        hidden, heads = self.count("embedding_length"), self.count("attention.head_count")
        head = self.count("attention.key_length", hidden // heads)
        if self.count("attention.value_length", head) != head:
            raise UnsupportedError(f"{self.file.path}: keys and values of different sizes are not supported")
        vocabulary = self.file.tensors.get("token_embd.weight")
        if vocabulary is None:
            raise ModelError(f"{self.file.path} lacks token_embd.weight: this is not a whole language model")
        layers = self.layers(head)
        wide = hidden / heads if len(layers) == rules.by_width else head
        caps = (
            self.number(f"{which}_logit_softcapping", usual) if rules.gemma else 0.0
            for which, usual in zip(("attn", "final"), rules.caps, strict=True)
        )
        attention_cap, logit_cap = caps
        bos, *eos = (self.token(which) for which in ("bos", "eos", "eot", "eom"))
        return LmConfig(
            family=rules.family,
            vocabulary=vocabulary.shape[0],
            hidden=hidden,
            intermediate=self.count("feed_forward_length"),
            heads=heads,
            kv_heads=self.count("attention.head_count_kv", heads),
            head_size=head,
            layers=layers,
            context=self.count("context_length"),
            norm_eps=self.number("attention.layer_norm_rms_epsilon", 1e-6),
            activation="gelu_tanh" if rules.gemma else "silu",
            attention_scale=self.number("attention.scale", 0.0) or wide**-0.5,
            biases=frozenset(name.split(".")[-2] for name in names if name.endswith(".bias")),
            qk_norm=any(name.endswith("q_norm.weight") for name in names),
            sandwich=rules.sandwich,
            embedding_scale=hidden**0.5 if rules.gemma else 1.0,
            attention_cap=attention_cap,
            logit_cap=logit_cap,
            tied="lm_head.weight" not in names,
            bos=bos,
            eos=tuple(dict.fromkeys(each for each in eos if each is not None)),
        )

    def layers(self, head: int) -> tuple[Layer, ...]:
        rules = self.rules
        window = self.count("attention.sliding_window", rules.window or None, least=0)
        full, local = self.ropes(self.count("rope.dimension_count", head, most=MOST_HEAD))
        made = []
        for i in range(self.count("block_count", most=MOST_BLOCKS)):
            near = window > 0 and (not rules.pattern or (i + 1) % rules.pattern != 0)
            made.append(Layer(window, local) if near else Layer(0, full))
        return tuple(made)

    def ropes(self, turned: int) -> tuple[Rope, Rope]:
        """Of layers that see all tokens, and of those with a window."""
        rules, kind = self.rules, self.get("rope.scaling.type", "none")
        if kind not in ("none", "linear", "yarn", ""):
            raise UnsupportedError(
                f"{self.file.path}: rope scaling {kind!r} is not supported; linear, llama3 and yarn are"
            )
        theta, context = self.number("rope.freq_base", 0.0) or rules.theta, self.count("context_length")
        scaling = {
            "rope_type": kind if kind in ("linear", "yarn") else "default",
            "factor": self.number("rope.scaling.factor", 1.0) or 1.0,
            LENGTH: self.count("rope.scaling.original_context_length", context),
        }
        full = scaled_rope(theta, turned, scaling, context, str(self.file.path))
        if FACTORS in self.file.tensors:
            full = divided_rope(full, self.file.tensors[FACTORS].array())
        local_theta = rules.local_theta
        if local_theta is None:
            return full, full
        return full, plain_rope(self.number("rope.freq_base_swa", local_theta), turned)

    def get(self, key: str, default: Any) -> Any:
        return self.file.fields.get(f"{self.kind}.{key}", default)

    def token(self, which: str) -> int | None:
        value = self.file.fields.get(f"tokenizer.ggml.{which}_token_id")
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def count(self, key: str, default: int | None = None, least: int = 1, most: int = 2**31) -> int:
        value = self.get(key, 0 if default is None and least == 0 else default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, list):
            raise UnsupportedError(f"{self.file.path}: {self.kind}.{key} differs between layers")
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ModelError(
                f"{self.file.path}: {self.kind}.{key} is {value!r}, must be a whole number, {least} to {most}"
            )
        return value

    def number(self, key: str, default: float) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ModelError(f"{self.file.path}: {self.kind}.{key} is {value!r}, must be a number")
        return float(value)
