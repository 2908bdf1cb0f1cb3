"""Latency in turns, quality against independent formulas, memory of a real process."""

import gc
import math
import time

import numpy as np
import pytest
import torch
from bitsmith.compiler.errors import ArtifactError, InputError
from bitsmith.compiler.measure import (
    Latency,
    Quality,
    decibels,
    measure_latency,
    measure_memory,
    quality,
    wilson,
)
from bitsmith.compiler.measure.latency import summarise
from bitsmith.compiler.measure.quality import KL_OF_BROKEN, mean_kl, squared_error
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp


def outputs(*arrays):
    return [{"y": np.asarray(a, np.float32)} for a in arrays]


def test_every_subject_sees_the_same_feeds_in_rotating_order():
    calls = []
    subjects = {name: (lambda feed, name=name: calls.append((name, feed["x"]))) for name in "abc"}
    measured = measure_latency(subjects, [{"x": 0}, {"x": 1}], repeats=4, warmup=0)
    assert [list(measured), {m.n for m in measured.values()}] == [["a", "b", "c"], {4}]
    rounds = [calls[i : i + 3] for i in range(0, 12, 3)]
    assert [[name for name, _ in r] for r in rounds] == [list("abc"), list("bca"), list("cab"), list("abc")]
    assert [{x for _, x in r} for r in rounds] == [{0}, {1}, {0}, {1}]


def test_an_object_with_run_is_called_by_name():
    class Model:
        seen = None

        def run(self, **named):
            Model.seen = named

    measure_latency({"m": Model()}, [{"x": 3, "z": 4}], repeats=1, warmup=0)
    assert Model.seen == {"x": 3, "z": 4}


def test_the_garbage_collector_is_off_inside_and_back_on_after_an_error():
    states = []

    def fail(feed):
        states.append(gc.isenabled())
        raise RuntimeError("no")

    assert gc.isenabled()
    with pytest.raises(RuntimeError):
        measure_latency({"f": fail}, [{}])
    assert states == [False] and gc.isenabled()


def test_a_slower_subject_has_a_higher_ratio():
    measured = measure_latency(
        {"one": lambda feed: time.sleep(0.002), "three": lambda feed: time.sleep(0.006)},
        [{}],
        repeats=7,
        warmup=0,
    )
    assert measured["three"].ratio_to_first > 1.5 and measured["one"].ratio_to_first == 1.0
    assert measured["one"].median_us >= 2000


def test_it_stops_when_the_time_is_over_but_not_before_five_rounds():
    measured = measure_latency(
        {"f": lambda feed: time.sleep(0.001)}, [{}], repeats=10_000, warmup=0, seconds=0.0
    )
    assert measured["f"].n == 5


def test_it_stops_when_the_noise_is_low_enough():
    measured = measure_latency(
        {"f": lambda feed: time.sleep(0.001)}, [{}], repeats=500, warmup=0, target_noise=1.0
    )
    assert measured["f"].n == 20


def test_drift_falls_out_of_the_ratio():
    drift = np.linspace(1.0, 3.0, 41)[:, None]
    first, second = summarise(drift * np.array([[100.0, 70.0]]) * 1e3)
    assert second.ratio_to_first == pytest.approx(0.7) and second.noise == pytest.approx(0, abs=1e-9)
    assert first.noise > 0.03 and first.spread_us == pytest.approx(100.0)


def test_the_noise_is_the_standard_error_of_the_median():
    rng = np.random.default_rng(0)
    runs = [summarise(1e6 * (1 + 0.1 * rng.standard_normal((100, 2))))[1] for _ in range(300)]
    actual = np.std([r.ratio_to_first for r in runs])
    assert np.mean([r.noise for r in runs]) == pytest.approx(actual, rel=0.2)


@pytest.mark.parametrize(
    ("subjects", "feeds", "options"),
    [
        ({}, [{}], {}),
        ({"f": print}, [], {}),
        ({"f": 3}, [{}], {}),
        ({"f": print}, [{}], {"repeats": 0}),
        ({"f": print}, [{}], {"warmup": -1}),
    ],
)
def test_latency_of_nothing_is_an_input_error(subjects, feeds, options):
    with pytest.raises(InputError):
        measure_latency(subjects, feeds, **options)


ROWS = hnp.arrays(np.float32, (6, 5), elements=st.floats(-30, 30, width=32))


@given(ROWS, ROWS)
def test_quality_agrees_with_torch(a, b):
    q = quality(outputs(*a[:, None]), outputs(*b[:, None]), labels=np.arange(6) % 5)
    p, r = (torch.log_softmax(torch.from_numpy(x).double(), 1) for x in (a, b))
    expected = torch.nn.functional.kl_div(r, p, log_target=True, reduction="none").sum(1)
    assert q.kl == pytest.approx(expected.mean().item(), abs=1e-9)
    assert q.kl == pytest.approx(mean_kl(a, b))
    assert q.kl_error == pytest.approx(expected.std(correction=0).item() / math.sqrt(6), abs=1e-9)
    assert q.agreement == np.mean(a.argmax(1) == b.argmax(1))
    assert q.accuracy == np.mean(b.argmax(1) == np.arange(6) % 5)
    assert q.n == 6


