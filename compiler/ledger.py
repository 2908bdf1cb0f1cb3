"""The ledger: one row per layer saying what was done to it, why, and what it cost. Stored in manifests
and search results as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import InputError


@dataclass(frozen=True)
class LedgerRow:
    """One layer.

    choice          "float32", "bfloat16", "int8" or a weight format
    bits            stored bits per weight, all overheads (scales, bias) counted
    weight_bytes    stored bytes of weights, bias and scales
    float_bytes     the same in float32
    macs            multiply-adds of one run
    predicted_us    time from the kernel table, None if it was not asked for
    measured_us     time inside the compiled artifact, one thread, None if not measured
    error_share     this layer's share (0..1) of the summed sensitivity of all layers as chosen, None if
    not known
    reason          why this choice
    """

    layer: str
    op: str
    shape: tuple[int, ...]
    choice: str
    bits: float
    weight_bytes: int
    float_bytes: int
    macs: int
    predicted_us: float | None
    measured_us: float | None
    error_share: float | None
    reason: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> LedgerRow:
        """Raises InputError when a field is missing or unknown."""
        names = {f.name for f in fields(LedgerRow)}
        if set(data) != names:
            raise InputError(
                f"ledger row: expected the fields {', '.join(sorted(names))}, found {', '.join(sorted(data))}"
            )
        return LedgerRow(**{**data, "shape": tuple(data["shape"])})
