"""A language model as it lies on disk: record, tensors by the names of `transformers`, tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ...errors import ModelError
from ...formats import Coded
from ...params import Stored
from .config import LmConfig

IGNORED = ("rotary_emb.inv_freq", "lm_head.weight")
"""Ends of names of tensors that hold nothing new: tables, and the head where it is the embedding."""


@dataclass(frozen=True)
class Checkpoint:
    """weights    tensor name -> float32, read when asked for
    tokenizer  gives tokenizer.json in the form of the `tokenizers` library; None without one
    template   the chat template (Jinja), None without one
    codes      layer name -> its weight as the file holds it, for formats that compiler/formats has exactly
    """

    name: str
    config: LmConfig
    weights: Mapping[str, Stored]
    tokenizer: Callable[[], str] | None
    template: str | None = None
    codes: Mapping[str, Callable[[], Coded | None]] = field(default_factory=dict)


def check_weights(checkpoint: Checkpoint, where: str) -> Mapping[str, Stored]:
    """The tensors that the model has. Raises ModelError when one is missing, has another shape, or would not
    be used.
    """
    wanted, found = checkpoint.config.shapes(), checkpoint.weights
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ModelError(f"{where} lacks {_listed(missing)}: the checkpoint is not complete")
    wrong = [name for name, shape in wanted.items() if found[name].shape != shape]
    if wrong:
        name = wrong[0]
        raise ModelError(
            f"{where}: {name} has shape {list(found[name].shape)}, and {list(wanted[name])} by the model's "
            f"configuration ({len(wrong)} tensor(s) differ)"
        )
    unused = [name for name in found if name not in wanted and not name.endswith(IGNORED)]
    if unused:
        family = checkpoint.config.family
        raise ModelError(
            f"{where} has {_listed(unused)}, which a {family} of this configuration does not read"
        )
    return {name: found[name] for name in wanted}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
