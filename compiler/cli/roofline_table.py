"""The kernels of a compiled model beside the machine's limits, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from ..analysis.roofline import KernelRow, Roofline
from .output import number, table


def kernels(name: str, roofline: Roofline) -> Iterable[RenderableType]:
    """The kernels, those first that have most to win; then sums, then the limits."""
    yield _rows(
        f"{escape(name)}: {len(roofline.rows)} kernels, one thread, most above the floor first", roofline
    )
    yield _sums(roofline)
    yield _limits(roofline)


def _rows(title: str, roofline: Roofline) -> Table:
    heads = ("layer", "kernel", ">µs", ">GOP/s", ">GB/s", "limit", ">floor µs", ">of limit", ">above µs")
    made = table(title, *heads)
    for row in roofline.by_excess():
        made.add_row(
            escape(row.layer),
            escape(row.kernel),
            number(row.microseconds),
            _operations(row),
            number(row.gbs),
            row.limit,
            number(row.floor_us),
            number(row.share, ".0%"),
            number(row.above_us),
        )
    return made


def _operations(row: KernelRow) -> str:
    unknown = row.work is None or row.work.operations is None
    return "unknown" if unknown else number(row.gops)


def _sums(roofline: Roofline) -> str:
    run, floor = roofline.run_us, roofline.floor_us
    said = (
        f"run {run:.0f} µs = kernels {roofline.kernels_us:.0f} + outside of them {roofline.outside_us:.0f} "
        f"({roofline.outside_us / max(run, 1e-9):.1%}); floor {floor:.0f} µs, {roofline.share:.0%} of the "
        f"run; above the floor {run - floor:.0f} µs"
    )
    if roofline.unknown:
        said += f"; operations of {roofline.unknown} kernels are not known: their floor is too low"
    return said


def _limits(roofline: Roofline) -> str:
    rates = ", ".join(f"{name} {rate:.0f} GOP/s" for name, rate in roofline.peaks.rates.items())
    levels = ", ".join(f"{level.label} {level.read_gbs:.0f}" for level in roofline.peaks.levels)
    now = (
        f"while these kernels were timed it gave {roofline.speed:.0%} of its float32 limit: "
        "a kernel at that share of its limit has nothing to win"
    )
    return f"limits of this machine, one thread: {rates}; reading, GB/s: {levels}; {now}"
