"""The demo's photographs as EfficientNet-Lite0 wants them: three sets that share no photograph.

    calibration_pictures   ranges of the activations are taken from these
    evaluation_pictures    a search judges its plans on these
    held_out_pictures      the results that are reported come from these

Authors, licences and sources: examples/photos/SOURCES.csv. The photographs carry no ImageNet labels: quality
on them is agreement with the float model.
"""

import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

PHOTOS = Path(__file__).resolve().parent / "photos"
SIDE = 224

# Where a crop lies, as fractions of the room beside it. The centre comes first: networks are judged on it.
POSITIONS = ((0.5, 0.5), (0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0))
CROPS_PER_PHOTO = 2 * len(POSITIONS)  # each also mirrored


def calibration_pictures(n: int = 42) -> np.ndarray:
    """`n` pictures, float32 `[n, 3, 224, 224]`, (pixel - 127) / 128; ValueError if the set has fewer."""
    return _pictures(0, n)


def evaluation_pictures(n: int = 42) -> np.ndarray:
    """As `calibration_pictures`, from other photographs."""
    return _pictures(1, n)


def held_out_pictures(n: int = 41) -> np.ndarray:
    """As `calibration_pictures`, from photographs that are in neither of the other two sets."""
    return _pictures(2, n)


def photographs(part: int) -> list[Path]:
    """The files of set 0, 1 or 2. SOURCES.csv is sorted by subject, so every third gives some of each."""
    with (PHOTOS / "SOURCES.csv").open(newline="", encoding="utf-8") as file:
        return [PHOTOS / row["file"] for row in csv.DictReader(file)][part::3]


def _pictures(part: int, n: int) -> np.ndarray:
    files = photographs(part)
    if not 1 <= n <= len(files) * CROPS_PER_PHOTO:
        raise ValueError(f"{n} pictures asked for; this set has 1 to {len(files) * CROPS_PER_PHOTO}")
    # All photographs once, then all of them again with the next crop: a smaller n never means fewer subjects.
    return np.stack([_crop(files[i % len(files)], i // len(files)) for i in range(n)])


def _crop(file: Path, turn: int) -> np.ndarray:
    across, down = POSITIONS[turn // 2]
    with Image.open(file) as image:
        left = round((image.width - SIDE) * across)
        top = round((image.height - SIDE) * down)
        crop = image.convert("RGB").crop((left, top, left + SIDE, top + SIDE))
    if turn % 2 == 1:
        crop = ImageOps.mirror(crop)
    pixels = np.asarray(crop, np.float32)
    return np.ascontiguousarray(((pixels - 127.0) / 128.0).transpose(2, 0, 1))
