"""Activations with eight-bit results, against Python's math: exact ones but near rounding ties."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.ir import Graph
from bitsmith.targets.build import build
from bitsmith.targets.kernels.epilogue import UNSEEN, Epilogue
from bitsmith.targets.kernels.rough import ROUGH
from bitsmith.targets.target import TARGETS

ZERO, STEPS = 128, 90
CHANNELS = 64
SCALES = np.geomspace(1e-4, 40, CHANNELS).astype(np.float32)
"""With 256 inputs around 128: arguments from -5120 to 5120."""


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-max(x, -700.0)))


EXACT: dict[str, Callable[[float], float]] = {
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "tanh": math.tanh,
}


def network(steps: dict[str, tuple[str, float]]) -> Graph:
    """Output -> [256, 64] of one input each, times 1 and the channel's scale, through an activation, in so
    many steps to 1."""
    b = GraphBuilder("activations")
    x = b.input("x", (256, CHANNELS), "uint8")
    weight, scale = b.param("w", np.eye(CHANNELS, dtype=np.int8)), b.param("scale", SCALES)
    common = {"x_zero": ZERO, "y_zero": STEPS, "out_dtype": "uint8"}
    for name, (act, y_inv) in steps.items():
        b.add("linear", [x, weight, "", "", scale], output=name, act=act, y_inv=y_inv, **common)
    return b.finish(list(steps))


CASES = {f"{act}-{y_inv}": (act, y_inv) for act in EXACT for y_inv in (0.04, 40.0, 85.0, 190.0, 5000.0)}


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.runs_here])
def test_whole_results_are_nearest(name: str) -> None:
    """At most UNSEEN of a step further from the exact result than its nearest neighbour is."""
    numbers = np.repeat(np.arange(256, dtype=np.uint8)[:, None], CHANNELS, 1)
    x = (numbers.astype(np.float64) - ZERO) * SCALES
    with build(network(CASES), TARGETS[name]) as artifact:
        results = artifact.run(numbers)
    for case, (act, y_inv) in CASES.items():
        exact = np.vectorize(EXACT[act])(x) * np.float64(np.float32(y_inv)) + STEPS
        distance = np.abs(results[case] - np.clip(exact, 0, 255))
        assert distance.max() <= 0.5 + UNSEEN, case
        assert len(np.unique(results[case])) > 20 or y_inv < 1, case


@pytest.mark.parametrize("act", ROUGH)
def test_only_long_steps_are_rough(act: str) -> None:
    limit = UNSEEN / ROUGH[act].error
    assert Epilogue(act=act, out_dtype="uint8", y_inv=limit * 0.99).rough is ROUGH[act]
    assert Epilogue(act=act, out_dtype="uint8", y_inv=limit * 1.01).rough is None
    assert Epilogue(act=act, out_dtype="float32").rough is None
