"""What a search over weight formats keeps in its folder, so that a killed one goes on.

table.npz     the table of losses
trials.json   every measured choice
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...compiler.errors import InputError
from ...compiler.files import whole_file, write_whole
from ...compiler.formats import Format, format_of
from .trials import Trial

TABLE_FILE, TRIALS_FILE = "table.npz", "trials.json"
Losses = Mapping[str, Mapping[Format, float]]


class BitMemory:
    """The folder of one search; `identity` says which.

    Raises InputError for the folder of another search, or one that cannot be read.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder, self.identity = folder, identity
        self.trials: list[Trial] = []
        if (folder / TRIALS_FILE).exists():
            self.trials = self._read(folder / TRIALS_FILE)

    def _read(self, place: Path) -> list[Trial]:
        try:
            kept = json.loads(place.read_text(encoding="utf-8"))
            known, trials = kept["identity"], [_trial(each) for each in kept["trials"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{place} cannot be read ({error}): remove {place.parent} to begin anew"
            ) from None
        if known != self.identity:
            raise InputError(
                f"{place.parent} holds a search of another model, text, set of formats or options: give "
                "another folder, or remove it"
            )
        return trials

    def add(self, trial: Trial) -> None:
        """Raises OutputError when it cannot be written."""
        self.trials.append(trial)
        self._write()

    def _write(self) -> None:
        kept = {"identity": self.identity, "trials": [told(trial) for trial in self.trials]}
        write_whole(self.folder / TRIALS_FILE, json.dumps(kept, indent=1), "the trials of the search")

    def table(self) -> Losses | None:
        """What `keep_table` kept; None when there is nothing yet. Raises InputError for a damaged file."""
        place = self.folder / TABLE_FILE
        if not place.exists() or not (self.folder / TRIALS_FILE).exists():
            return None
        try:
            with place.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                units, names = stored["units"].tolist(), stored["formats"].tolist()
                losses = stored["losses"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{place} is damaged ({error}): remove {place.parent} to begin anew") from None
        formats = [format_of(name) for name in names]
        return {
            unit: dict(zip(formats, row.tolist(), strict=True))
            for unit, row in zip(units, losses, strict=True)
        }

    def keep_table(self, table: Losses) -> None:
        """Raises OutputError when it cannot be written."""
        units = list(table)
        formats = list(table[units[0]])
        facts = {
            "units": np.array(units),
            "formats": np.array([str(format) for format in formats]),
            "losses": np.array([[table[unit][format] for format in formats] for unit in units]),
        }
        with whole_file(self.folder / TABLE_FILE, "the table of losses") as scratch:
            with scratch.open("wb") as file:
                np.savez(file, **facts)  # type: ignore[arg-type]
        self._write()


def told(trial: Trial) -> dict[str, object]:
    """A trial for JSON."""
    formats = {unit: str(format) for unit, format in trial.choices.items()}
    facts = {"name": trial.name, "bytes": trial.bytes, "predicted": trial.predicted, "kl": trial.kl}
    return {**facts, "formats": formats, "shares": dict(trial.shares)}


def _trial(kept: Mapping[str, object]) -> Trial:
    formats, shares = kept["formats"], kept["shares"]
    if not isinstance(formats, dict) or not isinstance(shares, dict):
        raise ValueError("a trial has no formats or shares")
    choices = {str(unit): format_of(str(format)) for unit, format in formats.items()}
    numbers = (int(str(kept["bytes"])), float(str(kept["predicted"])), float(str(kept["kl"])))
    return Trial(str(kept["name"]), choices, *numbers, {str(u): float(share) for u, share in shares.items()})
