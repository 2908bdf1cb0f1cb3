"""Small random language models of every supported family: as `transformers` writes them, and as GGUF.

What the GGUF writer does to names and weights is written down anew here, from llama.cpp's converter.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

VOCABULARY, TOKENS = 96, 14
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LOCAL = {"rope_type": "default", "rope_theta": 1e4}
GEMMA = {"head_dim": 32, "sliding_window": 5, "query_pre_attn_scalar": 40}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama-3": (
        "LlamaConfig",
        {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "mistral": ("MistralConfig", {"sliding_window": 6, "head_dim": 24}),
    "qwen2": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "rope_parameters": LINEAR},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 24, "tie_word_embeddings": True, "rope_parameters": YARN}),
    "gemma": ("GemmaConfig", {"head_dim": 32}),
    "gemma2": ("Gemma2Config", GEMMA),
    "gemma3": (
        "Gemma3TextConfig",
        GEMMA
        | {
            "rope_parameters": {"full_attention": LINEAR, "sliding_attention": LOCAL},
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}


def config_of(kind: str, **changes: Any) -> Any:
    name, more = CONFIGS[kind]
    return getattr(transformers, name)(**SIZES | more | changes)


def random_model(config: Any) -> Any:
    """With weights that make every part matter: norms, biases and caps too."""
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().float()
    shifted = "gemma" in config.model_type
    for name, parameter in model.named_parameters():
        middle = 1.0 if "norm" in name and not shifted else 0.0
        torch.nn.init.normal_(parameter, middle, 0.3 if parameter.ndim == 1 else 0.15)
    return model


def tokens() -> np.ndarray:
    return np.random.default_rng(1).integers(0, VOCABULARY, TOKENS)


def logits(model: Any, ids: np.ndarray) -> np.ndarray:
    """float32 [tokens, vocabulary] by torch."""
    with torch.no_grad():
        found: np.ndarray = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    return found


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
}
GGUF_SANDWICH = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def write_gguf(path: Path, model: Any, kind: str = "", **more: Any) -> Path:
    """The model as a GGUF file; `kind` of the matrices: "" (float32), "Q4_0", "Q8_0", "Q4_1"... `more` are
    metadata in place of the usual."""
    config = model.config
    name = {"gemma3_text": "gemma3", "mistral": "llama"}.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, name)
    for key, value in (_metadata(config, name) | more).items():
        _add(writer, key, value)
    state = model.state_dict()
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    for old, tensor in state.items():
        array = _converted(old, tensor.numpy(), config, name)
        quantised = kind and array.ndim == 2
        stored = gguf.quantize(array, gguf.GGMLQuantizationType[kind]) if quantised else array
        raw = gguf.GGMLQuantizationType[kind] if quantised else None
        writer.add_tensor(_gguf_name(old, config), stored, raw_dtype=raw)
    if getattr(config, "rope_parameters", {}).get("rope_type") == "llama3":
        rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
        size = config.hidden_size // config.num_attention_heads
        plain = config.rope_parameters["rope_theta"] ** (-np.arange(0, size, 2) / size)
        writer.add_tensor("rope_freqs.weight", (plain / rotary.inv_freq.numpy()).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _metadata(config: Any, name: str) -> dict[str, Any]:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    made = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if rope["rope_type"] in ("linear", "yarn"):
        made |= {"rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}
    if rope["rope_type"] == "yarn":
        made["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if getattr(config, "sliding_window", None):
        made["attention.sliding_window"] = config.sliding_window
    if getattr(config, "query_pre_attn_scalar", None):
        made["attention.scale"] = float(config.query_pre_attn_scalar**-0.5)
    for which in ("attn", "final"):
        if cap := getattr(config, f"{which}_logit_softcapping", None):
            made[f"{which}_logit_softcapping"] = float(cap)
    return {f"{name}.{key}": value for key, value in made.items()}


def _add(writer: Any, key: str, value: Any) -> None:
    if value is None:
        return
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds.get(type(value), writer.add_array)(key, value)


def _gguf_name(name: str, config: Any) -> str:
    match = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+)\.(weight|bias)", name)
    assert match
    table = GGUF_NAMES | GGUF_SANDWICH if "pre_attn" in str(config.to_dict().keys()) else GGUF_NAMES
    block = "" if match[1] is None else f"blk.{match[1]}."
    return f"{block}{table[match[2]]}.{match[3]}"


def _converted(name: str, array: np.ndarray, config: Any, kind: str) -> np.ndarray:
    """Llama's rows of queries and keys, from halves to neighbouring pairs; Gemma's norms as 1 + w."""
    if "gemma" in kind and name.endswith("norm.weight"):
        return array + 1
    for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
        if kind == "llama" and part in name:
            halves = array.reshape(heads, 2, len(array) // heads // 2, *array.shape[1:])
            return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
    return array
