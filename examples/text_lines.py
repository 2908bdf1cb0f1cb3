"""Lines of text as pictures, and the way back: what PP-OCR's recogniser reads and what it answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HEIGHT, WIDTH = 48, 320
WORDS = (
    "time work river stone paper north sugar glass garden copper window silver market number letter bridge "
    "winter summer forest engine castle pocket yellow orange planet travel doctor animal school corner"
).split()


def random_lines(n: int, seed: int) -> list[str]:
    """`n` short lines of words and numbers."""
    rng = np.random.default_rng(seed)
    lines = []
    for _ in range(n):
        words = [str(word) for word in rng.choice(WORDS, 2)]
        words[0] = words[0].capitalize()
        lines.append(" ".join([*words, str(rng.integers(1000))]))
    return lines


def picture(text: str, seed: int = 0) -> Image.Image:
    """A line as a 320 x 48 picture, in a size, place and pair of greys that vary with the seed."""
    rng = np.random.default_rng(seed)
    ink, page = int(rng.integers(0, 90)), int(rng.integers(170, 256))
    image = Image.new("RGB", (WIDTH, HEIGHT), (page, page, page))
    draw = ImageDraw.Draw(image)
    size = int(rng.integers(22, 31))
    while draw.textlength(text, ImageFont.load_default(size)) > WIDTH - 12:
        size -= 1
    place = (float(rng.uniform(4, 10)), HEIGHT / 2 + float(rng.uniform(-3, 3)))
    draw.text(place, text, (ink, ink, ink), ImageFont.load_default(size), anchor="lm")
    return image


def pixels(image: Image.Image) -> np.ndarray:
    """float32 [3, 48, 320]: blue, green, red from -1 to 1, as the network was trained."""
    values = np.asarray(image.convert("RGB"), np.float32)[..., ::-1].transpose(2, 0, 1)
    return np.ascontiguousarray(values / 127.5 - 1.0)


def alphabet(model: Path) -> list[str]:
    """The character of each class of the recogniser; class 0 means none, the last one is a space."""
    import onnx

    metadata = {p.key: p.value for p in onnx.load(model, load_external_data=False).metadata_props}
    return ["", *metadata["character"].split("\n"), " "]


def decoded(scores: np.ndarray, characters: list[str]) -> str:
    """The text of one picture from scores [steps, classes]: the best class of each step, repeated ones once
    (Graves et al., "Connectionist Temporal Classification", 2006)."""
    best = scores.argmax(axis=-1)
    kept = [c for c, before in zip(best, [0, *best[:-1]], strict=True) if c != before]
    return "".join(characters[c] for c in kept)


def right_characters(read: list[str], lines: list[str]) -> float:
    """Share of the characters of `lines` that were read, by edit distance; 1 when all is right."""
    wrong = sum(_distance(a, b) for a, b in zip(read, lines, strict=True))
    return 1.0 - wrong / sum(map(len, lines))


def _distance(a: str, b: str) -> int:
    """Insertions, deletions and replacements from one text to the other (Levenshtein, 1966)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]
