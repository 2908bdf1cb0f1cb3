"""Calibration against ranges found by looking at all numbers at once."""

import json
import warnings

import numpy as np
import pytest
import torch
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.calibrate import Ranges, calibrate, choose_ranges, observe
from bitsmith.compiler.errors import InputError, PlanError
from bitsmith.compiler.histogram import BINS, Histogram, least_squares, minmax, percentile
from bitsmith.compiler.plan import Plan
from bitsmith.compiler.reference import run_reference
from bitsmith.passes.apply_plan import apply_plan
from bitsmith.passes.prepare import prepare
from hypothesis import given, settings
from hypothesis import strategies as st


def stored_error(numbers, low, high):
    """Mean squared error of storing numbers in 256 levels from low to high, 0 being one of them."""
    step = (high - low) / 255
    zero = np.rint(-low / step)
    levels = np.clip(np.rint(numbers / step) + zero, 0, 255)
    return float((((levels - zero) * step - numbers) ** 2).mean())


def histogram_of(*arrays):
    histogram = Histogram()
    for array in arrays:
        histogram.add(np.asarray(array, np.float32))
    return histogram


def test_a_histogram_grows_without_losing_counts(rng):
    arrays = [rng.normal(0, scale, 4000).astype(np.float32) for scale in (0.01, 3, 0.5, 40, 1e-6)]
    histogram = histogram_of(*arrays)
    everything = np.concatenate(arrays)
    assert histogram.counts.sum() == everything.size
    assert minmax(histogram) == (everything.min(), everything.max())
    edges = np.linspace(histogram.low, histogram.high, BINS // 8 + 1)
    wanted = np.cumsum(np.histogram(everything, edges)[0])
    found = np.cumsum(histogram.counts.reshape(-1, 8).sum(1))
    assert np.abs(found - wanted).max() <= 5, "bins move counts by rounding at their edges at most"


def test_arrays_that_must_not_be_written_are_counted_in_silence(rng):
    """As of a memory map, or of windows that slide over a recording."""
    array = rng.normal(0, 1, 100).astype(np.float32)
    array.flags.writeable = False
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert histogram_of(array).counts.sum() == 100
    finally:
        torch.set_warn_always(False)


def test_large_arrays_are_sampled_evenly(rng):
    # Each channel has numbers of its own size: a step that met some channels only would show.
    array = (rng.uniform(0.9, 1.0, (1, 64, 64, 48)) * np.arange(1, 49)).astype(np.float32)
    histogram = histogram_of(array)
    assert minmax(histogram) == (array.min(), array.max())
    assert 10_000 < histogram.counts.sum() < array.size
    share = histogram.counts[histogram.centres < 24].sum() / histogram.counts.sum()
    assert share == pytest.approx((array < 24).mean(), abs=0.01)


@pytest.mark.parametrize("constant", [0.0, 3.0, -2.5, 1e-30, 1e30, 4e37])
def test_a_constant_has_a_range(constant):
    histogram = histogram_of(np.full(100, constant), np.full(50, constant))
    assert histogram.counts.sum() == 150
    assert minmax(histogram) == (np.float32(constant), np.float32(constant))
    low, high = least_squares(histogram)
    assert low <= 0 <= high
    assert np.isfinite([low, high]).all()


def test_percentile_leaves_out_the_tails(rng):
    numbers = rng.normal(0, 1, 100_000).astype(np.float32)
    histogram = histogram_of(*np.split(numbers, 10))
    for percent in (99.0, 99.9, 100.0):
        low, high = percentile(histogram, percent)
        width = (histogram.high - histogram.low) / BINS
        assert low == pytest.approx(np.percentile(numbers, 100 - percent), abs=4 * width)
        assert high == pytest.approx(np.percentile(numbers, percent), abs=4 * width)
    assert percentile(histogram, 100.0) == minmax(histogram)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 1000),
    tail=st.sampled_from([2, 3, 8]),
    shift=st.floats(-3, 3),
    relu=st.booleans(),
)
def test_least_squares_beats_minmax_and_comes_close_to_a_full_search(seed, tail, shift, relu):
    rng = np.random.default_rng(seed)
    numbers = (rng.standard_t(tail, 10_000) + shift).astype(np.float32)
    numbers = np.maximum(numbers, 0) if relu else numbers
    low, high = least_squares(histogram_of(numbers))
    assert low <= 0 <= high
    assert (low == 0) == (numbers.min() >= 0)
    found = stored_error(numbers, low, high)
    ends = (min(numbers.min(), 0.0), max(numbers.max(), 0.0))
    assert found <= stored_error(numbers, *ends) * 1.02
    shrunk = [f * ends[0] for f in np.linspace(0.05, 1, 20)] if ends[0] else [0.0]
    best = min(stored_error(numbers, a, f * ends[1]) for a in shrunk for f in np.linspace(0.05, 1, 20))
    assert found <= best * 1.25 or found <= best + 1e-9


