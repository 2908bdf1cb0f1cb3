"""TIR kernel -> machine code: TVM's lowering passes without its calling convention, then LLVM."""

from __future__ import annotations

import threading
from typing import Any

from .isa import Isa
from .scratch import scratch_folder

COMPILING = threading.RLock()
"""Held while TVM works: an LLVM target's options are global variables of the process while it compiles."""


def tvm_target(isa: Isa) -> Any:
    """The TVM target of an instruction set. Without strict aliasing: kernels read one buffer through several
    vector types."""
    import tvm

    config = {"kind": "llvm", "mtriple": isa.triple, "mcpu": isa.mcpu, "cl-opt": ["-enable-tbaa:bool=false"]}
    return tvm.target.Target(config)


def compile_kernel(function: Any, isa: Isa) -> bytes:
    """An ELF object that exports the PrimFunc under its own name, as a plain C function."""
    import tvm
    from tvm.tirx import transform

    from .kernels.emit import NARROW

    target = tvm_target(isa)
    widen = [transform.BF16ComputeLegalize(), transform.BF16StorageLegalize()]
    passes = [
        transform.BindTarget(target.with_host(target)),
        *(widen if function.attrs[NARROW] else []),
        transform.StmtSimplify(),
        transform.FlattenBuffer(),
        transform.VectorizeLoop(True),
        transform.UnrollLoop(),
        transform.StmtSimplify(),
        transform.CommonSubexprElim(),
        transform.VerifyMemory(),
        transform.LowerTVMBuiltin(),
        transform.LowerIntrin(),
    ]
    with COMPILING, scratch_folder() as folder:
        module = tvm.ir.transform.Sequential(passes)(tvm.IRModule.from_expr(function))
        built = tvm.get_global_func("target.build.llvm")(module, target)
        path = folder / "kernel.o"
        built.write_to_file(str(path))
        return path.read_bytes()
