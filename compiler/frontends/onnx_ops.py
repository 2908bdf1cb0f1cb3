"""The ONNX operators that bitsmith converts, and what to say about those that it does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .converter import Rule
from .onnx_activations import ACTIVATION_RULES
from .onnx_einsum import EINSUM_RULES
from .onnx_fourier import FOURIER_RULES
from .onnx_generate import GENERATE_RULES
from .onnx_index import INDEX_RULES
from .onnx_logic import LOGIC_RULES
from .onnx_math import MATH_RULES
from .onnx_microsoft import MICROSOFT_RULES
from .onnx_nn import NN_RULES
from .onnx_norm import NORM_RULES
from .onnx_pad import PAD_RULES
from .onnx_pool import POOL_RULES
from .onnx_qlinear import QLINEAR_RULES
from .onnx_quantised import QUANTISED_RULES
from .onnx_recurrent import RECURRENT_RULES
from .onnx_reduce import REDUCE_RULES
from .onnx_resize import RESIZE_RULES
from .onnx_sample import SAMPLE_RULES
from .onnx_shape import SHAPE_RULES
from .onnx_transposed import TRANSPOSED_RULES

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
    **MICROSOFT_RULES,
    **MATH_RULES,
    **ACTIVATION_RULES,
    **REDUCE_RULES,
    **GENERATE_RULES,
    **FOURIER_RULES,
    **SHAPE_RULES,
    **LOGIC_RULES,
    **INDEX_RULES,
    **SAMPLE_RULES,
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

CLASSICAL = "of classical machine learning, not of neural networks: compute that step outside of the model"


def hint_of(op: str, inputs: Sequence[str]) -> str:
    """What a user can do about an operator without a rule; `inputs`: its inputs that are computed."""
    if "::" in op:
        return CLASSICAL if op.startswith("ai.onnx.ml::") else FOREIGN
    return HINTS.get(op, NO_RULE).format(inputs=" and ".join(map(repr, inputs)) or "its inputs")


def is_foreign(node: Any) -> bool:
    """Whether an onnx.NodeProto is of another runtime, and not of those that are converted."""
    standard = node.domain in ("", "ai.onnx")
    return not standard and f"{node.domain}::{node.op_type}" not in KNOWN
