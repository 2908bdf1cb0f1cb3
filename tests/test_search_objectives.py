"""Constraints: what is understood, what is refused, and how a measurement is held against them."""

import math

import pytest
from bitsmith.compiler.errors import InputError
from bitsmith.compiler.measure import Quality, wilson
from bitsmith.search.metrics import METRICS, RELATIVE, Reading
from bitsmith.search.objectives import (
    check_measurable,
    check_objectives,
    default_constraints,
    objective_values,
    parse_constraint,
    parse_constraints,
    total_excess,
)
from hypothesis import given
from hypothesis import strategies as st


def reading(
    agreement=1.0,
    kl=0.0,
    sqnr=50.0,
    accuracy=None,
    n=100,
    us=100.0,
    size=1000,
    noise=0.0,
    score=None,
    err=0.0,
    cosine=0.999,
):
    measured = Quality(
        agreement, kl, sqnr, accuracy, n, kl_error=err, score=score, cosine=cosine, cosine_error=err
    )
    return Reading(measured, us, noise, size)


BASE = reading(accuracy=0.8, us=200.0, size=4000, score=0.9)


@pytest.mark.parametrize(
    ("text", "metric", "bound", "relative"),
    [
        ("agreement>=0.98", "agreement", 0.98, False),
        (" agreement >= 98% ", "agreement", 0.98, False),
        ("accuracy_drop<=1%", "accuracy_drop", 0.01, False),
        ("latency<=3ms", "latency", 3000.0, False),
        ("latency<=1.5e2us", "latency", 150.0, False),
        ("latency<=0.002s", "latency", 2000.0, False),
        ("latency<=0.7x", "latency", 0.7, True),
        ("size<=5MB", "size", 5e6, False),
        ("size<=800KiB", "size", 819200.0, False),
        ("size<=0.3x", "size", 0.3, True),
        ("kl<=1e-2", "kl", 0.01, False),
        ("sqnr>=-3", "sqnr", -3.0, False),
        ("sqnr>=20dB", "sqnr", 20.0, False),
        ("score>=-4", "score", -4.0, False),
        ("cosine>=0.99", "cosine", 0.99, False),
    ],
)
def test_forms_that_are_understood(text, metric, bound, relative):
    parsed = parse_constraint(text)
    assert (parsed.metric, parsed.relative) == (metric, relative)
    assert parsed.bound == pytest.approx(bound)
    assert parse_constraint(parsed.text) == parsed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("agreement", "expected METRIC"),
        ("", "expected METRIC"),
        ("agreement>=0.98 and more", "expected METRIC"),
        ("agrement>=0.98", "no metric 'agrement'"),
        ("agreement<=0.98", "takes >="),
        ("agreement>0.98", "takes >=, not >"),
        ("latency>=3ms", "takes <="),
        ("latency<=3", "needs a unit: us, ms, s, x"),
        ("latency<=3MB", "cannot be in 'MB'"),
        ("kl<=0.1x", "cannot be in 'x'"),
        ("agreement>=1.01", "out of range"),
        ("agreement>=-0.5", "out of range"),
        ("size<=0B", "out of range"),
        ("kl<=1e999", "out of range"),
        ("kl<=--1", "not a number"),
        ("kl<=nan", "expected METRIC"),
    ],
)
def test_forms_that_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse_constraint(text)


@given(st.text(max_size=20))
def test_any_text_is_parsed_or_refused(text):
    try:
        parsed = parse_constraint(text)
    except InputError as error:
        assert str(error), "a refusal says why"
    else:
        assert parsed.metric in METRICS


@given(st.sampled_from(sorted(METRICS)), st.floats(1e-3, 1.0), st.data())
def test_every_metric_with_every_unit_survives_its_text(name, number, data):
    metric = METRICS[name]
    unit = data.draw(st.sampled_from([*metric.units, *(["x"] if name in RELATIVE else [])]))
    parsed = parse_constraint(f"{name}{'>=' if metric.at_least else '<='}{number!r}{unit}")
    assert parsed.bound == pytest.approx(number * metric.units.get(unit, 1.0))
    assert parse_constraint(parsed.text) == parsed


def test_a_cosine_is_judged_with_a_margin():
    constraint = parse_constraint("cosine>=0.99")
    assert constraint.excess(reading(cosine=0.992, err=0.002), BASE, z=0.5) <= 0
    assert constraint.excess(reading(cosine=0.992, err=0.02), BASE, z=0.5) == pytest.approx(0.8)
    assert constraint.excess(reading(cosine=None), BASE) == 1.0


