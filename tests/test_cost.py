"""Counted costs against counting by hand, and the machine's description."""

import os

import numpy as np
import pytest
from bitsmith.compiler.analysis.cost import graph_costs, int8_storage, layer_storage, shares
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.calibrate import calibrate
from bitsmith.compiler.machine import Machine, cpu_flags, installed_versions, this_machine, usable_cores
from bitsmith.compiler.plan import Plan
from bitsmith.passes.apply_plan import apply_plan
from bitsmith.passes.prepare import prepare


@pytest.fixture(scope="module")
def graph():
    rng = np.random.default_rng(0)
    b = GraphBuilder("two")
    x = b.input("x", (1, 4, 6, 6))
    w = b.param("w", rng.standard_normal((8, 2, 3, 3)).astype(np.float32))
    y = b.add(
        "conv2d", [x, w, b.param("b", np.ones(8, np.float32))], name="conv", groups=2, pads=(1, 1, 1, 1)
    )
    m = b.add("reduce_mean", [y], axes=(2, 3), keepdims=False)
    return b.finish(
        [b.add("linear", [m, b.param("v", rng.standard_normal((5, 8)).astype(np.float32))], name="fc")]
    )


def test_costs_are_those_counted_by_hand(graph):
    costs = graph_costs(graph)
    conv, fc = costs["conv"], costs["fc"]
    assert conv.macs == 6 * 6 * 8 * (2 * 3 * 3) and conv.flops == 2 * conv.macs
    assert (conv.read_bytes, conv.write_bytes, conv.param_bytes) == (4 * 144, 4 * 288, 4 * (144 + 8))
    assert (fc.macs, fc.param_bytes) == (40, 160)
    assert [c.macs for name, c in costs.items() if name not in ("conv", "fc")] == [0]
    assert conv.intensity == pytest.approx(conv.flops / (576 + 1152 + 608))


def test_stored_bits_count_bias_and_scales(graph):
    prepared = prepare(graph)
    conv = prepared.node("conv")
    stored = layer_storage(prepared, conv)
    assert (stored.weights, stored.total_bytes, stored.float_bytes) == (144, 608, 608)
    assert stored.bits == pytest.approx(8 * 608 / 144)
    ranges = calibrate(prepared, np.random.default_rng(0).standard_normal((4, 4, 6, 6)).astype(np.float32))
    planned = apply_plan(prepared, Plan.uniform(prepared, "int8"), ranges)
    quantised = layer_storage(planned, planned.node("conv"))
    assert quantised.total_bytes == 144 + 4 * 8 + 4 * 8 and quantised.weights == 144
    assert quantised.total_bytes == int8_storage(prepared.type_of(conv.inputs[1])).total_bytes


def test_shares_sum_to_one_or_are_all_zero():
    assert shares({"a": 1.0, "b": 3.0}) == {"a": 0.25, "b": 0.75}
    assert shares({"a": 0.0}) == {"a": 0.0} and shares({}) == {}


def test_the_machine_is_described_and_survives_json():
    machine = this_machine()
    assert (
        machine.cpu and 1 <= machine.cores <= len(os.sched_getaffinity(0)) and machine.cores == usable_cores()
    )
    assert set(machine.features) <= cpu_flags()
    assert machine.versions["numpy"] == np.__version__
    assert Machine.from_json(machine.to_json()) == machine
    assert installed_versions(("no-such-package",)) == {}
