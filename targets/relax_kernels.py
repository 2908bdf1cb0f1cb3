"""Operators without a kernel of our own: each node goes through Relax, TVM fuses it, and its loops come out
under our calling convention."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ..compiler.errors import InternalError, UnsupportedError
from ..compiler.ir import Graph, Node, TensorType
from ..compiler.ops import OPS
from .call import (
    KernelCall,
    Operand,
    Temporary,
    Weights,
)
from .kernels.pointwise import CopySpec
from .relax_quantised import relax_expression
from .tir import COMPILING


@dataclass(frozen=True)
class RelaxSpec:
    """Call number `index` of what Relax makes of one operator on inputs of these types (None: absent)."""

    op: str
    types: tuple[TensorType | None, ...]
    attrs: tuple[tuple[str, Any], ...]
    index: int


def relax_calls(graph: Graph, node: Node) -> tuple[KernelCall, ...]:
    """The node's calls, usually one. Raises UnsupportedError when Relax has no lowering for it."""
    types = tuple(graph.type_of(v) if v else None for v in node.inputs)
    attrs = tuple(OPS[node.op].complete(node.attrs).items())
    steps, constants = lower_node(node.op, types, attrs)
    inputs = [v for v in node.inputs if v]
    if not steps:  # the node changes nothing
        copy = CopySpec(node.type.nbytes)
        return (KernelCall(copy, (inputs[0], node.output), copy.tasks),)
    operands: dict[str, Operand] = {f"x{i}": v for i, v in enumerate(inputs)}
    operands.update((name, Weights(a.nbytes, lambda a=a: a)) for name, a in constants.items())  # type: ignore[misc]
    calls = []
    for index, (_, reads, writes, kind) in enumerate(steps):
        final = index == len(steps) - 1
        operands[writes] = node.output if final else Temporary(f"{node.name}/{writes}", kind.nbytes)
        spec = RelaxSpec(node.op, types, attrs, index)
        calls.append(KernelCall(spec, (*(operands[r] for r in reads), operands[writes]), 1))
    return tuple(calls)


def emit_relax(spec: RelaxSpec, name: str) -> Any:
    """The PrimFunc of one call, renamed."""
    function = lower_node(spec.op, spec.types, spec.attrs)[0][spec.index][0]
    return _plain(function, name)


@lru_cache(maxsize=512)
def lower_node(
    op: str, types: tuple[TensorType | None, ...], attrs: tuple[tuple[str, Any], ...]
) -> tuple[tuple[tuple[Any, tuple[str, ...], str, TensorType], ...], dict[str, np.ndarray]]:
    """(PrimFunc, names it reads, name it writes, type written) of each call in order, and constants by name.

    The inputs are called x0, x1, ...
    """
    if OPS[op].relax is None:
        shown = ", ".join(str(t) for t in types if t)
        raise UnsupportedError(f"no kernel computes {op}({shown}) on this target")
    import tvm
    from tvm import relax

    builder = relax.BlockBuilder()
    present = [t for t in types if t]
    variables = [relax.Var(f"x{i}", relax.TensorType(t.shape, t.dtype)) for i, t in enumerate(present)]
    given = iter(variables)
    args = [next(given) if t else None for t in types]
    with COMPILING, tvm.target.Target("llvm"):
        with builder.function("main", variables):
            with builder.dataflow():
                result = builder.emit_output(relax_expression(op, types, args, dict(attrs)))
            builder.emit_func_output(result)
        passes = [
            relax.transform.LegalizeOps(),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(fuse_opt_level=2),
            relax.transform.FuseTIR(),
            relax.transform.DeadCodeElimination(["main"]),
        ]
        module = tvm.ir.transform.Sequential(passes)(builder.get())
    constants: dict[str, np.ndarray] = {}
    return tuple(_calls(module, constants)), constants


def _calls(module: Any, constants: dict[str, np.ndarray]) -> Any:
    """Walk the Relax function; anything but calls of TIR functions is a bug of ours."""
    from tvm import relax, tirx

    names: dict[Any, str] = {v: v.name for v in module["main"].params}
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Var):
                names[binding.var] = names[value]
                continue
            if not isinstance(value, relax.Call) or value.op.name != "relax.call_tir":
                raise InternalError(f"Relax left {value} where a kernel was expected")
            names[binding.var] = f"t{len(names)}"  # Relax's own names need not differ
            reads = tuple(_operand_name(a, names, constants) for a in value.args[1])
            ty = binding.var.ty if hasattr(binding.var, "ty") else value.sinfo_args[0]
            kind = TensorType(tuple(int(d) for d in ty.shape), str(ty.dtype))
            function = module[value.args[0]]
            assert isinstance(function, tirx.PrimFunc)
            yield function, reads, names[binding.var], kind


def _operand_name(operand: Any, names: dict[Any, str], constants: dict[str, np.ndarray]) -> str:
    if operand in names:
        return names[operand]
    name = f"constant{len(constants)}"
    constants[name] = operand.value.numpy()
    return name


def _plain(function: Any, name: str) -> Any:
    """A PrimFunc as `void name(pointers, begin, end)` with flat loops instead of blocks."""
    import tvm
    from tvm import tirx

    from .kernels import emit

    s_tir = tvm.s_tir.transform
    passes = [
        s_tir.LowerInitBlock(),
        s_tir.PlanAndUpdateBufferAllocationLocation(),
        s_tir.ConvertBlocksToOpaque(),
        s_tir.CompactBufferAllocation(),
        s_tir.LowerMatchBuffer(),
        s_tir.LowerOpaqueBlock(),
    ]
    lowered = tvm.ir.transform.Sequential(passes)(tvm.IRModule({"main": function}))["main"]
    parameters = list(lowered.params)

    def body(*args: Any) -> None:
        for parameter, given in zip(parameters, args, strict=False):
            emit.ib.add_to_parent(tirx.DeclBuffer(parameter, data=given.data))
        # What TVM's packed entry would say; memory of fused stages is asked for by it (runtime/workspace.c).
        with emit.ib.attr(0, "device_id", 0), emit.ib.attr(0, "device_type", 1):
            emit.ib.add_to_parent(lowered.body)

    return emit.kernel(name, [(f"p{i}", str(p.dtype)) for i, p in enumerate(parameters)], body, returns=True)
