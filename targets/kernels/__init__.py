"""Generators of TIR kernels: frozen specs, their code (`emit_...`), the packing of weights (`pack_...`)."""

from ..tvm_alone import without_torch

with without_torch():
    import tvm  # noqa: F401  before any module of this package does
