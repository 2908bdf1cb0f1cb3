"""Codes in the making: what groups share, and the code and level of each weight, for some rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .coded import Format, Parameters
from .encode import assemble, spans
from .factor import Block
from .families import family_of
from .scales import Store


@dataclass
class State:
    """codes uint8 [k, n] and levels float32 [k, n] (without scale), column by column of the weight; for each
    group of a row its Parameters [n], the function that chooses codes, and its tables float32 [n * 2^bits],
    in which those of row i begin at rows[i].
    """

    format: Format
    store: Store
    codes: np.ndarray
    levels: np.ndarray
    parameters: dict[int, Parameters]
    choosers: dict[int, Callable[[np.ndarray], np.ndarray]]
    tables: dict[int, np.ndarray]
    rows: np.ndarray

    @staticmethod
    def empty(format: Format, weight: np.ndarray, store: Store) -> State:
        n, k = weight.shape
        codes, levels = np.zeros((k, n), np.uint8), np.zeros((k, n), np.float32)
        return State(format, store, codes, levels, {}, {}, {}, np.arange(n) << format.bits)

    def fit(self, block: Block, values: np.ndarray, importance: np.ndarray) -> None:
        """Scales and tables for a group whose weights are now values [n, g], in the block's order."""
        values = np.ascontiguousarray(values)
        weights = np.broadcast_to(importance.astype(np.float32), values.shape)
        self.set(block.group, family_of(self.format).fit(values, self.format.bits, weights, self.store))

    def set(self, group: int, parameters: Parameters) -> None:
        family, bits = family_of(self.format), self.format.bits
        self.parameters[group] = parameters
        self.choosers[group] = family.chooser(bits, parameters)
        tables = family.levels(bits, parameters.side, len(parameters.scale))
        self.tables[group] = tables.astype(np.float32).reshape(-1)

    def rescale(self, group: int, scale: np.ndarray) -> None:
        self.set(group, Parameters(scale, self.parameters[group].side))

    @property
    def free_scales(self) -> bool:
        """Whether a scale may be anything that the store can hold."""
        return self.store.row is not None or self.store.wide or not family_of(self.format).shifts

    def choose(self, block: Block, place: int, values: np.ndarray) -> np.ndarray:
        """The nearest levels to values [n] become those of the block's column; float32 [n], with scale."""
        codes = self.choosers[block.group](values[:, None])[:, 0]
        column = block.columns[place]
        self.codes[column] = codes
        level = self.levels[column] = self.tables[block.group].take(self.rows + codes)
        decoded: np.ndarray = level * self.parameters[block.group].scale
        return decoded

    def decoded(self) -> np.ndarray:
        """float32 [n, k]: scale * level."""
        k = len(self.codes)
        each = np.stack([self.parameters[group].scale for group in range(len(self.parameters))])
        found: np.ndarray = (self.levels * np.repeat(each, self.format.width(k), 0)[:k]).T
        return found

    def arrays(self, row: np.ndarray | None) -> dict[str, np.ndarray]:
        """What Coded stores."""
        k, n = self.codes.shape
        width = self.format.width(k)
        codes, parameters = [], []
        for first, count, size in spans(self.format, k):
            part = self.codes[first * width : first * width + count * size].T
            codes.append(part.reshape(n, count, size))
            each = [self.parameters[group] for group in range(first, first + count)]
            scale = np.stack([p.scale for p in each], 1).reshape(-1)
            sides = [p.side for p in each if p.side is not None]
            side = np.stack(sides, 1).reshape(n * count, *sides[0].shape[1:]) if sides else None
            parameters.append(Parameters(scale, side))
        return assemble(self.format, codes, parameters, row)
