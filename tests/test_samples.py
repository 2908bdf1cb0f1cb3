"""Samples in every form that the documentation allows, and messages for those it does not."""

import numpy as np
import pytest
from bitsmith.compiler.builder import GraphBuilder
from bitsmith.compiler.errors import InputError
from bitsmith.compiler.samples import iterate


@pytest.fixture
def one():
    b = GraphBuilder("one")
    return b.finish([b.add("neg", [b.input("x", (1, 3, 4))])])


@pytest.fixture
def two():
    b = GraphBuilder("two")
    x, n = b.input("x", (1, 3)), b.input("n", (2, 2), "int64")
    return b.finish([b.add("neg", [x]), b.add("transpose", [n], perm=(1, 0))])


PICTURES = np.arange(60, dtype=np.float32).reshape(5, 3, 4)


@pytest.mark.parametrize(
    "data",
    [
        PICTURES,
        PICTURES[:, None],
        {"x": PICTURES},
        {"x": PICTURES[:, None]},
        list(PICTURES),
        list(PICTURES[:, None]),
        [(picture,) for picture in PICTURES],
        [{"x": picture} for picture in PICTURES],
        (picture for picture in PICTURES),
        PICTURES.astype(np.float64),
        [picture.astype(np.float16) for picture in PICTURES],
    ],
    ids=lambda data: type(data).__name__,
)
def test_one_input(one, data):
    runs = iterate(one, data)
    assert [list(run) for run in runs] == [["x"]] * 5
    for run, picture in zip(runs, PICTURES, strict=True):
        assert run["x"].dtype == np.float32
        np.testing.assert_array_equal(run["x"], picture[None])


def test_arrays_are_not_copied(one):
    assert np.shares_memory(iterate(one, PICTURES)[3]["x"], PICTURES)


def test_several_inputs(two):
    x, n = np.ones((4, 3), np.float32), np.arange(16, dtype=np.int64).reshape(4, 2, 2)
    for data in ({"x": x, "n": n}, list(zip(x, n, strict=True)), [{"n": n[i], "x": x[i]} for i in range(4)]):
        runs = iterate(two, data)
        assert [list(run) for run in runs] == [["x", "n"]] * 4
        assert runs[2]["x"].shape == (1, 3)
        np.testing.assert_array_equal(runs[2]["n"], n[2])


def test_integers_change_their_width(two):
    runs = iterate(two, [(np.ones(3), np.ones((2, 2), np.uint8))])
    assert runs[0]["n"].dtype == np.int64


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            np.zeros((5, 4, 3), np.float32),
            r"input 'x' have shape \[5, 4, 3\], expected \[n, 1, 3, 4\] or \[n, 3, 4\]",
        ),
        (np.float32(1), "expected"),
        (np.zeros((0, 3, 4), np.float32), "there are no samples; expected .* x: float32"),
        ([], "there are no samples"),
        ({}, "the dict of samples lacks x"),
        ({"x": PICTURES, "y": PICTURES}, "has y, which the model does not take"),
        ([PICTURES[0], PICTURES[0][0]], r"sample 1: input 'x' has shape \[4\], expected \[1, 3, 4\]"),
        ([(PICTURES[0], PICTURES[1])], "sample 0 has 2 arrays, the model 1 inputs"),
        ([{"image": PICTURES[0]}], "sample 0 lacks x and has image"),
        (PICTURES.astype(np.uint8), "sample 0: input 'x' is uint8, expected float32: scale and convert"),
        (np.full((2, 3, 4), np.nan, np.float32), "sample 0: input 'x' holds NaN or infinite"),
        ([PICTURES[0], np.full((3, 4), -np.inf, np.float32)], "sample 1: input 'x' holds NaN or infinite"),
        (np.full((1, 3, 4), 1e300), "sample 0: input 'x' holds NaN or infinite"),
        (np.full((1, 3, 4), "a"), "sample 0: input 'x' is <U1, expected float32"),
        ("pictures", "samples are str; expected an array"),
        (7, "samples are int"),
    ],
)
def test_what_does_not_fit_is_explained(one, data, message):
    with pytest.raises(InputError, match=message):
        iterate(one, data)


def test_one_array_is_not_enough_for_two_inputs(two):
    with pytest.raises(InputError, match="one array, but the model has 2 inputs"):
        iterate(two, np.zeros((4, 3), np.float32))
    with pytest.raises(InputError, match="single arrays, but the model has 2 inputs"):
        iterate(two, [np.zeros(3, np.float32)])


def test_columns_must_be_equally_long(two):
    with pytest.raises(InputError, match="x: 4, n: 3"):
        iterate(two, {"x": np.zeros((4, 3), np.float32), "n": np.zeros((3, 2, 2), np.int64)})


def test_numbers_that_do_not_fit_are_refused():
    b = GraphBuilder("small")
    graph = b.finish([b.add("transpose", [b.input("n", (1, 2), "uint8")], perm=(1, 0))])
    with pytest.raises(InputError, match="numbers that do not fit uint8"):
        iterate(graph, np.full((1, 2), 300, np.int64))
