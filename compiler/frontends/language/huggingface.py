"""A language model's directory as `transformers` writes it: config.json, *.safetensors, tokenizer.json.

Weights stay in their mapped files; each is read, as float32, when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ModelError, UnsupportedError
from ...params import Stored
from .checkpoint import Checkpoint
from .config import LmConfig
from .families import FAMILIES, family_config

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PREFIXES = ("model.language_model.", "language_model.model.", "model.")
"""What comes before the names of the decoder's own tensors; the first that is there."""
FLOATS = {"F64", "F32", "F16", "BF16"}


def read_directory(path: Path) -> Checkpoint:
    """Raises ModelError where a file is missing, damaged or not as config.json says; UnsupportedError."""
    data = _json(path / "config.json")
    config = family_config(data, str(path / "config.json"))
    config = replace(config, eos=_eos(path, config))
    stored = _renamed(_tensors(path))
    if FAMILIES[config.family].gemma:
        stored = {n: _shifted(w) if n.endswith("norm.weight") else w for n, w in stored.items()}
    tokenizer = path / "tokenizer.json"
    return Checkpoint(
        name=path.resolve().name,
        config=config,
        weights=stored,
        tokenizer=(lambda: tokenizer.read_text(encoding="utf-8")) if tokenizer.exists() else None,
        template=_template(path),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise ModelError(f"{path} holds no JSON object")
    return data


def _eos(path: Path, config: LmConfig) -> tuple[int, ...]:
    """Those of config.json and of generation_config.json, which knows the end of a chat's turn."""
    more: Any = []
    if (path / "generation_config.json").exists():
        more = _json(path / "generation_config.json").get("eos_token_id") or []
    more = more if isinstance(more, list) else [more]
    return tuple(dict.fromkeys((*config.eos, *(each for each in more if isinstance(each, int)))))


def _template(path: Path) -> str | None:
    if (path / "chat_template.jinja").exists():
        return (path / "chat_template.jinja").read_text(encoding="utf-8")
    if not (path / "tokenizer_config.json").exists():
        return None
    found = _json(path / "tokenizer_config.json").get("chat_template")
    return found if isinstance(found, str) else None


def _tensors(path: Path) -> dict[str, Stored]:
    """Every tensor of every shard."""
    if (path / INDEX).exists():
        shards = _json(path / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
            raise ModelError(f"{path / INDEX} has no weight_map")
        files = sorted(set(shards.values()))
    elif (path / WEIGHTS).exists():
        files = [WEIGHTS]
    else:
        raise ModelError(f"{path} has neither {WEIGHTS} nor {INDEX}: weights are read from safetensors files")
    found: dict[str, Stored] = {}
    for file in files:
        found |= _shard(path / file)
    return found


def _shard(path: Path) -> dict[str, Stored]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}
            kinds = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
    except FileNotFoundError:
        raise ModelError(f"{path} is missing: the checkpoint is not complete") from None
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged or cut short: {error}. Download it again") from None
    floats = {name: shape for name, (shape, dtype) in kinds.items() if dtype in FLOATS}
    return {name: Stored(shape, "float32", partial(_read, path, name)) for name, shape in floats.items()}


def _read(path: Path, name: str) -> np.ndarray:
    """One tensor. The file is mapped for so long only: pages that were read count as the process's memory."""
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            made: np.ndarray = file.get_tensor(name).to(torch.float32, copy=True).numpy()
            return made
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} has changed since it was opened: {error}") from None


def _renamed(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The decoder's tensors under the names of a plain language model."""
    for prefix in PREFIXES:
        if f"{prefix}embed_tokens.weight" in tensors:
            inside = {n: w for n, w in tensors.items() if n.startswith(prefix)}
            head = tensors.get("lm_head.weight", tensors.get("language_model.lm_head.weight"))
            named = {f"model.{n.removeprefix(prefix)}": w for n, w in inside.items()}
            return named if head is None else named | {"lm_head.weight": head}
    raise UnsupportedError(
        f"no tensor is called model.embed_tokens.weight: this is not a whole language model ({len(tensors)} "
        f"tensors, such as {', '.join(sorted(tensors)[:3])})"
    )


def _shifted(stored: Stored) -> Stored:
    """Gemma's norms multiply by 1 + w."""
    return Stored(stored.shape, "float32", lambda: np.float32(1) + stored.array())
