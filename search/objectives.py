"""What a search is asked for: objectives to improve and constraints to keep.

    agreement>=0.98    accuracy>=0.85    accuracy_drop<=0.01    score>=0.7    score_drop<=0.01
    kl<=0.02           sqnr>=20          sqnr>=20dB           cosine>=0.99
    latency<=3ms       latency<=300us    latency<=0.7x          (x: times the float32 baseline)
    size<=5MB          size<=800KiB      size<=0.3x

Quality is measured on few samples, so a plan that meets a bound exactly on them fails it half of the time
on others. A constraint is therefore judged with a margin of `z` standard errors of the measurement
(`excess`). A share that is perfect on all samples always passes: nothing better can be observed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..compiler.errors import InputError
from ..compiler.measure import Quality
from .metrics import (
    LABELS,
    METRICS,
    RELATIVE,
    SCORE,
    Reading,
)

OBJECTIVES = ("quality", "latency", "size")
MARGIN_Z = 0.5
"""Standard errors held against a plan: one that just passes meets its bound elsewhere 7 times of 10."""


@dataclass(frozen=True)
class Constraint:
    """A bound in the metric's base unit (0..1, nats, dB, microseconds, bytes), or times the baseline."""

    metric: str
    bound: float
    relative: bool
    text: str

    @property
    def bounds_quality(self) -> bool:
        return self.metric not in RELATIVE

    def excess(self, reading: Reading, baseline: Reading, z: float = MARGIN_Z) -> float:
        """How far the plan is outside, in units of the metric's scale; 0 or less: it meets the bound.

        `z` standard errors are held against the plan. A metric that was not measured is 1 outside.
        """
        metric = METRICS[self.metric]
        value = metric.value(reading, baseline, z)
        if value is None:
            return 1.0
        bound = self.bound
        if self.relative:
            bound *= baseline.latency_us if self.metric == "latency" else baseline.size_bytes
        distance = bound - value if metric.at_least else value - bound
        return distance / metric.scale(bound)


GRAMMAR = re.compile(r"\s*([a-z_]+)\s*(>=|<=|==|=|<|>)\s*([-+0-9.eE]+?)\s*([A-Za-z%]*)\s*")


def parse_constraint(text: str) -> Constraint:
    """One constraint from its text (forms above). Raises InputError saying what is wrong."""
    match = GRAMMAR.fullmatch(text)
    if not match:
        raise InputError(
            f"constraint {text!r}: expected METRIC>=NUMBER or METRIC<=NUMBER with a unit, such as "
            f"agreement>=0.98 or latency<=3ms; metrics: {', '.join(METRICS)}"
        )
    name, sign, number, unit = match.groups()
    if name not in METRICS:
        raise InputError(f"constraint {text!r}: no metric {name!r}; there are {', '.join(METRICS)}")
    metric = METRICS[name]
    wanted = ">=" if metric.at_least else "<="
    if sign != wanted:
        raise InputError(f"constraint {text!r}: {name} takes {wanted}, not {sign}")
    value, relative = _bound(text, name, number, unit)
    if not (math.isfinite(value) and metric.lowest <= value <= metric.highest):
        raise InputError(f"constraint {text!r}: {value:g} is out of range for {name}")
    return Constraint(name, value, relative, "".join(match.groups()))


def _bound(text: str, name: str, number: str, unit: str) -> tuple[float, bool]:
    metric = METRICS[name]
    try:
        value = float(number)
    except ValueError:
        raise InputError(f"constraint {text!r}: {number!r} is not a number") from None
    if unit == "x" and name in RELATIVE:
        return value, True
    if unit not in metric.units:
        legal = [u for u in metric.units if u] + (["x"] if name in RELATIVE else [])
        needed = "needs a unit" if not unit else f"cannot be in {unit!r}"
        raise InputError(f"constraint {text!r}: {name} {needed}: {', '.join(legal) or 'it has none'}")
    return value * metric.units[unit], False


def parse_constraints(texts: Sequence[str | Constraint]) -> tuple[Constraint, ...]:
    """Constraints from their texts; each metric at most once. Raises InputError."""
    if isinstance(texts, str):
        raise InputError(f"constraints must be a list of texts: [{texts!r}]")
    parsed = tuple(t if isinstance(t, Constraint) else parse_constraint(t) for t in texts)
    names = [c.metric for c in parsed]
    twice = [c.text for c in parsed if names.count(c.metric) > 1]
    if twice:
        raise InputError(f"several constraints on one metric: {', '.join(twice)}; keep the strictest")
    return parsed


def check_objectives(objectives: Sequence[str]) -> tuple[str, ...]:
    """The objectives, without duplicates. Raises InputError for unknown ones and for none."""
    if isinstance(objectives, str) or not objectives:
        raise InputError(f"objectives must be a list of some of {', '.join(OBJECTIVES)}, got {objectives!r}")
    unknown = [o for o in objectives if o not in OBJECTIVES]
    if unknown:
        raise InputError(
            f"unknown objectives {', '.join(map(repr, unknown))}; there are {', '.join(OBJECTIVES)}"
        )
    return tuple(dict.fromkeys(objectives))


def primary(objectives: Sequence[str]) -> str:
    """What decides between plans within the constraints: the first objective that is not quality, if any."""
    return next((o for o in objectives if o != "quality"), "quality")


def default_constraints(quality: Quality) -> tuple[Constraint, ...]:
    """What is kept when the caller names no bound on quality: the float model's answers, within what users
    notice.

    A caller's score may drop by 0.01; a classifier agrees on 98 % of samples; anything else keeps 20 dB:
    its error has 1 % of the signal's power.
    """
    if quality.score is not None:
        return (parse_constraint("score_drop<=0.01"),)
    return (parse_constraint("agreement>=0.98" if quality.agreement is not None else "sqnr>=20dB"),)


def quality_loss(quality: Quality) -> float:
    """The quality objective, to be minimised: -score, else KL, else relative squared error."""
    if quality.score is not None:
        return -quality.score
    return quality.kl if quality.kl is not None else 10.0 ** (-quality.sqnr_db / 10)


def objective_values(objectives: Sequence[str], reading: Reading) -> tuple[float, ...]:
    """Numbers to minimise, in the order of the objectives."""
    table = {
        "quality": quality_loss(reading.quality),
        "latency": reading.latency_us,
        "size": float(reading.size_bytes),
    }
    return tuple(table[o] for o in objectives)


def total_excess(
    constraints: Sequence[Constraint], reading: Reading, baseline: Reading, z: float = MARGIN_Z
) -> float:
    """Sum of what lies outside; 0 when all constraints are met."""
    return sum(max(0.0, c.excess(reading, baseline, z)) for c in constraints)


def check_given(constraints: Sequence[Constraint], labels: bool, score: bool) -> None:
    """Raises InputError when a constraint needs labels or a score that the caller did not give."""
    for c in constraints:
        needs = METRICS[c.metric].needs
        if (needs == LABELS and not labels) or (needs == SCORE and not score):
            raise InputError(f"constraint {c.text!r} needs {needs}")


def check_measurable(constraints: Sequence[Constraint], baseline: Reading) -> None:
    """Raises InputError when a constraint bounds what was not measured, saying what to give."""
    for c in constraints:
        if METRICS[c.metric].value(baseline, baseline, 0.0) is None:
            raise InputError(f"constraint {c.text!r} needs {METRICS[c.metric].needs}")
