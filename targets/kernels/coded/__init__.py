"""Products with, and rows of, weights that are codes of a few bits."""
