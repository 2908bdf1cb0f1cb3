"""The demo's photographs: three sets that share no picture, licensed, prepared as the network wants."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def pictures():
    sys.path.insert(0, str(EXAMPLES))
    try:
        import pictures

        yield pictures
    finally:
        sys.path.remove(str(EXAMPLES))
        sys.modules.pop("pictures", None)


def test_every_photograph_has_author_licence_and_source():
    with (EXAMPLES / "photos" / "SOURCES.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} == {path.name for path in (EXAMPLES / "photos").glob("*.jpg")}
    for row in rows:
        assert row["author"] and row["source"].startswith("https://"), row
        assert row["licence"].startswith(("public-domain", "CC0-", "CC-BY-")), row


def test_the_sets_share_no_photograph(pictures):
    sets = [set(pictures.photographs(part)) for part in range(3)]
    assert all(len(files) > 30 for files in sets)
    assert len(set.union(*sets)) == sum(map(len, sets))
    # nor the same photograph under two names
    contents = {path.read_bytes() for files in sets for path in files}
    assert len(contents) == sum(map(len, sets))


def test_pictures_are_scaled_centre_crops_of_the_photographs(pictures):
    from PIL import Image

    batch = pictures.calibration_pictures(3)
    assert batch.shape == (3, 3, 224, 224) and batch.dtype == np.float32
    assert batch.min() >= -127 / 128 and batch.max() <= 1.0
    with Image.open(pictures.photographs(0)[1]) as image:
        pixels = np.asarray(image.convert("RGB"), np.int64)
    top, left = ((size - 224) // 2 for size in pixels.shape[:2])
    expected = (pixels[top : top + 224, left : left + 224].transpose(2, 0, 1) - 127) / 128
    assert np.abs(batch[1] - expected).max() == 0


def test_more_pictures_than_photographs_are_other_crops(pictures):
    photos = len(pictures.photographs(1))
    batch = pictures.evaluation_pictures(2 * photos + 1)
    np.testing.assert_array_equal(batch[photos], batch[0][:, :, ::-1])
    assert len({picture.tobytes() for picture in batch}) == len(batch)
    np.testing.assert_array_equal(batch[:5], pictures.evaluation_pictures(5))


@pytest.mark.parametrize("n", [0, -1, 100_000])
def test_impossible_numbers_are_refused(pictures, n):
    with pytest.raises(ValueError, match="pictures asked for"):
        pictures.held_out_pictures(n)
