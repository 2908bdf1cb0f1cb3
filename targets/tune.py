"""Register tiles by measuring: the model's tile against the next ones, for each matrix product of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..compiler.database import Database
from ..compiler.ir import Graph
from .call import KernelCall
from .kernels.conv.gemm_spec import GemmSpec
from .kernels.tiling import Tile
from .latency import call_times
from .lower import node_calls
from .objects import Progress
from .target import Target
from .views import Views

WORTH = 0.97
"""A tile replaces the model's when its median is below so much of that one's: less is noise."""


def tuned_target(
    graph: Graph,
    target: Target,
    database: Database,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Target:
    """The target with the tile that measured fastest of each convolution and linear layer of a planned graph.

    What the database knows is not measured again. Raises TargetError when the target does not run here.
    """
    untuned = _products(graph, target)
    tried = {spec: {spec.tile: call.symbol} for spec, call in untuned.items()}
    calls = {call.symbol: call for call in untuned.values()}
    for turn in range(1, max((len(spec.likely_tiles) for spec in tried), default=0)):
        tiles = {spec: spec.likely_tiles[turn] for spec in tried if turn < len(spec.likely_tiles)}
        for spec, call in _products(graph, with_tiles(target, tiles)).items():
            if spec.tiled:
                calls[call.symbol] = call
                tried[replace(spec, tiled=None)][spec.tile] = call.symbol
    times = call_times(calls, graph, target, database, cache=cache, progress=progress)
    return with_tiles(
        target, {spec: tile for spec, of in tried.items() if (tile := _faster(spec, of, times))}
    )


def tile_reasons(graph: Graph, target: Target) -> dict[str, str]:
    """Layer -> which tile it has instead of the model's, of all layers that a tuned target changed."""
    said, views = {}, Views(graph)
    for node in graph.nodes:
        for call in node_calls(graph, node, target, views):
            if isinstance(call.spec, GemmSpec) and call.spec.tiled:
                (r, v), (rows, vectors) = call.spec.tile, call.spec.likely_tiles[0]
                said[node.name] = f"a tile of {r}x{v} vectors measured faster than {rows}x{vectors}"
    return said


def with_tiles(target: Target, tiles: Mapping[GemmSpec, Tile]) -> Target:
    """The target whose kernels of these specs have these tiles."""
    return replace(target, isa=replace(target.isa, tiles={**target.isa.tiles, **tiles}))


def _products(graph: Graph, target: Target) -> dict[GemmSpec, KernelCall]:
    views = Views(graph)
    calls = (call for node in graph.nodes for call in node_calls(graph, node, target, views))
    return {call.spec: call for call in calls if isinstance(call.spec, GemmSpec)}


def _faster(spec: GemmSpec, symbols: Mapping[Tile, str], times: Mapping[str, float]) -> Tile | None:
    """The tile to take instead of the model's, which is the first."""
    first = spec.likely_tiles[0]
    best = min(symbols, key=lambda tile: times[symbols[tile]])
    return best if times[symbols[best]] < WORTH * times[symbols[first]] else None
