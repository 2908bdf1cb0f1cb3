"""The parts of examples/find_text.py that need no network: pages, boxes, how well they were found."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from comparison import subject  # noqa: E402
from find_text import maps, same_as  # noqa: E402
from text_pages import (  # noqa: E402
    GROWTH,
    SIDE,
    Box,
    boxes_of,
    found_well,
    marked,
    overlap,
    page,
    pixels,
    same_pixels,
)

LINE: Box = (10, 20, 90, 36)


def drawn(boxes: list[Box]) -> np.ndarray:
    """What a perfect detector answers: the cores, which grow to these boxes."""
    probability = np.zeros((SIDE, SIDE), np.float32)
    for left, top, right, bottom in boxes:
        width, height = right - left, bottom - top
        # Of a core w x h the box is (w + 2g) x (h + 2g) with g = GROWTH * w * h / (2 * (w + h)).
        g = min(np.linspace(0, height / 2, 200), key=lambda g: abs(_grown(width - 2 * g, height - 2 * g) - g))
        probability[round(top + g) : round(bottom - g), round(left + g) : round(right - g)] = 0.9
    return probability


def _grown(width: float, height: float) -> float:
    return GROWTH * width * height / (2 * (width + height))


def test_a_perfect_detector_finds_the_lines_of_pages():
    pages = [page(seed)[1] for seed in range(5)]
    assert all(pages)
    found = [boxes_of(drawn(boxes)) for boxes in pages]
    assert [len(f) for f in found] == [len(b) for b in pages]
    assert found_well(found, pages) > 0.9


@pytest.mark.parametrize(
    ("other", "share"),
    [(LINE, 1.0), ((10, 20, 50, 36), 0.5), ((90, 20, 99, 36), 0.0), ((50, 20, 130, 36), 1 / 3)],
)
def test_overlap_is_intersection_over_union(other, share):
    assert overlap(LINE, other) == overlap(other, LINE) == pytest.approx(share)


def test_missed_and_invented_boxes_count():
    assert found_well([[LINE]], [[LINE]]) == 1
    assert found_well([[]], [[LINE]]) == 0
    assert found_well([[LINE, (200, 200, 210, 210)]], [[LINE]]) == pytest.approx(2 / 3)
    half: Box = (10, 20, 90, 31)  # overlaps by 11/16: of the nine overlaps 0.5 to 0.9, four are below
    assert found_well([[half]], [[LINE]]) == pytest.approx(4 / 9)


def test_specks_are_no_boxes():
    probability = np.zeros((SIDE, SIDE))
    probability[5:7, 5:40] = 1
    assert boxes_of(probability) == []


def test_pixels_are_compared_where_either_has_text():
    a, b = np.zeros((4, 4)), np.zeros((4, 4))
    a[0], b[0, :2] = 0.9, 0.9
    assert same_pixels([a], [b]) == same_pixels([b], [a]) == 0.5
    assert same_pixels([a, b], [a, b]) == same_pixels([a * 0], [b * 0]) == 1


class Threshold:
    """Stands in for the network: what is darker than a bound is text."""

    size_bytes = 0

    def __init__(self, bound: float) -> None:
        self.bound = bound

    def run(self, x: np.ndarray) -> dict[str, np.ndarray]:
        return {"y": (x[:, :1] < self.bound).astype(np.float32)}


def test_a_model_is_judged_by_the_pixels_of_another():
    seeds = range(3)
    judge = same_as(subject(Threshold(0.0)), seeds)
    assert judge(Threshold(0.0)) == 1
    assert 0 < judge(Threshold(-0.5)) < 1
    assert [m.shape for m in maps(subject(Threshold(0.0)), seeds)] == [(SIDE, SIDE)] * 3


def test_pages_depend_on_the_seed_only_and_are_scaled():
    image, boxes = page(3)
    values = pixels(image)
    assert np.array_equal(values, pixels(page(3)[0])) and not np.array_equal(values, pixels(page(4)[0]))
    assert values.shape == (3, SIDE, SIDE) and -1 <= values.min() < values.max() <= 1
    for left, top, right, bottom in boxes:
        inside = values[0, int(top) : int(bottom), int(left) : int(right)]
        assert np.ptp(inside) > 0.3
    assert np.asarray(marked(image, boxes)).shape == (SIDE, SIDE, 3)
