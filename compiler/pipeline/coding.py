"""Codes for the layers that a plan gives a weight format: those that are there already, and new ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..formats import Coded, Format
from ..frontends.language.model import LanguageModel
from ..ir import Graph
from ..plan import Plan
from ..samples import Samples
from .language_models import known_codes

if TYPE_CHECKING:
    from ...passes.layer_coder import EncodeOptions

TOKENS = 8192
"""Of a text, that weights are coded for."""
WINDOW, LEAST_WINDOW = 256, 8
"""Tokens that are read at a time: no more than the usual, and never fewer than the least."""
CALIBRATED, BLIND = "compensate", "search"
"""Methods where none is asked for: with calibration, and without. SmolLM2-135M, KL on two texts: int4:64
rounded 0.66 and 0.73, searched 0.62 and 0.68, compensated 0.09 and 0.25; bitmod4:64 rounded 0.36 and 0.48,
searched 0.38 and 0.48, compensated 0.07 and 0.19."""

PLENTY = 8
"""Bits that need no care."""

Runs = list[dict[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Coding:
    """`given`: codes by layer; `calibration`, `method` and `kept` as `compile` takes them.

    Raises InputError for a text that should calibrate arrays, and the other way round.
    """

    subject: Graph | Sequence[Graph] | LanguageModel
    given: Mapping[str, Coded] | None
    calibration: Samples | str | None
    method: str | None
    kept: str | os.PathLike[str] | None

    def __post_init__(self) -> None:
        if isinstance(self.calibration, str) and not isinstance(self.subject, LanguageModel):
            raise InputError("a text calibrates language models; this model needs arrays, sample inputs")
        if self.method is not None:
            self._options(self.method)

    @property
    def samples(self) -> Samples | None:
        """For ranges of int8 layers."""
        return None if isinstance(self.calibration, str) else self.calibration

    def codes(
        self, prepared: Graph, plan: Plan, progress: Callable[[str, int, int], None]
    ) -> Mapping[str, Coded]:
        """Of every layer that the plan gives a weight format. Raises InputError for a method that needs
        calibration, or for none of the plan's layers."""
        if self.method is not None and not plan.coded:
            raise InputError(
                f"codes by {self.method!r} are for weight formats, and the plan has none: give it some, "
                "such as int4:64"
            )
        found = known_codes(self.subject, self.given)(plan.coded)
        rest = {layer: format for layer, (format, _) in plan.coded.items() if layer not in found}
        method = self.method or (BLIND if self.calibration is None else CALIBRATED)
        rounded = [n for n, format in rest.items() if self._rounds(format)]
        if rounded:
            from ...passes.code_layers import round_layers

            layers = {name: plan.choice(name) for name in rounded}
            found |= round_layers(prepared, replace(plan, layers=layers))
        rest = {name: format for name, format in rest.items() if name not in found}
        if not rest:
            return found
        from ...passes.encode_layers import encode_layers

        graph, samples = self._calibrating(prepared)
        codes = encode_layers(
            graph,
            rest,
            samples,
            self._options(method),
            folder=self.kept,
            progress=lambda done, total, layer: progress("coding weights", done, total),
        )
        return found | {layer: each.coded for layer, each in codes}

    def _rounds(self, format: Format) -> bool:
        """Where no method is asked for, formats of 8 bits are rounded: there is nothing to gain, and it is
        quick."""
        return self.method == "round" or (self.method is None and format.bits >= PLENTY)

    def _options(self, method: str) -> EncodeOptions:
        from ...passes.layer_coder import EncodeOptions

        return EncodeOptions(method)

    def _calibrating(self, prepared: Graph) -> tuple[Graph, Samples | None]:
        """A graph with the layers in question, and its runs."""
        if not isinstance(self.subject, LanguageModel):
            return prepared, self.calibration
        if self.calibration is None:
            return self.subject.graph_whole(1), None
        if not isinstance(self.calibration, str):
            raise InputError("weights of a language model are coded for a text: give one as calibration")
        runs = text_runs(self.subject, self.calibration, TOKENS)
        return self.subject.graph_whole(len(runs[0]["tokens"])), runs


def text_runs(model: LanguageModel, text: str, tokens: int, pieces: int = 1) -> Runs:
    """The text's first tokens as runs of the whole graph, at least so many. Raises InputError for a text that
    is too short, ModelError where the model's tokenizer cannot read it.
    """
    ids = model.tokens_of(text)[:tokens]
    size = min(WINDOW, model.context, len(ids) // pieces)
    if size < LEAST_WINDOW:
        raise InputError(
            f"the calibration text has {len(ids)} tokens, too few: give at least {LEAST_WINDOW * pieces}, "
            "better some thousands"
        )
    return windows(ids, size)


def windows(ids: Sequence[int], size: int) -> Runs:
    """The tokens as runs of so many; what is left at the end is not read."""
    return [{"tokens": np.array(ids[i : i + size], np.int64)} for i in range(0, len(ids) - size + 1, size)]
