"""Convolutions, linear layers and pools: what moves a window over an image."""
