"""config.json -> LmConfig: the families of `transformers`, by model_type, and what they assume when a file is
silent (the defaults of their configuration classes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import ModelError, UnsupportedError
from .config import (
    ACTIVATIONS,
    MOST_BLOCKS,
    MOST_HEAD,
    Layer,
    LmConfig,
    Rope,
)
from .rope import scaled_rope


@dataclass(frozen=True)
class Family:
    """What tells one family from another.

    theta         base of the rope when the file has none; `local_theta`: of layers with a window, where those
                  have a rope of their own
    window        which layers see `sliding_window` tokens only, when the file has no layer_types: "none",
                  "all", "late" (use_sliding_window, from max_window_layers on), "pattern" (all but each n-th)
    pattern       n, when the file has none
    gemma         norms hold w for a factor of 1 + w, embeddings are scaled by sqrt(hidden)
    scalar        scores are scaled by query_pre_attn_scalar instead of the size of a head
    caps          soft caps of scores and logits when the file has none
    """

    window: str = "none"
    pattern: int = 0
    biases: frozenset[str] = frozenset()
    optional_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    head_size: int | None = None
    gemma: bool = False
    sandwich: bool = False
    scalar: bool = False
    caps: tuple[float, float] = (0.0, 0.0)
    theta: float = 10_000.0
    local_theta: float | None = None


QKV = frozenset({"q_proj", "k_proj", "v_proj"})
MLP = frozenset({"gate_proj", "up_proj", "down_proj"})
FAMILIES: Mapping[str, Family] = {
    "llama": Family(optional_bias=True, mlp_bias=True),
    "mistral": Family(window="all"),
    "qwen2": Family(window="late", biases=QKV),
    "qwen3": Family(window="late", optional_bias=True, qk_norm=True, head_size=128),
    "gemma": Family(optional_bias=True, head_size=256, gemma=True),
    "gemma2": Family(
        window="pattern",
        pattern=2,
        optional_bias=True,
        head_size=256,
        gemma=True,
        sandwich=True,
        scalar=True,
        caps=(50.0, 30.0),
    ),
    "gemma3_text": Family(
        window="pattern",
        pattern=6,
        optional_bias=True,
        qk_norm=True,
        head_size=256,
        gemma=True,
        sandwich=True,
        scalar=True,
        theta=1_000_000.0,
        local_theta=10_000.0,
    ),
}
COMPOSED = {"gemma3": "gemma3_text"}
"""Models of text and pictures -> the family of their text_config."""


def family_config(data: Mapping[str, Any], where: str) -> LmConfig:
    """Raises UnsupportedError for a family or a form that is not known, ModelError for missing numbers."""
    kind = str(data.get("model_type"))
    if kind in COMPOSED and isinstance(data.get("text_config"), dict):
        inner = {"model_type": COMPOSED[kind], **data["text_config"]}
        return family_config(
            inner | {k: data[k] for k in ("eos_token_id", "bos_token_id") if k in data}, where
        )
    if kind not in FAMILIES:
        raise UnsupportedError(
            f"{where}: language models of type {kind!r} are not supported; {', '.join(FAMILIES)} are. Other "
            "networks go in as ONNX or as a torch module"
        )
    if "quantization_config" in data:
        raise UnsupportedError(
            f"{where}: it has a quantization_config, so that the weights are codes already: take the "
            "checkpoint in float16, bfloat16 or float32"
        )
    if data.get("use_bidirectional_attention"):
        raise UnsupportedError(f"{where}: attention to tokens behind is not supported")
    return _Reader(data, FAMILIES[kind], where).config(kind)


class _Reader:
    def __init__(self, data: Mapping[str, Any], family: Family, where: str) -> None:
        self.data, self.family, self.where = data, family, where

    def config(self, kind: str) -> LmConfig:
        f = self.family
        hidden, heads = self.count("hidden_size"), self.count("num_attention_heads")
        head = self.count("head_dim", f.head_size or hidden // heads, most=MOST_HEAD)
        kv_heads = self.count("num_key_value_heads", heads)
        scalar = self.number("query_pre_attn_scalar", 256) if f.scalar else head
        attention_cap, logit_cap = (
            self.number(f"{which}_logit_softcapping", usual) if f.scalar else 0.0
            for which, usual in zip(("attn", "final"), f.caps, strict=True)
        )
        return LmConfig(
            family=kind,
            vocabulary=self.count("vocab_size"),
            hidden=hidden,
            intermediate=self.count("intermediate_size"),
            heads=heads,
            kv_heads=kv_heads,
            head_size=head,
            layers=self.layers(head),
            context=self.count("max_position_embeddings", 2048),
            norm_eps=self.number("rms_norm_eps", 1e-6),
            activation=self.activation(),
            attention_scale=float(scalar) ** -0.5,
            biases=self.biases(),
            qk_norm=f.qk_norm,
            sandwich=f.sandwich,
            embedding_scale=hidden**0.5 if f.gemma else 1.0,
            attention_cap=attention_cap,
            logit_cap=logit_cap,
            tied=bool(self.data.get("tie_word_embeddings", f.gemma)),
            bos=next(iter(self.ids("bos_token_id")), None),
            eos=self.ids("eos_token_id"),
        )

    def layers(self, head: int) -> tuple[Layer, ...]:
        window = self.data.get("sliding_window", 4096 if self.family.window != "none" else None)
        blocks = self.count("num_hidden_layers", most=MOST_BLOCKS)
        used = [self.windowed(i) and window is not None for i in range(blocks)]
        local, full = self.rope(head, local=True), self.rope(head, local=False)
        return tuple(Layer(self.count("sliding_window", 4096), local) if u else Layer(0, full) for u in used)

    def windowed(self, layer: int) -> bool:
        kinds = self.data.get("layer_types")
        match self.family.window:
            case "none":
                return False
            case "all":
                return True
            case "late" if not self.data.get("use_sliding_window", False):
                return False
        if isinstance(kinds, list) and layer < len(kinds):
            return kinds[layer] == "sliding_attention"
        if self.family.window == "late":
            return layer >= self.count("max_window_layers", 28)
        return (layer + 1) % self.count("sliding_window_pattern", self.family.pattern) != 0

    def rope(self, head: int, local: bool) -> Rope:
        """Of layers with a window (`local`) or of the others; most families have one for both."""
        data, f = self.data, self.family
        scaling = self.table(data, "rope_parameters") or self.table(data, "rope_scaling")
        theta = data.get("rope_theta", f.theta)
        if f.local_theta is not None:
            nested = self.table(scaling, "sliding_attention" if local else "full_attention")
            scaling = nested if nested or local else scaling
            theta = data.get("rope_local_base_freq", f.local_theta) if local else theta
        theta = scaling.get("rope_theta", theta)
        share = scaling.get("partial_rotary_factor", data.get("partial_rotary_factor", 1.0))
        for name, value in (("rope_theta", theta), ("partial_rotary_factor", share)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ModelError(f"{self.where}: {name} is {value!r}, must be a positive number")
        turned = int(head * min(share, 1.0))
        context = self.count("max_position_embeddings", 2048)
        return scaled_rope(float(theta), turned, scaling, context, self.where)

    def biases(self) -> frozenset[str]:
        f = self.family
        found = f.biases
        if f.optional_bias and self.data.get("attention_bias"):
            found |= QKV | {"o_proj"}
        if f.mlp_bias and self.data.get("mlp_bias"):
            found |= MLP
        return found

    def activation(self) -> str:
        name = self.data.get("hidden_activation") or self.data.get("hidden_act")
        name = name or ("gelu_pytorch_tanh" if self.family.gemma else "silu")
        if name not in ACTIVATIONS:
            raise UnsupportedError(
                f"{self.where}: activation {name!r} is not supported; {', '.join(ACTIVATIONS)} are"
            )
        return ACTIVATIONS[name]

    def table(self, data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        value = data.get(key)
        if value is not None and not isinstance(value, dict):
            raise ModelError(f"{self.where}: {key} is {value!r}, must be an object")
        return value or {}

    def count(self, key: str, default: int | None = None, most: int = 2**31) -> int:
        value = self.data.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ModelError(f"{self.where}: {key} is {value!r}, must be a whole number, 1 to {most}")
        return value

    def number(self, key: str, default: float) -> float:
        """A number >= 0; null is 0."""
        value = self.data.get(key, default)
        value = 0 if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ModelError(f"{self.where}: {key} is {value!r}, must be a number")
        return float(value)

    def ids(self, key: str) -> tuple[int, ...]:
        value = self.data.get(key)
        found = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(each, bool) or not isinstance(each, int) for each in found):
            raise ModelError(f"{self.where}: {key} is {value!r}, must be a token's number or a list of them")
        return tuple(found)
