"""The rows as a table for people and as JSON for programs."""

from collections.abc import Sequence
from typing import Any

from bitsmith.compiler.measure import decibels
from peer_bench import Measured, Row
from peer_model import Subject
from peer_stats import Spread, paired_ratio
from rich.table import Table

OURS = "bitsmith"
OUR_PRECISIONS = ("float32", "int8")
BUSY_CORES = 0.1  # an idle system stays below this
NUMBERS = ("thr", "MB", "ms", "quartiles", "÷f32", "÷int8", "agree", "dB", "top-1")


def find(rows: Sequence[Row], engine: str, precision: str, threads: int) -> Row | None:
    """The measured row of that name."""
    wanted = (engine, precision, threads)
    named = (row for row in rows if (row.entry.engine, row.entry.precision, row.threads) == wanted)
    return next((row for row in named if row.rounds), None)


def ratio(row: Row, reference: Row | None) -> Spread | None:
    """How many times as long as the reference it takes."""
    return paired_ratio(row.rounds, reference.rounds) if reference and row.rounds else None


def table(subject: Subject, rows: Sequence[Row]) -> Table:
    """One line for each row; ratios above 1 mean slower than ours."""
    made = Table(title=f"{subject.name}, {subject.data}", title_justify="left")
    labelled = any(row.quality and row.quality.accuracy is not None for row in rows)
    for name in ("engine", "precision"):
        made.add_column(name, no_wrap=True)
    for name in NUMBERS if labelled else NUMBERS[:-1]:
        made.add_column(name, justify="right", no_wrap=True)
    made.caption = (
        "thr: threads; ms: median; ÷f32, ÷int8: time / our time at that precision; "
        "agree, dB: same class and SQNR against ONNX Runtime float32"
    )
    made.caption_justify = "left"
    before = None
    for row in rows:
        if before not in (None, row.threads):
            made.add_section()
        before = row.threads
        made.add_row(*_cells(row, rows, labelled), style="bold" if row.entry.engine == OURS else "")
    return made


def _cells(row: Row, rows: Sequence[Row], labelled: bool) -> list[str]:
    size, latency, judged = row.entry.size_bytes, row.latency, row.quality
    precision = f"{row.entry.precision} {row.entry.variant}".strip()
    cells = [row.entry.engine, precision, str(row.threads), f"{size / 1e6:.2f}" if size else "–"]
    if latency is None:
        return [*cells, "failed", "–"]
    cells += [f"{latency.median * 1e3:.2f}", f"{latency.low * 1e3:.2f}–{latency.high * 1e3:.2f}"]
    for other in OUR_PRECISIONS:
        found = ratio(row, find(rows, OURS, other, row.threads))
        cells.append(f"{found.median:.2f}" if found else "–")
    cells.append(f"{judged.agreement:.3f}" if judged and judged.agreement is not None else "–")
    cells.append(decibels(judged.sqnr_db) if judged else "–")
    if labelled:
        cells.append(f"{judged.accuracy:.3f}" if judged and judged.accuracy is not None else "–")
    return cells


def verdicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Our time / their time for each peer at the same precision and thread count, paired by round."""
    found = []
    for row in rows:
        ours = find(rows, OURS, row.entry.precision, row.threads)
        if ours and row.rounds and row.entry.engine != OURS:
            spread = paired_ratio(ours.rounds, row.rounds)
            pair = {"precision": row.entry.precision, "threads": row.threads, "peer": row.entry.engine}
            found.append({**pair, "ratio": spread.median, "low": spread.low, "high": spread.high})
    return found


def sentences(measured: Measured) -> list[str]:
    """The verdicts in words, the reason of each failure, once, and what else may have disturbed the times."""
    rows = measured.rows
    lines = [
        f"threads {v['threads']}, {v['precision']}: {OURS} takes {v['ratio']:.2f}"
        f" ({v['low']:.2f}–{v['high']:.2f}) of {v['peer']}'s time"
        for v in verdicts(rows)
    ]
    reasons = {(row.entry.engine, row.entry.precision, row.failed): None for row in rows if row.failed}
    lines += [f"{engine} {precision} failed: {reason}" for engine, precision, reason in reasons]
    if measured.others_cores > BUSY_CORES:
        lines.append(f"other processes kept {measured.others_cores:.1f} cores busy: the times are too long")
    return lines


def to_json(subject: Subject, measured: Measured) -> dict[str, Any]:
    """All that was measured, every round included. Seconds and bytes."""
    rows = measured.rows
    return {
        "model": subject.name,
        "data": subject.data,
        "rows": [_row_json(row, rows) for row in rows],
        "verdicts": verdicts(rows),
        "others_cores": measured.others_cores,
    }


def _row_json(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    latency = row.latency
    ratios = {name: ratio(row, find(rows, OURS, name, row.threads)) for name in OUR_PRECISIONS}
    return {
        "engine": row.entry.engine,
        "precision": row.entry.precision,
        "variant": row.entry.variant,
        "threads": row.threads,
        "facts": dict(row.facts),
        "size_bytes": row.entry.size_bytes,
        "latency_s": vars(latency) if latency else None,
        "ratio_to_ours": {name: vars(spread) if spread else None for name, spread in ratios.items()},
        "quality": row.quality.to_json() if row.quality else None,
        "idle_cpu_s": row.idle_cpu_s,
        "rounds_s": [list(seconds) for seconds in row.rounds],
        "failed": row.failed,
    }
