"""How near to the machine's limits a compiled model runs, kernel by kernel (the roofline model: Williams,
Waterman and Patterson, 2009).

A kernel's floor is the longer of two times: its arithmetic at the measured rate of the instruction that it
multiplies with, and its memory traffic (inputs, weights and outputs once) at the measured bandwidths of the
caches. Of its activations, as much as a cache holds counts at that cache's bandwidth, and only what is beyond
at the next one's: no order of work does better. Weights count at the level that holds all that a run touches:
between two uses of a weight the whole network passes by. This file is arithmetic; targets/peaks.py measures
the machine, targets/work.py counts the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Level:
    """A level of the memory, one thread. The last one, main memory, holds everything; its capacity is 0.

    capacity   bytes
    read_gbs   bytes read per nanosecond
    copy_gbs   bytes read and bytes written, together, per nanosecond, when copying
    """

    name: str
    capacity: float
    read_gbs: float
    copy_gbs: float

    @property
    def label(self) -> str:
        """Its name and size: "L2 (512 KiB)"."""
        kib = self.capacity / 1024
        sized = f"{kib / 1024:g} MiB" if kib >= 1024 else f"{kib:g} KiB"
        return f"{self.name} ({sized})" if self.capacity else self.name

    @property
    def write_ns(self) -> float:
        """Nanoseconds that writing a byte adds: what copying takes longer than reading."""
        return max(0.0, 2 / self.copy_gbs - 1 / self.read_gbs)


@dataclass(frozen=True)
class Peaks:
    """What a machine can do, one thread, measured.

    rates    way to multiply (a row of targets/kernels/mac.py) -> operations per nanosecond (a multiply-add
             counts 2)
    levels   of the memory, smallest first
    """

    rates: Mapping[str, float]
    levels: tuple[Level, ...]

    def level_of(self, nbytes: float) -> Level:
        """The first level that holds so many bytes."""
        return next((level for level in self.levels[:-1] if nbytes <= level.capacity), self.levels[-1])

    def parts(self, nbytes: float) -> list[tuple[Level, float]]:
        """So many bytes, each at the nearest level that has room for it: (level, bytes), none of 0."""
        split, done = [], 0.0
        for level in self.levels:
            end = nbytes if level is self.levels[-1] else min(nbytes, level.capacity)
            if end > done:
                split.append((level, end - done))
                done = end
        return split

    def to_json(self) -> dict[str, Any]:
        levels = [{**asdict(level), "capacity": int(level.capacity)} for level in self.levels]
        return {"rates": dict(self.rates), "levels": levels}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Peaks:
        return Peaks(dict(data["rates"]), tuple(Level(**level) for level in data["levels"]))


@dataclass(frozen=True)
class Work:
    """What one kernel call has to do, whatever way it does it.

    operations      a multiply-add counts 2; None when it is not known, as of a piece of a fused operator
    rate            the way it multiplies, a key of Peaks.rates; "" when its arithmetic has no measured limit
    read_bytes      of activations, each byte once
    write_bytes     of activations
    weight_bytes    of weights, biases and scales, not padded
    """

    operations: int | None
    rate: str
    read_bytes: int
    write_bytes: int
    weight_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.read_bytes + self.write_bytes + self.weight_bytes

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Work:
        """Raises TypeError when a field is missing or unknown."""
        return Work(**data)


@dataclass(frozen=True)
class KernelRow:
    """One kernel call of a run, one thread.

    microseconds   median
    gops           operations per nanosecond; None when they are not known or there are none
    gbs            bytes per nanosecond that it must touch; None when nothing is known of its work
    floor_us       the time that the machine's limit allows; None when nothing is known of its work
    limit          what binds: "float32 rate", "L2 bandwidth"; "unknown"
    share          floor_us / microseconds: 1 is at the limit
    above_us       microseconds - floor_us
    """

    layer: str
    kernel: str
    microseconds: float
    work: Work | None
    gops: float | None
    gbs: float | None
    floor_us: float | None
    limit: str
    share: float | None
    above_us: float | None


@dataclass(frozen=True)
class Roofline:
    """A whole run, one thread. Rows in the order of the run.

    kernels_us   sum of the rows' times
    outside_us   what a run takes besides: the call, the runtime's loop
    run_us       both
    floor_us     sum of the floors; of rows without one, their time
    unknown      rows whose operations are not known: their floor is that of their traffic, or none
    speed        the share of its float32 limit that the machine gave while the rows were timed
    """

    rows: tuple[KernelRow, ...]
    peaks: Peaks
    kernels_us: float
    outside_us: float
    run_us: float
    floor_us: float
    unknown: int
    speed: float = 1.0

    @property
    def share(self) -> float:
        """floor_us / run_us."""
        return self.floor_us / max(self.run_us, 1e-9)

    def by_excess(self) -> list[KernelRow]:
        """The rows, most above the floor first; one without a floor counts with all of its time."""

        def excess(row: KernelRow) -> float:
            return row.microseconds if row.above_us is None else row.above_us

        return sorted(self.rows, key=excess, reverse=True)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "peaks": self.peaks.to_json(), "share": self.share}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Roofline:
        """The inverse of `to_json`. Raises TypeError or KeyError when a field is missing or unknown."""
        rows = tuple(
            KernelRow(**{**row, "work": None if row["work"] is None else Work.from_json(row["work"])})
            for row in data["rows"]
        )
        rest = {k: v for k, v in data.items() if k != "share"}
        return Roofline(**{**rest, "rows": rows, "peaks": Peaks.from_json(data["peaks"])})


def floor_of(work: Work, peaks: Peaks, footprint: float) -> tuple[float, str]:
    """(nanoseconds that the machine's limit allows, which limit). `footprint`: bytes that a run touches."""
    moved = work.read_bytes + work.write_bytes
    spent: dict[str, float] = {}  # level -> nanoseconds
    for level, nbytes in peaks.parts(moved):
        reading, writing = work.read_bytes / level.read_gbs, work.write_bytes * level.write_ns
        spent[level.name] = (reading + writing) * nbytes / moved
    far = peaks.level_of(footprint)
    spent[far.name] = spent.get(far.name, 0.0) + work.weight_bytes / far.read_gbs
    traffic, rate = sum(spent.values()), peaks.rates.get(work.rate)
    arithmetic = work.operations / rate if work.operations and rate else 0.0
    if arithmetic > traffic:
        return arithmetic, f"{work.rate} rate"
    return traffic, f"{max(spent, key=lambda name: spent[name])} bandwidth"


def kernel_row(
    layer: str, kernel: str, microseconds: float, work: Work | None, peaks: Peaks, footprint: float
) -> KernelRow:
    """One row of the table."""
    if work is None:
        return KernelRow(layer, kernel, microseconds, None, None, None, None, "unknown", None, None)
    took = max(microseconds * 1e3, 1e-9)
    nanoseconds, limit = floor_of(work, peaks, footprint)
    return KernelRow(
        layer=layer,
        kernel=kernel,
        microseconds=microseconds,
        work=work,
        gops=work.operations / took if work.operations else None,
        gbs=work.total_bytes / took,
        floor_us=nanoseconds / 1e3,
        limit=limit if work.operations is not None else f"{limit} (operations unknown)",
        share=nanoseconds / took,
        above_us=microseconds - nanoseconds / 1e3,
    )


def roofline(rows: Sequence[KernelRow], peaks: Peaks, outside_us: float, speed: float = 1.0) -> Roofline:
    """The rows with their sums."""
    kernels = sum(row.microseconds for row in rows)
    floors = (row.microseconds if row.floor_us is None else row.floor_us for row in rows)
    return Roofline(
        rows=tuple(rows),
        peaks=peaks,
        kernels_us=kernels,
        outside_us=outside_us,
        run_us=kernels + outside_us,
        floor_us=sum(floors),
        unknown=sum(row.work is None or row.work.operations is None for row in rows),
        speed=speed,
    )
