"""Which power of two each channel of a linear layer's input is divided by before it is stored in 8 bits.

After a layer norm a few channels are ten times larger than the others, and one scale for all leaves the
others a few steps. What the input's channels are divided by, the weight's columns are multiplied with: the
product stays (Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", 2023):

    s[j] = max |x[j]|^alpha / max |w[j]|^(1 - alpha), rounded to a power of two

so that not one bit changes in float32. Where that leaves too much, as with channels that are a thousand times
larger at one position only, the few largest channels stay float32 beside the 8 bits of the others (Dettmers
et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", 2022).

The range of x / s is chosen by the error of the layers' results, not of x: what is rare and large decides
more in a transformer than its share of squared error says. On MiniLM (six layers, all int8, 40 sentences)
the cosine of sentence embeddings to float is 0.925 with ranges of least squared error of x, 0.993 with
ranges by results alone, 0.998 with both; powers of two cost nothing, and no channel needs to be kept. Two
channels 300 times larger at every eighth position leave a layer an error of 0.2 to 0.4 of its results, kept
in float32 8e-5; it then takes 0.53 to 0.62 of float32's time instead of 0.49 to 0.56 (128 x 384 x 384 to 32
x 384 x 1536, Zen 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..histogram import RowSample
from ..ir import Graph, Node
from ..plan import Calibration, free_layers_of

ALPHAS = (0.25, 0.5, 0.65, 0.75, 0.85)
SHRINK = (1.0, 0.9, 0.8, 0.65, 0.5, 0.35)
"""What the ends of a range are tried at."""
FEWEST_ROWS = 256
"""Fewer say too little of each channel's extremes: a classifier behind a mean over pixels is left alone."""
MOST_ROWS, MOST_OUTPUTS = 512, 256
"""Of the kept rows, and of the layers' output channels: those that the error is measured on."""
FOLDED, COPIED = 0.9, 0.6
"""Share of the error that may be left for dividing to pay: inside the producer, or in a node of its own."""
KEPT = (2, 4, 8, 16)
"""How many channels are tried to be kept in float32."""
POOR, RELIEVED, ENOUGH = 1e-3, 0.25, 2.0
"""Squared error relative to the layers' results above which channels are kept; what may be left of it; and by
how much the fewest that are kept may miss the least error."""
LARGEST = 40
"""Exponents beyond would leave float32 in products of extremes."""


@dataclass(frozen=True)
class Smoothing:
    """How some linear layers store their input: `x[..., j] / 2**exponents[j]`, between `low` and `high`, but
    for the channels `kept`, which they multiply in float32."""

    layers: tuple[str, ...]
    exponents: tuple[int, ...]
    low: float
    high: float
    kept: tuple[int, ...] = ()

    @property
    def divides(self) -> bool:
        return any(self.exponents)

    @property
    def factors(self) -> np.ndarray:
        """float32 [channels]: what the weight's columns are multiplied with."""
        return np.exp2(np.asarray(self.exponents, np.float32))

    def to_json(self) -> dict[str, Any]:
        return {
            "layers": list(self.layers),
            "exponents": list(self.exponents),
            "low": self.low,
            "high": self.high,
            "kept": list(self.kept),
        }

    @staticmethod
    def from_json(data: Any) -> Smoothing:
        """What `to_json` gave. Raises KeyError, TypeError or ValueError when it is something else."""
        exponents = tuple(int(e) for e in data["exponents"])
        low, high = float(data["low"]), float(data["high"])
        if not (np.isfinite([low, high]).all() and low <= high and all(abs(e) <= LARGEST for e in exponents)):
            raise ValueError("a smoothing is not finite, or upside down")
        kept = tuple(int(channel) for channel in data.get("kept", ()))
        if kept != tuple(sorted({c for c in kept if 0 <= c < len(exponents)})):
            raise ValueError("channels kept in float32 are not those of the value, in order")
        return Smoothing(tuple(map(str, data["layers"])), exponents, low, high, kept)


def linear_inputs(graph: Graph) -> dict[str, tuple[Node, ...]]:
    """The float32 values that linear layers read as x, with these layers."""
    table: dict[str, list[Node]] = {}
    for node in free_layers_of(graph):
        x = node.inputs[0]
        if node.op == "linear" and x not in graph.params and graph.type_of(x).dtype == "float32":
            table.setdefault(x, []).append(node)
    return {value: tuple(nodes) for value, nodes in table.items()}


