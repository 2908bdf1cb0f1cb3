"""coded_linear, coded_gather: a product with, and rows of, a weight stored as codes (compiler/formats).

    weight[n, k] = scale[n, g] * level[n, k]                         g: the group that k lies in
    float32      y = sum over k of x * weight
    int8         y = s * sum over g of scale[n, g] * (sum over k in g of level * q)
                 s = max |x| / 127 of the token, q = x / s rounded to even
    int8:group   the same with an s for each token and group

then + bias + residual, then the activation. The sums in int8 are exact integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..formats import (
    Coded,
    Format,
    decode,
    encode,
    family_of,
    format_of,
    levels,
    scales,
)
from ..ir import TensorType
from .activations import ACT_ATTRS, ACTIVATIONS, activate
from .index import check_indices, inside
from .opdef import (
    Attrs,
    OpDef,
    Sample,
    Types,
    given,
    present,
    require,
)

ACTIVATION_TYPES = ("float32", "int8", "int8:group")
ROWS = 2048
"""Rows of a weight that the reference decodes at a time."""


def coded_of(arrays: Sequence[np.ndarray | None], attrs: Attrs) -> Coded:
    """The weight of a node: arrays are codes, scale, row_scale and side, the last two None when absent."""
    codes, scale, row_scale, side = (*arrays, None, None)[:4]
    assert codes is not None and scale is not None
    format = format_of(str(attrs["format"]))
    named = {"codes": codes, "scale": scale, "row_scale": row_scale, family_of(format).side: side}
    kept = {name: array for name, array in named.items() if array is not None}
    return Coded(format, (len(codes), int(attrs["k"])), kept)


def coded_operands(coded: Coded) -> tuple[np.ndarray | None, ...]:
    """codes, scale, row_scale and side: what the operators read, in their order."""
    side = family_of(coded.format).side
    return tuple(coded.arrays.get(name) for name in ("codes", "scale", "row_scale", side))


def _sides(format: Format, n: int, groups: int) -> TensorType | None:
    kinds = {
        "selector": TensorType((n, -(-groups // 4)), "uint8"),
        "zero": TensorType((n, groups), "uint8"),
        "alpha": TensorType((n, groups, format.bits), "int8"),
    }
    return kinds.get(family_of(format).side)


def _check_weight(types: Types, attrs: Attrs) -> tuple[Format, int]:
    """Raise TypeRuleError unless the stored arrays are what the format says; gives the format and n."""
    format, k, codes = format_of(str(attrs["format"])), attrs["k"], given(types, 1)
    require(isinstance(k, int) and k > 0, f"k is {k!r}, must be the width of the weight")
    n, groups = codes.shape[0] if codes.shape else 0, format.groups(k)
    two = format.scale == "two-level"
    kind_of_scale = "uint8" if two else format.scale
    wanted = (
        ("codes", TensorType((n, groups, format.group_bytes(k)), "uint8")),
        ("scale", TensorType((n, groups), kind_of_scale)),
        ("row_scale", TensorType((n,)) if two else None),
        ("side", _sides(format, n, groups)),
    )
    for i, (name, want) in enumerate(wanted, 1):
        kind = present(types, i)
        require(kind == want, f"{name} is {kind}, must be {want} in {format} with k = {k}")
    return format, n


def _infer_linear(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    x, (_, n) = given(types, 0), _check_weight(types, attrs)
    k, bias, residual = attrs["k"], present(types, 5), present(types, 6)
    require(x.dtype == "float32" and x.shape[-1:] == (k,), f"x is {x}, must be float32[..., {k}]")
    out = TensorType((*x.shape[:-1], n))
    require(bias in (None, TensorType((n,))), f"bias is {bias}, must be float32[{n}]")
    require(residual in (None, out), f"residual is {residual}, must be {out}")
    require(attrs["activations"] in ACTIVATION_TYPES, f"activations are {attrs['activations']!r}")
    require(
        attrs["act"] in ACTIVATIONS, f"activation {attrs['act']!r} is not one of {', '.join(ACTIVATIONS)}"
    )
    return (out,)


def quantised_rows(x: Any) -> tuple[Any, Any]:
    """int8-valued float32 [..., w] and float32 scales [..., 1] of rows: symmetric, the largest on 127."""
    import torch

    largest = x.abs().amax(-1, keepdim=True)
    steps = torch.tensor(127.0)
    inverse = torch.where(largest > 0, steps / largest, torch.zeros_like(largest))
    # A row of subnormal numbers has no finite inverse: it counts as zero.
    inverse = torch.where(torch.isfinite(inverse), inverse, torch.zeros_like(inverse))
    return torch.round(x * inverse), largest / steps


def _grouped(x: Any, format: Format, k: int) -> Any:
    """x [t, k] as [t, groups, width], zeros behind."""
    import torch

    missing = format.groups(k) * format.width(k) - k
    return torch.nn.functional.pad(x, (0, missing)).reshape(len(x), format.groups(k), -1)


def rounded_inputs(x: Any, format: Format) -> Any:
    """float32 [..., k] as `int8:group` reads it beside a weight in this format, scales included."""
    rows = x.reshape(-1, x.shape[-1])
    q, s = quantised_rows(_grouped(rows, format, x.shape[-1]))
    return (q * s).reshape(len(rows), -1)[:, : x.shape[-1]].reshape(x.shape)


def _integer_sums(coded: Coded, q: Any) -> Any:
    """float64 [t, n, groups]: sums of level * q; q float64 [t, groups, width]."""
    import torch

    from ..formats import codes_of

    of_codes = np.take_along_axis(levels(coded), codes_of(coded).astype(np.intp), 2).astype(np.float64)
    return torch.einsum("tgw,ngw->tng", q, torch.from_numpy(of_codes))


def _product(coded: Coded, x: Any, activations: str) -> Any:
    """float64 [t, n] of float32 x [t, k]."""
    import torch

    if activations == "float32":
        return x.to(torch.float64) @ torch.from_numpy(decode(coded)).to(torch.float64).T
    if activations == "int8":
        q, s = quantised_rows(x)
        q, s = _grouped(q, coded.format, x.shape[1]), s[:, :, None]
    else:
        q, s = quantised_rows(_grouped(x, coded.format, x.shape[1]))
        s = s.reshape(len(x), 1, -1)
    of_groups = torch.from_numpy(scales(coded).astype(np.float64))
    return (_integer_sums(coded, q.to(torch.float64)) * of_groups * s.to(torch.float64)).sum(-1)


def _reference_linear(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    x, *stored = inputs
    bias, residual = (*stored, None, None)[4:6] if len(stored) > 4 else (None, None)
    coded = coded_of([None if t is None else t.numpy() for t in stored[:4]], attrs)
    n, k = coded.shape
    rows = x.reshape(-1, k)
    parts = [
        _product(coded.rows(begin, min(n, begin + ROWS)), rows, attrs["activations"])
        for begin in range(0, n, ROWS)
    ]
    f = torch.cat(parts, 1).reshape(*x.shape[:-1], n)
    for extra in (bias, residual):
        f = f if extra is None else f + extra.to(torch.float64)
    return activate(f.to(torch.float32), attrs)


def _infer_gather(types: Types, attrs: Attrs) -> tuple[TensorType, ...]:
    indices = given(types, 0)
    check_indices(indices)
    _, n = _check_weight(types, attrs)
    require(n > 0, "there is no row to choose from")
    return (TensorType((*indices.shape, attrs["k"])),)


def _reference_gather(inputs: Sequence[Any], attrs: Attrs) -> Any:
    import torch

    indices, *stored = inputs
    coded = coded_of([None if t is None else t.numpy() for t in stored], attrs)
    rows = inside(indices.numpy(), coded.shape[0]).reshape(-1)
    # Row by row: decoding the whole table would take its size in float32.
    chosen = {row: decode(coded.rows(row, row + 1)) for row in set(rows.tolist())}
    made = np.concatenate(
        [chosen[row] for row in rows.tolist()] or [np.empty((0, coded.shape[1]), np.float32)]
    )
    return torch.from_numpy(made.reshape(*indices.shape, coded.shape[1]))


def sample_weight(n: int, k: int, format: str) -> Coded:
    """A weight that takes part in samples and tests: normal, rows of different size, one group of zeros."""
    rng = np.random.default_rng(n * k)
    weight = rng.standard_normal((n, k)) * np.linspace(0.2, 1.8, n)[:, None] / k**0.5
    weight[n // 2, : k // 2] = 0
    return encode(weight.astype(np.float32), format_of(format))


def _linear_sample(
    rows: tuple[int, ...], n: int, k: int, format: str, activations: str, *, extra: bool = False, **attrs: Any
) -> Sample:
    more = (np.linspace(-1, 1, n, dtype=np.float32), TensorType((*rows, n))) if extra else ()
    operands = (TensorType((*rows, k)), *coded_operands(sample_weight(n, k, format)), *more)
    return Sample(operands, {"format": format, "k": k, "activations": activations, **attrs})


def _gather_sample(shape: tuple[int, ...], n: int, k: int, format: str) -> Sample:
    operands = (TensorType(shape, "int64"), *coded_operands(sample_weight(n, k, format)))
    return Sample(operands, {"format": format, "k": k})


CODED_LINEAR = OpDef(
    name="coded_linear",
    inputs=("x", "codes", "scale", "row_scale", "side", "bias", "residual"),
    required=3,
    infer=_infer_linear,
    reference=_reference_linear,
    samples=(
        _linear_sample((1,), 24, 160, "int4:32", "int8"),
        _linear_sample((1, 1), 37, 200, "bitmod4:64", "int8", extra=True, act="clip", lo=0.0),
        _linear_sample((9,), 40, 256, "bitmod4:128", "int8", extra=True),
        _linear_sample((2, 3), 33, 96, "int4a:32", "int8:group", act="silu"),
        _linear_sample((1,), 16, 100, "nf4:64", "float32"),
        _linear_sample((4,), 20, 100, "int8:channel", "int8"),
        _linear_sample((5,), 20, 72, "bitmod3:24", "float32", extra=True),
        _linear_sample((1,), 24, 160, "int4a:32:float32", "float32", extra=True),
        _linear_sample((3,), 24, 96, "int8:32:float32", "int8"),
    ),
    attrs={**ACT_ATTRS, "format": None, "k": None, "activations": "float32"},
    flops=lambda types, outs, attrs: 2 * outs[0].size * attrs["k"],
    layer=True,
)

CODED_GATHER = OpDef(
    name="coded_gather",
    inputs=("indices", "codes", "scale", "row_scale", "side"),
    required=3,
    infer=_infer_gather,
    reference=_reference_gather,
    samples=(
        _gather_sample((7,), 21, 160, "int4:32"),
        _gather_sample((2, 3), 40, 100, "bitmod3:64"),
        _gather_sample((), 9, 64, "int4a:64"),
        _gather_sample((3,), 20, 64, "int4:32:float32"),
    ),
    attrs={"format": None, "k": None},
    flops=lambda types, outs, attrs: outs[0].size,
    plain=(),
)
"""Indices as gather's."""

CODED = (CODED_LINEAR, CODED_GATHER)
