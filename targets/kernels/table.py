"""Which function generates the code of a spec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .cache.decode import emit_combine, emit_decode
from .cache.prefill import emit_prefill
from .cache.spec import (
    CacheWriteSpec,
    CombineSpec,
    DecodeSpec,
    PrefillSpec,
    RopeSpec,
)
from .cache.write import emit_cache_write, emit_rope
from .coded.emitters import CODED_EMITTERS
from .conv.depthwise import emit_depthwise
from .conv.depthwise_spec import DepthwiseSpec
from .conv.gemm import emit_gemm
from .conv.gemm_spec import GemmSpec
from .conv.pool import (
    MeanSpec,
    PoolSpec,
    emit_mean,
    emit_pool,
)
from .conv.winograd import emit_winograd, emit_winograd_input
from .conv.winograd_spec import WinogradInputSpec, WinogradSpec
from .cumulate import CumulateSpec, emit_cumulate
from .peak import (
    RateSpec,
    StreamSpec,
    emit_rate,
    emit_stream,
)
from .pointwise import (
    CopySpec,
    PointwiseSpec,
    emit_copy,
    emit_pointwise,
)
from .recurrent import emit_recurrent
from .recurrent_spec import RecurrentSpec
from .resize import ResizeSpec, emit_resize
from .scatter import ScatterSpec, emit_scatter
from .tensor_table import TENSOR_EMITTERS
from .topk import TopKSpec, emit_topk

EMITTERS: dict[type, Callable[[Any, str], Any]] = {
    **TENSOR_EMITTERS,
    **CODED_EMITTERS,
    GemmSpec: emit_gemm,
    DepthwiseSpec: emit_depthwise,
    PointwiseSpec: emit_pointwise,
    CopySpec: emit_copy,
    PoolSpec: emit_pool,
    MeanSpec: emit_mean,
    ScatterSpec: emit_scatter,
    CumulateSpec: emit_cumulate,
    TopKSpec: emit_topk,
    RateSpec: emit_rate,
    StreamSpec: emit_stream,
    ResizeSpec: emit_resize,
    RecurrentSpec: emit_recurrent,
    RopeSpec: emit_rope,
    CacheWriteSpec: emit_cache_write,
    DecodeSpec: emit_decode,
    CombineSpec: emit_combine,
    PrefillSpec: emit_prefill,
    WinogradInputSpec: emit_winograd_input,
    WinogradSpec: emit_winograd,
}
