"""What a weight format is, and a weight in it.

    Format   family, bits and group size: what `bitmod4:128` says
    Family   how one kind of code fits its groups; each has a file of its own, families.py lists them
    Coded    a weight [n, k] as it is stored

A weight is a code of `bits` bits. `group` neighbours along a row (the input axis) share a float scale and a
table of 2^bits levels; weight = scale * level. Every level of every family is an integer in -127..127, so
that one kernel multiplies any of them with int8 activations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from ..errors import InternalError
from .scales import Store

SCALES = ("float16", "two-level", "float32")
SCALE_BITS = {"float16": 16, "two-level": 8, "float32": 32}
ROW_SCALE_BITS = 32
SIDES = ("selector", "zero", "alpha")


@dataclass(frozen=True)
class Format:
    """`str` gives the text that `format_of` reads. `group` 0 means a whole row (`channel`)."""

    name: str
    bits: int
    group: int
    scale: str
    family: str
    usual_scale: str = "float16"

    def __str__(self) -> str:
        text = f"{self.name}:{self.group or 'channel'}"
        return (
            text if self.scale == (self.usual_scale if self.group else "float16") else f"{text}:{self.scale}"
        )

    def groups(self, k: int) -> int:
        """Groups of a row of k weights; the last one may be shorter."""
        return -(-k // self.group) if self.group else 1

    def width(self, k: int) -> int:
        """Weights that a group has room for."""
        return self.group or k

    def group_bytes(self, k: int) -> int:
        """Bytes of the packed codes of one group."""
        return -(-self.width(k) * self.bits // 8)

    def store(self, row: np.ndarray | None) -> Store:
        """How scales are rounded; `row` float32 [m]: each group's row scale of two-level ones, else None."""
        return Store(row, self.scale == "float32")


@dataclass(frozen=True)
class Parameters:
    """What m groups share: scale float32 [m], and `side`, the family's own: uint8 [m] or int8 [m, bits]."""

    scale: np.ndarray
    side: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Parameters:
        return Parameters(self.scale[rows], None if self.side is None else self.side[rows])

    def put(self, rows: np.ndarray, other: Parameters) -> None:
        """Those of `other` in place of these rows."""
        self.scale[rows] = other.scale
        if self.side is not None and other.side is not None:
            self.side[rows] = other.side

    def where(self, better: np.ndarray, other: Parameters) -> Parameters:
        """Those of `other` for the groups that are `better` [m] there."""
        scale = np.where(better, other.scale, self.scale)
        if self.side is None or other.side is None:
            return Parameters(scale)
        wide = better.reshape(-1, *(1,) * (self.side.ndim - 1))
        return Parameters(scale, np.where(wide, other.side, self.side))


Choose = Callable[[np.ndarray], np.ndarray]
"""values float32 [m, c] -> codes uint8 [m, c], the nearest level of each row's own group."""


@dataclass(frozen=True)
class Family:
    """One kind of code, at several widths. m is a number of groups, g their size.

    fit(groups float32 [m, g], bits, importance [m, g] or None, store) -> Parameters
        without importance: round to nearest, the range's ends are kept. With it, the weights of the squared
        errors, the range and all else are searched for least error. `store` says how scales are rounded.
    chooser(bits, parameters) -> Choose
    levels(bits, side [m] or [m, bits] or None, m) -> int8 [m, 2^bits]
    widest(groups, bits) -> float32 [m], the largest scale that `fit` may want
    tables(bits) -> int8 [T, 2^bits], for families whose tables are fixed; None for others
    shifts: float16 scales are powers of two
    """

    name: str
    widths: tuple[int, ...]
    side: str
    fit: Callable[[np.ndarray, int, np.ndarray | None, Store], Parameters]
    chooser: Callable[[int, Parameters], Choose]
    levels: Callable[[int, np.ndarray | None, int], np.ndarray]
    widest: Callable[[np.ndarray, int], np.ndarray]
    tables: Callable[[int], np.ndarray] | None = None
    suffix: str = ""
    usual_scale: str = "float16"
    shifts: bool = False

    def format_name(self, bits: int) -> str:
        return f"{self.name}{bits}{self.suffix}"

    @property
    def key(self) -> str:
        """The name that Format.family holds."""
        return self.name + self.suffix


@dataclass(frozen=True, eq=False)
class Coded:
    """A weight [n, k] in a format: what is stored, and only that. G = groups of a row.

    codes      uint8 [n, G, ceil(group * bits / 8)]   little-endian: the first weight in the lowest bits; what
                                                      a row's last group lacks is the level nearest to zero
    scale      float16 or float32 [n, G], or uint8 [n, G] beside
    row_scale  float32 [n]                            two-level: a group's scale is uint8 * row_scale
    and what the family needs more:
    selector   uint8 [n, ceil(G / 4)]                 2 bits for each group: which of the fixed tables
    zero       uint8 [n, G]                           level = code - zero
    alpha      int8 [n, G, bits]                      level = sum of +-alpha[i]; bit i of the code set is plus
    """

    format: Format
    shape: tuple[int, int]
    arrays: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        for array in self.arrays.values():
            array.flags.writeable = False
        object.__setattr__(self, "arrays", MappingProxyType(dict(self.arrays)))
        sides = [name for name in SIDES if name in self.arrays]
        if len(sides) > 1 or not {"codes", "scale"} <= set(self.arrays):
            raise InternalError(f"a weight in {self.format} holds {', '.join(self.arrays)}")

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is stored."""
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def groups(self) -> int:
        return self.format.groups(self.shape[1])

    def rows(self, begin: int, end: int) -> Coded:
        """The same for rows begin..end-1."""
        part = {name: array[begin:end] for name, array in self.arrays.items()}
        return replace(self, shape=(len(part["scale"]), self.shape[1]), arrays=part)
