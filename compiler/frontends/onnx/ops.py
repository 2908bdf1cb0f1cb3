"""The ONNX operators that bitsmith converts, and what to say about those that it does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .activations import ACTIVATION_RULES
from .attention import ATTENTION_RULES
from .blocks import BLOCK_RULES
from .converter import Rule
from .deform import DEFORM_RULES
from .dynamic import DYNAMIC_RULES
from .einsum import EINSUM_RULES
from .fourier import FOURIER_RULES
from .generate import GENERATE_RULES
from .grouped import GROUPED_RULES
from .index import INDEX_RULES
from .logic import LOGIC_RULES
from .math import MATH_RULES
from .microsoft import MICROSOFT_RULES
from .nn import NN_RULES
from .norm import NORM_RULES
from .pad import PAD_RULES
from .pool import POOL_RULES
from .qlinear import QLINEAR_RULES
from .quantised import QUANTISED_RULES
from .recurrent import RECURRENT_RULES
from .reduce import REDUCE_RULES
from .resize import RESIZE_RULES
from .sample import SAMPLE_RULES
from .shape import SHAPE_RULES
from .transposed import TRANSPOSED_RULES

RULES: dict[str, Rule] = {
    **NN_RULES,
    **POOL_RULES,
    **TRANSPOSED_RULES,
    **NORM_RULES,
    **PAD_RULES,
    **EINSUM_RULES,
    **RESIZE_RULES,
    **RECURRENT_RULES,
    **QUANTISED_RULES,
    **QLINEAR_RULES,
    **DYNAMIC_RULES,
    **BLOCK_RULES,
    **MICROSOFT_RULES,
    **ATTENTION_RULES,
    **GROUPED_RULES,
    **MATH_RULES,
    **ACTIVATION_RULES,
    **REDUCE_RULES,
    **GENERATE_RULES,
    **FOURIER_RULES,
    **SHAPE_RULES,
    **LOGIC_RULES,
    **INDEX_RULES,
    **SAMPLE_RULES,
    **DEFORM_RULES,
}

_RANDOM = "random numbers are not reproducible: export the model in evaluation mode"

HINTS: dict[str, str] = {
    **dict.fromkeys(
        (
            "RandomNormal",
            "RandomNormalLike",
            "RandomUniform",
            "RandomUniformLike",
            "Bernoulli",
            "Multinomial",
        ),
        _RANDOM,
    ),
    **dict.fromkeys(
        ("NonMaxSuppression", "NonZero", "Unique"),
        "its output's size depends on data: end the model before it, at {inputs} "
        "(onnx.utils.extract_model cuts models), and compute the rest where the result is used",
    ),
}

KNOWN = frozenset(RULES) | frozenset(HINTS)
"""Operators that are converted as they are, or refused by their own name, whatever ONNX defines them by."""
NO_RULE = "bitsmith has no conversion for it yet"
FOREIGN = "an operator of another runtime: export the model with standard ONNX operators only"

ONE_MACHINE = (
    "ONNX Runtime's form for one machine: save its optimised model at level extended instead, or take the "
    "model as it was exported"
)
CLASSICAL = "of classical machine learning, not of neural networks: compute that step outside of the model"


def hint_of(op: str, inputs: Sequence[str]) -> str:
    """What a user can do about an operator without a rule; `inputs`: its inputs that are computed."""
    if "::" in op:
        said = {"ai.onnx.ml": CLASSICAL, "com.microsoft.nchwc": ONE_MACHINE}
        return said.get(op.split("::")[0], FOREIGN)
    return HINTS.get(op, NO_RULE).format(inputs=" and ".join(map(repr, inputs)) or "its inputs")


def is_foreign(node: Any) -> bool:
    """Whether an onnx.NodeProto is of another runtime, and not of those that are converted."""
    standard = node.domain in ("", "ai.onnx")
    return not standard and f"{node.domain}::{node.op_type}" not in KNOWN
