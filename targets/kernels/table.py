"""Which function generates the code of a spec."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .cache_spec import CacheWriteSpec, CombineSpec, DecodeSpec, PrefillSpec, RopeSpec
from .cache_write import emit_cache_write, emit_rope
from .cached_decode import emit_combine, emit_decode
from .cached_prefill import emit_prefill
from .coded import CODED_EMITTERS
from .cumulate import CumulateSpec, emit_cumulate
from .depthwise import emit_depthwise
from .depthwise_spec import DepthwiseSpec
from .gemm import emit_gemm
from .gemm_spec import GemmSpec
from .peak import RateSpec, StreamSpec, emit_rate, emit_stream
from .pointwise import CopySpec, PointwiseSpec, emit_copy, emit_pointwise
from .pool import MeanSpec, PoolSpec, emit_mean, emit_pool
from .recurrent import emit_recurrent
from .recurrent_spec import RecurrentSpec
from .resize import ResizeSpec, emit_resize
from .scatter import ScatterSpec, emit_scatter
from .tensor_table import TENSOR_EMITTERS
from .topk import TopKSpec, emit_topk
from .winograd import emit_winograd, emit_winograd_input
from .winograd_spec import WinogradInputSpec, WinogradSpec

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