def foldable(graph: Graph, value: str, layers: Sequence[str]) -> bool:
    """Whether the node that makes the value can make it divided by channel: only `layers` read it, as x, and
    the node is a norm, or a float32 linear layer whose activation is positively homogeneous.
    """
    node = graph.producer(value)
    if node is None or not private(graph, value, layers):
        return False
    if node.op in ("layer_norm", "rms_norm"):
        return all(not v or v in graph.params for v in node.inputs[1:])
    if node.op != "linear" or not all(not v or v in graph.params for v in node.inputs[1:]):
        return False
    residual, scale = (*node.inputs, "", "", "")[3:5]
    return (
        not residual and not scale and graph.type_of(node.inputs[1]).dtype == "float32" and homogeneous(node)
    )


def private(graph: Graph, value: str, layers: Sequence[str]) -> bool:
    """Whether nobody but these layers reads the value, and they only as x."""
    readers = graph.consumers(value)
    return value not in graph.outputs and all(
        node.name in layers and node.inputs.count(value) == 1 and node.inputs[0] == value for node in readers
    )


def homogeneous(node: Node) -> bool:
    """act(c * x) = c * act(x) for every c > 0."""
    act = node.attrs.get("act", "none")
    if act == "clip":
        bounds = (node.attrs.get("lo", -np.inf), node.attrs.get("hi", np.inf))
        return all(bound == 0.0 or np.isinf(float(bound)) for bound in bounds)  # type: ignore[arg-type]
    return act in ("none", "leaky_relu")


def choose_smoothings(
    graph: Graph,
    rows: Mapping[str, RowSample],
    usual: Mapping[str, tuple[float, float]],
    calibration: Calibration,
) -> dict[str, Smoothing]:
    """For each value in `rows` the exponents and the range of least error of the layers that read it.

    `usual` are the ranges that the calibration's method chose for the values. Values that are best as they
    are, with that range, are left out.
    """
    chosen = {}
    for value, layers in linear_inputs(graph).items():
        if value in rows and rows[value].count >= FEWEST_ROWS:
            found = _best(graph, value, layers, rows[value], usual[value], calibration)
            if found is not None:
                chosen[value] = found
    return chosen


def _best(
    graph: Graph,
    value: str,
    layers: Sequence[Node],
    sample: RowSample,
    usual: tuple[float, float],
    calibration: Calibration,
) -> Smoothing | None:
    names = tuple(node.name for node in layers)
    trial = _Trial.of(graph, layers, sample)
    plain = np.zeros(len(sample.lows), np.int32)
    ends = [usual]
    if private(graph, value, names):
        ends += _ends(sample, plain, calibration)
    whole = min((trial.error(plain, end), i, end) for i, end in enumerate(ends))
    divided = _divided(trial, sample, calibration)
    share = FOLDED if foldable(graph, value, names) else COPIED
    best = divided if divided[0] < share * whole[0] else (whole[0], plain, whole[2])
    if best[0] > POOR:
        error, exponents, end, kept = _with_kept(trial, sample, calibration)
        if error < RELIEVED * best[0]:
            return Smoothing(names, _ints(exponents), *end, kept)
    unchanged = best is not divided and not whole[1]
    return None if unchanged else Smoothing(names, _ints(best[1]), *best[2])


_Divided = tuple[float, np.ndarray, tuple[float, float]]
"""Error of the results, exponents, range."""


def _divided(trial: _Trial, sample: RowSample, calibration: Calibration) -> _Divided:
    """The division of least error."""
    tried = [trial.exponents(sample, alpha) for alpha in ALPHAS]
    error, i, _, end = min(
        (trial.error(e, end), i, j, end)
        for i, e in enumerate(tried)
        for j, end in enumerate(_ends(sample, e, calibration))
    )
    return error, tried[i], end


