"""Golden texts of passes: golden/<pass>/<case>.txt holds a graph, a line `=>`, and the graph after the pass.

Parameters are random; one called `is_3` or `is_0.5` holds that number, one called `...var` is positive.
After a change that is meant, `UPDATE_GOLDEN=1 pytest tests/test_passes_golden.py` writes the second graphs
anew: read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from bitsmith.compiler.ir import Graph, TensorType
from bitsmith.compiler.reference import run_reference
from bitsmith.compiler.text import parse_graph
from bitsmith.compiler.verify import verify
from bitsmith.passes.common_subexpressions import merge_common_subexpressions
from bitsmith.passes.dead_code import remove_dead_code
from bitsmith.passes.fold_batch_norm import fold_batch_norms
from bitsmith.passes.fold_channel_order import fold_channel_order
from bitsmith.passes.fold_constants import fold_constants
from bitsmith.passes.fold_pads import fold_pads
from bitsmith.passes.fold_scale_shift import fold_scale_and_shift
from bitsmith.passes.fuse_activations import fuse_activations
from bitsmith.passes.fuse_products import fuse_products
from bitsmith.passes.fuse_quantised import fuse_quantised
from bitsmith.passes.fuse_residuals import fuse_residuals
from bitsmith.passes.layout import move_channels_last
from bitsmith.passes.lift_pointwise import lift_pointwise
from bitsmith.passes.lift_rows import lift_rows
from bitsmith.passes.recognise_activations import recognise_activations
from bitsmith.passes.recognise_gelu import recognise_gelu
from bitsmith.passes.recognise_norms import recognise_norms
from bitsmith.passes.simplify_moves import simplify_moves
from bitsmith.passes.sink_transposes import sink_transposes

FOLDER = Path(__file__).parent / "golden"
SEPARATOR = "=>\n"
PASSES = {
    "common_subexpressions": merge_common_subexpressions,
    "dead_code": remove_dead_code,
    "fold_batch_norm": fold_batch_norms,
    "fold_channel_order": fold_channel_order,
    "fold_constants": fold_constants,
    "fold_pads": fold_pads,
    "fold_scale_shift": fold_scale_and_shift,
    "fuse_activations": fuse_activations,
    "fuse_products": fuse_products,
    "fuse_quantised": fuse_quantised,
    "fuse_residuals": fuse_residuals,
    "layout": move_channels_last,
    "lift_pointwise": lift_pointwise,
    "lift_rows": lift_rows,
    "recognise_activations": recognise_activations,
    "recognise_gelu": recognise_gelu,
    "recognise_norms": recognise_norms,
    "simplify_moves": simplify_moves,
    "sink_transposes": sink_transposes,
}


def random_param(name: str, kind: TensorType, rng: np.random.Generator) -> np.ndarray:
    if name.startswith("is_"):
        return np.full(kind.shape, float(name.removeprefix("is_")), kind.dtype)
    array = rng.normal(size=kind.shape).astype(kind.dtype)
    return np.abs(array) + np.float32(0.1) if name.endswith("var") else array


def graph_from_text(text: str, seed: int = 0) -> Graph:
    """The graph of a text, verified, with random parameters."""
    rng = np.random.default_rng(seed)
    blank = parse_graph(text)
    params = {name: random_param(name, blank.type_of(name), rng) for name in blank.params}
    return verify(parse_graph(text, params), "reading the test's text")


def random_inputs(graph: Graph, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=kind.shape).astype(kind.dtype) for name, kind in graph.inputs}


def assert_equal_outputs(
    before: Graph, after: Graph, inputs: Mapping[str, np.ndarray] | None = None, tolerance: float = 1e-4
) -> None:
    """One interface and the same outputs, up to `tolerance` of each output's largest number."""
    assert before.inputs == after.inputs
    assert before.outputs == after.outputs
    inputs = random_inputs(before) if inputs is None else inputs
    want, found = run_reference(before, inputs), run_reference(after, inputs)
    for name in before.outputs:
        assert found[name].shape == want[name].shape
        scale = max(float(np.abs(want[name]).max(initial=0.0)), 1e-3)
        np.testing.assert_allclose(found[name], want[name], atol=tolerance * scale, rtol=0)
