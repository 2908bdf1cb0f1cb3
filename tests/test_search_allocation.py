"""The exact allocation against trying everything."""

import itertools

import pytest
from bitsmith.compiler.errors import InputError, InternalError
from bitsmith.search.allocation import US_PER_BYTE, Edge, Problem, solve, sweep, with_times
from hypothesis import given, settings
from hypothesis import strategies as st

NAMES = tuple("abcdefg")
times = st.floats(0.0, 100.0).map(lambda v: round(v, 3))


@st.composite
def problems(draw):
    names = NAMES[: draw(st.integers(1, 7))]
    table = {k: {n: draw(times) for n in names} for k in ("float_us", "int8_us")}
    loss = {n: draw(st.floats(0.0, 1.0).map(lambda v: round(v, 4))) for n in names}
    size = {n: draw(st.integers(4, 4000)) for n in names}
    pairs = [p for p in itertools.combinations(names, 2) if draw(st.booleans())]
    edges = tuple(Edge(u, v, draw(times) / 4, draw(times) / 4) for u, v in pairs)
    return Problem(
        names,
        **table,
        loss=loss,
        float_bytes=size,
        int8_bytes={n: s // 4 for n, s in size.items()},
        edges=edges,
    )


def price(allocation):
    return allocation.us + US_PER_BYTE * allocation.bytes


def every_choice(problem):
    for bits in itertools.product((False, True), repeat=len(problem.layers)):
        yield problem.evaluate(frozenset(x for x, b in zip(problem.layers, bits, strict=True) if b))


@settings(max_examples=150, deadline=None)
@given(problems(), st.floats(0, 1), st.one_of(st.none(), st.floats(0, 1)))
def test_it_is_as_good_as_trying_everything(problem, loss_share, size_share):
    all_int8 = problem.evaluate(frozenset(problem.layers))
    max_loss = loss_share * all_int8.loss
    max_bytes = None
    if size_share is not None:
        all_float = problem.evaluate(frozenset())
        max_bytes = round(all_int8.bytes + size_share * (all_float.bytes - all_int8.bytes))
    fits = [
        a for a in every_choice(problem) if a.loss <= max_loss and (max_bytes is None or a.bytes <= max_bytes)
    ]
    found = solve(problem, max_loss=max_loss, max_bytes=max_bytes)
    if not fits:
        assert found is None
        return
    assert found.loss <= max_loss * (1 + 1e-5) + 1e-9
    assert max_bytes is None or found.bytes <= max_bytes
    assert price(found) <= min(map(price, fits)) + 1e-6


@settings(max_examples=50, deadline=None)
@given(problems())
def test_layers_that_may_not_stay_float(problem):
    allowed = frozenset(problem.layers[::2])
    found = solve(problem, allowed=allowed)
    best = min(price(a) for a in every_choice(problem) if a.int8 <= allowed)
    assert found.int8 <= allowed and price(found) <= best + 1e-6


@settings(max_examples=50, deadline=None)
@given(problems())
def test_the_front_goes_from_fast_to_good_without_repeats(problem):
    front = sweep(problem, 6)
    assert front[0] == solve(problem)
    assert len({a.int8 for a in front}) == len(front)
    for faster, better in itertools.pairwise(front):
        assert better.loss <= faster.loss / 2 + 1e-9 and price(better) >= price(faster) - 1e-6


def chain(float_us, int8_us, conversion, loss=0.01):
    names = tuple("abc")
    return Problem(
        names,
        dict(zip(names, float_us, strict=True)),
        dict(zip(names, int8_us, strict=True)),
        dict.fromkeys(names, loss),
        dict.fromkeys(names, 400),
        dict.fromkeys(names, 100),
        (Edge("a", "b", conversion, conversion), Edge("b", "c", conversion, conversion)),
    )


def test_a_layer_slower_in_int8_stays_float():
    assert solve(chain((10, 10, 10), (5, 12, 5), conversion=0.1)).int8 == {"a", "c"}


def test_unless_the_conversions_around_it_cost_more():
    assert solve(chain((10, 10, 10), (5, 12, 5), conversion=3.0)).int8 == {"a", "b", "c"}


def test_conversions_can_eat_the_whole_gain():
    assert solve(chain((10, 10, 10), (11, 8, 12), conversion=1.5)).int8 == frozenset()


def test_equal_times_go_to_the_smaller():
    assert solve(chain((10, 10, 10), (10, 10, 10), conversion=1.0)).int8 == {"a", "b", "c"}


def test_tiny_losses_are_told_apart():
    problem = chain((10, 10, 10), (5, 6, 7), conversion=0.0, loss=1e-9)
    assert solve(problem, max_loss=1.5e-9).int8 == {"a"}


def test_no_budget_for_any_loss_keeps_all_float():
    assert solve(chain((10, 10, 10), (5, 5, 5), 1.0), max_loss=0.0).int8 == frozenset()


def test_a_size_below_all_int8_is_impossible():
    assert solve(chain((10, 10, 10), (5, 5, 5), 1.0), max_bytes=299) is None


def test_other_times_replace_those_of_the_table():
    problem = with_times(chain((10, 10, 10), (5, 5, 5), 0.1), {"a": 1.0}, {"b": 50.0})
    assert solve(problem).int8 == {"c"}


def test_wrong_tables_are_refused():
    with pytest.raises(InternalError, match="loss is missing or negative for a, b, c"):
        chain((1, 1, 1), (1, 1, 1), 0.0, loss=float("nan"))
    with pytest.raises(InputError, match="negative"):
        solve(chain((1, 1, 1), (1, 1, 1), 0.0), max_loss=-1.0)
