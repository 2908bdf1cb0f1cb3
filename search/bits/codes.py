"""The weights of a plan in codes, as `compile` makes them: one layer after the other, each for what the coded
ones before it give (passes/encode_layers.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ...compiler.formats import Coded, Format, decode
from ...compiler.ir import Graph
from ...passes.encode_layers import encode_layers, identity
from ...passes.kept_codes import LayerCodes
from ...passes.layer_coder import EncodeOptions
from .judge import Runs
from .units import units_of


class PlanCodes:
    """Codes of plans, each in a folder of its own in `folder`, so that a killed search goes on and the chosen
    plan is not coded again. `report(done, all)` is called after each layer.
    """

    def __init__(
        self,
        graph: Graph,
        runs: Runs,
        options: EncodeOptions,
        folder: Path,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.graph, self.runs, self.options, self.folder = graph, runs, options, folder
        self.report = report
        self._shared: dict[tuple[str, Format], LayerCodes] = {}

    def of(self, formats: Mapping[str, Format]) -> dict[str, Coded]:
        """{layer: its codes}; layers that share a matrix have one object."""
        name = identity(self.graph, formats, self.runs, self.options)[:16]
        codes = dict(
            encode_layers(
                self.graph,
                formats,
                self.runs,
                self.options,
                known={layer: c for (layer, format), c in self._shared.items() if formats[layer] == format},
                folder=self.folder / name,
                progress=lambda done, total, layer: self.report(done, total),
            )
        )
        for unit in units_of(self.graph):
            if len(unit.layers) > 1:
                self._shared |= {(layer, formats[layer]): codes[layer] for layer in unit.layers}
        return {layer: each.coded for layer, each in codes.items()}

    def decoded(self, formats: Mapping[str, Format]) -> dict[str, np.ndarray]:
        """{matrix: float32 [n, k]}."""
        codes = self.of(formats)
        return {unit.matrix: decode(codes[unit.name]) for unit in units_of(self.graph)}
