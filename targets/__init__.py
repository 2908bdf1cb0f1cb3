"""Chips: what they can do, their kernels, and the way from a Graph to a library."""
