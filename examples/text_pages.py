"""Pages of text as pictures, and the way back: what PP-OCR's detector sees and what it answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from text_lines import WORDS

SIDE = 320
THRESHOLD = 0.3
"""Probability that counts as text, as in PP-OCR's own post-processing."""
GROWTH = 0.7
"""The network marks the core of a line, which is grown by area * GROWTH / perimeter (Liao et al., "Real-time
Scene Text Detection with Differentiable Binarization", 2020). PP-OCR grows it by 1.6, to leave a margin
around the text for its recogniser; the boxes here end where the ink does."""
SMALLEST = 3  # pixels: smaller regions are no text
OVERLAPS = tuple(np.linspace(0.5, 0.9, 9))

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""


def page(seed: int) -> tuple[Image.Image, list[Box]]:
    """A page of a few lines in various sizes, greys and places, grainy as a scan is, and where they are."""
    rng = np.random.default_rng(seed)
    ink, paper = int(rng.integers(0, 100)), int(rng.integers(170, 256))
    image = Image.new("RGB", (SIDE, SIDE), (paper, paper, paper))
    draw = ImageDraw.Draw(image)
    boxes: list[Box] = []
    top = float(rng.integers(8, 30))
    while True:
        font = ImageFont.load_default(int(rng.integers(13, 30)))
        left = float(rng.integers(6, SIDE // 3))
        text = _fitting(draw, [str(word) for word in rng.choice(WORDS, int(rng.integers(1, 5)))], font, left)
        box = draw.textbbox((left, top), text, font)
        if box[3] > SIDE - 6:
            return _grainy(image, rng), boxes
        draw.text((left, top), text, (ink, ink, ink), font)
        boxes.append(box)
        top = box[3] + float(rng.integers(10, 28))


def _fitting(draw: ImageDraw.ImageDraw, words: list[str], font: Font, left: float) -> str:
    while len(words) > 1 and draw.textlength(" ".join(words), font) > SIDE - left - 6:
        words = words[:-1]
    return " ".join(words)


def _grainy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    grain = rng.normal(0, rng.uniform(0, 5), (SIDE, SIDE, 1))
    return Image.fromarray(np.clip(np.asarray(image, np.float32) + grain, 0, 255).astype(np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    """float32 [3, side, side]: blue, green, red from -1 to 1."""
    values = np.asarray(image.convert("RGB"), np.float32)[..., ::-1].transpose(2, 0, 1)
    return np.ascontiguousarray(values / 127.5 - 1.0)


def boxes_of(probability: np.ndarray) -> list[Box]:
    """The upright boxes around the regions of text in a map [side, side] of probabilities, from the top."""
    from scipy import ndimage

    regions, _ = ndimage.label(probability > THRESHOLD)
    boxes = []
    for rows, columns in ndimage.find_objects(regions):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if min(height, width) >= SMALLEST:
            grown = height * width * GROWTH / (2 * (height + width))
            boxes.append((columns.start - grown, rows.start - grown, columns.stop + grown, rows.stop + grown))
    return boxes


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / (_area(a) + _area(b) - shared)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def found_well(found: Sequence[Sequence[Box]], real: Sequence[Sequence[Box]]) -> float:
    """F-measure of the boxes of some pages, averaged over the overlaps from 0.5 to 0.9 that count as found
    (as in COCO's measure): 1 when all boxes are right, and nothing else.
    """
    counted = sum(map(len, found)) + sum(map(len, real))
    pairs = zip(found, real, strict=True)
    best = [max((overlap(box, other) for other in f), default=0.0) for f, r in pairs for box in r]
    return float(np.mean([2 * sum(share >= least for share in best) / counted for least in OVERLAPS]))


def same_pixels(maps: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> float:
    """Of the pixels that either of two maps of some pages takes for text, the share that both do."""
    pairs = [(a > THRESHOLD, b > THRESHOLD) for a, b in zip(maps, reference, strict=True)]
    either = sum(int((a | b).sum()) for a, b in pairs)
    return sum(int((a & b).sum()) for a, b in pairs) / either if either else 1.0


def marked(image: Image.Image, boxes: Sequence[Box], colour: str = "red") -> Image.Image:
    """The page with boxes drawn on it."""
    result = image.copy()
    draw = ImageDraw.Draw(result)
    for box in boxes:
        draw.rectangle(box, outline=colour, width=2)
    return result
