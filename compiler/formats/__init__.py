"""Weight formats: codes of a few bits, grouped, each group with a scale and a table of levels."""

from .coded import (
    Coded,
    Family,
    Format,
    Parameters,
)
from .encode import (
    codes_of,
    decode,
    encode,
    levels,
    scales,
    side_of,
    tables,
)
from .families import (
    FAMILIES,
    bits_per_weight,
    family_of,
    format_names,
    format_of,
)

__all__ = [
    "FAMILIES",
    "Coded",
    "Family",
    "Format",
    "Parameters",
    "bits_per_weight",
    "codes_of",
    "decode",
    "encode",
    "family_of",
    "format_names",
    "format_of",
    "levels",
    "scales",
    "side_of",
    "tables",
]
