"""Generators of TIR kernels: frozen specs, their code (`emit_...`), the packing of weights (`pack_...`)."""