def test_a_list_is_needed_and_each_metric_once():
    with pytest.raises(InputError, match="must be a list"):
        parse_constraints("agreement>=0.98")
    with pytest.raises(InputError, match="several constraints on one metric"):
        parse_constraints(["kl<=1", "kl<=2"])


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        ("agreement>=0.98", {"agreement": 0.98}, {"agreement": 0.97}),
        ("accuracy>=0.7", {"accuracy": 0.7}, {"accuracy": 0.69}),
        ("accuracy_drop<=0.02", {"accuracy": 0.785}, {"accuracy": 0.77}),
        ("score_drop<=0.1", {"score": 0.81}, {"score": 0.79}),
        ("score>=0.8", {"score": 0.8}, {"score": 0.79}),
        ("cosine>=0.99", {"cosine": 0.99}, {"cosine": 0.989}),
        ("kl<=0.1", {"kl": 0.1}, {"kl": 0.11}),
        ("sqnr>=20", {"sqnr": 20.0}, {"sqnr": 19.0}),
        ("latency<=100us", {"us": 100.0}, {"us": 101.0}),
        ("latency<=0.5x", {"us": 100.0}, {"us": 101.0}),
        ("size<=1KB", {"size": 1000}, {"size": 1001}),
        ("size<=0.25x", {"size": 1000}, {"size": 1001}),
    ],
)
def test_bounds_without_margin(text, good, bad):
    constraint = parse_constraint(text)
    assert constraint.excess(reading(**good), BASE, z=0.0) <= 1e-12
    assert constraint.excess(reading(**bad), BASE, z=0.0) > 0


@given(st.integers(1, 400), st.data())
def test_with_a_margin_the_bound_is_met_by_the_lower_end_of_the_interval(n, data):
    k = data.draw(st.integers(0, n))
    met = parse_constraint("agreement>=0.9").excess(reading(agreement=k / n, n=n), BASE, z=1.0) <= 0
    assert met == (k == n or wilson(k / n, n, 1.0)[0] >= 0.9)


@given(st.floats(0, 2))
def test_a_margin_never_helps(z):
    noisy = reading(agreement=0.985, kl=0.01, err=0.002, us=100.0, noise=0.01, accuracy=0.795)
    for text in ("agreement>=0.98", "kl<=0.011", "latency<=101us", "accuracy_drop<=0.01"):
        constraint = parse_constraint(text)
        assert constraint.excess(noisy, BASE, z) >= constraint.excess(noisy, BASE, 0.0) - 1e-12


def test_what_was_not_measured_does_not_meet_a_bound():
    assert parse_constraint("accuracy>=0.1").excess(reading(), BASE) == 1.0
    with pytest.raises(InputError, match="labels="):
        check_measurable([parse_constraint("accuracy>=0.1")], reading())
    with pytest.raises(InputError, match="at least two entries"):
        check_measurable([parse_constraint("kl<=0.1")], reading(kl=None, agreement=None))


def test_total_excess_adds_what_lies_outside():
    constraints = parse_constraints(["kl<=0.1", "size<=1KB"])
    assert total_excess(constraints, reading(kl=0.05, size=900), BASE) == 0.0
    assert total_excess(constraints, reading(kl=0.2, size=1500), BASE) == pytest.approx(1.0 + 0.5)


def test_defaults_depend_on_what_the_model_gives():
    assert [c.text for c in default_constraints(reading().quality)] == ["agreement>=0.98"]
    assert [c.text for c in default_constraints(reading(agreement=None, kl=None).quality)] == ["sqnr>=20dB"]
    assert [c.text for c in default_constraints(BASE.quality)] == ["score_drop<=0.01"]


def test_objectives_are_minimised_in_their_order():
    r = reading(kl=0.25, us=7.0, size=9)
    assert objective_values(("size", "quality", "latency"), r) == (9.0, 0.25, 7.0)
    assert objective_values(("quality",), reading(kl=None, sqnr=20.0)) == (pytest.approx(0.01),)
    assert objective_values(("quality",), BASE) == (-0.9,)
    assert all(math.isfinite(v) for v in objective_values(("quality",), reading(kl=None, sqnr=-200.0)))


@pytest.mark.parametrize("bad", [(), ("speed",), "latency"])
def test_bad_objectives_are_refused(bad):
    with pytest.raises(InputError, match="objectives"):
        check_objectives(bad)
