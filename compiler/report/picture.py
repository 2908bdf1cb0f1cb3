"""Scatter plots as inline SVG: measured points, whiskers, limits. Colours come from the page's style sheet.

    draw(points, x=Axis("median latency", "ms"), y=Axis("agreement", "%"), title="...") -> str

Written with ElementTree, so that every label is escaped and the picture is well-formed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

WIDTH, HEIGHT = 560, 380
LEFT, RIGHT, TOP, BOTTOM = 76, 20, 40, 52
LABEL_HEIGHT = 18
LETTER_WIDTH = 10  # on phones, which show the letters larger
Box = tuple[float, float, float, float]
"""left, top, right, bottom"""
RADIUS = {"other": 3.5, "front": 6.0, "baseline": 6.5, "best": 8.5}


@dataclass(frozen=True)
class Axis:
    """What an axis shows. `lower` values are better or not; `limits` are constraint lines: (value, text)."""

    label: str
    unit: str = ""
    log: bool = False
    lower: bool = False
    limits: tuple[tuple[float, str], ...] = ()

    @property
    def title(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label


@dataclass(frozen=True)
class Point:
    """One candidate. `kind` is a key of RADIUS; `spread` is the whisker's whole width on the x axis; `tip`
    the tooltip.
    """

    x: float
    y: float
    kind: str
    tip: str
    spread: float = 0.0
    label: str = ""


@dataclass(frozen=True)
class Scale:
    """Maps values `low..high` to pixels `start..end`, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, v = (math.log10(t) if self.log else t for t in (self.low, self.high, max(value, self.low)))
        return self.start + (v - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        return _decades(self.low, self.high) if self.log else _nice(self.low, self.high)


def draw(points: Sequence[Point], x: Axis, y: Axis, title: str) -> str:
    """The picture as an `<svg>` element, without the points that are not finite, or <= 0 on a log axis."""
    shown = [p for p in points if _fits(p.x, x) and _fits(p.y, y)]
    root = Element("svg", {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "class": "plot"})
    SubElement(root, "title").text = title
    SubElement(root, "desc").text = f"{len(shown)} measured points: {x.title} across, {y.title} up."
    if not shown:
        _text(root, WIDTH / 2, HEIGHT / 2, "nothing was measured on these axes", "axis-title", "middle")
        return tostring(root, encoding="unicode")
    sx = _scale((v for p in shown for v in (p.x - p.spread / 2, p.x + p.spread / 2)), x, LEFT, WIDTH - RIGHT)
    sy = _scale((p.y for p in shown), y, HEIGHT - BOTTOM, TOP)
    _axes(root, x, y, sx, sy)
    limits = _limits(root, x, y, sx, sy)
    _staircase(root, shown, y.lower, sx, sy)
    for point in sorted(shown, key=lambda p: RADIUS[p.kind]):
        _mark(root, point, sx, sy)
    _labels(root, shown, limits, sx, sy)
    return tostring(root, encoding="unicode")


def _fits(value: float, axis: Axis) -> bool:
    return math.isfinite(value) and (value > 0 or not axis.log)


def _scale(values: Iterable[float], axis: Axis, start: float, end: float) -> Scale:
    """A scale around the values and the axis's limits with a margin, never empty."""
    seen = [v for v in (*values, *(value for value, _ in axis.limits)) if _fits(v, axis)]
    low, high = min(seen), max(seen)
    if axis.log:
        return Scale(low / 1.5, high * 1.5, start, end, log=True)
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return Scale(low - margin, high + margin, start, end)


def _nice(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside low..high."""
    raw = (high - low) / wanted
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten inside low..high; with 2 and 5 times those where they are fewer than three."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    tens = [10.0**p for p in powers if low <= 10.0**p <= high]
    if len(tens) >= 3:
        return tens
    return [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high] or [low, high]


def _axes(root: Element, x: Axis, y: Axis, sx: Scale, sy: Scale) -> None:
    for tick in sx.ticks():
        _line(root, sx(tick), TOP, sx(tick), HEIGHT - BOTTOM, "grid")
        _text(root, sx(tick), HEIGHT - BOTTOM + 18, f"{tick:g}", "tick", "middle")
    for tick in sy.ticks():
        _line(root, LEFT, sy(tick), WIDTH - RIGHT, sy(tick), "grid")
        _text(root, LEFT - 8, sy(tick) + 4, f"{tick:g}", "tick", "end")
    _text(root, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x.title, "axis-title", "middle")
    # Above the axis, not along it: there the ticks of small numbers need the room on phones.
    _text(root, 8, TOP - 20, y.title, "axis-title", "start")


def _limits(root: Element, x: Axis, y: Axis, sx: Scale, sy: Scale) -> list[Box]:
    """Draws the constraints; returns where their texts are."""
    texts: list[tuple[float, float, str]] = []
    for value, text in x.limits:
        _line(root, sx(value), TOP, sx(value), HEIGHT - BOTTOM, "limit")
        texts.append((sx(value) - 5, HEIGHT - BOTTOM - 6, text))
    for value, text in y.limits:
        _line(root, LEFT, sy(value), WIDTH - RIGHT, sy(value), "limit")
        texts.append((WIDTH - RIGHT - 4, sy(value) + 14, text))
    for right, base, text in texts:
        _text(root, right, base, text, "limit-text", "end")
    return [_text_box(right - len(text) * LETTER_WIDTH, base, text) for right, base, text in texts]


def _staircase(root: Element, points: Sequence[Point], lower: bool, sx: Scale, sy: Scale) -> None:
    """The edge of what was reached on these two axes: for every x, the best y at that x or less."""
    best = math.inf
    corners: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p.x, p.y if lower else -p.y)):
        cost = point.y if lower else -point.y
        if cost < best:
            corners += [(sx(point.x), sy(abs(best)))] if corners else []
            corners.append((sx(point.x), sy(point.y)))
            best = cost
    if len(corners) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        SubElement(root, "polyline", {"points": path, "class": "front-line"})


def _mark(root: Element, point: Point, sx: Scale, sy: Scale) -> None:
    """The point with its whisker and tooltip; baselines are squares, the rest circles, so colour is never
    alone.
    """
    group = SubElement(root, "g", {"class": f"point {point.kind}"})
    SubElement(group, "title").text = point.tip
    cx, cy, r = sx(point.x), sy(point.y), RADIUS[point.kind]
    if point.spread > 0 and point.kind != "other":
        _line(group, sx(point.x - point.spread / 2), cy, sx(point.x + point.spread / 2), cy, "whisker")
    if point.kind == "baseline":
        box = {"x": cx - r, "y": cy - r, "width": 2 * r, "height": 2 * r}
        SubElement(group, "rect", {k: f"{v:.1f}" for k, v in box.items()})
    else:
        _circle(group, cx, cy, r, "dot")
    if point.kind == "best":
        _circle(group, cx, cy, r - 4, "eye")


def _labels(root: Element, points: Sequence[Point], taken: Sequence[Box], sx: Scale, sy: Scale) -> None:
    """Names beside the points, the most important first; a name that would cover another, or what is `taken`,
    is left to its tooltip.
    """
    taken = [*taken, *(_box(p, sx, sy) for p in points if p.kind != "other")]
    for point in sorted((p for p in points if p.label), key=lambda p: -RADIUS[p.kind]):
        width = len(point.label) * LETTER_WIDTH
        cx, cy, gap = sx(point.x), sy(point.y), RADIUS[point.kind] + 5
        places = (
            (cx + gap, cy + 4),
            (cx - gap - width, cy + 4),
            (cx - width / 2, cy - gap),
            (cx - width / 2, cy + gap + 11),
        )
        for left, base in places:
            box = _text_box(left, base, point.label)
            inside = (
                box[0] >= LEFT and box[2] <= WIDTH - 2 and box[1] >= TOP - 14 and box[3] <= HEIGHT - BOTTOM
            )
            if inside and not any(_overlap(box, other) for other in taken):
                _text(root, left, base, point.label, f"label {point.kind}", "start")
                taken.append(box)
                break


def _text_box(left: float, base: float, text: str) -> Box:
    return left, base - LABEL_HEIGHT + 4, left + len(text) * LETTER_WIDTH, base + 3


def _box(point: Point, sx: Scale, sy: Scale) -> Box:
    cx, cy, r = sx(point.x), sy(point.y), RADIUS[point.kind]
    return cx - r, cy - r, cx + r, cy + r


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _circle(parent: Element, x: float, y: float, r: float, kind: str) -> None:
    SubElement(parent, "circle", {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": f"{r:g}", "class": kind})


def _line(parent: Element, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    SubElement(parent, "line", {**{k: f"{v:.1f}" for k, v in ends.items()}, "class": kind})


def _text(parent: Element, x: float, y: float, text: str, kind: str, anchor: str) -> Element:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "class": kind, "text-anchor": anchor}
    element = SubElement(parent, "text", place)
    element.text = text
    return element