def test_least_squares_gives_up_an_outlier(rng):
    numbers = np.append(rng.normal(size=500_000), 8.0).astype(np.float32)
    histogram = Histogram()
    for part in np.array_split(numbers, 50):
        histogram.add(part)
    low, high = least_squares(histogram)
    assert high < 5.5
    assert stored_error(numbers, low, high) < 0.8 * stored_error(numbers, *minmax(histogram))


@pytest.fixture
def net(rng):
    b = GraphBuilder("net")
    x = b.input("x", (1, 3, 8, 8))
    w, v = (rng.normal(size=shape).astype(np.float32) for shape in ((6, 3, 3, 3), (6, 1, 3, 3)))
    x = b.add("conv2d", [x, b.param("w", w)], name="stem", act="clip", lo=0.0, output="a")
    x = b.add("conv2d", [x, b.param("v", v)], name="depthwise", groups=6, output="b")
    x = b.add("reduce_mean", [x], axes=(2, 3), keepdims=False, output="m")
    return prepare(
        b.finish([b.add("linear", [x, b.param("f", v.reshape(6, 9)[:, :6])], name="fc", output="y")])
    )


def everything_seen(graph, pictures):
    seen = {}
    for picture in pictures:
        run_reference(
            graph, {"x": picture[None]}, lambda v, array: seen.setdefault(v, []).append(array.copy())
        )
    return {
        value: np.concatenate([array.ravel() for array in arrays]) for value, arrays in seen.items()
    }, seen


