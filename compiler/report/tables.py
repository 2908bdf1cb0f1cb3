"""The tables of the page, as rows of cells: texts made for reading, values made for sorting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...search.result import Candidate, SearchResult
from ..ledger import LedgerRow
from ..measure import decibels


@dataclass(frozen=True)
class Head:
    """A column. A `number` column is right-aligned and sorts by its cells' values."""

    text: str
    number: bool = True
    help: str = ""


@dataclass(frozen=True)
class Cell:
    """`value` sorts; `bar` is a percentage drawn and `note` small text below; `kind` a class of the style."""

    text: str
    value: float | None = None
    kind: str = ""
    bar: float | None = None
    chip: bool = False
    note: str = ""


@dataclass(frozen=True)
class Row:
    cells: tuple[Cell, ...]
    kind: str = ""


LEDGER_HEADS = (
    Head("layer", number=False, help="with its operator and the shape of its output"),
    Head("choice", number=False, help="data type chosen for the layer"),
    Head("bits", help="stored bits per weight, scales and bias counted"),
    Head("weights", help="stored bytes of weights, bias and scales"),
    Head("of float", help="stored bytes as a share of those in float32"),
    Head("MACs", help="multiply-adds of one run, millions"),
    Head("predicted µs", help="from the table of measured kernels"),
    Head("measured µs", help="inside the compiled artifact, one thread"),
    Head("share of error", help="of the summed sensitivity of all layers as chosen"),
    Head("reason", number=False),
)


def ledger_rows(ledger: Sequence[LedgerRow]) -> list[Row]:
    """One row per layer. Bars are relative to the largest value of the column."""
    heaviest = max((r.weight_bytes for r in ledger), default=0)
    slowest = max((t for r in ledger for t in (r.predicted_us, r.measured_us) if t is not None), default=0.0)
    worst = max((r.error_share or 0.0 for r in ledger), default=0.0)
    return [_ledger_row(row, heaviest, slowest, worst) for row in ledger]


def _ledger_row(row: LedgerRow, heaviest: float, slowest: float, worst: float) -> Row:
    part = row.weight_bytes / row.float_bytes if row.float_bytes else 1.0
    return Row(
        (
            Cell(row.layer, note=f"{row.op} {'×'.join(map(str, row.shape))}"),
            Cell(row.choice, chip=True),
            number(row.bits, ".2f"),
            number(row.weight_bytes, ",.0f", heaviest),
            number(part, ".0%"),
            number(row.macs / 1e6, ".2f"),
            number(row.predicted_us, ".1f", slowest),
            number(row.measured_us, ".1f", slowest),
            number(row.error_share, ".1%", worst),
            Cell(row.reason, kind="wrap"),
        )
    )


def number(value: float | None, form: str, longest: float | None = None) -> Cell:
    """A right-aligned cell; `longest` is the value whose bar fills the cell. None shows as a dash and sorts
    last.
    """
    if value is None:
        return Cell("–", kind="number")
    bar = None if not longest else round(100 * value / longest, 1)
    return Cell(format(value, form), float(value), "number", bar)


def size(count: float) -> str:
    """Bytes in a unit that reads well."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


@dataclass(frozen=True)
class Measure:
    """One kind of quality: its heading, its explanation, how to read it from a candidate, how to print it."""

    text: str
    help: str
    get: Callable[[Candidate], float | None]
    form: str | Callable[[float], str]
    unit: str = ""
    factor: float = 1.0

    def shown(self, candidate: Candidate) -> str:
        value = self.get(candidate)
        if value is None:
            return "–"
        return format(value, self.form) if isinstance(self.form, str) else self.form(value)


QUALITIES = (
    Measure(
        "score", "what the caller's own function returned; higher is better", lambda c: c.quality.score, ".4g"
    ),
    Measure(
        "accuracy",
        "share of samples whose top class is the label",
        lambda c: c.quality.accuracy,
        ".1%",
        "%",
        100,
    ),
    Measure(
        "agreement",
        "share of samples whose top class is that of the float model",
        lambda c: c.quality.agreement,
        ".1%",
        "%",
        100,
    ),
    Measure(
        "KL",
        "mean divergence from the float model's class probabilities, nats",
        lambda c: c.quality.kl,
        ".2e",
        "nats",
    ),
    Measure(
        "SQNR",
        "signal to quantisation noise of the first output, decibels",
        lambda c: c.quality.sqnr_db,
        decibels,
        "dB",
    ),
)


def qualities(result: SearchResult) -> tuple[Measure, ...]:
    """The kinds of quality that were measured, the one that matters most first."""
    return tuple(m for m in QUALITIES if any(m.get(c) is not None for c in result.trials + result.baselines))


def candidate_heads(result: SearchResult) -> tuple[Head, ...]:
    return (
        Head("candidate", number=False),
        Head(
            "from",
            number=False,
            help="baseline: uniform; allocation: exact, from the tables; optuna: the sampler's proposal",
        ),
        Head("int8 layers"),
        Head(
            "latency ms",
            help="of one run, with half the interquartile range: the ratio to float32, measured in turns "
            "with it, times float32's median in the run at the end that timed all finalists",
        ),
        Head("of float", help="median latency as a share of the float model's"),
        Head("predicted ms", help="sum of the layers' kernel times"),
        Head("size kB", help="bytes on disk: library, weights and manifest"),
        Head("of float", help="size as a share of the float model's"),
        *(Head(m.text, help=m.help) for m in qualities(result)),
        Head("constraints", number=False),
    )


def candidate_rows(result: SearchResult, candidates: Sequence[Candidate]) -> list[Row]:
    """One row per candidate; `best` and the baselines are marked."""
    kinds = {result.best.name: "best", result.float32.name: "baseline", result.int8.name: "baseline"}
    return [_candidate_row(result, c, kinds.get(c.name, "")) for c in candidates]


def _candidate_row(result: SearchResult, c: Candidate, kind: str) -> Row:
    base, share = result.float32, half_spread(c)
    met = "met" if c.feasible else "not met"
    return Row(
        (
            Cell(c.name + (" (chosen)" if kind == "best" else "")),
            Cell(c.origin),
            number(len(c.int8_layers), "d"),
            Cell(f"{c.latency_us / 1e3:.3f} ± {share / 1e3:.3f}", c.latency_us, "number"),
            number(c.latency_us / base.latency_us, ".0%"),
            number(None if c.predicted_us is None else c.predicted_us / 1e3, ".3f"),
            number(c.size_bytes / 1e3, ",.0f"),
            number(c.size_bytes / base.size_bytes, ".0%"),
            *(Cell(m.shown(c), m.get(c), "number") for m in qualities(result)),
            Cell(met if result.constraints else "none asked", kind="" if c.feasible else "unmet"),
        ),
        kind,
    )


def half_spread(candidate: Candidate) -> float:
    """Half the interquartile range in microseconds, on the scale of `latency_us`."""
    return candidate.latency.spread_us / 2 * candidate.latency_us / max(candidate.latency.median_us, 1e-9)


ADDITIVITY_HEADS = (
    Head("candidate", number=False),
    Head("predicted ms", help="sum of the measured kernel times of all steps"),
    Head("measured ms", help="end to end, one thread, median"),
    Head("error", help="(predicted - measured) / measured"),
)


def additivity_rows(result: SearchResult) -> list[Row]:
    return [
        Row(
            (
                Cell(a.candidate),
                number(a.predicted_us / 1e3, ".3f"),
                number(a.measured_us / 1e3, ".3f"),
                number(a.relative_error, "+.1%"),
            )
        )
        for a in result.additivity
    ]
