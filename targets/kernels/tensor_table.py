"""The rows of table.py for kernels of networks on sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .attention import AttentionSpec, emit_attention
from .columns import ColumnSpec, emit_columns
from .elementwise import ElementwiseSpec, emit_elementwise
from .matmul import emit_matmul
from .matmul_spec import MatmulSpec
from .move import MoveSpec, emit_move
from .rows import RowSpec, emit_rows

TENSOR_EMITTERS: dict[type, Callable[[Any, str], Any]] = {
    MatmulSpec: emit_matmul,
    AttentionSpec: emit_attention,
    ElementwiseSpec: emit_elementwise,
    MoveSpec: emit_move,
    RowSpec: emit_rows,
    ColumnSpec: emit_columns,
}
