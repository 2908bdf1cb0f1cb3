"""Operators that ONNX Runtime's optimiser fuses compute what ONNX Runtime computes."""

from typing import Any

import numpy as np
import onnx
import pytest
from bitsmith.compiler.errors import UnsupportedError
from bitsmith.compiler.frontends import load_model
from bitsmith.compiler.frontends.onnx.attention import ATTENTION_RULES
from bitsmith.compiler.frontends.onnx.microsoft import MICROSOFT_RULES
from onnx import TensorProto
from onnx_cases import compare
from onnx_models import model

ROWS = {"x": (2, 5, 8)}
THREE = {"q": (2, 5, 8), "k": (2, 7, 8), "v": (2, 7, 12)}
IMAGE = {"x": (1, 4, 6, 6)}
PROJECTION = {"w": (8, 24), "b": (24,)}
TOKENS = {"i": (2, 5), "s": (2, 5), "m": (2, 5)}
TABLES = {"wt": (9, 8), "pt": (7, 8), "st": (2, 8), "g": (8,), "b": (8,)}
ANGLES = {"co": (12, 2), "si": (12, 2)}

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
    ("FusedMatMul", "x z", {"x": (5, 2, 8), "z": (2, 8, 4)}, {}, {"transBatchA": 1}, "y"),
    ("FusedMatMul", "x z", {"x": (2, 5, 8), "z": (8, 2, 4)}, {}, {"transBatchB": 1, "alpha": 0.5}, "y"),
    (
        "FusedMatMul",
        "x z",
        {"x": (8, 2, 5), "z": (4, 2, 8)},
        {},
        {"transBatchA": 1, "transA": 1, "transBatchB": 1, "transB": 1},
        "y",
    ),
    ("TransposeMatMul", "x z", {**ROWS, "z": (2, 5, 4)}, {}, {"transA": 1}, "y"),
    ("Trilu", "x", ROWS, {}, {"upper": 0}, "y"),
    ("GridSample", "x z", {**IMAGE, "z": (1, 3, 4, 2)}, {}, {"padding_mode": "border"}, "y"),
    ("FusedConv", "x w b", IMAGE, {"w": (6, 4, 3, 3), "b": (6,)}, {"activation": "Relu"}, "y"),
    (
        "FusedConv",
        "x w b",
        IMAGE,
        {"w": (6, 4, 3, 3), "b": (6,)},
        {"activation": "Clip", "activation_params": [0.0, 0.5]},
        "y",
    ),
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
    ("MultiHeadAttention", "q k v - m", {**THREE, "m": (2, 7)}, {}, {"num_heads": 2}, "y"),
    (
        "MultiHeadAttention",
        "q k v",
        {**THREE, "k": (2, 2, 7, 4), "v": (2, 2, 7, 4)},
        {},
        {"num_heads": 2},
        "y",
    ),
    (
        "MultiHeadAttention",
        "q k v - - - p r",
        {**dict.fromkeys("qkv", (2, 5, 8)), "p": (2, 2, 3, 4), "r": (2, 2, 3, 4)},
        {},
        {"num_heads": 2, "unidirectional": 1},
        "y k2 v2",
    ),
    ("Attention", "x w b", ROWS, PROJECTION, {"num_heads": 2}, "y"),
    ("Attention", "x w b m", {**ROWS, "m": (2, 5)}, PROJECTION, {"num_heads": 2}, "y"),
    ("Attention", "x w b m", {**ROWS, "m": (2, 5, 5)}, PROJECTION, {"num_heads": 2, "scale": 0.3}, "y"),
    ("Attention", "x w b m", {**ROWS, "m": (2,)}, PROJECTION, {"num_heads": 2}, "y"),
    ("Attention", "x w b m", {**ROWS, "m": (4,)}, PROJECTION, {"num_heads": 2}, "y"),
    ("Attention", "x w b m", {**ROWS, "m": (2, 5)}, PROJECTION, {"num_heads": 2, "unidirectional": 1}, "y"),
    ("Attention", "x w b - - a", {**ROWS, "a": (2, 2, 5, 5)}, PROJECTION, {"num_heads": 2}, "y"),
    (
        "Attention",
        "x w b m p",
        {**ROWS, "m": (2, 8), "p": (2, 2, 2, 3, 4)},
        PROJECTION,
        {"num_heads": 2, "unidirectional": 1},
        "y z",
    ),
    (
        "Attention",
        "x w b",
        ROWS,
        {"w": (8, 28), "b": (28,)},
        {"num_heads": 2, "qkv_hidden_sizes": [8, 8, 12]},
        "y",
    ),
    ("FusedGemm", "x w b", {"x": (3, 8)}, {"w": (6, 8), "b": (6,)}, {"transB": 1, "activation": "Relu"}, "y"),
    ("EmbedLayerNormalization", "i s wt pt st g b m", TOKENS, TABLES, {}, "y n t"),
    ("EmbedLayerNormalization", "i - wt pt - g b - u", {**TOKENS, "u": (2, 5)}, TABLES, {}, "y n"),
    ("RotaryEmbedding", "x o co si", {**ROWS, "o": (2, 5)}, ANGLES, {"num_heads": 2}, "y"),
    ("RotaryEmbedding", "h o co si", {"h": (2, 3, 5, 4), "o": (2, 5)}, ANGLES, {"interleaved": 1}, "y"),
    ("RotaryEmbedding", "h o co si", {"h": (2, 3, 5, 4), "o": (1,)}, ANGLES, {}, "y"),
]
BY_OTHERS = ("LayerNormalization", "SimplifiedLayerNormalization")
"""Those that files have as ONNX's own."""
WHOLE = {
    "i": (9, "int32"),
    "s": (2, "int32"),
    "m": (2, "int32"),
    "o": (4, "int64"),
    "u": (4, "int32"),
    "n": (0, "int32"),
}
"""Values that are whole numbers: below what, and of what type."""


