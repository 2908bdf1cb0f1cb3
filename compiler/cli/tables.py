"""Results as tables for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from ..measure import Latency, decibels
from .output import (
    milliseconds,
    number,
    size,
    table,
)
from .roofline_table import kernels

if TYPE_CHECKING:
    from ...search.result import Candidate, SearchResult
    from ..pipeline.benchmark import BenchReport
    from ..pipeline.inspection import ArtifactInfo, ModelInfo, TargetInfo
    from ..pipeline.language_models import LanguageInfo
    from ..pipeline.measuring import Measurement
    from ..pipeline.speeds import Speed

SHOWN_VALUES = 5
QUALITIES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("score", "score", "{:.4g}".format),
    ("accuracy", "accuracy", "{:.1%}".format),
    ("agreement", "agreement", "{:.1%}".format),
    ("kl", "KL", "{:.2e}".format),
    ("sqnr_db", "SQNR dB", decibels),
)


def dims(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def inspected(info: ModelInfo | ArtifactInfo) -> Iterable[RenderableType]:
    """Either kind of what `inspect` returns."""
    from ..pipeline.inspection import ModelInfo

    return _model(info) if isinstance(info, ModelInfo) else _artifact(info)


def _head(pairs: Iterable[tuple[str, str]]) -> Table:
    made = Table.grid(padding=(0, 2))
    for name, value in pairs:
        made.add_row(f"[bold]{name}[/bold]", escape(value))
    return made


def _language(info: LanguageInfo) -> Iterable[tuple[str, str]]:
    window = f", windows of {info.window} tokens" if info.window else ""
    shared = f", {info.kv_heads} of keys and values" if info.kv_heads != info.heads else ""
    return (
        ("language model", f"{info.family}, {info.parameters / 1e6:.1f} million parameters"),
        ("blocks", f"{info.blocks} of {info.hidden} features"),
        ("attention", f"{info.heads} heads of {info.head_size}{shared}{window}"),
        (
            "context",
            f"{info.context} tokens (made for {info.trained}), {size(info.cache_bytes)} {info.cache}",
        ),
        ("vocabulary", f"{info.vocabulary} tokens, {'with' if info.tokenizer else 'without'} a tokenizer"),
    )


def _model(info: ModelInfo) -> Iterable[RenderableType]:
    yield _head(
        (
            ("model", info.name),
            *(() if info.language is None else _language(info.language)),
            ("inputs", ", ".join(map(str, info.inputs))),
            ("outputs", ", ".join(map(str, info.outputs))),
            ("multiply-adds", f"{info.macs / 1e6:.1f} million"),
            ("parameters", size(info.param_bytes)),
            ("operators", ", ".join(f"{n} {op}" for op, n in info.operators.items())),
            ("target", info.target),
            ("generic lowering", ", ".join(info.fallback) or "none: every node has a kernel of its own"),
        )
    )
    rows = table("", "layer", "operator", "output", "weights", ">million MACs", ">size", "can become")
    for layer in info.layers:
        cells = (layer.op, dims(layer.shape), dims(layer.weights), f"{layer.macs / 1e6:.2f}")
        rows.add_row(escape(layer.layer), *cells, size(layer.weight_bytes), ", ".join(layer.formats))
    yield rows


def _artifact(info: ArtifactInfo) -> Iterable[RenderableType]:
    yield _head(
        (
            ("artifact", info.path),
            ("model", info.name),
            ("inputs", ", ".join(map(str, info.inputs))),
            ("outputs", ", ".join(map(str, info.outputs))),
            ("target", f"{info.target} (needs {', '.join(info.features)})"),
            ("size on disk", size(info.size_bytes)),
            ("working memory", size(info.arena_bytes)),
            *(() if not info.states else (("kept from run to run", _kept(info)),)),
            ("made", f"{info.created} with bitsmith {info.versions.get('bitsmith', '?')}"),
        )
    )
    if len(info.entries) > 1:
        yield entries(info)
    if info.ledger:
        yield ledger(info.ledger)


def _kept(info: ArtifactInfo) -> str:
    """Its states; of a language model, for how long a text."""
    context = "" if info.language is None else f", for {info.language.context} tokens"
    return f"{len(info.states)} states, {size(sum(state.nbytes for state in info.states))}{context}"


def entries(info: ArtifactInfo) -> Table:
    """The shapes that an artifact was compiled for."""
    made = table("", ">entry", "inputs", "outputs")
    for i, entry in enumerate(info.entries):
        shown = (", ".join(map(str, specs)) for specs in (entry.inputs, entry.outputs))
        made.add_row(str(i), *map(escape, shown))
    return made


def ledger(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Ledger rows as JSON data."""
    heads = (
        "layer",
        "output",
        "choice",
        ">bits",
        ">size",
        ">measured µs",
        ">predicted µs",
        ">error share",
        "reason",
    )
    made = table("", *heads)
    for row in rows:
        share = row["error_share"]
        made.add_row(
            escape(row["layer"]),
            dims(row["shape"]),
            row["choice"],
            f"{row['bits']:.2f}",
            size(row["weight_bytes"]),
            number(row["measured_us"]),
            number(row["predicted_us"]),
            number(share, ".1%"),
            escape(row["reason"]),
        )
    return made


