"""Weights stored as codes: where the bits of a packed weight lie, and what a kernel on them knows.

Rows are taken in blocks of as many as a vector has float32 lanes. Four vectors j = 0..3 hold 16 neighbouring
weights (an atom) of each row of a block: the 128-bit part l of vector j belongs to row j + 4 l. So a table
look-up, which x86 does within 128 bits, has the table of one row in each part, and transposing squares of
four 32-bit words, also within 128 bits, gives vectors whose lanes are the rows in order.

A section is eight atoms of a row at most, all of one group or whole groups. Its bits lie in planes: codes of
6 bits are a plane of 4 and one of 2. A slice, one vector of a plane, holds 8 / width atoms, the first in the
lowest bits. Where a plane ends with four bits of a byte or fewer, its last slice is half a vector: bytes hold
these bits of a weight in their lower half and of the weight eight further on in the upper.

Codes of 3 bits are a plane of 2 and one of 1 in sections of fewer than eight atoms. Eight atoms fill three
slices: six have half of each byte but its highest bit, and two those bits, one of each slice. Taking them out
costs half of what planes would.

    codes      [block][section][plane][slice][j][vector]
    scale      [block][group][row]      float16, float32 or uint8
    row_scale  [block][row]             float32
    side       [block][group] selectors: 2 bits of each row, in the order [j][l], in one integer;
               or [row] zeros; or [j][l] sums and differences of alphas (coded/pack.py)

Rows beyond n, and atoms beyond a row's last group, are zero. Nothing else is added to what a format stores
where groups are whole atoms and a row is a multiple of 64 weights (of 2, 4, 6 and 8 bits: of 32).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

ATOM = 16
SECTION = 8
VECTORS = 4
HALF = 4
"""Bits of a byte of half a slice that belong to one weight."""
PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}
WHOLE = {3: (3,), 7: (4, 3)}
"""In sections of eight atoms, where that differs."""
KINDS = ("offset", "fixed", "selector", "zero", "alpha")


@dataclass(frozen=True)
class Field:
    """Some bits of a code: `bits` of them from `low` on, at `place` in each byte of the vector that lies `at`
    so many bytes from the section's first, for j = 0. `spread`: one bit at `place` of each of as many slices.
    """

    at: int
    place: int
    bits: int
    low: int
    half: bool = False
    spread: bool = False


@dataclass(frozen=True)
class Packing:
    """A weight [n, k] in blocks of `lanes` rows. `group`: weights of a group, 0 for the whole row.

    kind      offset    level = code - 2^(bits-1)        fixed   one table for all groups
              selector  one of four tables               zero    level = code - the group's zero
              alpha     level = sum of +-alpha
    tables    the fixed tables, () for others
    top       the largest magnitude of a level
    """

    lanes: int
    n: int
    k: int
    bits: int
    group: int
    kind: str
    tables: tuple[tuple[int, ...], ...]
    top: int
    scale_dtype: str

    @property
    def width(self) -> int:
        return self.group or self.k

    @property
    def groups(self) -> int:
        return -(-self.k // self.width)

    @property
    def group_atoms(self) -> int:
        return -(-self.width // ATOM)

    @property
    def atoms(self) -> int:
        """Of a row; the last group has only those that hold weights."""
        last = self.k - (self.groups - 1) * self.width
        return (self.groups - 1) * self.group_atoms + -(-last // ATOM)

    @property
    def blocks(self) -> int:
        return -(-self.n // self.lanes)

    @property
    def vector_bytes(self) -> int:
        return 4 * self.lanes

    @property
    def period(self) -> int:
        """Atoms after which sections repeat: a group, or the groups of one section."""
        return SECTION if SECTION % self.group_atoms == 0 else self.group_atoms

    @property
    def period_groups(self) -> int:
        return self.period // self.group_atoms

    def sections(self, atoms: int) -> tuple[int, ...]:
        """Sizes in atoms of the sections of a period, or of what a row's end has of one."""
        full, rest = divmod(atoms, SECTION)
        return (SECTION,) * full + ((rest,) if rest else ())

    def planes(self, atoms: int) -> tuple[int, ...]:
        """Their widths, in a section of `atoms`."""
        return WHOLE.get(self.bits, PLANES[self.bits]) if atoms == SECTION else PLANES[self.bits]

    def half_slices(self, atoms: int, width: int) -> int:
        """Of a plane of a section: two for each slice, one for a last one of which half is enough."""
        full, rest = divmod(atoms * width, 8)
        return 2 * full + -(-rest // HALF)

    def section_bytes(self, atoms: int) -> int:
        halves = sum(self.half_slices(atoms, width) for width in self.planes(atoms))
        return halves * self.slice_bytes // 2

    def bytes_of(self, atoms: int) -> int:
        return sum(self.section_bytes(size) for size in self.sections(atoms))

    @property
    def slice_bytes(self) -> int:
        return VECTORS * self.vector_bytes

    def fields(self, atoms: int, atom: int) -> list[Field]:
        """Where the code of an atom is in a section of `atoms`, lowest bits first."""
        found, halves, low = [], 0, 0
        for width in self.planes(atoms):
            count, at = self.half_slices(atoms, width), halves * self.slice_bytes // 2
            if width == 3 and atom >= 6:
                found.append(Field(at, atom % 2 * 4 + 3, 3, low, spread=True))
            else:
                slice_, field = divmod(atom, 2 if width == 3 else 8 // width)
                place = field * (4 if width == 3 else width)
                half = 2 * slice_ + 1 == count
                found.append(Field(at + slice_ * self.slice_bytes, place, width, low, half))
            halves, low = halves + count, low + width
        return found

    @property
    def periods(self) -> tuple[int, int]:
        """(whole periods, atoms of the rest) of a row."""
        return divmod(self.atoms, self.period)

    @cached_property
    def block_bytes(self) -> int:
        whole, rest = self.periods
        return whole * self.bytes_of(self.period) + self.bytes_of(rest)

    @property
    def selector_dtype(self) -> str:
        return f"uint{2 * self.lanes}"

    @property
    def side_dtype(self) -> str:
        return self.selector_dtype if self.kind == "selector" else "uint8" if self.kind == "zero" else "int8"

    @property
    def two_level(self) -> bool:
        return self.scale_dtype == "uint8"

    @property
    def has_side(self) -> bool:
        return self.kind in ("selector", "zero", "alpha")


@dataclass(frozen=True)
class Values:
    """How levels reach a multiplication: as level + offset in uint8, or, `signed`, as they are in int8.

    Vectors of uint8 times int8 are summed in pairs in 16 bits (vpmaddubsw): with the largest value `most`,
    `chain` such vectors may be added before their sum can leave int16.
    """

    offset: int
    most: int
    signed: bool
    chain: int


LARGEST_ACTIVATION = 127
INT16 = 2**15 - 1


def values_of(packing: Packing, dot: str, *, fold_zero: bool) -> Values:
    """`fold_zero`: a group's zero is subtracted from its codes; otherwise codes are multiplied as they
    are."""
    offset, most = {
        "offset": (2 ** (packing.bits - 1), 2**packing.bits - 1),
        "zero": (2**packing.bits - 1, 2 ** (packing.bits + 1) - 2) if fold_zero else (0, 2**packing.bits - 1),
    }.get(packing.kind, (packing.top, 2 * packing.top))
    if not dot.startswith("madd"):
        return Values(offset, most, False, 1)
    chain = INT16 // max(1, 2 * LARGEST_ACTIVATION * most)
    return Values(offset, most, False, chain) if chain else Values(0, packing.top, True, 1)
