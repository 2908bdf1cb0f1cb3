"""The report: one page that needs nothing else, says all that the search found, survives hostile names."""

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from bitsmith.compiler.measure import Quality
from bitsmith.compiler.plan import Plan
from bitsmith.compiler.report import render, write_page
from bitsmith.compiler.report.picture import HEIGHT, WIDTH, Axis, Point, Scale, draw
from made_up_result import made_up_result

VOID = {"meta", "link", "img", "br", "hr", "input"}
HOSTILE = '</script><script>alert("x")</script><img src=x onerror=alert(1)> {{ 7*7 }} & \' "'


class Page(HTMLParser):
    """Checks the nesting and collects what tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: dict[str, list[list[str]]] = {}
        self.text: list[str] = []
        self.notes: list[str] = []
        self.table, self.note = "", False
        self.feed(text)
        self.close()
        assert not self.stack, f"not closed: {self.stack}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)
        self.note = "tbody" in self.stack and dict(attrs).get("class") == "note"
        if tag == "table":
            self.table = dict(attrs)["id"] or ""
            self.rows[self.table] = []
        if tag == "tr" and "tbody" in self.stack:
            self.rows[self.table].append([])
        if tag in ("td", "th") and "tbody" in self.stack:
            self.rows[self.table][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack.pop() == tag, f"</{tag}> closes something else"
        self.note = False

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.note:
            self.notes.append(data)
        if "tbody" in self.stack and self.stack[-1] in ("td", "th", "span") and not self.note:
            self.rows[self.table][-1][-1] += data


@pytest.fixture(scope="module")
def result():
    return made_up_result()


@pytest.fixture(scope="module")
def page(result):
    return Page(render(result))


def test_the_page_is_whole_and_fetches_nothing(page):
    assert [tag for tag, _ in page.tags].count("html") == 1
    for tag, attrs in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "img"), tag
        assert not {"src", "href", "srcset", "action"} & set(attrs), (tag, attrs)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert any(a.get("name") == "viewport" and "width=device-width" in a["content"] for _, a in page.tags)


def test_nothing_in_it_names_an_address(result):
    text = render(result)
    assert not re.findall(r"(?:https?:|ftp:)?//[a-z]", text.replace("// Sorts", ""))
    assert not re.search(r"@import|url\(", text)


def test_every_layer_has_its_row(result, page):
    rows = page.rows["ledger-table"]
    assert [row[0] for row in rows] == [r.layer for r in result.ledger]
    for row, r in zip(rows, result.ledger, strict=True):
        assert row[1] == r.choice
        assert row[2] == f"{r.bits:.2f}"
        assert row[3] == f"{r.weight_bytes:,}"
        assert row[6] == f"{r.predicted_us:.1f}"
        assert row[7] == ("–" if r.measured_us is None else f"{r.measured_us:.1f}")
        assert row[8] == f"{r.error_share:.1%}"
        assert row[9] == r.reason
    assert [note for note in page.notes if note.startswith("conv2d")] == ["conv2d 1×14×14×32"] * len(rows)


def test_every_kernel_has_its_row(result, page):
    rows = page.rows["kernel-table"]
    assert [row[0] for row in rows] == [row.layer for row in result.roofline.by_excess()]
    by_layer = {row[0]: row for row in rows}
    for kernel in result.roofline.rows:
        cells = by_layer[kernel.layer]
        assert cells[1] == f"{kernel.microseconds:.1f}" and cells[4] == kernel.limit
        assert kernel.kernel in page.notes
        assert cells[3] == ("–" if kernel.share is None else f"{kernel.share:.0%}")
    assert by_layer["softmax"][6] == by_layer["older"][6] == "unknown"
    text = "".join(page.text)
    assert f"{result.roofline.run_us / 1e3:.3f} ms" in text and "ubs256 197 GOP/s" in text
    assert "operations of 2 kernels are not known" in text


def test_a_result_without_a_roofline_has_no_section(result):
    page = Page(render(replace(result, roofline=None)))
    assert "kernel-table" not in page.rows and "the machine's limits" not in "".join(page.text)


def test_every_candidate_has_its_row(result, page):
    chosen = result.best.name
    names = [row[0].removesuffix(" (chosen)") for row in page.rows["trial-table"]]
    assert names == [c.name for c in result.trials]
    assert [row[0].removesuffix(" (chosen)") for row in page.rows["front-table"]] == [
        c.name for c in result.front
    ]
    summary = page.rows["summary-table"]
    assert [row[0] for row in summary] == ["float32", "int8", f"{chosen} (chosen)"]
    assert summary[2][3] == (
        f"{result.best.latency_us / 1e3:.3f} ± "
        f"{result.best.latency.spread_us / 2e3 * result.best.latency_us / result.best.latency.median_us:.3f}"
    )


def test_additivity_machine_notes_and_plan_are_told(result, page):
    assert page.rows["additivity-table"][0][3] == f"{2900 / 3050 - 1:+.1%}"
    text = "".join(page.text)
    for expected in (
        result.machine.cpu,
        "bitsmith 0.1.0",
        result.notes[0],
        "agreement>=0.98",
        "All constraints are met",
    ):
        assert expected in text
    assert result.best.plan.to_text().strip() in text


def test_pictures_show_every_point_axes_and_limits(result, page):
    svg = [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", render(result), re.S)]
    assert len(svg) == 4
    latency = svg[0]
    assert latency.get("role") == "img" and latency.find("title").text == "agreement against median latency"
    points = latency.findall("g")
    names = {c.name for c in result.trials}
    assert {p.find("title").text.split(":")[0] for p in points} == names
    words = [t.text for t in latency.iter("text")]
    assert "median latency (ms)" in words and "agreement (%)" in words
    assert "agreement>=0.98" in words and "latency<=8ms" in words
    kl = {p.find("title").text.split(":")[0] for p in svg[2].findall("g")}
    assert kl == names - {"float32"}, "float32 has no divergence from itself"


def test_hostile_names_stay_text(result):
    layers = tuple(replace(r, layer=HOSTILE, reason=HOSTILE) for r in result.ledger[:2])
    best = replace(result.best, plan=Plan(HOSTILE, {HOSTILE: "int8"}), name=HOSTILE)
    bad = replace(result, graph=HOSTILE, ledger=layers, best=best, front=(best,), notes=(HOSTILE,))
    text = render(bad)
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "alert(" not in re.search(r"<script>(.*?)</script>", text, re.S)[1]
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert page.rows["ledger-table"][0][0] == HOSTILE
    assert "{{ 7*7 }}" in text


def test_unmet_constraints_are_said(result):
    text = render(replace(result, met=False))
    assert "No plan met the constraints" in text and "All constraints are met" not in text


def test_a_result_without_classes_constraints_or_finalists(result):
    def plain(c):
        return replace(c, quality=Quality(None, None, c.quality.sqnr_db, None, 42), predicted_us=None)

    changes = {name: plain(getattr(result, name)) for name in ("float32", "int8", "best")}
    lists = {name: tuple(plain(c) for c in getattr(result, name)) for name in ("front", "trials")}
    bare = replace(result, **changes, **lists, constraints=(), additivity=(), notes=())
    page = Page(render(bare))
    text = "".join(page.text)
    assert "No constraints." in text and "agreement against" not in text
    assert "additivity-table" not in page.rows
    assert "SQNR against median latency" in text


def test_equal_outputs_are_called_exact(page):
    heads = [row[0] for row in page.rows["summary-table"]]
    exact = ["exact" in row for row in page.rows["summary-table"]]
    assert heads[0] == "float32" and exact == [True, False, False]
    assert not any("200.0" in row for row in page.rows["trial-table"])


PHONE = 17  # pixels of the letters in a picture on a phone, by page.css; none is as wide as 0.65 of that


def box(element):
    """left, top, right, bottom of a text that stands upright."""
    assert "transform" not in element.attrib
    x, y, width = float(element.get("x")), float(element.get("y")), 0.65 * PHONE * len(element.text)
    left = x - {"start": 0, "middle": width / 2, "end": width}[element.get("text-anchor")]
    return left, y - 0.8 * PHONE, left + width, y + 0.25 * PHONE


@pytest.mark.parametrize(
    ("low", "high", "log"), [(2e-4, 3e-2, True), (2e-4, 9e-4, True), (97.2, 97.8, False)]
)
def test_the_titles_of_axes_overlap_nothing_on_a_phone(low, high, log):
    points = [Point(i, y, "front", "tip") for i, y in enumerate((low, high), 1)]
    root = ElementTree.fromstring(draw(points, Axis("latency", "ms"), Axis("KL", "nats", log, True), "title"))
    texts = [e for e in root.iter() if e.tag.endswith("text") and e.get("class") in ("tick", "axis-title")]
    titles = [box(e) for e in texts if e.get("class") == "axis-title"]
    assert len(titles) == 2 and len(texts) > 5
    for e in texts:
        left, top, right, bottom = box(e)
        assert 0 <= left and right <= WIDTH and 0 <= top and bottom <= HEIGHT, e.text
        for a, b, c, d in titles:
            apart = right <= a or c <= left or bottom <= b or d <= top
            assert apart or box(e) == (a, b, c, d), e.text


def test_a_page_is_written_whole(result, tmp_path):
    place = write_page(result, tmp_path / "deep" / "page.html")
    assert place.read_text(encoding="utf-8") == render(result)
    assert [f.name for f in place.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize("log", [False, True])
def test_scales_map_ends_to_ends(log):
    scale = Scale(1.0, 100.0, 50.0, 450.0, log)
    assert (scale(1.0), scale(100.0)) == (50.0, 450.0)
    assert scale(10.0) == pytest.approx(250.0 if log else 50 + 9 / 99 * 400)


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0.0, 10.0, False, [0, 2, 4, 6, 8, 10]),
        (2.9, 3.3, False, [2.9, 3.0, 3.1, 3.2, 3.3]),
        (1e-5, 1e-2, True, [1e-5, 1e-4, 1e-3, 1e-2]),
        (0.002, 0.03, True, [0.002, 0.005, 0.01, 0.02]),
    ],
)
def test_ticks_are_round_numbers(low, high, log, expected):
    assert Scale(low, high, 0, 1, log).ticks() == pytest.approx(expected)


@pytest.mark.parametrize("values", [[3.0], [3.0, 3.0], [0.0, 0.0], [-2.0, 5.0], [math.nan, 1.0, math.inf]])
def test_any_points_make_a_picture(values):
    points = [Point(v, v, "front", f"{v}", 0.1, "p") for v in values]
    svg = ElementTree.fromstring(draw(points, Axis("x"), Axis("y"), "t"))
    assert len(svg.findall("g")) == sum(map(math.isfinite, values))
    for circle in svg.iter("circle"):
        assert 0 <= float(circle.get("cx")) <= 560 and 0 <= float(circle.get("cy")) <= 380


def test_a_picture_of_nothing_says_so():
    svg = ElementTree.fromstring(draw([Point(1.0, 0.0, "front", "")], Axis("x"), Axis("y", log=True), "t"))
    assert "nothing was measured" in "".join(svg.itertext())


def test_labels_do_not_cover_each_other():
    points = [Point(1 + i / 1000, 1.0, "front", "", 0.0, f"trial-{i}") for i in range(20)]
    svg = ElementTree.fromstring(draw([*points, Point(9, 9, "best", "")], Axis("x"), Axis("y"), "t"))
    boxes = [
        (float(t.get("x")), float(t.get("y")), len(t.text))
        for t in svg.iter("text")
        if t.get("class", "").startswith("label")
    ]
    assert 1 <= len(boxes) < 20
    for i, (x, y, n) in enumerate(boxes):
        for other, y2, n2 in boxes[i + 1 :]:
            assert abs(y - y2) >= 12 or x + 6 * n <= other or other + 6 * n2 <= x
