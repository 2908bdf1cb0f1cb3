"""Nodes of networks on sequences, at the edges of what kernels are cut for."""

from __future__ import annotations

from typing import Any

from bitsmith.compiler.ir import TensorType
from bitsmith.compiler.ops import Sample

HEADS: dict[str, Any] = {f"{name}_perm": (0, 2, 1, 3) for name in "qkvy"}


def floats(*shapes: tuple[int, ...], low: float = -2.0, high: float = 2.0, **attrs: Any) -> Sample:
    return Sample(tuple(TensorType(s) for s in shapes), attrs, low, high)


PRODUCTS: dict[str, tuple[str, Sample]] = {
    "product of vectors": ("matmul", floats((1, 9), (9, 1))),
    "outer product": ("matmul", floats((7, 1), (1, 19))),
    "one row": ("matmul", floats((1, 33), (33, 70))),
    "one row, transposed": ("matmul", floats((1, 33), (70, 33), b_perm=(1, 0))),
    "one column": ("matmul", floats((21, 33), (33, 1))),
    "batch of single rows with one matrix": ("matmul", floats((4, 3, 1, 8), (8, 17))),
    "many rows with one matrix": ("matmul", floats((3, 5, 11), (11, 24))),
    "one matrix with many": ("matmul", floats((5, 11), (3, 11, 24), scale=-0.5)),
    "batches that broadcast both ways": ("matmul", floats((2, 1, 5, 7), (3, 7, 9))),
    "empty batch axes": ("matmul", floats((1, 1, 6, 40), (1, 1, 40, 20))),
    "transposed left": ("matmul", floats((2, 13, 10), (2, 13, 18), a_perm=(0, 2, 1))),
    "both transposed": ("matmul", floats((13, 50), (30, 13), a_perm=(1, 0), b_perm=(1, 0))),
    "transposed right, odd": ("matmul", floats((3, 19, 37), (3, 29, 37), b_perm=(0, 2, 1))),
    "strides of every kind": (
        "matmul",
        floats((3, 9, 2, 5), (8, 3, 5, 2), a_perm=(0, 2, 1, 3), b_perm=(1, 3, 2, 0), y_perm=(2, 1, 0, 3)),
    ),
    "rows cut into chunks": ("matmul", floats((300, 40), (40, 56))),
    "long sums": ("matmul", floats((37, 1300), (1300, 43), low=-0.2, high=0.2)),
    "long sums, transposed": (
        "matmul",
        floats((2, 19, 1100), (2, 11, 1100), b_perm=(0, 2, 1), low=-0.2, high=0.2),
    ),
    "one query": ("attention", floats((2, 3, 1, 8), (2, 3, 20, 8), (2, 3, 20, 16))),
    "one key": ("attention", floats((2, 5, 8), (2, 1, 8), (2, 1, 3))),
    "one feature": ("attention", floats((2, 5, 1), (2, 9, 1), (2, 9, 1))),
    "queries without heads": ("attention", floats((90, 24), (75, 24), (75, 40), scale=0.2)),
    "many queries of few heads": (
        "attention",
        floats((1, 200, 2, 16), (1, 33, 2, 16), (1, 33, 2, 16), **HEADS),
    ),
    "heads share keys": ("attention", floats((2, 4, 6, 8), (2, 1, 7, 8), (1, 7, 8))),
    "mask of queries and keys": (
        "attention",
        floats((1, 9, 2, 8), (1, 13, 2, 8), (1, 13, 2, 8), (9, 13), **HEADS, scale=0.3),
    ),
    "mask of queries": ("attention", floats((2, 9, 8), (2, 13, 8), (2, 13, 8), (9, 1))),
    "mask of the batch": (
        "attention",
        floats((3, 7, 2, 8), (3, 10, 2, 8), (3, 10, 2, 8), (3, 1, 1, 10), **HEADS, low=-3, high=3),
    ),
    "one number as mask": ("attention", floats((2, 9, 8), (2, 13, 8), (2, 13, 8), ())),
    "keys in two parts": ("attention", floats((1, 9, 600), (1, 177, 600), (1, 177, 20), scale=0.04)),
    "keys in equal parts": ("attention", floats((1, 9, 600), (1, 256, 600), (1, 256, 20), scale=0.04)),
    "keys in many parts, masked, few heads": (
        "attention",
        floats((2, 120, 300), (2, 330, 300), (2, 330, 410), (120, 330), scale=0.06, low=-3, high=3),
    ),
    "scores far apart": ("attention", floats((2, 9, 8), (2, 13, 8), (2, 13, 8), low=-20, high=20)),
    "keys beside features": (
        "attention",
        floats((2, 6, 11), (2, 11, 17), (2, 9, 17), q_perm=(), k_perm=(0, 2, 1), v_perm=(0, 2, 1)),
    ),
}
"""By name: (operator, sample)."""


