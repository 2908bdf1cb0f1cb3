"""Generators of TIR kernels. Each module has a frozen spec, `emit(spec)` (the PrimFunc) and `pack(...)` (its weights)."""
