"""What linear layers read, kept on disk while a search lasts: plans are measured in codes whose errors make
each other good, which takes X^T X of every layer.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from ...compiler.errors import InputError
from ...compiler.files import whole_file
from ...compiler.formats.compensate import Compensation, Compensator
from ...passes.layer_coder import damping_of
from ...passes.layer_inputs import LayerInputs

WHAT = "what a layer reads"


class KeptInputs:
    """float32 [k, k] for each value that layers read, 4 k^2 bytes in the folder. Raises InputError for a
    damaged file, OutputError where none can be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, value: str, inputs: LayerInputs) -> None:
        place = self._place(value)
        if place.exists():
            return
        with whole_file(place, WHAT) as scratch, scratch.open("wb") as file:
            mean = (inputs.hessian / max(inputs.rows, 1)).astype(np.float32)
            np.savez(file, hessian=mean, rows=np.asarray(inputs.rows))

    def coder(self, value: str) -> Compensator:
        """Codes weights that are multiplied with the value: one walk, no sweeps."""
        place = self._place(value)
        try:
            with np.load(place, allow_pickle=False) as stored:
                return coder_of(stored["hessian"], int(stored["rows"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            folder = place.parent.parent
            raise InputError(f"{place} is damaged ({error}): remove {folder} to begin anew") from None

    def _place(self, value: str) -> Path:
        return self.folder / f"{value.replace('/', '_')}.npz"


def coder_of(hessian: np.ndarray, rows: int) -> Compensator:
    """For X^T X [k, k] of so many rows, with the damping that they need."""
    damping = damping_of(len(hessian), rows)
    return Compensator(hessian, Compensation(damping=damping, sweeps=0))
