"""The exact choice of data types under an additive model: a 0/1 integer program.

    minimise    sum over layers of time(choice) + sum over edges of conversion time where neighbours differ
    subject to  sum over int8 layers of loss <= max_loss,   sum over layers of bytes(choice) <= max_bytes

Each layer has one variable x (1: int8). Each edge u -> v has two, for leaving int8 (x_u = 1, x_v = 0) and
entering it, bounded below by +-(x_u - x_v); as conversions cost time they are 0 wherever they may be.
HiGHS solves it (scipy.optimize.milp); a network of 60 layers takes milliseconds.

Where a layer has several choices (`choose`) each is a variable, and those of one layer sum to 1:

    minimise    sum of loss (or bytes)     subject to  sum of bytes (or loss) <= bound
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..compiler.errors import InputError, InternalError
from .quiet import stdout_to_stderr

US_PER_BYTE = 1e-7  # breaks ties between equal times in favour of the smaller: 10 MB weigh one microsecond
BUDGET_STEP = 0.5  # between two points of the front
PRECISION = 1e4  # what the largest cost is scaled to: HiGHS takes costs within 1e-6 for equal


@dataclass(frozen=True)
class Edge:
    """A value that goes from one layer to another.

    leave_us   extra time when the source is int8 and the target float32
    enter_us   extra time when the source is float32 and the target int8
    """

    source: str
    target: str
    leave_us: float
    enter_us: float


@dataclass(frozen=True)
class Problem:
    """Tables by layer name: times in microseconds, sizes in bytes, `loss` of the layer alone being int8."""

    layers: tuple[str, ...]
    float_us: Mapping[str, float]
    int8_us: Mapping[str, float]
    loss: Mapping[str, float]
    float_bytes: Mapping[str, int]
    int8_bytes: Mapping[str, int]
    edges: tuple[Edge, ...] = ()

    def __post_init__(self) -> None:
        for name in ("float_us", "int8_us", "loss", "float_bytes", "int8_bytes"):
            table = getattr(self, name)
            bad = [x for x in self.layers if x not in table or not 0 <= table[x] < float("inf")]
            if bad:
                raise InternalError(f"allocation: {name} is missing or negative for {', '.join(bad)}")

    def evaluate(self, int8: frozenset[str]) -> Allocation:
        """Time, loss and size of that choice, summed up."""
        us = sum((self.int8_us if x in int8 else self.float_us)[x] for x in self.layers)
        for e in self.edges:
            if (e.source in int8) != (e.target in int8):
                us += max(0.0, e.leave_us if e.source in int8 else e.enter_us)
        return Allocation(
            int8,
            us,
            sum(self.loss[x] for x in self.layers if x in int8),
            sum((self.int8_bytes if x in int8 else self.float_bytes)[x] for x in self.layers),
        )


@dataclass(frozen=True)
class Allocation:
    """The layers that become int8, with their sums: predicted microseconds, loss, stored bytes."""

    int8: frozenset[str]
    us: float
    loss: float
    bytes: int

    def choices(self, layers: Sequence[str]) -> dict[str, str]:
        return {x: "int8" if x in self.int8 else "float32" for x in layers}


def solve(
    problem: Problem,
    *,
    max_loss: float | None = None,
    max_bytes: int | None = None,
    allowed: frozenset[str] | None = None,
    us_per_byte: float = US_PER_BYTE,
) -> Allocation | None:
    """The fastest choice within the budgets, None when there is none.

    `allowed`: only these layers may become int8 (all by default). `us_per_byte` prices size; raise it to
    minimise size.
    """
    if max_loss is not None and max_loss < 0:
        raise InputError(f"the loss budget must not be negative, got {max_loss}")
    result = _milp(problem, max_loss, max_bytes, allowed, us_per_byte)
    if result is None:
        return None
    return problem.evaluate(frozenset(x for x, v in zip(problem.layers, result, strict=False) if v > 0.5))


@dataclass(frozen=True)
class Variant:
    """One choice of a layer: its name, and what it costs."""

    name: str
    loss: float
    bytes: int

    def __post_init__(self) -> None:
        if not 0 <= self.loss < float("inf") or self.bytes < 0:
            raise InternalError(f"allocation: {self} must not be negative or infinite")


def choose(
    menu: Mapping[str, Sequence[Variant]], *, max_bytes: int | None = None, max_loss: float | None = None
) -> dict[str, Variant] | None:
    """One variant for each layer: of least loss within `max_bytes`, or of fewest bytes within `max_loss`;
    None when there is none. Raises InternalError unless exactly one bound is given.
    """
    if (max_bytes is None) == (max_loss is None):
        raise InternalError("allocation: give max_bytes or max_loss")
    kept = {layer: undominated(variants) for layer, variants in menu.items()}
    flat = [(layer, variant) for layer, variants in kept.items() for variant in variants]
    losses = np.array([variant.loss for _, variant in flat])
    sizes = np.array([float(variant.bytes) for _, variant in flat])
    paid, bounded, bound = (losses, sizes, max_bytes) if max_loss is None else (sizes, losses, max_loss)
    assert bound is not None
    index = {layer: i for i, layer in enumerate(kept)}
    one_each = np.zeros((len(kept), len(flat)))
    one_each[[index[layer] for layer, _ in flat], range(len(flat))] = 1
    row, limit = _budget(bounded, bound, len(flat))
    scaled = paid * (PRECISION / (paid.max(initial=0.0) or 1.0))
    rows = [(one_each, 1.0, 1.0), (row, -np.inf, limit)]
    found = _solved(scaled, np.ones(len(flat)), rows)
    return None if found is None else {layer: v for (layer, v), x in zip(flat, found, strict=True) if x > 0.5}


def undominated(variants: Sequence[Variant]) -> list[Variant]:
    """Without those that another is no worse than in loss and in bytes."""
    best: list[Variant] = []
    for variant in sorted(variants, key=lambda v: (v.bytes, v.loss)):
        if not best or variant.loss < best[-1].loss:
            best.append(variant)
    return best


def _milp(
    problem: Problem,
    max_loss: float | None,
    max_bytes: int | None,
    allowed: frozenset[str] | None,
    us_per_byte: float,
) -> np.ndarray | None:
    layers, edges = problem.layers, problem.edges
    n, m = len(layers), len(edges)
    gain = np.array([problem.int8_us[x] - problem.float_us[x] for x in layers])
    smaller = np.array([float(problem.int8_bytes[x] - problem.float_bytes[x]) for x in layers])
    conversions = [max(0.0, us) for e in edges for us in (e.leave_us, e.enter_us)]
    cost = np.concatenate([gain + us_per_byte * smaller, conversions])
    rows: list[Any] = [_differences(problem)] if m else []
    if max_loss is not None:
        rows.append(_budget([problem.loss[x] for x in layers], max_loss, n + 2 * m))
    if max_bytes is not None:
        room = max_bytes - sum(problem.float_bytes[x] for x in layers)
        rows.append(_budget(smaller, room, n + 2 * m))
    highest = np.ones(n + 2 * m)
    if allowed is not None:
        highest[:n] = [x in allowed for x in layers]
    return _solved(cost, highest, [(a, -np.inf, b) for a, b in rows])


def _solved(
    cost: np.ndarray, highest: np.ndarray, rows: Sequence[tuple[np.ndarray, Any, Any]]
) -> np.ndarray | None:
    """Whole numbers 0..highest of least cost with low <= matrix x <= high for each (matrix, low, high)."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    with stdout_to_stderr():  # HiGHS says there when it repairs a solution that was not quite whole
        done = milp(
            cost,
            integrality=np.ones(len(cost)),  # edge variables would be whole anyway; said so, HiGHS is faster
            bounds=Bounds(0, highest),
            constraints=[LinearConstraint(*row) for row in rows],
            options={"mip_rel_gap": 0.0},
        )
    if done.status == 2:  # infeasible
        return None
    if done.x is None:
        raise InternalError(f"allocation: HiGHS ended without a solution: {done.message}")
    return np.asarray(done.x)


