"""What a language model's graph depends on beside its weights: one record for every kind of checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import ModelError

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "relu": "relu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}
"""Names of `transformers` -> what lm_graph.py makes."""

MOST_BLOCKS, MOST_HEAD = 4096, 4096
"""Larger numbers are no sizes of a model but of a damaged file."""


@dataclass(frozen=True)
class Rope:
    """Rotary embedding. `frequencies`: radians per position of each pair (float32 values); `scale`: what
    cosines and sines are multiplied with."""

    frequencies: tuple[float, ...]
    scale: float = 1.0


@dataclass(frozen=True)
class Layer:
    """How one block differs from others: `window` of its attention (0: all tokens before), its rope."""

    window: int
    rope: Rope


@dataclass(frozen=True)
class LmConfig:
    """A decoder of the Llama and Gemma families.

    family           as `transformers` calls it: "llama", "qwen2"...
    vocabulary       tokens, rows of the embedding
    context          positions that the model was made for
    biases           projections that have one: "q_proj"...
    qk_norm          queries and keys are normalised per head
    sandwich         attention and the perceptron are normalised before and after (Gemma 2)
    embedding_scale  factor on embeddings
    attention_scale  factor on scores; attention_cap, logit_cap: soft caps, 0 for none
    tied             the head is the embedding
    bos, eos         tokens that begin and end a text
    """

    family: str
    vocabulary: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    layers: tuple[Layer, ...]
    context: int
    norm_eps: float
    activation: str
    attention_scale: float
    biases: frozenset[str] = frozenset()
    qk_norm: bool = False
    sandwich: bool = False
    embedding_scale: float = 1.0
    attention_cap: float = 0.0
    logit_cap: float = 0.0
    tied: bool = False
    bos: int | None = None
    eos: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raises ModelError for sizes that do not go together."""
        heads = f"{self.heads} heads of {self.head_size} features"
        if self.heads % self.kv_heads or self.head_size % 2 or self.head_size > MOST_HEAD:
            raise ModelError(
                f"{self.family}: {heads} do not go with {self.kv_heads} heads of keys and values"
            )
        if any(2 * len(layer.rope.frequencies) > self.head_size for layer in self.layers):
            raise ModelError(f"{self.family}: its rope turns more features than {heads} have")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor that the model has."""
        made = {
            "model.embed_tokens.weight": (self.vocabulary, self.hidden),
            "model.norm.weight": (self.hidden,),
        }
        if not self.tied:
            made["lm_head.weight"] = (self.vocabulary, self.hidden)
        for i in range(len(self.layers)):
            made |= {f"model.layers.{i}.{name}": shape for name, shape in self._block().items()}
        return made

    def _block(self) -> dict[str, tuple[int, ...]]:
        q, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        projections = {
            "self_attn.q_proj": (q, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, q),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }
        made: dict[str, tuple[int, ...]] = {}
        for name, shape in projections.items():
            made[f"{name}.weight"] = shape
            if name.split(".")[1] in self.biases:
                made[f"{name}.bias"] = shape[:1]
        norms = ["input_layernorm", "post_attention_layernorm"]
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if self.sandwich else []
        made |= {f"{name}.weight": (self.hidden,) for name in norms}
        if self.qk_norm:
            made |= {f"self_attn.{name}.weight": (self.head_size,) for name in ("q_norm", "k_norm")}
        return made
