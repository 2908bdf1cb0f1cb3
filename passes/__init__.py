"""Graph -> Graph, one pass per file."""
