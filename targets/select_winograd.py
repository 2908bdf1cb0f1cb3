"""Whether a convolution is computed with fewer multiplications, and its calls (conv/winograd_spec.py)."""

from __future__ import annotations

from ..compiler.ir import Graph, Node
from .call import (
    STACK_BYTES,
    KernelCall,
    Temporary,
    Weights,
)
from .kernels.conv.gemm_spec import GemmSpec
from .kernels.conv.window import Window
from .kernels.conv.winograd_spec import (
    NEARLY,
    TRANSFORMS,
    Tiling,
    WinogradInputSpec,
    WinogradSpec,
    cycles,
    pack_filters,
    pays,
)


def winograd(graph: Graph, node: Node, direct: GemmSpec) -> tuple[KernelCall, ...] | None:
    """The two calls of a convolution for which they are faster than `direct`; None for others."""
    spec = _best(direct)
    if spec is None:
        return None
    window = {name: getattr(spec, name) for name in Tiling.__dataclass_fields__}
    inputs = WinogradInputSpec(**window)
    tiles = Temporary(f"{node.name}/tiles", spec.nbytes)
    x, w, bias, residual = (*node.inputs, "", "")[:4]
    filters = Weights(graph.type_of(w).nbytes, lambda: pack_filters(spec, graph.params[w]))
    rest = [v for v in (bias, residual) if v]
    return (
        KernelCall(inputs, (x, tiles), inputs.tasks),
        KernelCall(spec, (tiles, filters, *rest, node.output), spec.tasks),
    )


def _best(direct: GemmSpec) -> WinogradSpec | None:
    e = direct.epilogue
    fits = (
        (direct.x_dtype, e.out_dtype, direct.groups, direct.nchw_in) == ("float32", "float32", 1, False)
        and direct.dot in ("", "bf16")
        and (direct.kernel, direct.strides, direct.dilations) == ((3, 3), (1, 1), (1, 1))
        and e.residual in ("", "float32")
        and not e.scale
        and (e.r_scale, e.r_zero) == (1.0, 0)
        and direct.c % direct.lanes == direct.oc % direct.lanes == 0
    )
    if not fits:
        return None
    window = {name: getattr(direct, name) for name in Window.__dataclass_fields__}
    rest = {name: getattr(direct, name) for name in ("lanes", "registers", "oc", "epilogue")}
    rest["narrow"] = direct.dot == "bf16"
    specs = [WinogradSpec(**window, **rest, m=m) for m in TRANSFORMS]
    worth = [s for s in specs if s.stack_bytes <= STACK_BYTES and pays(s)]
    least = min(map(cycles, worth), default=0.0)
    return next((spec for spec in worth if cycles(spec) <= NEARLY * least), None)