def made(op: str, inputs: str, shapes: dict, weights: dict, attrs: dict[str, Any], outputs: str):
    rng = np.random.default_rng(3)
    names = ["" if name == "-" else name for name in inputs.split()]
    results = ["" if name == "-" else name for name in outputs.split()]
    node = onnx.helper.make_node(op, names, results, domain="com.microsoft", **attrs)
    shapes = {name: shape for name, shape in shapes.items() if name in names}
    weights = {name: shape for name, shape in weights.items() if name in names}
    arrays = {name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in weights.items()}
    kinds = {name: _element(name, op) for name in (*shapes, *filter(None, results))}
    proto = model([node], shapes, {n: kinds[n] for n in results if n}, arrays, domains=["com.microsoft"])
    for value in proto.graph.input:
        value.type.tensor_type.elem_type = kinds[value.name]
    feeds = {name: rng.uniform(-2, 2, shape).astype(np.float32) for name, shape in shapes.items()}
    for name, kind in kinds.items():
        if name in feeds and kind != TensorProto.FLOAT:
            below, dtype = WHOLE[name]
            feeds[name] = rng.integers(0, below, shapes[name]).astype(dtype)
    return proto, feeds


def _element(name: str, op: str) -> int:
    """ONNX's element type of a value; only attention and embeddings read whole numbers."""
    whole = name in WHOLE and ("Attention" in op or "Embed" in op)
    return TensorProto.DataType.Value(WHOLE[name][1].upper()) if whole else TensorProto.FLOAT


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}({case[1]})")
def test_a_fused_operator_agrees_with_onnxruntime(case):
    assert not compare(*made(*case), atol=2e-5).differences


def test_every_rule_has_a_case():
    rules = {name for name in (*MICROSOFT_RULES, *ATTENTION_RULES) if "::" in name}
    assert rules == {f"com.microsoft::{op}" for op in (*BY_OTHERS, *(case[0] for case in CASES))}


@pytest.mark.parametrize("op", BY_OTHERS)
def test_norms_that_onnxruntime_writes_as_if_they_were_onnx(rng, op):
    """In an operator set that has none."""
    node = onnx.helper.make_node(op, ["x", "g"], ["y"], axis=-1, epsilon=1e-3)
    weights = {"g": rng.standard_normal(8).astype(np.float32)}
    proto = model([node], ROWS, weights=weights, opset=13)
    assert not compare(proto, {"x": rng.standard_normal((2, 5, 8)).astype(np.float32)}, atol=2e-6).differences


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (("FusedConv", "x w", IMAGE, {"w": (6, 4, 3, 3)}, {"activation": "Selu"}, "y"), "'Selu'"),
        (("MultiHeadAttention", "q k v", THREE, {}, {"num_heads": 3}, "y"), "for 3 heads"),
        (
            ("MultiHeadAttention", "q k v - m", {**THREE, "m": (8,)}, {}, {"num_heads": 2}, "y"),
            r"a mask of shape \(8,\)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_what_cannot_be_compiled_is_refused(case, message):
    with pytest.raises(UnsupportedError, match=message):
        load_model(made(*case)[0])
