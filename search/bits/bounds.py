"""What a search over weight formats may be bound by.

size<=60MB    size<=0.3x (of the weights in float32)     the artifact on disk
bits<=3.5                                                mean bits per coded weight, with all metadata
kl<=0.02                                                 nats per token from the float model
decode>=200tok/s                                         single tokens per second on this machine
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...compiler.errors import InputError
from ..objectives import parse_constraint

KINDS = ("size", "bits", "kl", "decode")


@dataclass(frozen=True)
class BitBound:
    """`limit`: bytes, a share of the float size (`relative`), bits, nats, or tokens per second."""

    kind: str
    limit: float
    relative: bool
    text: str

    def bytes(self, weights: int, float_bytes: int, other_bytes: int) -> int:
        """The room for codes, of a bound on size or bits; `other_bytes` of the artifact are no codes."""
        if self.kind == "bits":
            return math.floor(self.limit * weights / 8)
        whole = self.limit * float_bytes if self.relative else self.limit
        return max(math.floor(whole) - other_bytes, 0)

    def room(self, least: int, weights: int, float_bytes: int, other_bytes: int) -> int | None:
        """The same; None for bounds on something else. Raises InputError where `least`, what the codes take
        in the formats of fewest bits, does not fit in.
        """
        if self.kind not in ("bits", "size"):
            return None
        room = self.bytes(weights, float_bytes, other_bytes)
        if room < least:
            others = f" beside {other_bytes} of all else" if self.kind == "size" else ""
            raise InputError(
                f"bound {self.text!r} leaves the codes {room} bytes{others}, but they take at least {least} "
                "in these formats: raise the bound, or give formats of fewer bits"
            )
        return room


def parse_bound(texts: Sequence[str]) -> BitBound:
    """The one bound of a search. Raises InputError for none, several, and what is not known."""
    forms = "size<=60MB, size<=0.3x, bits<=3.5, kl<=0.02 or decode>=200tok/s"
    if isinstance(texts, str) or len(texts) != 1:
        raise InputError(f"a search over a language model's weight formats needs one bound: {forms}")
    text = texts[0].replace(" ", "")
    if match := re.fullmatch(r"bits<=([0-9]+(?:\.[0-9]+)?)", text):
        limit = float(match[1])
        if not 1 <= limit <= 16:
            raise InputError(f"bound {text!r}: {limit:g} bits are out of range, 1 to 16")
        return BitBound("bits", limit, False, text)
    if match := re.fullmatch(r"decode>=([0-9]+(?:\.[0-9]+)?)tok/s", text):
        if not float(match[1]):
            raise InputError(f"bound {text!r}: give more than 0 tokens per second")
        return BitBound("decode", float(match[1]), False, text)
    if text.startswith("decode"):
        raise InputError(f"bound {text!r}: speed is given as in decode>=200tok/s")
    if re.match(r"[a-z_]*", text)[0] not in KINDS:  # type: ignore[index]
        raise InputError(f"bound {text!r} is not for language models: give {forms}")
    found = parse_constraint(text)
    return BitBound(found.metric, found.bound, found.relative, found.text)