def _with_kept(
    trial: _Trial, sample: RowSample, calibration: Calibration
) -> tuple[float, np.ndarray, tuple[float, float], tuple[int, ...]]:
    """The division of least error when some of the largest channels are kept in float32, and these."""
    order = np.argsort(-np.maximum(np.abs(sample.lows), np.abs(sample.highs)), kind="stable")
    found = []
    for count in KEPT:
        if 2 * count <= len(order):
            kept = np.sort(order[:count])
            found.append((*_divided(trial.without(kept), sample.without(kept), calibration), _ints(kept)))
    least = min((each[0] for each in found), default=np.inf)
    return next((each for each in found if each[0] <= ENOUGH * least), (np.inf, order, (0.0, 0.0), ()))


def _ints(numbers: np.ndarray) -> tuple[int, ...]:
    return tuple(int(n) for n in numbers)


def _ends(
    sample: RowSample, exponents: np.ndarray, calibration: Calibration
) -> Iterator[tuple[float, float]]:
    """Ranges to try for x / 2**exponents, by the calibration's method."""
    if calibration.method == "percentile":
        scaled = sample.rows[:: _step(len(sample.rows), MOST_ROWS)] * np.exp2(-exponents)
        tail = 100 - calibration.percentile
        low, high = np.percentile(scaled, (tail, 100 - tail))
        yield float(low), float(high)
        return
    low, high = (sample.lows * np.exp2(-exponents)).min(), (sample.highs * np.exp2(-exponents)).max()
    for factor in SHRINK if calibration.method == "mse" else SHRINK[:1]:
        yield float(low * factor), float(high * factor)


def _step(size: int, most: int) -> int:
    return max(1, -(-size // most))


@dataclass(frozen=True)
class _Trial:
    """Rows [n, k] of an input, weights [m, k] of its layers' output channels, their product, and each row's
    energy in the layers' results."""

    rows: np.ndarray
    weights: np.ndarray
    wanted: np.ndarray
    signal: np.ndarray

    @staticmethod
    def of(graph: Graph, layers: Sequence[Node], sample: RowSample) -> _Trial:
        weights = np.concatenate([graph.params[node.inputs[1]] for node in layers])
        weights = weights[:: _step(len(weights), MOST_OUTPUTS)]
        rows = sample.rows[:: _step(len(sample.rows), MOST_ROWS)]
        wanted = rows @ weights.T
        return _Trial(rows, weights, wanted, np.square(wanted).sum(1))

    def without(self, channels: np.ndarray) -> _Trial:
        """What is left for 8 bits when these channels are multiplied in float32."""
        rows, weights = self.rows.copy(), self.weights.copy()
        rows[:, channels] = weights[:, channels] = 0
        return replace(self, rows=rows, weights=weights, wanted=rows @ weights.T)

    def exponents(self, sample: RowSample, alpha: float) -> np.ndarray:
        """log2 of s, moved so that they are 0 on average: a factor for all channels changes nothing."""
        x = np.maximum(np.abs(sample.lows), np.abs(sample.highs))
        w = np.abs(self.weights).max(0)
        used = (x > 0) & (w > 0)
        if not used.any():
            return np.zeros(len(x), np.int32)
        logs = alpha * np.log2(np.where(used, x, 1.0)) - (1 - alpha) * np.log2(np.where(used, w, 1.0))
        centred = np.where(used, logs - logs[used].mean(), 0.0)
        return np.clip(np.rint(centred), -LARGEST, LARGEST).astype(np.int32)

    def error(self, exponents: np.ndarray, ends: tuple[float, float]) -> float:
        """Mean over rows of the results' squared error relative to the row: every position counts alike."""
        factors = np.exp2(exponents.astype(np.float32))
        found = _stored(self.rows / factors, *ends) @ _rounded(self.weights * factors).T
        noise = np.square(found - self.wanted).sum(1)
        return float((noise / np.maximum(self.signal, 1e-3 * self.signal.mean() + 1e-30)).mean())


def _stored(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """The nearest of 256 levels between low and high, 0 being one of them."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = np.float32(max((high - low) / 255, 1e-30))
    zero = np.rint(-low / step)
    result: np.ndarray = (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * step
    return result


def _rounded(w: np.ndarray) -> np.ndarray:
    """int8 weights, one scale per output channel, as real numbers."""
    step = np.maximum(np.abs(w).max(1, keepdims=True) / 127, 1e-30)
    result: np.ndarray = np.rint(w / step) * step
    return result
