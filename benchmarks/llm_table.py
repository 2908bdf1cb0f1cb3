"""What was measured of language models, as JSON for programs and as a table for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from llm_turns import PROMPT, Model, Quality, Speeds
from peer_stats import Spread, paired_ratio

TOKENS = {"prefill": PROMPT, "decode": 1}
"""Of one timed run."""


def to_json(
    models: Sequence[Model], qualities: Mapping[str, Quality], speeds: Speeds
) -> list[dict[str, Any]]:
    """One object for each model; `ratio`: its tokens per second as a multiple of the first's, by rounds."""
    rows = []
    for model in models:
        row: dict[str, Any] = {"engine": model.engine, "form": model.form, "bytes": model.bytes}
        rows.append(
            row | {"quality": vars(qualities[model.name]), "speeds": _speeds(model, models[0], speeds)}
        )
    return rows


def _speeds(model: Model, first: Model, speeds: Speeds) -> list[dict[str, Any]]:
    found = []
    for (name, threads, verb), rounds in speeds.rounds.items():
        if name == model.name:
            spread = Spread.of([TOKENS[verb] / second for each in rounds for second in each])
            other = speeds.rounds.get((first.name, threads, verb))
            ratio = vars(paired_ratio(other, rounds)) if other else None
            found.append(
                {
                    "threads": threads,
                    "verb": verb,
                    "tokens_per_s": vars(spread),
                    "ratio": ratio,
                    "failed": None,
                }
            )
    for (name, threads, verb), reason in speeds.failed.items():
        if name == model.name:
            found.append(
                {"threads": threads, "verb": verb, "tokens_per_s": None, "ratio": None, "failed": reason}
            )
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """A table; tokens per second with their multiple of the first row's in brackets."""
    rows = result["models"]
    columns = sorted({(each["threads"], each["verb"]) for row in rows for each in row["speeds"]})
    heads = [f"{verb} tok/s, {threads} thr" for threads, verb in columns]
    lines = [
        "| engine | weights | MB | KL | same token | " + " | ".join(heads) + " |",
        "|" + "---|" * (5 + len(heads)),
    ]
    for row in rows:
        quality, speeds = row["quality"], {(s["threads"], s["verb"]): s for s in row["speeds"]}
        cells = [row["engine"], row["form"], f"{row['bytes'] / 1e6:.1f}", f"{quality['kl']:.4f}"]
        cells += [f"{quality['agreement']:.1%}", *(_cell(speeds.get(column)) for column in columns)]
        lines.append("| " + " | ".join(cells) + " |")
    reasons = {s["failed"]: None for row in rows for s in row["speeds"] if s["failed"]}
    return "\n".join([*lines, *(f"failed: {reason}" for reason in reasons), ""])


def _cell(speed: Mapping[str, Any] | None) -> str:
    if speed is None or speed["tokens_per_s"] is None:
        return "failed"
    ratio = speed["ratio"]
    times = f" ({ratio['median']:.2f})" if ratio else ""
    return f"{speed['tokens_per_s']['median']:.0f}{times}"
