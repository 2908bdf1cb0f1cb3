"""Operators that ONNX Runtime's optimiser fuses compute what ONNX Runtime computes."""

from typing import Any

import numpy as np
import onnx
import pytest
from bitsmith.compiler.errors import UnsupportedError
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.frontends.onnx.microsoft import MICROSOFT_RULES
from onnx_cases import compare
from onnx_models import model

ROWS = {"x": (2, 5, 8)}
THREE = {"q": (2, 5, 8), "k": (2, 7, 8), "v": (2, 7, 12)}
IMAGE = {"x": (1, 4, 6, 6)}

# operator, inputs, shapes computed at run time, shapes of weights, attributes, outputs
CASES: list[tuple[str, str, dict, dict, dict, str]] = [
    ("BiasGelu", "x b", ROWS, {"b": (8,)}, {}, "y"),
    ("Gelu", "x", ROWS, {}, {}, "y"),
    ("FastGelu", "x b", ROWS, {"b": (8,)}, {}, "y"),
    ("FastGelu", "x", ROWS, {}, {}, "y"),
    ("QuickGelu", "x", ROWS, {}, {"alpha": 1.5}, "y"),
    ("SkipLayerNormalization", "x s g b c", {**ROWS, "s": (2, 5, 8)}, dict.fromkeys("gbc", (8,)), {}, "y"),
    ("SkipLayerNormalization", "x s g", {**ROWS, "s": (2, 5, 8)}, {"g": (8,)}, {"epsilon": 0.1}, "y - - t"),
    (
        "SkipSimplifiedLayerNormalization",
        "x s g",
        {**ROWS, "s": (2, 5, 8)},
        {"g": (8,)},
        {"epsilon": 0.1},
        "y",
    ),
    ("FusedMatMul", "x w", ROWS, {"w": (6, 8)}, {"transB": 1, "alpha": 0.5}, "y"),
    ("FusedMatMul", "x z", {**ROWS, "z": (2, 5, 4)}, {}, {"transA": 1, "alpha": 0.25}, "y"),
    ("FusedMatMul", "x z", {**ROWS, "z": (2, 4, 8)}, {}, {"transB": 1}, "y"),
    ("FusedConv", "x w b", IMAGE, {"w": (6, 4, 3, 3), "b": (6,)}, {"activation": "Relu"}, "y"),
    (
        "FusedConv",
        "x w b z",
        {**IMAGE, "z": (1, 6, 6, 6)},
        {"w": (6, 4, 3, 3), "b": (6,)},
        {"activation": "LeakyRelu", "activation_params": [0.3], "pads": [1, 1, 1, 1]},
        "y",
    ),
    ("MultiHeadAttention", "q k v", THREE, {}, {"num_heads": 2}, "y"),
    ("MultiHeadAttention", "q k v b", THREE, {"b": (28,)}, {"num_heads": 4, "scale": 0.3}, "y"),
    ("MultiHeadAttention", "q k v - - a", {**THREE, "a": (2, 2, 5, 7)}, {}, {"num_heads": 2}, "y"),
]


def made(op: str, inputs: str, shapes: dict, weights: dict, attrs: dict[str, Any], outputs: str):
    rng = np.random.default_rng(3)
    names = ["" if name == "-" else name for name in inputs.split()]
    results = ["" if name == "-" else name for name in outputs.split()]
    node = onnx.helper.make_node(op, names, results, domain="com.microsoft", **attrs)
    arrays = {name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in weights.items()}
    proto = model([node], shapes, [name for name in results if name], arrays, domains=["com.microsoft"])
    return proto, {name: rng.uniform(-2, 2, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}({case[1]})")
def test_a_fused_operator_agrees_with_onnxruntime(case):
    assert not compare(*made(*case), atol=2e-5).differences


def test_every_rule_has_a_case():
    assert set(MICROSOFT_RULES) == {f"com.microsoft::{case[0]}" for case in CASES}


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (("FusedConv", "x w", IMAGE, {"w": (6, 4, 3, 3)}, {"activation": "Selu"}, "y"), "'Selu'"),
        (("MultiHeadAttention", "q k v", THREE, {}, {"num_heads": 3}, "y"), "for 3 heads"),
        (
            ("MultiHeadAttention", "q k v - m", {**THREE, "m": (2, 7)}, {}, {"num_heads": 2}, "y"),
            "padding mask",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_what_cannot_be_compiled_is_refused(case, message):
    with pytest.raises(UnsupportedError, match=message):
        load_model(made(*case)[0])
