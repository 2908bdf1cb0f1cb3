"""GELU in kernels against math.erf: whole results are those of the exact function but near rounding ties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.ir import Graph
from bitsmith.targets.build import build
from bitsmith.targets.kernels.epilogue import UNSEEN, Epilogue
from bitsmith.targets.kernels.gelu import ROUGH_ERROR
from bitsmith.targets.target import TARGETS

ZERO = 128
CHANNELS = 64
SCALES = np.geomspace(1e-4, 40, CHANNELS).astype(np.float32)
"""With 256 inputs around 128: arguments from -5120 to 5120."""


def network(y_inv: float) -> Graph:
    """[256, 64] of one input each, times 1 and the channel's scale, through GELU, to uint8."""
    b = GraphBuilder("gelu")
    weight = b.param("w", np.eye(CHANNELS, dtype=np.int8))
    scale = b.param("scale", SCALES)
    inputs = [b.input("x", (256, CHANNELS), "uint8"), weight, "", "", scale]
    attrs = {"x_zero": ZERO, "act": "gelu", "y_inv": y_inv, "y_zero": 9, "out_dtype": "uint8"}
    return b.finish([b.add("linear", inputs, **attrs)])


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.runs_here])
@pytest.mark.parametrize("y_inv", [0.04, 40.0, 190.0, 5000.0])
def test_whole_results_are_nearest(name: str, y_inv: float) -> None:
    """At most UNSEEN of a step further from the exact result than its nearest neighbour is."""
    numbers = np.repeat(np.arange(256, dtype=np.uint8)[:, None], CHANNELS, 1)
    with build(network(y_inv), TARGETS[name]) as artifact:
        (got,) = artifact.run(numbers).values()
    x = (numbers.astype(np.float64) - ZERO) * SCALES
    exact = x * np.vectorize(lambda v: 1 + math.erf(v / math.sqrt(2)))(x) / 2 * np.float32(y_inv) + 9
    assert np.abs(got - np.clip(exact, 0, 255)).max() <= 0.5 + UNSEEN
    assert len(np.unique(got)) > 20


def test_only_long_steps_are_rough() -> None:
    assert Epilogue(out_dtype="uint8", y_inv=UNSEEN / ROUGH_ERROR * 0.99).coarse
    assert not Epilogue(out_dtype="uint8", y_inv=UNSEEN / ROUGH_ERROR * 1.01).coarse
    assert not Epilogue(out_dtype="float32").coarse
