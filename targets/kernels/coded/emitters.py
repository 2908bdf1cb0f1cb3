"""Which function generates the code of a kernel on coded weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .float import emit_coded_float
from .gather import CodedGatherSpec, emit_coded_gather
from .input import CodedInputSpec, emit_coded_input
from .panel import emit_coded_panel
from .planes import (
    PlaneScaleSpec,
    PlaneSpec,
    SignTableSpec,
    emit_plane_scale,
    emit_planes,
    emit_sign_table,
)
from .product import CodedSpec
from .vector import emit_coded_vector


def emit_coded(spec: CodedSpec, name: str) -> Any:
    """The PrimFunc of a product."""
    if not spec.quantised:
        return emit_coded_float(spec, name)
    return emit_coded_vector(spec, name) if spec.vector else emit_coded_panel(spec, name)


CODED_EMITTERS: dict[type, Callable[[Any, str], Any]] = {
    CodedSpec: emit_coded,
    CodedInputSpec: emit_coded_input,
    CodedGatherSpec: emit_coded_gather,
    SignTableSpec: emit_sign_table,
    PlaneSpec: emit_planes,
    PlaneScaleSpec: emit_plane_scale,
}