def test_minmax_and_means_are_exact(net, rng):
    pictures = rng.normal(size=(7, 3, 8, 8)).astype(np.float32)
    steps = []
    ranges = calibrate(
        net, pictures, method="minmax", progress=lambda done, total: steps.append((done, total))
    )
    flat, arrays = everything_seen(net, pictures)
    assert set(ranges.values) == {"x", "a", "b", "m", "y"}
    for value, (low, high) in ranges.values.items():
        assert (low, high) == pytest.approx((flat[value].min(), flat[value].max()), rel=1e-5)
    assert ranges["a"][0] == 0
    assert steps == [(i, 7) for i in range(1, 8)]
    assert ranges.samples == 7
    assert set(ranges.means) == {"stem", "depthwise", "fc"}
    np.testing.assert_allclose(ranges.means["stem"], pictures.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(ranges.means["depthwise"], np.mean(arrays["a"], (0, 1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(ranges.means["fc"], np.mean(arrays["m"], (0, 1)), rtol=1e-5)


def test_one_observation_serves_every_method(net, rng):
    pictures = rng.standard_t(3, size=(6, 3, 8, 8)).astype(np.float32)
    seen = observe(net, pictures)
    for method in ("minmax", "percentile", "mse"):
        assert choose_ranges(seen, method=method, percentile=99) == calibrate(
            net, pictures, method=method, percentile=99
        )
    wide, cut, best = (
        choose_ranges(seen, method=m, percentile=99)["x"] for m in ("minmax", "percentile", "mse")
    )
    assert wide[0] < cut[0] < cut[1] < wide[1]
    numbers = pictures.ravel()
    assert stored_error(numbers, *best) < stored_error(numbers, *cut)
    assert stored_error(numbers, *best) <= stored_error(numbers, *wide)


def test_ranges_round_trip_as_json(net, rng):
    ranges = calibrate(
        net, rng.normal(size=(2, 3, 8, 8)).astype(np.float32), method="percentile", percentile=99.5
    )
    assert Ranges.from_json(json.loads(ranges.to_text())) == ranges


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": {"x": [1.0]}}, "no calibration ranges"),
        ({"values": {"x": [2.0, 1.0]}}, "ranges of x are not finite or upside down"),
        ({"values": {"x": [0.0, float("nan")]}}, "ranges of x"),
        ({"values": None}, "no calibration ranges"),
        ({"means": {"stem": 3}}, "no calibration ranges"),
        ({"method": "guess"}, "method 'guess'"),
        ({"samples": "many"}, "no calibration ranges"),
    ],
)
def test_broken_ranges_are_refused(changes, message):
    fine = {"values": {"x": [0.0, 1.0]}, "means": {}, "method": "mse", "percentile": 99.99, "samples": 3}
    assert Ranges.from_json(fine)["x"] == (0.0, 1.0)
    with pytest.raises(InputError, match=message):
        Ranges.from_json({**fine, **changes})


def test_a_value_that_was_not_seen(net, rng):
    ranges = calibrate(net, rng.normal(size=(1, 3, 8, 8)).astype(np.float32))
    with pytest.raises(InputError, match="no range for value 'other'"):
        ranges["other"]


def test_bad_samples_are_refused(net):
    with pytest.raises(InputError, match="there are no samples"):
        calibrate(net, [])
    with pytest.raises(InputError, match="sample 1: input 'x' holds NaN"):
        calibrate(net, [np.zeros((3, 8, 8), np.float32), np.full((3, 8, 8), np.nan, np.float32)])
    with pytest.raises(InputError, match="sample 0: value 'x' becomes NaN, infinite"):
        calibrate(net, np.full((1, 3, 8, 8), 3e38, np.float32))
    with pytest.raises(PlanError, match="method 'kl' is not one of"):
        calibrate(net, np.zeros((1, 3, 8, 8), np.float32), method="kl")


@pytest.mark.parametrize("huge", [3.4e38, np.inf])
def test_a_mask_may_be_infinite_where_no_layer_reads_it(rng, huge):
    b = GraphBuilder("masked")
    x = b.input("x", (1, 4))
    mask = b.add("mul", [b.add("neg", [x]), b.param("huge", np.full(1, huge, np.float32))])
    gated = b.add("mul", [x, b.add("sigmoid", [mask])])
    y = b.add("linear", [gated, b.param("w", rng.normal(size=(3, 4)).astype(np.float32))], name="fc")
    graph = b.finish([y])
    ranges = calibrate(graph, rng.uniform(0.5, 2, (5, 4)).astype(np.float32))
    assert mask not in ranges.values and {x, gated, y} <= set(ranges.values)
    planned = apply_plan(graph, Plan.uniform(graph, "int8"), ranges)
    assert planned.type_of(planned.node("fc").inputs[1]).dtype == "int8"
    with pytest.raises(InputError, match="sample 0: value .* becomes NaN, infinite"):
        calibrate(b.finish([y, mask]), np.ones((1, 4), np.float32))
    with pytest.raises(InputError, match="sample 0: value .* becomes NaN, infinite"):
        calibrate(graph, np.full((1, 4), 3e38, np.float32))


def test_values_that_are_not_float_are_left_out():
    b = GraphBuilder("mixed")
    n = b.input("n", (1, 2), "int64")
    y = b.add("neg", [b.input("x", (1, 2))])
    graph = b.finish([y, b.add("transpose", [n], perm=(1, 0))])
    ranges = calibrate(graph, [(np.ones(2, np.int64), np.ones(2, np.float32))])
    assert set(ranges.values) == {"x", y}


def test_threads_do_not_change_what_is_seen(net, rng, monkeypatch):
    data = rng.normal(size=(9, 3, 8, 8)).astype(np.float32)
    texts = []
    for cores in (1, 2, 4):
        monkeypatch.setattr("bitsmith.compiler.calibrate.usable_cores", lambda cores=cores: cores)
        texts.append(calibrate(net, data).to_text())
    assert texts[0] == texts[1] == texts[2]


def test_the_first_sample_that_overflows_is_named(net, monkeypatch):
    monkeypatch.setattr("bitsmith.compiler.calibrate.usable_cores", lambda: 3)
    data = np.ones((8, 3, 8, 8), np.float32)
    data[4:] = 3e38  # finite itself, but any range around it is not
    with pytest.raises(InputError, match="sample 4: value .* becomes NaN, infinite"):
        calibrate(net, data)
