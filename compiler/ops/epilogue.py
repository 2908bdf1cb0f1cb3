"""What conv2d, linear and add do to an accumulator before it is stored.

f = acc * scale[channel] + (residual - r_zero) * r_scale
f = act(f)
y = f                                        out_dtype float32
y = saturate_u8(rint(f * y_inv) + y_zero)    out_dtype uint8; rint rounds ties to even
"""

from __future__ import annotations

from typing import Any

from ..ir import TensorType
from .activations import ACT_ATTRS, ACTIVATIONS, activate
from .opdef import Attrs, require

EPILOGUE_ATTRS: dict[str, Any] = {
    **ACT_ATTRS,
    "x_zero": 0,
    "r_scale": 1.0,
    "r_zero": 0,
    "y_inv": 1.0,
    "y_zero": 0,
    "out_dtype": "float32",
}


def check_epilogue(
    x: TensorType,
    w: TensorType,
    bias: TensorType | None,
    scale: TensorType | None,
    channels: int,
    attrs: Attrs,
) -> None:
    """Raise TypeRuleError unless the types and attributes of a conv2d or linear fit together."""
    quantised = w.dtype == "int8"
    require(
        (x.dtype == "uint8") == quantised,
        f"x is {x.dtype} but w is {w.dtype}: float32 goes with float32 or bfloat16, uint8 with int8",
    )
    require(
        quantised or (x.dtype == "float32" and w.dtype in ("float32", "bfloat16")),
        f"x is {x.dtype} and w is {w.dtype}",
    )
    if bias is not None:
        want = TensorType((channels,), "int32" if quantised else "float32")
        require(bias == want, f"bias is {bias}, must be {want}")
    if scale is not None:
        require(scale == TensorType((channels,)), f"scale is {scale}, must be float32[{channels}]")
    require(
        attrs["act"] in ACTIVATIONS, f"activation {attrs['act']!r} is not one of {', '.join(ACTIVATIONS)}"
    )
    require(
        attrs["out_dtype"] in ("float32", "uint8"),
        f"out_dtype {attrs['out_dtype']!r} is not float32 or uint8",
    )


def check_residual(residual: TensorType | None, out: tuple[int, ...]) -> None:
    if residual is not None:
        require(residual.shape == out, f"residual is {residual}, must have shape {out}")
        require(residual.dtype in ("float32", "uint8"), f"residual is {residual}, must be float32 or uint8")


def operands(x: Any, w: Any, attrs: Attrs) -> tuple[Any, Any]:
    """x without its zero point and w, in a type that holds every product, and int32 sums, exactly.

    Where w is bfloat16, x is rounded to it (ties to even): on every chip, whether it multiplies such pairs
    or not."""
    import torch

    exact = torch.float64 if w.dtype == torch.int8 else torch.float32
    x = x.to(torch.bfloat16) if w.dtype == torch.bfloat16 else x
    return x.to(exact) - attrs["x_zero"], w.to(exact)


def finish(acc: Any, residual: Any, scale: Any, attrs: Attrs) -> Any:
    """The epilogue on torch tensors. `acc` is float32 or integer-valued float64; `scale` broadcasts.

    The multiply-add is rounded once, as a fused multiply-add is; a kernel that rounds the product first may
    differ by one step where the result lies at a rounding tie.
    """
    import torch

    f = acc.to(torch.float32)
    if scale is not None or residual is not None:
        wide = f.to(torch.float64) * (1.0 if scale is None else scale.to(torch.float64))
        if residual is not None:
            r = (residual.to(torch.float32) - float(attrs["r_zero"])) * torch.tensor(
                attrs["r_scale"], dtype=torch.float32
            )
            wide = wide + r.to(torch.float64)
        f = wide.to(torch.float32)
    return store(activate(f, attrs), attrs)


def store(f: Any, attrs: Attrs) -> Any:
    """A float32 tensor as the node's output type says: unchanged, or requantised to uint8."""
    import torch

    if attrs["out_dtype"] == "float32":
        return f
    steps = torch.round(f * torch.tensor(attrs["y_inv"], dtype=torch.float32)) + float(attrs["y_zero"])
    return steps.clamp(0, 255).to(torch.uint8)
