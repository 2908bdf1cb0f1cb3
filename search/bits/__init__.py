"""Choosing the weight format of each layer of a language model."""
