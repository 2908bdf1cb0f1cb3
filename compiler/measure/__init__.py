"""Measuring: time, quality against the float model, memory. numpy and the standard library only."""

from .latency import Latency, measure_latency
from .memory import Memory, measure_memory
from .quality import (
    Quality,
    decibels,
    quality,
    wilson,
)

__all__ = [
    "Latency",
    "Memory",
    "Quality",
    "decibels",
    "measure_latency",
    "measure_memory",
    "quality",
    "wilson",
]
