"""The verb search for language models: weight formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConstraintError, InputError
from .output import Output, size, table

if TYPE_CHECKING:
    from rich.table import Table

    from ..pipeline.bit_searching import BitSearchResult


@dataclass(frozen=True)
class FormatSearch:
    """What was asked for; None: as usual."""

    constraints: tuple[str, ...]
    formats: Sequence[str] | None
    losses: str | None
    trials: int | None
    target: str
    seed: int


def refuse(options: Mapping[str, object], whose: str) -> None:
    """Raises InputError for options that do not belong to this kind of model."""
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if given:
        raise InputError(f"{', '.join(given)} {'is' if len(given) == 1 else 'are'} for {whose}")


def search_formats(model: Path, out: Path, calibration: Path, wanted: FormatSearch, said: Output) -> None:
    """`bitsmith search` of a checkpoint: as pipeline.search_bits, with its result shown. Raises
    ConstraintError where no plan met the bound.
    """
    from .. import pipeline
    from ..frontends.language.model import load_language_model
    from ..pipeline.bit_searching import FORMATS, TRIALS
    from ..pipeline.data_files import read_text

    with said.progress() as progress:
        result = pipeline.search_bits(
            load_language_model(model),
            out,
            calibration=read_text(calibration),
            constraints=wanted.constraints,
            formats=wanted.formats or FORMATS,
            table=wanted.losses or "curvature",
            trials=TRIALS if wanted.trials is None else wanted.trials,
            seed=wanted.seed,
            target=wanted.target,
            progress=progress,
        )
    said.emit(result, *searched(result))
    if result.went_on:
        said.note(f"went on from {result.went_on} plans that {out} had measured already")
    if not result.met:
        raise ConstraintError(f"no plan met {result.bound}; {out} holds the closest one")


def searched(result: BitSearchResult) -> tuple[Table, Table]:
    front = table("measured plans that no other beats", "plan", ">bits per weight", ">codes", ">KL")
    for point in result.front:
        mark = " (chosen)" if point == result.best else ""
        front.add_row(f"{point.name}{mark}", f"{point.bits:.3f}", size(point.bytes), f"{point.kl:.5f}")
    made = table("", "what", ">value")
    rows = (
        (f"artifact {result.artifact}", size(result.size_bytes)),
        ("bits per weight", f"{result.best.bits:.3f}"),
        (f"KL over {result.judged_tokens} tokens", f"{result.best.kl:.5f}"),
        *([] if result.decode is None else [("decode, one thread", f"{result.decode:.1f} tok/s")]),
        *((f"layers in {name}", str(count)) for name, count in _counts(result).items()),
    )
    for what, value in rows:
        made.add_row(what, value)
    return front, made


def _counts(result: BitSearchResult) -> dict[str, int]:
    found = [str(format) for format, _ in result.plan.coded.values()]
    return {name: found.count(name) for name in sorted(set(found))}
