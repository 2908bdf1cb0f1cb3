"""Architectures that users bring, from torch to the compiled model: float32 against eager torch, int8 against
the same rounding done in real numbers by torch, and each compiled int8 layer against its reference.
"""

from functools import lru_cache

import bitsmith
import numpy as np
import pytest
import torch
from bitsmith.compiler.calibrate import calibrate
from bitsmith.compiler.plan import Plan, layers_of
from bitsmith.compiler.reference import run_reference
from bitsmith.passes.apply_plan import apply_plan
from bitsmith.passes.prepare import prepare
from bitsmith.passes.smooth import smooth
from quantised_simulation import simulate
from torch_zoo import ZOO

SAMPLES = 6
CHECKED = 1  # of the samples, where a check runs the reference executor
RECURRENT = ("lstm", "gru")  # their cells are no layers: those in front of them and behind are


@lru_cache
def case(name):
    """(graph, inputs of each sample by name, eager torch's outputs of each sample)."""
    module, samples = ZOO[name].made(SAMPLES)
    graph = bitsmith.load(module, inputs=samples[0])
    with torch.no_grad():
        made = [module(*sample) for sample in samples]
    wanted = [[y.numpy() for y in (out if isinstance(out, tuple) else (out,))] for out in made]
    names = [value for value, _ in graph.inputs]
    feeds = [dict(zip(names, (x.numpy() for x in sample), strict=True)) for sample in samples]
    return graph, feeds, wanted


def relative_error(found, wanted):
    """The largest error as a share of the output's range."""
    return np.abs(found - wanted).max() / np.ptp(wanted)


def noise_db(wanted, found):
    """Signal to noise, decibels."""
    return 10 * np.log10(np.sum(wanted**2) / max(np.sum((wanted - found) ** 2), 1e-30))


@pytest.mark.parametrize("name", ZOO)
def test_float32_is_what_torch_computes(name):
    graph, feeds, wanted = case(name)
    with bitsmith.compile(graph) as artifact:
        for feed, outputs in zip(feeds, wanted, strict=True):
            found = artifact.run(**feed)
            assert list(found) == list(graph.outputs)
            for got, want in zip(found.values(), outputs, strict=True):
                assert got.shape == want.shape and np.ptp(want) > 0.05, "a dead network would prove nothing"
                assert relative_error(got, want) <= 1e-4


@pytest.mark.parametrize("name", ZOO)
def test_int8_is_what_rounding_the_float_network_gives(name):
    graph, feeds, _ = case(name)
    prepared = prepare(graph)
    plan = Plan.uniform(prepared, "int8")
    # Smoothing moves ranges; that it changes nothing else is in test_smooth.py.
    prepared, ranges = smooth(prepared, plan, calibrate(prepared, feeds))
    planned = apply_plan(prepared, plan, ranges)
    stored = {v for v in prepared.types if v in planned.types and planned.type_of(v).dtype == "uint8"}
    assert len(layers_of(planned)) >= (1 if name in RECURRENT else 10)
    for feed in feeds[:CHECKED]:
        simulated = simulate(prepared, plan, ranges, stored, feed)
        exact, found = run_reference(prepared, feed), run_reference(planned, feed)
        for value in graph.outputs:
            # A number near a rounding tie may go the other way: then what follows differs by steps.
            ours, noise = (noise_db(x[value], found[value]) for x in (simulated, exact))
            assert ours > noise + 3 and noise > 15
            assert relative_error(found[value], simulated[value]) < 0.03


@pytest.mark.parametrize("name", ZOO)
def test_every_compiled_int8_layer_is_what_its_reference_computes(name):
    graph, feeds, wanted = case(name)
    with bitsmith.compile(graph, plan=Plan.uniform(graph, "int8"), calibration=feeds) as artifact:
        report = bitsmith.diff(graph, artifact, inputs=feeds[:CHECKED])
        outputs = [list(artifact.run(**feed).values()) for feed in feeds]
    assert report.reproduced and report.departs is None, report.departs and report.layer(report.departs)
    assert {row.choice for row in report.layers} == {"int8", ""}
    for i in range(len(graph.outputs)):
        want, got = (np.concatenate([sample[i].ravel() for sample in side]) for side in (wanted, outputs))
        assert noise_db(want, got) > 15
