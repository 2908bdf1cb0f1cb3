"""What `bitsmith diff` shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from ..measure import decibels
from .output import number, table

if TYPE_CHECKING:
    from ..analysis.difference import LayerDifference
    from ..pipeline.diffing import DiffReport

HEADS = (
    "",
    "layer",
    "operator",
    "stored",
    ">error",
    ">of range",
    ">unequal",
    ">to float",
    ">of range",
    ">SQNR dB",
    ">added noise",
)
SHOWN_CHANGED = 5


def compared(report: DiffReport) -> Iterable[RenderableType]:
    """All layers in the order of a run, those that depart marked; then what it comes to."""
    yield _rows(report.layers)
    data = f"{report.samples} {report.inputs} input{'' if report.samples == 1 else 's'}"
    data += f", entry {report.entry}" if report.entry else ""
    yield f"{data}; error: to the same layer on the same inputs (uint8: in steps); then: to the float model"
    if report.noisiest is not None:
        yield f"most noise is added by {escape(report.noisiest)}"
    found = [escape(line) for line in verdict(report)]
    yield "\n".join(found) or f"every layer computes what it should (tolerance {report.tolerance:g})"


def _rows(layers: Iterable[LayerDifference]) -> Table:
    made = table("", *HEADS)
    for row in layers:
        made.add_row(
            "!" if row.departs or row.weight_bytes_changed else "",
            escape(row.layer),
            f"{row.op} {row.choice}".strip(),
            row.dtype,
            f"{row.error:.3g}",
            f"{row.relative:.1e}",
            f"{row.unequal:.1%}",
            number(row.float_error, ".3g"),
            number(row.float_relative, ".1e"),
            "-" if row.sqnr_db is None else decibels(row.sqnr_db),
            number(row.added_noise, ".1e"),
        )
    return made


def verdict(report: DiffReport) -> Iterator[str]:
    """A sentence for each thing that is wrong; none when all is well."""
    rows = {row.layer: row for row in report.layers}
    if report.departs is not None:
        row = rows[report.departs]
        unit = " steps" if row.dtype == "uint8" else ""
        yield (
            f"the first layer that departs from its reference is {row.layer!r} ({row.op}): by "
            f"{row.error:.3g}{unit}, {row.relative:.2g} of the range of its values"
        )
    if report.changed:
        shown = [repr(name) for name in report.changed[:SHOWN_CHANGED]]
        more = ", ..." if len(report.changed) > SHOWN_CHANGED else ""
        yield f"weights.bin is not what the model compiles to in {', '.join(shown)}{more}"
    if not report.reproduced:
        yield "model.so gives other outputs than its layers one by one: it is damaged, or of another version"
    if report.noisy is not None:
        row = rows[report.noisy]
        yield (
            f"the first layer below {report.least_sqnr:g} dB against the float model is {row.layer!r} "
            f"({row.op}): {decibels(row.sqnr_db or 0.0)} dB"
        )
