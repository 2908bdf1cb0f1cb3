"""The page's section on kernels: each beside the machine's limit, and what is above it."""

from __future__ import annotations

from typing import Any

from ..analysis.roofline import KernelRow, Roofline
from .tables import (
    Cell,
    Head,
    Row,
    number,
)

HEADS = (
    Head("layer", number=False, help="with the kernel that computes it"),
    Head("µs", help="median of one call, one thread"),
    Head("above µs", help="time above the floor: what a perfect kernel would win"),
    Head("of limit", help="floor / time: 100 % is at the machine's limit"),
    Head("limit", number=False, help="what binds: the rate of an instruction, or a cache's bandwidth"),
    Head("floor µs", help="the time that the limit allows"),
    Head("GOP/s", help="arithmetic operations per nanosecond; a multiply-add counts 2"),
    Head("GB/s", help="inputs, weights and outputs, each byte once, per nanosecond"),
)


def section(roofline: Roofline | None) -> dict[str, Any]:
    """What the template shows; no rows when nothing was measured."""
    if roofline is None:
        return {"kernel_heads": HEADS, "kernel_rows": [], "kernel_sums": [], "kernel_limits": ""}
    slowest = max((row.microseconds for row in roofline.rows), default=0.0)
    highest = max((row.above_us or 0.0 for row in roofline.rows), default=0.0)
    return {
        "kernel_heads": HEADS,
        "kernel_rows": [_row(row, slowest, highest) for row in roofline.by_excess()],
        "kernel_sums": _sums(roofline),
        "kernel_limits": _limits(roofline),
    }


def _row(row: KernelRow, slowest: float, highest: float) -> Row:
    unknown = row.work is None or row.work.operations is None
    return Row(
        (
            Cell(row.layer, note=row.kernel),
            number(row.microseconds, ".1f", slowest),
            _bar(row.above_us, ".1f", highest),
            _bar(row.share, ".0%", 1.0),
            Cell(row.limit),
            number(row.floor_us, ".1f"),
            Cell("unknown", kind="number") if unknown else number(row.gops, ".1f"),
            number(row.gbs, ".1f"),
        )
    )


def _bar(value: float | None, form: str, longest: float) -> Cell:
    """A number with a bar; one below 0 or beyond the longest is measuring noise, and its bar ends there."""
    cell = number(value, form, longest)
    return (
        cell if cell.bar is None else Cell(cell.text, cell.value, cell.kind, min(100.0, max(0.0, cell.bar)))
    )


def _sums(roofline: Roofline) -> list[dict[str, str]]:
    run = max(roofline.run_us, 1e-9)
    shown = (
        ("one run", f"{run / 1e3:.3f} ms", "one thread, sum of medians"),
        ("kernels", f"{roofline.kernels_us / 1e3:.3f} ms", f"{len(roofline.rows)} calls"),
        (
            "outside of them",
            f"{roofline.outside_us / 1e3:.3f} ms",
            f"{roofline.outside_us / run:.1%} of the run",
        ),
        ("floor", f"{roofline.floor_us / 1e3:.3f} ms", f"{roofline.share:.0%} of the run"),
    )
    return [{"name": name, "value": value, "note": note} for name, value, note in shown]


def _limits(roofline: Roofline) -> str:
    rates = ", ".join(f"{name} {rate:.0f} GOP/s" for name, rate in roofline.peaks.rates.items())
    levels = ", ".join(f"{level.label} {level.read_gbs:.0f} GB/s" for level in roofline.peaks.levels)
    said = (
        f"Measured limits of one thread: {rates}; reading {levels}. "
        f"While these kernels were timed, the machine gave {roofline.speed:.0%} of its float32 limit."
    )
    if roofline.unknown:
        said += f" The operations of {roofline.unknown} kernels are not known: their floor is too low."
    return said
