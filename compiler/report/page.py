"""A search's result as one HTML page: style, script and pictures are inside, nothing is fetched."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from ...search.objectives import Constraint, parse_constraints
from ...search.result import Candidate, SearchResult
from ..files import write_whole
from . import kernels, tables
from .picture import Axis, Point, draw

COMMAND = "bitsmith compile MODEL.onnx -o model.bitsmith --plan plan.json --calibration DATA --target {}"
HERE = Path(__file__).parent
RELATIVE_TO_FLOAT = ("KL", "SQNR")  # float32 itself has no place on these axes: it is perfect by definition
MOST_NAMED = 8  # points of a picture that get their name beside them


def write_page(result: SearchResult, out: str | os.PathLike[str]) -> Path:
    """Writes the page to the file `out`, whole or not at all, and returns its path. Raises OutputError."""
    write_whole(out, render(result), "the report")
    return Path(out)


def render(result: SearchResult) -> str:
    """The page's text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(**_parts(result))


def _parts(result: SearchResult) -> dict[str, Any]:
    """What the template shows, in its order."""
    return {
        "title": f"{result.graph}: bitsmith search",
        "css": _asset("page.css"),
        "js": _asset("page.js"),
        "graph": result.graph,
        "machine": f"{result.machine.cpu}, {_count(result.threads, 'thread')}, target {result.target}",
        **_summary(result),
        "pictures": _pictures(result),
        "candidate_heads": tables.candidate_heads(result),
        "summary_rows": tables.candidate_rows(result, _distinct((result.float32, result.int8, result.best))),
        "front_rows": tables.candidate_rows(result, result.front),
        "trial_rows": tables.candidate_rows(result, result.trials),
        "ledger_heads": tables.LEDGER_HEADS,
        "ledger_rows": tables.ledger_rows(result.ledger),
        "ledger_note": _ledger_note(result),
        **kernels.section(result.roofline),
        "additivity_heads": tables.ADDITIVITY_HEADS,
        "additivity_rows": tables.additivity_rows(result),
        "additivity_note": _additivity_note(result),
        "notes": result.notes,
        "facts": _facts(result),
        "command": COMMAND.format(result.target),
        "plan": result.best.plan.to_text(),
        "footer": f"The search took {result.seconds:.0f} s.",
    }


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    return list({c.name: c for c in candidates}.values())


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _summary(result: SearchResult) -> dict[str, Any]:
    """The verdict and the tiles."""
    best, base, uniform = result.best, result.float32, result.int8
    measure = tables.qualities(result)[0]
    layers = len(result.ledger)
    took = best.latency_us
    verdict = (
        f"The chosen plan, {best.name}, makes {len(best.int8_layers)} of {_count(layers, 'layer')} int8. "
        f"One run takes {took / 1e3:.3f} ms: {base.latency_us / took:.2f} times as "
        f"fast as float32 and {uniform.latency_us / took:.2f} times as fast as uniform int8."
    )
    tiles = (
        (
            "latency",
            f"{took / 1e3:.3f} ms",
            f"± {tables.half_spread(best) / 1e3:.3f}; float {base.latency_us / 1e3:.3f}",
        ),
        (
            "size on disk",
            tables.size(best.size_bytes),
            f"{best.size_bytes / base.size_bytes:.0%} of float32",
        ),
        (
            measure.text,
            measure.shown(best),
            f"uniform int8 {measure.shown(uniform)}; {_count(best.quality.n, 'sample')}",
        ),
        (
            "int8 layers",
            f"{len(best.int8_layers)} / {layers}",
            f"{_count(len(result.trials), 'candidate')} measured",
        ),
    )
    return {
        "met": result.met,
        "verdict_head": _verdict_head(result),
        "verdict": verdict,
        "tiles": [{"name": name, "value": value, "note": note} for name, value, note in tiles],
        "constraints": result.constraints,
        "objectives": ", ".join(result.objectives),
    }


def _verdict_head(result: SearchResult) -> str:
    if not result.constraints:
        return "Done."
    return "All constraints are met." if result.met else "No plan met the constraints; this is the closest."


