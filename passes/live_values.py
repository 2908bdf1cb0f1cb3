"""Runs a graph node by node over all samples at once, holding only values that a later node reads.

What does not fit in `memory` bytes lies on disk until it is read.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..compiler.ir import Graph, Node
from ..compiler.reference import run_node

MEMORY = 256 << 20


def needed_nodes(graph: Graph, wanted: Collection[str]) -> list[Node]:
    """The nodes that must run so that the values `wanted` are known, in order."""
    needed, kept = set(wanted), []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            kept.append(node)
            needed.update(node.inputs)
    return kept[::-1]


class LiveValues:
    """The values of every run that somebody will still read. A context manager: it has a folder on disk."""

    def __init__(
        self,
        graph: Graph,
        runs: Sequence[Mapping[str, np.ndarray]],
        nodes: Sequence[Node],
        wanted: Collection[str],
        memory: int = MEMORY,
    ) -> None:
        self.graph, self.runs, self.memory = graph, runs, memory
        self._readers: dict[str, int] = dict.fromkeys(wanted, 1)
        for node in nodes:
            for value in dict.fromkeys(node.inputs):
                self._readers[value] = self._readers.get(value, 0) + 1
        self._held: dict[tuple[int, str], np.ndarray | Path] = {}
        self._bytes = self._files = 0
        self._folder = tempfile.TemporaryDirectory(prefix="bitsmith-values-")

    def __enter__(self) -> LiveValues:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.clear()
        self._folder.cleanup()

    def get(self, run: int, value: str) -> np.ndarray:
        """The value in one run; a state that is not given starts as zeros."""
        found = self._held.get((run, value))
        if found is not None:
            return np.load(found) if isinstance(found, Path) else found
        if value in self.runs[run]:
            return self.runs[run][value]
        kind = self.graph.type_of(value)
        return np.zeros(kind.shape, kind.dtype)

    def step(self, node: Node, replaced: Mapping[str, np.ndarray]) -> None:
        """Compute a node in every run, with other values for some parameters."""
        import torch

        params = {
            value: torch.from_numpy(
                np.array(replaced[value] if value in replaced else self.graph.params[value])
            )
            for value in dict.fromkeys(node.inputs)
            if value in self.graph.params
        }
        for run in range(len(self.runs)):
            values: dict[str, Any] = dict(params)
            for value in node.inputs:
                if value and value not in values:
                    values[value] = torch.from_numpy(np.array(self.get(run, value)))
            for value, tensor in zip(node.outputs, run_node(self.graph, node, values), strict=True):
                if self._readers.get(value):
                    self._put(run, value, tensor.numpy())
        for value in dict.fromkeys(node.inputs):
            self.release(value)

    def release(self, value: str) -> None:
        """One reader less; after the last one the value is dropped."""
        self._readers[value] -= 1
        if not self._readers[value]:
            for run in range(len(self.runs)):
                self._drop(run, value)

    def _put(self, run: int, value: str, array: np.ndarray) -> None:
        if self._bytes + array.nbytes <= self.memory:
            self._held[run, value] = array
            self._bytes += array.nbytes
            return
        self._files += 1
        place = Path(self._folder.name) / f"{self._files}.npy"
        np.save(place, array)
        self._held[run, value] = place

    def _drop(self, run: int, value: str) -> None:
        found = self._held.pop((run, value), None)
        if isinstance(found, Path):
            found.unlink()
        elif found is not None:
            self._bytes -= found.nbytes