def _differences(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """x_u - x_v - leave <= 0 and x_v - x_u - enter <= 0 for every edge."""
    n, m = len(problem.layers), len(problem.edges)
    index = {x: i for i, x in enumerate(problem.layers)}
    matrix = np.zeros((2 * m, n + 2 * m))
    for k, e in enumerate(problem.edges):
        u, v = index[e.source], index[e.target]
        matrix[2 * k, [u, v, n + 2 * k]] = 1, -1, -1
        matrix[2 * k + 1, [u, v, n + 2 * k + 1]] = -1, 1, -1
    return matrix, np.zeros(2 * m)


def _budget(amounts: Sequence[float] | np.ndarray, limit: float, width: int) -> tuple[np.ndarray, float]:
    """sum amounts * x <= limit, scaled: the solver's tolerance of 1e-6 is relative to the largest number."""
    row = np.zeros(width)
    row[: len(amounts)] = amounts
    unit = max(abs(limit), float(np.abs(row).max(initial=0.0))) or 1.0
    return (row / unit)[None], limit / unit


def sweep(problem: Problem, points: int, *, max_bytes: int | None = None) -> tuple[Allocation, ...]:
    """At most `points` different choices: the fastest, then each with half the loss of the one before.

    From most loss to least; the choice without loss ends it.
    """
    front: list[Allocation] = []
    budget: float | None = None
    while len(front) < points:
        best = solve(problem, max_loss=budget, max_bytes=max_bytes)
        if best is None:
            break
        if not front or best.int8 != front[-1].int8:
            front.append(best)
        if best.loss <= 0:
            break
        budget = BUDGET_STEP * min(best.loss, best.loss if budget is None else budget)
    return tuple(front)


def with_times(problem: Problem, float_us: Mapping[str, float], int8_us: Mapping[str, float]) -> Problem:
    """The same problem where other measurements are at hand for some layers."""
    return replace(problem, float_us={**problem.float_us, **float_us}, int8_us={**problem.int8_us, **int8_us})