def _pictures(result: SearchResult) -> list[dict[str, Any]]:
    """Latency and size against the two kinds of quality that matter most."""
    bounds = {c.metric: c for c in parse_constraints(result.constraints)}
    qualities = tables.qualities(result)
    latency = Axis("median latency", "ms", limits=_limits(bounds, "latency", 1e-3, result.float32.latency_us))
    size = Axis("size on disk", "MB", limits=_limits(bounds, "size", 1e-6, result.float32.size_bytes))
    finer = [m for m in qualities[1:] if m.text in RELATIVE_TO_FLOAT][:1]
    drawn = []
    for measure, x in product((qualities[0], *finer), (latency, size)):
        lower = measure.text == "KL"
        y = Axis(
            measure.text,
            measure.unit,
            lower,
            lower,
            _limits(bounds, measure.text.lower(), measure.factor, 1.0),
        )
        title = f"{measure.text} against {x.label}"
        points = _points(result, measure, timed=x is latency)
        better = f"{'lower' if lower else 'higher'} is better"
        drawn.append({"svg": draw(points, x, y, title), "caption": f"{title} ({better})"})
    return drawn


def _limits(
    bounds: dict[str, Constraint], metric: str, factor: float, base: float
) -> tuple[tuple[float, str], ...]:
    found = bounds.get(metric)
    if found is None:
        return ()
    return ((found.bound * (base if found.relative else 1.0) * factor, found.text),)


def _points(result: SearchResult, measure: tables.Measure, timed: bool) -> list[Point]:
    """All candidates; x is milliseconds, or megabytes when not `timed`. float32 has no place where it is
    judged by itself.
    """
    front = {c.name for c in result.front}
    points = []
    for c in _distinct((*result.trials, *result.front, *result.baselines, result.best)):
        value = measure.get(c)
        if value is None or (c.name == result.float32.name and measure.text in RELATIVE_TO_FLOAT):
            continue
        kind = _kind(result, c, front)
        costs = f"{c.latency_us / 1e3:.3f} ms, {tables.size(c.size_bytes)}"
        tip = f"{c.name}: {costs}, {measure.text} {measure.shown(c)}"
        x, spread = (
            (c.latency_us / 1e3, 2 * tables.half_spread(c) / 1e3) if timed else (c.size_bytes / 1e6, 0.0)
        )
        named = kind in ("best", "baseline") or (kind == "front" and len(front) <= MOST_NAMED)
        points.append(Point(x, value * measure.factor, kind, tip, spread, c.name if named else ""))
    return points


def _kind(result: SearchResult, c: Candidate, front: set[str]) -> str:
    if c.name == result.best.name:
        return "best"
    if c.name in {b.name for b in result.baselines}:
        return "baseline"
    return "front" if c.name in front else "other"


def _ledger_note(result: SearchResult) -> str:
    rows = result.ledger
    stored, whole = sum(r.weight_bytes for r in rows), sum(r.float_bytes for r in rows)
    timed = sum(r.measured_us or 0.0 for r in rows)
    return (
        f"{_count(len(rows), 'layer')}, {tables.size(stored)} of weights with all overheads "
        f"({stored / max(whole, 1):.0%} of float32). The layers take {timed / 1e3:.3f} ms of a run on one "
        "thread; the rest of it are pools, conversions and the like."
    )


def _additivity_note(result: SearchResult) -> str:
    if not result.additivity:
        return "No finalist was measured end to end, so nothing can be said."
    worst = max(result.additivity, key=lambda a: abs(a.relative_error))
    return (
        "Plans are chosen by the sum of kernel times measured one by one. Each finalist is then measured end "
        f"to end; here is how far the sum is off. At worst {worst.relative_error:+.1%} ({worst.candidate})."
    )


def _facts(result: SearchResult) -> list[tuple[str, str]]:
    m = result.machine
    return [
        ("processor", m.cpu),
        ("cores usable", str(m.cores)),
        ("instruction sets", ", ".join(m.features) or "none of note"),
        ("memory", f"{m.memory_bytes / 2**30:.1f} GiB"),
        ("system", f"{m.system}, Python {m.python}"),
        ("target", f"{result.target} ({result.fingerprint})"),
        ("graph", f"{result.graph}, {result.graph_hash[:16]}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in m.versions.items())),
    ]
