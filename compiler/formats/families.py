"""The table of families, and reading a format's name."""

from __future__ import annotations

import re

from ..errors import FormatError
from .binary import BCQ, SHIFT_ADD, SHIFT_ADD_PURE
from .bitmod import BITMOD
from .coded import (
    ROW_SCALE_BITS,
    SCALE_BITS,
    SCALES,
    Family,
    Format,
)
from .float_codes import FLOAT, NORMAL_FLOAT
from .integer import ASYMMETRIC, SYMMETRIC

FAMILIES: dict[str, Family] = {
    family.key: family
    for family in (SYMMETRIC, ASYMMETRIC, FLOAT, NORMAL_FLOAT, BITMOD, BCQ, SHIFT_ADD, SHIFT_ADD_PURE)
}
"""To add a family, write its file and list it here."""
USUAL_GROUP = 128
SMALLEST_GROUP, LARGEST_GROUP = 8, 4096
SELECTOR_BITS = 2


def format_names() -> tuple[str, ...]:
    """Every name that a format's text may begin with."""
    return tuple(family.format_name(bits) for family in FAMILIES.values() for bits in family.widths)


def format_of(text: str) -> Format:
    """The format that `name`, `name:group` or `name:group:scale` says: `bitmod4`, `int4a:64`, `int8:channel`,
    `nf4:32:two-level`. Raises FormatError for anything else.
    """
    name, *rest = text.strip().split(":")
    group = _group(text, rest[0] if rest else str(USUAL_GROUP))
    for family in FAMILIES.values():
        for bits in family.widths:
            if name == family.format_name(bits):
                scale = _scale(text, rest[1:], group, family)
                return Format(name, bits, group, scale, family.key, family.usual_scale)
    raise FormatError(f"there is no weight format {name!r} ({text!r}); there are {', '.join(format_names())}")


def _group(text: str, size: str) -> int:
    if size == "channel":
        return 0
    group = int(size) if re.fullmatch("[0-9]{1,5}", size) else -1
    if group % 8 or not SMALLEST_GROUP <= group <= LARGEST_GROUP:
        raise FormatError(
            f"the group size {size!r} of weight format {text!r} is neither 'channel' nor a multiple of 8 "
            f"from {SMALLEST_GROUP} to {LARGEST_GROUP}"
        )
    return group


def _scale(text: str, rest: list[str], group: int, family: Family) -> str:
    scale = rest[0] if rest else (family.usual_scale if group else "float16")
    if scale not in SCALES or len(rest) > 1:
        raise FormatError(
            f"weight format {text!r} is not name:group:scale with a scale of {' or '.join(SCALES)}"
        )
    if scale == "two-level" and not group:
        raise FormatError(
            f"weight format {text!r} has one group in a row, and two-level scales are for several: "
            "leave ':two-level' away"
        )
    return scale


def family_of(format: Format) -> Family:
    return FAMILIES[format.family]


def row_bits(format: Format, k: int) -> int:
    """Bits that a row of k weights takes, with everything that is stored beside its codes."""
    groups = format.groups(k)
    beside = {
        "": 0,
        "selector": 8 * -(-groups * SELECTOR_BITS // 8),
        "zero": 8 * groups,
        "alpha": 8 * groups * format.bits,
    }
    row = ROW_SCALE_BITS if format.scale == "two-level" else 0
    return (
        groups * (8 * format.group_bytes(k) + SCALE_BITS[format.scale]) + beside[family_of(format).side] + row
    )


def bits_per_weight(format: Format, k: int) -> float:
    """Exact, with scales, selectors, zeros, alphas and padding, for rows of k weights."""
    return row_bits(format, k) / k