def long_linear(
    rows: tuple[int, ...], k: int, n: int, res: str = "", bias: bool = True, **attrs: Any
) -> Sample:
    """A linear layer whose sums are cut."""
    operands = [TensorType((*rows, k)), TensorType((n, k)), TensorType((n,)) if bias else None]
    operands.append(TensorType((*rows, n), res) if res else None)
    return Sample(tuple(operands), attrs, -0.3, 0.3)


LINEARS: dict[str, tuple[str, Sample]] = {
    "linear, long sums": ("linear", long_linear((3, 7), 1030, 53)),
    "linear, long sums, no bias": ("linear", long_linear((40,), 600, 24, bias=False)),
    "linear, long sums, residual": ("linear", long_linear((19,), 1536, 50, "float32", act="gelu")),
    "linear, long sums, uint8 residual": (
        "linear",
        long_linear((9,), 777, 17, "uint8", r_scale=0.02, r_zero=100, act="clip", lo=0.0),
    ),
    "linear, short sums, gelu": ("linear", long_linear((2, 30), 24, 45, act="gelu")),
    "linear, short sums, gelu, residual": ("linear", long_linear((61,), 200, 96, "float32", act="gelu")),
    "linear, large arguments of gelu": (
        "linear",
        Sample((TensorType((9, 16)), TensorType((40, 16)), None), {"act": "gelu"}, -4, 4),
    ),
    "linear, many long sums": ("linear", long_linear((210,), 521, 130, act="silu")),
}

REDUCED: dict[str, tuple[str, Sample]] = {
    **{
        f"{name} of {length}": (name, floats((5, length), low=-9, high=9, **attrs))
        for name, attrs in (
            ("softmax", {"axis": 1}),
            ("rms_norm", {"eps": 1e-6}),
            ("reduce_max", {"axes": (1,)}),
            ("reduce_mean", {"axes": (1,)}),
        )
        for length in (2, 8, 33, 100)
    },
    "softmax of large numbers": ("softmax", floats((3, 1, 50), axis=2, low=-3e4, high=3e4)),
    "softmax along the first axis": ("softmax", floats((7, 45), axis=0)),
    "softmax along a middle axis": ("softmax", floats((2, 9, 3, 5), axis=1)),
    "softmax along a middle axis, wide": ("softmax", floats((2, 4, 131), axis=1, low=-50, high=50)),
    "norm of one number": ("layer_norm", floats((4, 1), (1,), (1,), eps=1e-3)),
    "norm with beta only": ("layer_norm", Sample((TensorType((6, 70)), None, TensorType((70,))))),
    "norm of numbers far from zero": ("layer_norm", floats((4, 65), low=40, high=60)),
    "norm of one row": ("layer_norm", floats((40,), (40,), (40,))),
    "sum of all": ("reduce_sum", floats((3, 5, 7), axes=(0, 1, 2))),
    "sum over the first axes": ("reduce_sum", floats((3, 5, 37), axes=(0, 1), keepdims=False)),
    "sum over axes around one of one element": ("reduce_sum", floats((3, 4, 1, 5, 6), axes=(1, 3))),
    "mean over a middle axis": ("reduce_mean", floats((2, 11, 3, 3), axes=(1,), keepdims=False)),
    "maximum over a middle axis, negative": ("reduce_max", floats((2, 5, 70), axes=(1,), low=-9, high=-1)),
}


