"""The graph of a language model for one number of tokens.

With caches (`cached_graph`): inputs tokens int64 [T], position int64 [1] of the first of them, rows int64
[R]; output logits float32 [R, vocabulary] of those of the T tokens; the caches are states. Without
(`whole_graph`): input tokens, output logits [T, vocabulary]. Nodes are called as their modules are in
`transformers`, so that one plan fits both.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...builder import GraphBuilder
from ...ir import Graph
from ...params import Entry, Stored
from .config import Layer, LmConfig, Rope
from .rope import angles

CACHES = ("float16", "int8", "float32")


def cached_graph(
    name: str,
    config: LmConfig,
    weights: Mapping[str, Entry],
    *,
    tokens: int,
    rows: int,
    context: int,
    cache: str,
) -> Graph:
    """`weights` as config.shapes() names them; `context` tokens have room in the caches, of type `cache`."""
    return _Writer(name, config, weights, tokens, context, cache).cached(rows)


def whole_graph(name: str, config: LmConfig, weights: Mapping[str, Entry], *, tokens: int) -> Graph:
    """All tokens of a text at once."""
    return _Writer(name, config, weights, tokens, tokens, "").whole()


class _Writer:
    def __init__(
        self,
        name: str,
        config: LmConfig,
        weights: Mapping[str, Entry],
        tokens: int,
        context: int,
        cache: str,
    ) -> None:
        self.b = GraphBuilder(name)
        self.config, self.weights = config, weights
        self.tokens, self.context, self.cache = tokens, context, cache
        self.position = ""
        self.params: dict[str, str] = {}
        self.tables: dict[Rope, tuple[str, str]] = {}

    def cached(self, rows: int) -> Graph:
        ids = self.b.input("tokens", (self.tokens,), "int64")
        self.position = self.b.input("position", (1,), "int64")
        wanted = self.b.input("rows", (rows,), "int64")
        x = self.b.add("gather", [self.blocks(ids), wanted], name="model.rows", axis=0)
        return self.b.finish([self.head(x)])

    def whole(self) -> Graph:
        ids = self.b.input("tokens", (self.tokens,), "int64")
        self.position = self.b.param("position", np.zeros(1, np.int64))
        return self.b.finish([self.head(self.blocks(ids))])

    def blocks(self, ids: str) -> str:
        x = self.b.add(
            "gather", [self.param("model.embed_tokens.weight"), ids], name="model.embed_tokens", axis=0
        )
        if self.config.embedding_scale != 1:
            x = self.times(x, self.config.embedding_scale, "model.embed_tokens.scale")
        for i, layer in enumerate(self.config.layers):
            x = self.block(x, f"model.layers.{i}", layer)
        return x

    def head(self, x: str) -> str:
        tied, cap = self.config.tied, self.config.logit_cap
        x = self.norm(x, "model.norm")
        weight = self.param("model.embed_tokens.weight" if tied else "lm_head.weight")
        if not cap:
            return self.b.add("linear", [x, weight], name="lm_head", output="logits")
        x = self.b.add("linear", [x, weight], name="lm_head")
        x = self.b.add("tanh", [self.times(x, 1 / cap, "lm_head.cap.inverse")], name="lm_head.tanh")
        return self.times(x, cap, "lm_head.cap", output="logits")

    def block(self, x: str, at: str, layer: Layer) -> str:
        y = self.attention(self.norm(x, f"{at}.input_layernorm"), f"{at}.self_attn", layer)
        if self.config.sandwich:
            y = self.norm(y, f"{at}.post_attention_layernorm")
        x = self.b.add("add", [x, y], name=f"{at}.attended")
        before = "pre_feedforward_layernorm" if self.config.sandwich else "post_attention_layernorm"
        y = self.perceptron(self.norm(x, f"{at}.{before}"), f"{at}.mlp")
        if self.config.sandwich:
            y = self.norm(y, f"{at}.post_feedforward_layernorm")
        return self.b.add("add", [x, y], name=at)

    def attention(self, x: str, at: str, layer: Layer) -> str:
        c = self.config
        cos, sin = self.table(layer.rope)
        made = {}
        for which, heads in (("q", c.heads), ("k", c.kv_heads), ("v", c.kv_heads)):
            y = self.linear(x, f"{at}.{which}_proj")
            shape = (self.tokens, heads, c.head_size)
            made[which] = self.b.add("reshape", [y], name=f"{at}.{which}", shape=shape)
        for which in ("q", "k"):
            if c.qk_norm:
                made[which] = self.norm(made[which], f"{at}.{which}_norm")
            operands = [made[which], cos, sin, self.position]
            made[which] = self.b.add("rope", operands, name=f"{at}.{which}_rope")
        (k, *k_scale), (v, *v_scale) = (self.kept(made[n], f"{at}.{n}_cache") for n in ("k", "v"))
        y = self.b.add(
            "cached_attention",
            [made["q"], k, v, self.position, *k_scale, *v_scale],
            name=at,
            scale=c.attention_scale,
            soft_cap=c.attention_cap,
            window=layer.window if layer.window < self.context else 0,
        )
        return self.linear(y, f"{at}.o_proj")

    def kept(self, new: str, name: str) -> tuple[str, ...]:
        """The cache with the new rows, and its scale if it has one; without caches the rows themselves."""
        if not self.cache:
            return (self.b.add("transpose", [new], name=name, perm=(1, 0, 2)),)
        heads, features = self.config.kv_heads, self.config.head_size
        states = [self.b.input(name, (heads, self.context, features), self.cache)]
        if self.cache == "int8":
            states.append(self.b.input(f"{name}.scale", (heads, self.context)))
        outputs = [f"{state}.next" for state in states]
        made = self.b.add_all(
            "cache_write", [states[0], new, self.position, *states[1:]], name=f"{name}.write", outputs=outputs
        )
        for before, after in zip(states, made, strict=True):
            self.b.keep(before, after)
        return made

    def perceptron(self, x: str, at: str) -> str:
        gate = self.activated(self.linear(x, f"{at}.gate_proj"), f"{at}.act_fn")
        inner = self.b.add("mul", [gate, self.linear(x, f"{at}.up_proj")], name=f"{at}.gated")
        return self.linear(inner, f"{at}.down_proj")

    def activated(self, x: str, name: str) -> str:
        kind = self.config.activation
        if kind == "relu":
            return self.b.add("clip", [x], name=name, lo=0.0)
        if kind != "gelu_tanh":
            return self.b.add(kind, [x], name=name)
        # x/2 (1 + tanh(a x + b x^3)), a = sqrt(2 / pi), b = 0.044715 a; (1 + tanh(z)) / 2 is sigmoid(2 z)
        twice = 2 * (2 / np.pi) ** 0.5
        square = self.b.add("mul", [x, x], name=f"{name}.square")
        slope = self.times(square, 0.044715 * twice, f"{name}.cubic")
        slope = self.b.add("add", [slope, self.constant(twice)], name=f"{name}.slope")
        z = self.b.add("mul", [x, slope], name=f"{name}.twice")
        return self.b.add("mul", [x, self.b.add("sigmoid", [z], name=f"{name}.gate")], name=name)

    # What they are made of

    def param(self, name: str) -> str:
        """A weight of the checkpoint; read by several nodes it is one parameter."""
        if name not in self.params:
            self.params[name] = self.b.param(name, self.weights[name])
        return self.params[name]

    def linear(self, x: str, name: str) -> str:
        bias = [self.param(f"{name}.bias")] if name.split(".")[-1] in self.config.biases else []
        return self.b.add("linear", [x, self.param(f"{name}.weight"), *bias], name=name)

    def norm(self, x: str, name: str) -> str:
        return self.b.add("rms_norm", [x, self.param(f"{name}.weight")], name=name, eps=self.config.norm_eps)

    def times(self, x: str, factor: float, name: str, output: str | None = None) -> str:
        return self.b.add("mul", [x, self.constant(factor)], name=name, output=output)

    def constant(self, value: float) -> str:
        name = f"constant.{value:.9g}"
        if name not in self.params:
            self.params[name] = self.b.param(name, np.array([value], np.float32))
        return self.params[name]

    def table(self, rope: Rope) -> tuple[str, str]:
        """Parameters [context, pairs]: cosines and sines."""
        if rope not in self.tables:
            number = f".{len(self.tables)}" if self.tables else ""
            shape, scale = (self.context, len(rope.frequencies)), np.float32(rope.scale)
            cos = Stored(shape, "float32", lambda: scale * np.cos(angles(rope, self.context)))
            sin = Stored(shape, "float32", lambda: scale * np.sin(angles(rope, self.context)))
            self.tables[rope] = (
                self.b.param(f"rope{number}.cos", cos),
                self.b.param(f"rope{number}.sin", sin),
            )
        return self.tables[rope]
