"""Whether a convolution is computed with fewer multiplications, and its calls (conv/winograd_spec.py)."""

from __future__ import annotations

import numpy as np

from ..compiler.ir import Graph, Node
from .call import (
    STACK_BYTES,
    KernelCall,
    Operand,
    Temporary,
    Weights,
)
from .kernels.conv.gemm_spec import GemmSpec, fold_zero_point
from .kernels.conv.window import Window
from .kernels.conv.winograd_spec import (
    MOST_CHANNELS,
    NEARLY,
    TRANSFORMS,
    Tiling,
    WinogradInputSpec,
    WinogradSpec,
    cycles,
    pack_filters,
    pays,
)
from .kernels.epilogue import UNIT


def winograd(graph: Graph, node: Node, direct: GemmSpec) -> tuple[KernelCall, ...] | None:
    """The two calls of a convolution for which they are faster than `direct`; None for others."""
    spec = _best(direct)
    if spec is None:
        return None
    inputs = WinogradInputSpec(**{name: getattr(spec, name) for name in Tiling.__dataclass_fields__})
    tiles = Temporary(f"{node.name}/tiles", spec.nbytes)
    x, w, bias, residual, scale = (*node.inputs, "", "", "")[:5]
    e = spec.epilogue

    def pack_bias() -> np.ndarray:
        values = graph.params[bias] if bias else np.zeros(spec.oc, e.acc_dtype)
        whole = fold_zero_point(graph.params[w], spec.x_zero, values) if spec.quantised else values
        return whole[spec.channels]

    operands: list[Operand] = [
        tiles,
        Weights(graph.type_of(w).nbytes, lambda: pack_filters(spec, graph.params[w])),
    ]
    if e.bias:
        operands.append(Weights(4 * spec.oc, pack_bias))
    if e.scale:
        operands.append(Weights(4 * spec.oc, lambda: graph.params[scale].reshape(-1)[spec.channels]))
    if e.residual:
        operands.append(residual)
    return (
        KernelCall(inputs, (x, tiles), inputs.tasks),
        KernelCall(spec, (*operands, node.output), spec.tasks),
    )


def _best(direct: GemmSpec) -> WinogradSpec | None:
    fits = (
        (direct.kernel, direct.strides, direct.dilations) == ((3, 3), (1, 1), (1, 1))
        and (direct.groups, direct.nchw_in) == (1, False)
        and (_fits_int8(direct) if direct.x_dtype == "uint8" else _fits_float(direct))
    )
    if not fits:
        return None
    window = {name: getattr(direct, name) for name in Window.__dataclass_fields__}
    same = ("lanes", "registers", "oc", "epilogue", "x_dtype", "x_zero")
    rest = {name: getattr(direct, name) for name in same}
    rest["narrow"] = direct.dot == "bf16"
    sizes = (2,) if direct.x_dtype == "uint8" else TRANSFORMS
    specs = [WinogradSpec(**window, **rest, m=m) for m in sizes]
    worth = [s for s in specs if s.stack_bytes <= STACK_BYTES and pays(s, direct.mac)]
    least = min(map(cycles, worth), default=0.0)
    return next((spec for spec in worth if cycles(spec) <= NEARLY * least), None)


def _fits_float(direct: GemmSpec) -> bool:
    e = direct.epilogue
    return (
        (direct.x_dtype, e.out_dtype) == ("float32", "float32")
        and direct.dot in ("", "bf16")
        and e.residual in ("", "float32")
        and not e.scale
        and (e.r_scale, e.r_zero) == (1.0, 0)
        and direct.c % direct.lanes == direct.oc % direct.lanes == 0
    )


def _fits_int8(direct: GemmSpec) -> bool:
    """The chip multiplies 16-bit numbers in pairs, and channels come in whole vectors."""
    unit = direct.lanes * (UNIT if direct.epilogue.packs(direct.lanes) else 1)
    return (
        direct.dot != "portable"
        and direct.c <= MOST_CHANNELS
        and direct.c % (2 * direct.lanes) == direct.oc % unit == 0
    )
