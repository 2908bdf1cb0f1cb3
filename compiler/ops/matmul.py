"""Products of two computed operands: matmul, and attention, which is two of them with a softmax between.

Operands may be read through a permutation of their axes, and the result written through one: a transpose
beside a product then costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..ir import TensorType
from .opdef import (
    Attrs,
    Coupling,
    OpDef,
    Sample,
    Types,
    broadcast_shapes,
    given,
    present,
    require,
)

Perm = tuple[int, ...]


def view_perm(perm: Perm, rank: int) -> Perm:
    """A permutation attribute: `()` stands for the axes as they lie."""
    return perm or tuple(range(rank))


def viewed(shape: tuple[int, ...], perm: Perm) -> tuple[int, ...]:
    """The shape as a permutation attribute shows it."""
    return tuple(shape[p] for p in view_perm(perm, len(shape)))


def _check_perm(name: str, perm: Perm, rank: int) -> None:
    require(
        not perm or sorted(perm) == list(range(rank)), f"{name} {perm} does not permute the axes of {rank}"
    )


def _matrices(types: Types, attrs: Attrs, names: Sequence[str]) -> list[tuple[int, ...]]:
    """Shapes of the operands as they are viewed; each must be float32 and have at least two axes."""
    shapes = []
    for i, name in enumerate(names):
        kind = given(types, i)
        require(kind.dtype == "float32", f"{name} must be float32, got {kind}")
        require(len(kind.shape) >= 2, f"{name} must have at least two axes, got {kind}")
        _check_perm(f"{name}_perm", attrs[f"{name}_perm"], len(kind.shape))
        shapes.append(viewed(kind.shape, attrs[f"{name}_perm"]))
    return shapes


def _result(shape: tuple[int, ...], attrs: Attrs) -> tuple[TensorType, ...]:
    _check_perm("y_perm", attrs["y_perm"], len(shape))
    return (TensorType(viewed(shape, attrs["y_perm"])),)


def _permuted(x: Any, perm: Perm) -> Any:
    return x.permute(perm) if perm else x


def _relax_permuted(x: Any, perm: Perm) -> Any:
    from tvm import relax

    return relax.op.permute_dims(x, list(perm)) if perm else x


def _relax_scaled(x: Any, scale: float) -> Any:
    from tvm import relax

    return x if scale == 1.0 else relax.op.multiply(x, relax.const(scale, "float32"))


def _slot(name: str, perm: Perm, axis: int, rank: int) -> tuple[str, int]:
    """The axis of an operand that shows as `axis`, counted from the end."""
    return name, view_perm(perm, rank)[axis]


def _out_slot(attrs: Attrs, axis: int, rank: int) -> tuple[str, int]:
    return "y", view_perm(attrs["y_perm"], rank).index(rank + axis)


def _infer_matmul(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    a, b = _matrices(types, attrs, ("a", "b"))
    require(a[-1] == b[-2], f"inner dimensions of {given(types, 0)} and {given(types, 1)} differ")
    batch = broadcast_shapes(a[:-2], b[:-2])
    return _result((*batch, a[-2], b[-1]), attrs)


def _reference_matmul(inputs: Sequence[Any], attrs: Attrs) -> Any:
    a, b = (_permuted(x, attrs[f"{n}_perm"]) for x, n in zip(inputs, "ab", strict=True))
    y = a @ b
    y = y if attrs["scale"] == 1.0 else y * attrs["scale"]
    return _permuted(y, attrs["y_perm"]).contiguous()


def _relax_matmul(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    a, b = (_relax_permuted(x, attrs[f"{n}_perm"]) for x, n in zip(args, "ab", strict=True))
    return _relax_permuted(_relax_scaled(relax.op.matmul(a, b), attrs["scale"]), attrs["y_perm"])


def _couple_matmul(types: Types, attrs: Attrs) -> tuple[Coupling, ...]:
    ranks = {n: len(given(types, i).shape) for i, n in enumerate("ab")}
    out = max(ranks.values())

    def slot(name: str, axis: int) -> tuple[str, int]:
        return _slot(name, attrs[f"{name}_perm"], axis, ranks[name])

    rows = frozenset({slot("a", -2), _out_slot(attrs, -2, out)})
    columns = frozenset({slot("b", -1), _out_slot(attrs, -1, out)})
    return rows, columns, frozenset({slot("a", -1), slot("b", -2)})


def _inner(types: Types, attrs: Attrs) -> int:
    return viewed(given(types, 0).shape, attrs["a_perm"])[-1]


MATMUL = OpDef(
    name="matmul",
    inputs=("a", "b"),
    required=2,
    infer=_infer_matmul,
    reference=_reference_matmul,
    samples=(
        Sample((TensorType((2, 5, 7)), TensorType((2, 7, 3)))),
        Sample((TensorType((4, 6)), TensorType((3, 6, 8)))),
        Sample((TensorType((2, 9, 11)), TensorType((2, 20, 11))), {"b_perm": (0, 2, 1), "scale": 0.25}),
        Sample(
            (TensorType((1, 5, 3, 8)), TensorType((1, 6, 3, 8))),
            {"a_perm": (0, 2, 1, 3), "b_perm": (0, 2, 3, 1), "y_perm": (0, 2, 1, 3)},
        ),
    ),
    attrs={"a_perm": (), "b_perm": (), "y_perm": (), "scale": 1.0},
    couple=_couple_matmul,
    flops=lambda types, outs, attrs: 2 * outs[0].size * _inner(types, attrs),
    relax=_relax_matmul,
)
"""y = permute((permute(a) @ permute(b)) * scale), with numpy's broadcasting of the leading axes."""