def moved(dtype: str, *shapes: tuple[int, ...], **attrs: Any) -> Sample:
    return Sample(tuple(TensorType(s, dtype) for s in shapes), attrs)


MOVED: dict[str, tuple[str, Sample]] = {
    **{
        f"transpose {shape} by {perm}, {dtype}": ("transpose", moved(dtype, shape, perm=perm))
        for dtype, shape, perm in (
            ("float32", (16, 16), (1, 0)),
            ("float32", (37, 45), (1, 0)),
            ("float32", (5, 3), (1, 0)),
            ("float32", (8, 300), (1, 0)),
            ("float32", (2, 9, 4, 20), (0, 2, 1, 3)),
            ("float32", (2, 9, 4, 20), (0, 2, 3, 1)),
            ("float32", (3, 17, 2, 19), (3, 1, 0, 2)),
            ("float32", (1, 24, 1, 40), (0, 3, 2, 1)),
            ("float32", (4, 5, 3), (1, 0, 2)),
            ("float32", (6, 1, 7, 1), (3, 2, 1, 0)),
            ("uint8", (1, 9, 11, 35), (0, 3, 1, 2)),
            ("uint8", (3, 9, 70), (1, 0, 2)),
            ("int64", (5, 6, 7), (2, 1, 0)),
            ("bool", (5, 9), (1, 0)),
            ("float64", (9, 5, 2), (1, 0, 2)),
        )
    },
    "slice of rows": ("slice", moved("float32", (9, 31), starts=(2, 5), stops=(8, 28), steps=(1, 1))),
    "slice with steps": (
        "slice",
        moved("float32", (3, 19, 31), starts=(0, 1, 2), stops=(3, 19, 30), steps=(1, 3, 2)),
    ),
    "slice of one column": ("slice", moved("float32", (40, 9), starts=(0, 4), stops=(40, 5), steps=(1, 1))),
    "slice of whole matrices": (
        "slice",
        moved("uint8", (5, 40, 30), starts=(1, 0, 0), stops=(4, 40, 30), steps=(1, 1, 1)),
    ),
    "slice, int64": ("slice", moved("int64", (50,), starts=(3,), stops=(50,), steps=(5,))),
    "concat of many rows": ("concat", moved("float32", (120, 30), (120, 1), (120, 50), (120, 3), axis=1)),
    "concat of the first axis": ("concat", moved("float32", (2, 5, 7), (1, 5, 7), (4, 5, 7), axis=0)),
    "concat, uint8": ("concat", moved("uint8", (1, 6, 5, 33), (1, 6, 5, 2), (1, 6, 5, 16), axis=3)),
    "concat of a value with itself, int64": ("concat", moved("int64", (4, 3), (4, 2), axis=1)),
}

ELEMENTWISE: dict[str, tuple[str, Sample]] = {
    "row and column": ("mul", floats((17, 1), (1, 23))),
    "column of a matrix": ("sub", floats((9, 33), (9, 1))),
    "number on the left": ("div", floats((), (5, 7), low=1)),
    "channels": ("add", floats((2, 5, 6, 19), (19,), act="silu")),
    "channels of planes": ("add", floats((2, 19, 5, 6), (19, 1, 1), act="clip", lo=0.0, hi=1.5)),
    "batches that broadcast": ("minimum", floats((2, 1, 3, 1, 10), (4, 1, 7, 1))),
    "many elements": ("mul", floats((20011,), (20011,))),
    "many elements and a number": ("maximum", floats((3, 7000), (1, 1))),
    "one element": ("mul", floats((1, 1), ())),
    "rsqrt of many": ("rsqrt", floats((3, 37), low=1e-3, high=1e4)),
    "erf of many": ("erf", floats((3, 401), low=-6, high=6)),
    "absolute values": ("abs", floats((3, 37), low=-1e4, high=1e4)),
}

TENSORS = {**PRODUCTS, **LINEARS, **REDUCED, **MOVED, **ELEMENTWISE}
