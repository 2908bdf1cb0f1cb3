"""The operators. To add one, write its OpDef in the file of its family and list it here."""

from .activations import ACTIVATIONS
from .cache import CACHES
from .coded import CODED
from .compare import COMPARE
from .conv import CONV2D
from .depth import DEPTH_TO_SPACE
from .elementwise import ELEMENTWISE
from .index import GATHERS
from .linear import LINEAR
from .matmul import ATTENTION, MATMUL
from .norm import NORMS
from .opdef import OpDef, Sample, TypeRuleError
from .order import ORDER
from .pad import PAD
from .pool import POOLS
from .quant import BATCH_NORM, DEQUANTIZE, QUANTIZE
from .recurrent import RECURRENT
from .reduce import REDUCES
from .resize import RESIZE
from .rope import ROPE
from .scatter import SCATTERS
from .shape import SHAPES

__all__ = ["ACTIVATIONS", "OPS", "OpDef", "Sample", "TypeRuleError"]

OPS: dict[str, OpDef] = {
    op.name: op
    for op in (
        CONV2D,
        LINEAR,
        *CODED,
        MATMUL,
        ATTENTION,
        ROPE,
        *CACHES,
        *ELEMENTWISE,
        *COMPARE,
        *GATHERS,
        *SCATTERS,
        *REDUCES,
        *ORDER,
        *NORMS,
        *POOLS,
        PAD,
        RESIZE,
        DEPTH_TO_SPACE,
        *RECURRENT,
        *SHAPES,
        QUANTIZE,
        DEQUANTIZE,
        BATCH_NORM,
    )
}
