"""Model files and torch modules -> Graph."""
