"""Generators of TIR kernels: a frozen spec, its code (`emit_...`), the packing of its weights (`pack_...`)."""
