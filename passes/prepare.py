"""The canonical form of a graph: what calibration, plans and targets work on.

Afterwards: float32 still (a model that came quantised keeps its int8 layers); no constant arithmetic, no
batch norm; activations, residual additions and zero padding inside the nodes that make or read the values;
images channels last (NHWC); inputs, outputs and layer names as they were.
"""

from __future__ import annotations

from collections.abc import Callable

from ..compiler.ir import Graph
from .common_subexpressions import merge_common_subexpressions
from .dead_code import remove_dead_code
from .fold_batch_norm import fold_batch_norms
from .fold_channel_order import fold_channel_order
from .fold_constants import fold_constants
from .fold_pads import fold_pads
from .fold_scale_shift import fold_scale_and_shift
from .fuse_activations import fuse_activations
from .fuse_products import fuse_products
from .fuse_quantised import fuse_quantised
from .fuse_residuals import fuse_residuals
from .layout import move_channels_last
from .lift_pointwise import lift_pointwise
from .lift_rows import lift_rows
from .pass_base import Pass, run_passes
from .recognise_activations import recognise_activations
from .recognise_gelu import recognise_gelu
from .recognise_norms import recognise_norms
from .simplify_moves import simplify_moves
from .sink_transposes import sink_transposes

PASSES = (
    # 1. less to look at
    Pass("dead code", remove_dead_code),
    Pass("constants", fold_constants),
    Pass("simplify moves", simplify_moves),
    Pass("common subexpressions", merge_common_subexpressions),
    Pass("recognise norms", recognise_norms),
    Pass("lift rows", lift_rows),
    # 2. arithmetic into weights
    Pass("lift over blocks", lift_pointwise),
    Pass("batch norm", fold_batch_norms),
    Pass("scale and shift", fold_scale_and_shift),
    Pass("order of channels", fold_channel_order),
    # 3. nodes into layers
    Pass("recognise activations", recognise_activations),
    Pass("recognise gelu", recognise_gelu),
    Pass("sink transposes", sink_transposes),
    Pass("simplify moves before products", simplify_moves),
    Pass("fuse products", fuse_products),
    Pass("dead code after recognising", remove_dead_code),
    Pass("lift activations over blocks", lift_pointwise),
    Pass("fuse activations", fuse_activations),
    Pass("fuse residuals", fuse_residuals),
    Pass("pads", fold_pads),
    Pass("codes of quantised models", fuse_quantised),
    # 4. layout
    Pass("layout", move_channels_last),
    Pass("sink transposes after layout", sink_transposes),
    Pass("simplify moves after layout", simplify_moves),
    Pass("recognise norms over channels", recognise_norms),  # these are the last axis now
    Pass("dead code at the end", remove_dead_code),
)


def prepare(graph: Graph, dump: Callable[[str, Graph], None] | None = None) -> Graph:
    """The canonical graph; `dump(pass name, graph)` sees it after every pass. Equal to the given one up
    to float32 rounding.
    """
    return run_passes(graph, PASSES, dump)
