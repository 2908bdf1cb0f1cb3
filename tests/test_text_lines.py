"""The parts of examples/read_text.py that need no network: lines, pictures, decoding, counting mistakes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from text_lines import HEIGHT, WIDTH, decoded, picture, pixels, random_lines, right_characters  # noqa: E402

CHARACTERS = ["", "a", "b", "c"]


@pytest.mark.parametrize(
    ("best", "text"), [([0, 1, 1, 0, 1, 2], "aab"), ([3, 3, 3], "c"), ([0, 0], ""), ([1, 2, 1], "aba")]
)
def test_repeated_classes_count_once_unless_nothing_is_between(best: list[int], text: str) -> None:
    assert decoded(np.eye(4)[best], CHARACTERS) == text


@pytest.mark.parametrize(
    ("read", "line", "share"),
    [("kitten", "kitten", 1.0), ("", "abcd", 0.0), ("sitting", "kitten", 0.5), ("abxd", "abcd", 0.75)],
)
def test_mistakes_are_edits(read: str, line: str, share: float) -> None:
    """kitten and sitting are three edits apart: Levenshtein's textbook pair."""
    assert right_characters([read], [line]) == pytest.approx(share)


def test_lines_depend_on_the_seed_only() -> None:
    assert random_lines(5, 3) == random_lines(5, 3) != random_lines(5, 4)


def test_pictures_hold_ink_inside_their_edges() -> None:
    for seed, line in enumerate(random_lines(8, 9)):
        values = pixels(picture(line, seed))
        assert values.shape == (3, HEIGHT, WIDTH) and values.dtype == np.float32
        assert values.min() >= -1 and values.max() <= 1
        page = values[0, 0, 0]
        assert (values[:, :, [0, -1]] == page).all() and (values != page).mean() > 0.01