def _infer_attention(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    q, k, v = _matrices(types, attrs, ("q", "k", "v"))
    require(q[-1] == k[-1], f"q shows as {q} and k as {k}: their last axes differ")
    require(k[-2] == v[-2], f"k shows as {k} and v as {v}: their numbers of keys differ")
    batch = broadcast_shapes(broadcast_shapes(q[:-2], k[:-2]), v[:-2])
    mask = present(types, 3)
    if mask is not None:
        scores = (*batch, q[-2], k[-2])
        fits = mask.dtype == "float32" and broadcast_shapes(mask.shape, scores) == scores
        require(fits, f"mask is {mask}, must be float32 and broadcast to the scores {scores}")
    return _result((*batch, q[-2], v[-1]), attrs)


def _reference_attention(inputs: Sequence[Any], attrs: Attrs) -> Any:
    q, k, v = (_permuted(x, attrs[f"{n}_perm"]) for x, n in zip(inputs[:3], "qkv", strict=True))
    scores = q @ k.transpose(-1, -2) * attrs["scale"]
    if len(inputs) > 3 and inputs[3] is not None:
        scores = scores + inputs[3]
    shares = scores.softmax(dim=-1)
    if attrs["guarded"]:
        shares = shares.nan_to_num(nan=0.0)
    return _permuted(shares @ v, attrs["y_perm"]).contiguous()


def _relax_attention(args: Sequence[Any], attrs: Attrs) -> Any:
    from tvm import relax

    q, v = (_relax_permuted(args[i], attrs[f"{n}_perm"]) for i, n in ((0, "q"), (2, "v")))
    *batch, keys, features = view_perm(attrs["k_perm"], len(args[1].ty.shape))
    k = relax.op.permute_dims(args[1], [*batch, features, keys])
    scores = _relax_scaled(relax.op.matmul(q, k), attrs["scale"])
    if len(args) > 3 and args[3] is not None:
        scores = relax.op.add(scores, args[3])
    shares = relax.op.nn.softmax(scores, axis=-1)
    if attrs["guarded"]:
        shares = relax.op.where(relax.op.isnan(shares), relax.const(0.0, "float32"), shares)
    return _relax_permuted(relax.op.matmul(shares, v), attrs["y_perm"])


def _couple_attention(types: Types, attrs: Attrs) -> tuple[Coupling, ...]:
    """Heads and queries keep to themselves under a mask that may tell them apart; so only features couple."""
    ranks = {n: len(given(types, i).shape) for i, n in enumerate("qkv")}
    out = max(ranks.values())

    def slot(name: str, axis: int) -> tuple[str, int]:
        return _slot(name, attrs[f"{name}_perm"], axis, ranks[name])

    return (
        frozenset({slot("q", -1), slot("k", -1)}),
        frozenset({slot("v", -1), _out_slot(attrs, -1, out)}),
    )


def _attention_flops(types: Types, outs: Sequence[TensorType], attrs: Attrs) -> int:
    k = viewed(given(types, 1).shape, attrs["k_perm"])
    v = viewed(given(types, 2).shape, attrs["v_perm"])
    scores = outs[0].size // max(1, v[-1]) * k[-2]
    return scores * (2 * k[-1] + 2 * v[-1] + 4)


def _hidden(queries: int, keys: int) -> Any:
    """A mask that hides some keys, and from the first query all."""
    import numpy as np

    mask = np.where(np.arange(queries * keys) % 3 == 0, -np.inf, 0.0).astype(np.float32)
    mask[:keys] = -np.inf
    return mask.reshape(queries, keys)


ATTENTION = OpDef(
    name="attention",
    inputs=("q", "k", "v", "mask"),
    required=3,
    infer=_infer_attention,
    reference=_reference_attention,
    samples=(
        Sample((TensorType((2, 3, 9, 8)), TensorType((2, 3, 11, 8)), TensorType((2, 3, 11, 5)))),
        Sample(
            (
                TensorType((1, 13, 3, 16)),
                TensorType((1, 13, 3, 16)),
                TensorType((1, 13, 3, 16)),
                TensorType((1, 1, 1, 13)),
            ),
            {**{f"{n}_perm": (0, 2, 1, 3) for n in "qkvy"}, "scale": 0.25},
        ),
        Sample(
            (TensorType((9, 8)), TensorType((11, 8)), TensorType((11, 5)), _hidden(9, 11)), {"guarded": True}
        ),
    ),
    attrs={"q_perm": (), "k_perm": (), "v_perm": (), "y_perm": (), "scale": 1.0, "guarded": False},
    couple=_couple_attention,
    flops=_attention_flops,
    relax=_relax_attention,
)
"""y = permute(softmax(permute(q) @ permute(k)^T * scale + mask) @ permute(v)); q, k, v show as
[..., queries or keys, features], the mask broadcasts to [..., queries, keys]. `guarded`: a query from which
the mask hides all keys (by minus infinity) gets zeros.
(Vaswani et al., "Attention Is All You Need", 2017)"""
