"""Coded layers on disk: what a killed run has finished is not coded again.

run.json         what the codes were made of; another run's folder is refused
000.npz, ...     one file for each layer, written whole or not at all
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..compiler.errors import InputError
from ..compiler.files import whole_file, write_whole
from ..compiler.formats import Coded, format_of

FACTORS, ERROR, FORMAT, SHAPE = "the factors", "the error", "the format", "the shape"
"""Names that no array of a Coded has."""


@dataclass(frozen=True, eq=False)
class LayerCodes:
    """A layer's weight in codes.

    factors   float32 [k]: the columns of the weight were multiplied with them before, and the layer's input
    must
              be divided by them (passes/divide.py); None: nothing was. Layers that read one value share them
    error     squared error of the layer's outputs on the calibration inputs, over that of outputs 0; without
              calibration, of the weights
    """

    coded: Coded
    factors: np.ndarray | None
    error: float


class KeptCodes:
    """The folder of one run; `identity` says what that is. Without a folder nothing is kept."""

    def __init__(self, folder: str | os.PathLike[str] | None, identity: str, layers: Sequence[str]) -> None:
        self.folder = None if folder is None else Path(folder)
        self._numbers = {layer: i for i, layer in enumerate(layers)}
        if self.folder is not None:
            self._claim(self.folder, identity)

    def _claim(self, folder: Path, identity: str) -> None:
        place = folder / "run.json"
        if not place.exists():
            write_whole(place, json.dumps({"identity": identity}), "the record of coded layers")
            return
        try:
            known = json.loads(place.read_text(encoding="utf-8"))["identity"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{place} cannot be read ({error}): remove {folder} to begin anew") from None
        if known != identity:
            raise InputError(
                f"{folder} holds layers that were coded from another model, other formats, samples or "
                "options: give another folder, or remove it"
            )

    def __contains__(self, layer: str) -> bool:
        return self.folder is not None and self._place(self.folder, layer).exists()

    def _place(self, folder: Path, layer: str) -> Path:
        return folder / f"{self._numbers[layer]:03d}.npz"

    def put(self, layer: str, codes: LayerCodes) -> None:
        """Raises OutputError when the file cannot be written."""
        if self.folder is None:
            return
        facts = {
            FORMAT: np.asarray(str(codes.coded.format)),
            SHAPE: np.asarray(codes.coded.shape),
            ERROR: np.asarray(codes.error),
        }
        if codes.factors is not None:
            facts[FACTORS] = codes.factors
        with whole_file(self._place(self.folder, layer), "the codes of a layer") as scratch:
            with scratch.open("wb") as file:
                np.savez(file, **codes.coded.arrays, **facts)  # type: ignore[arg-type]

    def get(self, layer: str) -> LayerCodes:
        """Raises InputError when the file is damaged."""
        assert self.folder is not None
        place = self._place(self.folder, layer)
        try:
            with place.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = dict(stored)
            return _restored(arrays)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{place} is damaged ({error}): remove it to code the layer again") from None


def _restored(arrays: dict[str, np.ndarray]) -> LayerCodes:
    format = format_of(str(arrays.pop(FORMAT)))
    n, k = arrays.pop(SHAPE).tolist()
    error, factors = float(arrays.pop(ERROR)), arrays.pop(FACTORS, None)
    return LayerCodes(Coded(format, (n, k), arrays), factors, error)


def factors_of(codes: Mapping[str, LayerCodes], inputs: Mapping[str, str]) -> dict[str, np.ndarray]:
    """{value: factors} for `scale_inputs`, from coded layers and the value that each reads."""
    return {inputs[layer]: each.factors for layer, each in codes.items() if each.factors is not None}