def test_sqnr_is_in_decibels():
    q = quality(outputs([[3.0, 4.0]]), outputs([[3.0, 4.5]]))
    assert q.sqnr_db == pytest.approx(10 * math.log10(25 / 0.25))
    assert squared_error(np.float32([3, 4]), np.float32([3, 4.5])) == pytest.approx(0.01)


def test_equal_outputs_are_perfect_and_finite():
    q = quality(outputs([[1.0, 2.0]]), outputs([[1.0, 2.0]]))
    assert (q.agreement, q.kl, q.sqnr_db) == (1.0, 0.0, 200.0)
    assert decibels(q.sqnr_db) == "exact" and decibels(41.26) == "41.3"


def test_large_logits_do_not_overflow():
    q = quality(outputs([[3e38, 0.0]]), outputs([[0.0, 3e38]]))
    assert math.isfinite(q.kl) and q.kl > 1e30


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_outputs_that_are_not_finite_count_as_broken(bad):
    q = quality(outputs([[1.0, 2.0]]), outputs([[bad, 2.0]]))
    assert (q.agreement, q.kl, q.sqnr_db) == (0.0, KL_OF_BROKEN, -200.0)


def test_every_output_has_its_own_sqnr_and_the_first_decides():
    ref = [{"a": np.float32([[1, 2]]), "b": np.float32([[1.0]])}]
    out = [{"a": np.float32([[1, 2]]), "b": np.float32([[1.1]])}]
    q = quality(ref, out)
    assert q.agreement == 1.0 and q.outputs["a"] == 200.0 and q.outputs["b"] == pytest.approx(20.0, abs=0.01)


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(2, 9))
def test_cosine_agrees_with_torch(seed, rows, width):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 3, 1, rows, width)).astype(np.float32)
    found = quality(outputs(*a), outputs(*b))
    wanted = torch.nn.functional.cosine_similarity(torch.tensor(a), torch.tensor(b), dim=-1).double()
    assert found.cosine == pytest.approx(float(wanted.mean()), abs=1e-5)
    error = wanted.mean((1, 2)).numpy().std() / 3**0.5
    assert found.cosine_error == pytest.approx(error, abs=1e-5)


@pytest.mark.parametrize(
    ("reference", "output", "cosine"),
    [
        ([[3.0, 4.0]], [[6.0, 8.0]], 1.0),
        ([[1e30, 1e30]], [[1e-30, 1e-30]], 1.0),
        ([[0.0, 0.0]], [[0.0, 0.0]], 1.0),
        ([[0.0, 0.0]], [[0.0, 1.0]], 0.0),
        ([[1.0, 2.0]], [[math.nan, 2.0]], -1.0),
        ([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, -1.0]], 0.0),
    ],
)
def test_cosine_where_rows_have_no_direction(reference, output, cosine):
    assert quality(outputs(reference), outputs(output)).cosine == pytest.approx(cosine, abs=1e-6)


def test_a_single_number_has_no_agreement():
    q = quality(outputs([[1.0]], [[2.0]]), outputs([[1.0]], [[2.1]]))
    assert q.agreement is None and q.kl is None and q.n == 2


def test_dense_outputs_count_pictures_not_pixels():
    a = np.random.default_rng(0).normal(size=(2, 4, 4, 3))
    assert quality(outputs(a, a), outputs(a, a)).n == 4


@pytest.mark.parametrize("labels", [[0], [0.5, 1.0], [0, 2], [-1, 0]])
def test_labels_that_do_not_fit_are_an_input_error(labels):
    two = outputs([[1.0, 2.0]], [[1.0, 2.0]])
    with pytest.raises(InputError, match="labels must"):
        quality(two, two, labels)


def test_runs_that_do_not_match_are_an_input_error():
    with pytest.raises(InputError, match="run by run: 1 float"):
        quality(outputs([[1.0, 2.0]]), outputs([[1.0, 2.0]], [[1.0, 2.0]]))
    with pytest.raises(InputError, match="shape"):
        quality(outputs([[1.0, 2.0]]), outputs([[1.0, 2.0, 3.0]]))


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0.1, 3))
def test_wilson_bounds_solve_its_equation(n, share, z):
    for bound in wilson(share, n, z):
        assert (share - bound) ** 2 == pytest.approx(z * z * bound * (1 - bound) / n, abs=1e-9)


def test_records_survive_json():
    latency, judged = (
        Latency(1.0, 2.0, 0.1, 5, 0.5, 0.6),
        quality(outputs([[1.0, 2.0]]), outputs([[1.0, 3.0]])),
    )
    assert Latency.from_json(latency.to_json()) == latency
    assert Quality.from_json(judged.to_json()) == judged


def test_memory_of_what_is_no_artifact_is_an_artifact_error(tmp_path):
    with pytest.raises(ArtifactError, match="not an artifact"):
        measure_memory(tmp_path)
