"""What a graph costs, read from the graph alone."""