def compiled(info: ArtifactInfo, measured: Measurement | None) -> Iterable[RenderableType]:
    """`measured` is None when the artifact is for another machine, or a language model."""
    choices = Counter(row["choice"] for row in info.ledger)
    counted = sorted(choices.items(), key=lambda pair: (-pair[1], pair[0] == "float32"))
    why = "`bitsmith bench` does" if info.language else "it is for another machine"
    time, memory = (f"not measured: {why}",) * 2
    if measured is not None:
        time = f"{spread(measured.latency)}, {measured.threads} thread{'' if measured.threads == 1 else 's'}"
        memory = size(measured.memory.own_bytes)
    yield _head(
        (
            ("artifact", info.path),
            ("target", info.target),
            ("layers", ", ".join(f"{n} {choice}" for choice, n in counted)),
            ("size on disk", size(info.size_bytes)),
            ("memory", memory),
            ("latency", f"{time}, entry 0" if len(info.entries) > 1 else time),
        )
    )
    if len(info.entries) > 1:
        yield entries(info)


def spread(latency: Latency) -> str:
    return f"{milliseconds(latency.median_us)} ± {latency.spread_us / 2000:.3f}"


def searched(result: SearchResult, out: Path, page: Path) -> Iterable[RenderableType]:
    yield candidates(result, "The front, fastest first; the chosen plan is marked *", result.front)
    yield candidates(result, "Uniform plans and the choice", (*result.baselines, result.best))
    for note in result.notes:
        yield f"note: {escape(note)}"
    yield _head(
        (
            ("constraints", _verdict(result)),
            ("artifact", str(result.best.artifact)),
            ("results", str(out)),
            ("report", str(page)),
        )
    )


def _verdict(result: SearchResult) -> str:
    asked = ", ".join(result.constraints) or "none asked"
    return asked if not result.constraints else f"{asked}: {'met' if result.met else 'NOT met'}"


def candidates(result: SearchResult, title: str, rows: Iterable[Candidate]) -> Table:
    """One row per candidate, with a column for each kind of quality that was measured."""
    shown = [q for q in QUALITIES if getattr(result.float32.quality, q[0]) is not None]
    heads = (f">{head}" for _, head, _ in shown)
    made = table(title, "plan", ">int8 layers", ">latency", ">x float", ">size", *heads)
    for c in {c.name: c for c in rows}.values():
        made.add_row(
            c.name + (" *" if c.name == result.best.name else ""),
            str(len(c.int8_layers)),
            milliseconds(c.latency_us),
            f"{c.latency_us / result.float32.latency_us:.2f}",
            size(c.size_bytes),
            *(_shown(getattr(c.quality, name), form) for name, _, form in shown),
        )
    return made


def _shown(value: float | None, form: Callable[[float], str]) -> str:
    return "-" if value is None else form(value)


def told_entry(used: Mapping[str, Any]) -> Iterable[str]:
    """Lines about what `feeds.entry_used` says: which shapes a run was for, where there is a choice."""
    if used["entries"] > 1:
        shapes = ", ".join(f"{name} {dims(shape)}" for name, shape in used["shapes"].items())
        yield escape(f"entry {used['entry']} of {used['entries']}: {shapes}")
    for name, shape in used["padded"].items():
        yield escape(f"padded with zeros: {name} {dims(shape)} to {dims(used['shapes'][name])}")


def outputs(results: Mapping[str, np.ndarray], out: Path | None) -> tuple[dict[str, Any], Table]:
    """JSON data and the table: what each output is, and where its largest values are."""
    made = table("", "output", "type", "largest values (index: value)")
    data: dict[str, Any] = {"outputs": {}, "out": out}
    for name, array in results.items():
        flat = array.reshape(-1)
        top = [int(i) for i in np.argsort(-flat.astype(np.float64), kind="stable")[:SHOWN_VALUES]]
        shown = ", ".join(f"{i}: {flat[i]:.4g}" for i in top)
        made.add_row(escape(name), f"{array.dtype}[{dims(array.shape)}]", shown)
        data["outputs"][name] = {
            "shape": array.shape,
            "dtype": array.dtype.name,
            "largest": [{"index": i, "value": flat[i]} for i in top],
        }
    return data, made


def benched(report: BenchReport) -> Iterable[RenderableType]:
    rows = table(
        "", "what", "engine", ">threads", ">median", ">± half IQR", f">x {report.baseline}", ">noise", ">size"
    )
    for row in report.rows:
        t = row.latency
        rows.add_row(
            escape(row.name),
            row.engine,
            str(row.threads),
            milliseconds(t.median_us),
            f"{t.spread_us / 2000:.3f}",
            f"{t.ratio_to_first:.3f}",
            f"{t.noise:.1%}",
            size(row.size_bytes),
        )
    yield rows
    rounds = f"{report.rows[0].latency.n} rounds in turns, {report.inputs} inputs"
    yield f"{rounds}, on {escape(report.machine.cpu)}"
    if report.speeds:
        yield spoken(report.speeds)
    for name, entry in report.entries.items():
        yield f"entry {entry} of {escape(name)}"
    for name, roofline in report.profiles.items():
        yield from kernels(name, roofline)


def spoken(speeds: Iterable[Speed]) -> Table:
    """Tokens per second of language models."""
    made = table("", "what", ">threads", ">prompt", ">prefill tok/s", ">decode tok/s")
    for row in speeds:
        rates = (f"{rate:.1f}" for rate in (row.prefill_per_second, row.decode_per_second))
        made.add_row(escape(row.name), str(row.threads), str(row.prompt), *rates)
    return made


def listed_targets(found: Iterable[TargetInfo]) -> Table:
    made = table("", "target", "what", "CPU features", "runs here")
    for target in found:
        here = "yes (host)" if target.host else "yes" if target.runs_here else "no"
        made.add_row(target.name, target.description, " ".join(target.features), here)
    return made
