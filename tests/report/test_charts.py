"""Charts: nothing overlaps or leaves the frame, looks differ without colour, and files are the same everywhere."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise
from xml.etree import ElementTree

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from reported import HOSTILE

from orchestrator.report import _charts, _style
from orchestrator.report._charts import Chart, ChartText, Curve, CurveRun, Point, Row, Rule
from orchestrator.report._export import FORMS, MARK, render_file, render_inline
from orchestrator.report._heat_map import Cell, draw_heat_map
from orchestrator.report._style import BASE, METHOD, TEACHER, Look

SVG = "{http://www.w3.org/2000/svg}"
WORDS = ChartText("a title", "a description", "epoch", "acc, %")
LOGIT = Look.of(METHOD)
LONG = "st temperature=4 feature_weight=0.25 options.note=" + "x" * 60


def draw_curves(label: str = "logit", words: ChartText = WORDS) -> Chart:
    """A mean over two runs, one of which did not finish."""
    runs = (CurveRun("seed 0", (9.0, 19.0, 29.0)), CurveRun("seed 1", (11.0, None, 31.0), counts=False))
    band = (9.0, 19.0, 29.0), (11.0, 21.0, 31.0)
    curve = Curve(label, LOGIT, "n=2", (1.0, 2.0, 3.0), (10.0, 20.0, 30.0), *band, runs)
    return _charts.draw_curves(words, [curve], [Rule(label, Look.of(TEACHER), "95.00 (n=1)", 25.0)])


def draw_scatter(label: str = "logit", words: ChartText = WORDS) -> Chart:
    points = [Point(label, LOGIT, "1 s", 1.0, 90.0, 0.1, 1.0), Point("b", Look.of(TEACHER), "100 s", 100.0, 95.0)]
    return _charts.draw_scatter(words, points, is_log=True)


def draw_rows(label: str = "logit", words: ChartText = WORDS) -> Chart:
    rows = [Row(label, LOGIT, "91.0 (n=3)", (90.0, 91.0, 92.0), 91.0, 88.5, 93.5, 88.0)] * 3
    return _charts.draw_rows(replace(words, y=""), rows, [Rule(label, Look.of(TEACHER), "95.00", 95.0)])


def draw_sweep(label: str = "logit", words: ChartText = WORDS) -> Chart:
    curve = Curve(label, LOGIT, "n=2", (1.0, 2.0, 16.0), (10.0, 20.0, 30.0), (9.0, 19.0, 29.0), (11.0, 21.0, 31.0))
    return _charts.draw_sweep(words, [curve], [Rule(label, Look.of(BASE), "8.00", 8.0)])


def draw_map(label: str = "logit", words: ChartText = WORDS) -> Chart:
    return draw_heat_map(words, [Cell(x, y, 80 + x * y, x - y, label) for x in (0.5, 1.0, 2.0) for y in (1.0, 4.0)])


CHARTS = pytest.mark.parametrize("draw", [draw_curves, draw_scatter, draw_rows, draw_sweep, draw_map])


# Text and numbers.


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (96.1, 97.9, [96.5, 97, 97.5]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-5, 5, [-4, -2, 0, 2, 4]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert _style.choose_ticks(low, high) == pytest.approx(expected)


@given(st.floats(-1e6, 1e6), st.floats(1e-2, 1e6))
def test_ticks_are_inside_evenly_spaced_and_few(low: float, span: float) -> None:
    found = _style.choose_ticks(low, low + span)
    assert 1 <= len(found) <= 7
    assert all(low - span * 1e-5 <= value <= low + span * (1 + 1e-5) for value in found)
    steps = [after - before for before, after in pairwise(found)]
    assert all(step == pytest.approx(steps[0], rel=1e-3) for step in steps)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(1, 10, [1, 2, 5, 10]), (1, 1e6, [10.0**power for power in range(7)]), (30, 60, [50])],
)
def test_ticks_of_a_log_scale(low: float, high: float, expected: list[float]) -> None:
    assert _style.choose_log_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(98.5, "98.5"), (0.1 + 0.2, "0.3"), (-2, "−2"), (272_474, "272k"), (1_700_000, "1.7M"), (2e9, "2G")],
)
def test_numbers_are_short(value: float, expected: str) -> None:
    assert _style.format_number(value) == expected


@given(st.integers(0, 5000), st.integers(2, 200))
def test_a_line_is_thinned_evenly_and_keeps_its_ends(count: int, limit: int) -> None:
    kept = _style.thin(count, limit)
    assert len(kept) == min(count, limit) == len(set(kept))
    assert kept == sorted(kept)
    if count:
        assert (kept[0], kept[-1]) == (0, count - 1)
        assert max((b - a for a, b in pairwise(kept)), default=1) <= math.ceil(count / (limit - 1)) + 1


@given(st.text("ab =", max_size=120), st.floats(30, 200))
def test_a_wrapped_label_is_whole_and_fits(text: str, width: float) -> None:
    lines = _style.wrap(text, width)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(_style.measure(line, _style.SMALL) <= width for line in lines)


@given(st.lists(st.floats(0, 200), max_size=12))
def test_ticks_that_would_touch_are_left_out(places: list[float]) -> None:
    places, half = sorted(places), _style.measure("0.05", _style.SMALL) / 2
    kept = _style.space_ticks(places, ["0.05"] * len(places))
    assert kept[:1] == ([0] if places else [])
    assert all(places[b] - places[a] >= 2 * half for a, b in pairwise(kept))


@given(st.lists(st.floats(0, 100), max_size=30))
def test_dots_of_a_strip_do_not_lie_on_each_other(positions: list[float]) -> None:
    levels = _charts.swarm(positions, 3)
    placed = list(zip(sorted(positions), levels, strict=True))
    crowded = [one for one in placed if one[1] == 0]  # where five levels are not enough
    for level in (1, -1, 2, -2):
        assert all(b[0] - a[0] >= 3 for a, b in pairwise([one for one in placed if one[1] == level]))
    assert len(crowded) >= len(placed) / 5


@given(st.text(), st.integers(4, 50))
def test_any_text_is_cut(text: str, limit: int) -> None:
    assert len(_style.cut(text, limit)) <= limit


def test_a_long_text_is_cut_with_a_mark() -> None:
    assert (_style.cut("abcdef", 4), _style.cut("abcd", 4)) == ("abc…", "abcd")


# Looks.


def test_looks_of_one_figure_differ_without_their_colours() -> None:
    looks = [Look.of(slot, variant) for slot in range(METHOD + 7) for variant in range(6)]
    assert len({(look.marker, look.fill) for look in looks}) == len(looks)
    assert len({Look.of(METHOD, variant).dash for variant in range(6)}) == 6
    assert {Look.of(METHOD, variant).marker for variant in range(6)} == {LOGIT.marker}


def to_linear(colour: str) -> list[float]:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    return [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]


def luminance(colour: str) -> float:
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), to_linear(colour), strict=True))


# Machado, Oliveira and Fernandes 2009, severity 1: what readers without red and green receptors see.
BLIND = {
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
}


@pytest.mark.parametrize("kind", BLIND)
def test_colours_differ_for_colour_blind_readers(kind: str) -> None:
    seen = {}
    for slot in range(METHOD + 6):
        linear = to_linear(Look.of(slot).colour)
        received = [sum(w * part for w, part in zip(line, linear, strict=True)) for line in BLIND[kind]]
        seen[slot] = [max(part, 0.0) ** (1 / 2.4) for part in received]
    assert min(math.dist(seen[a], seen[b]) for a, b in combinations(seen, 2)) > 0.1


def test_colours_can_be_seen_on_paper() -> None:
    assert all(1.05 / (luminance(Look.of(slot).colour) + 0.05) >= 2.4 for slot in range(METHOD + 6))
    assert 1.05 / (luminance(_style.INK) + 0.05) >= 7


# What is drawn.


def boxes(chart: Chart) -> dict[str, tuple[float, float, float, float]]:
    """Where each text is, in points; of equal texts the last."""
    renderer = FigureCanvasAgg(chart.drawing).get_renderer()
    found = {}
    with _style.use_style():
        chart.drawing.draw(renderer)
        for text in chart.drawing.findobj(Text):
            if text.get_visible() and text.get_text().strip():
                extent = text.get_window_extent(renderer)
                scale = 72 / chart.drawing.dpi
                found[f"{text.get_text()} {len(found)}"] = tuple(value * scale for value in extent.extents)
    return found


@CHARTS
@pytest.mark.parametrize("label", ["logit", LONG], ids=["short", "long"])
def test_every_text_is_on_the_figure_and_on_no_other(draw: Callable[..., Chart], label: str) -> None:
    chart = draw(label)
    width, height = (72 * inches for inches in chart.drawing.get_size_inches())
    assert width == pytest.approx(3.25 * 72)
    found = boxes(chart)
    assert found
    for x0, y0, x1, y1 in found.values():
        assert x0 >= -0.5 and y0 >= -0.5 and x1 <= width + 0.5 and y1 <= height + 0.5
    for a, b in combinations(found.values(), 2):
        assert min(a[2], b[2]) - max(a[0], b[0]) < 1.2 or min(a[3], b[3]) - max(a[1], b[1]) < 1.2


@CHARTS
def test_no_text_is_smaller_than_7_points(draw: Callable[..., Chart]) -> None:
    assert all(text.get_fontsize() >= 7 for text in draw().drawing.findobj(Text) if text.get_text())


@CHARTS
def test_all_data_are_within_the_axes(draw: Callable[..., Chart]) -> None:
    axes = draw().axes
    (low_x, high_x), (low_y, high_y) = sorted(axes.get_xlim()), sorted(axes.get_ylim())
    for line in axes.lines:
        at, values = line.get_xdata(), line.get_ydata()
        if list(at) != [0, 1]:  # a reference from side to side
            assert all(low_x <= value <= high_x for value in at)
        if list(values) != [0, 1]:
            assert all(low_y <= value <= high_y for value in values if math.isfinite(value))
    assert all(low_x <= tick <= high_x for tick in axes.get_xticks())
    assert all(low_y <= tick <= high_y for tick in axes.get_yticks())


def marks(chart: Chart, css: str) -> list[dict[str, str]]:
    return [mark for mark in chart.marks.values() if mark["class"] == css]


def test_a_curve_is_drawn_with_its_mean_band_and_runs() -> None:
    chart = draw_curves()
    assert [mark["data-y"] for mark in marks(chart, "line")] == ["10.00 20.00 30.00"]
    assert [mark["data-y"] for mark in marks(chart, "run")] == ["9.00 19.00 29.00"]
    assert [mark["data-y"] for mark in marks(chart, "run open")] == ["11.00 - 31.00"]
    assert [mark["data-x"] for mark in chart.marks.values() if "data-x" in mark] == ["1 2 3"]
    [band] = chart.axes.collections
    assert {tuple(point) for point in band.get_paths()[0].vertices} >= {(1, 9), (3, 29), (3, 31), (1, 11)}
    [*_, mean] = [line for line in chart.axes.lines if line.get_gid()]
    assert list(mean.get_ydata()) == [10, 20, 30]


def test_a_curve_from_an_epoch_on_has_no_runs() -> None:
    [mean] = _charts.draw_curves(
        WORDS, [Curve("a", LOGIT, "", (1.0, 2.0, 3.0), (10.0, 20.0, 30.0), runs=(CurveRun("r", (1.0, 2.0, 3.0)),))],
        start=2,
    ).marks.values()  # fmt: skip
    assert (mean["class"], mean["data-y"]) == ("line", "20.00 30.00")


def test_ticks_of_epochs_are_whole() -> None:
    chart = _charts.draw_curves(WORDS, [Curve("a", LOGIT, "", (1.0, 2.0), (1.0, 2.0))])
    assert [tick.get_text() for tick in chart.axes.get_xticklabels()] == ["1", "2"]


def test_a_long_curve_has_no_more_points_than_are_visible() -> None:
    x = tuple(map(float, range(1, 5001)))
    [mean] = _charts.draw_curves(WORDS, [Curve("a", LOGIT, "", x, x)]).marks.values()
    assert len(mean["data-y"].split()) == _style.POINTS


def test_rows_have_their_interval_their_runs_and_their_own_base() -> None:
    lines = [[list(line.get_xdata()) for line in draw_rows().axes.lines][number] for number in range(1, 5)]
    assert lines == [[88.0, 88.0], [90.0, 91.0, 92.0], [88.5, 93.5], [91.0]]


def test_a_sweep_over_powers_has_a_tick_at_each_value() -> None:
    axes = draw_sweep().axes
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "2", "16"]


def test_a_heat_map_has_its_numbers_and_frames_the_best() -> None:
    chart = draw_map()
    assert {text.get_text() for text in chart.axes.texts} >= {"88.0\n−2.0", "80.5\n−0.5"}
    [frame] = [patch for patch in chart.axes.patches if not patch.get_fill()]
    assert frame.get_xy() == (1.5, 0.5)  # x = 2, y = 4
    assert [mark["title"] for mark in marks(chart, "cell")] == ["logit"] * 6


def test_a_heat_map_of_many_cells_has_no_numbers_and_few_ticks() -> None:
    cells = [Cell(x / 100, y / 100, x * y, None, "") for x in range(40) for y in range(40)]
    chart = draw_heat_map(WORDS, cells)
    assert not chart.axes.texts and len(chart.axes.get_xticks()) < 14


# Files.


@CHARTS
@pytest.mark.parametrize("form", FORMS)
def test_the_same_numbers_give_the_same_file(draw: Callable[..., Chart], form: str) -> None:
    content = render_file(draw(), form)
    assert content == render_file(draw(), form)
    assert MARK.encode() in (content if form == "pdf" else content[:400])


@CHARTS
def test_an_svg_needs_nothing_that_a_reader_may_lack(draw: Callable[..., Chart]) -> None:
    text = render_file(draw(), "svg").decode()
    root = ElementTree.fromstring(text.encode())
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        "svg", "title", "desc", "g", "defs", "path", "use"
    }  # fmt: skip
    assert not re.search(r"var\(|<style|style=|url\(|<image|font", text)
    assert root.get("viewBox", "").startswith("0 0 234 ")
    ids = set(re.findall(r' id="([^"]+)"', text))
    assert set(re.findall(r'href="#([^"]+)"', text)) == ids


def test_a_png_has_300_dots_per_inch_and_a_pdf_has_its_fonts() -> None:
    content = render_file(draw_curves(), "png")
    assert int.from_bytes(content[16:20]) == round(3.25 * 300)
    content = render_file(draw_curves(), "pdf")
    assert b"/FontFile2" in content and b"/Type3" not in content  # which some publishers refuse


@CHARTS
def test_a_chart_of_a_page_is_small_and_has_its_text(draw: Callable[..., Chart]) -> None:
    text = render_inline(draw(), "name")
    root = ElementTree.fromstring(text)
    assert len(text) < 12_000
    assert "epoch" in {"".join(element.itertext()) for element in root.iter(f"{SVG}text")}
    assert " style=" not in text and "url(" not in text  # the policy of the page forbids them
    other = render_inline(draw(), "other name")
    assert not set(re.findall(r' id="([^"]+)"', text)) & set(re.findall(r' id="([^"]+)"', other))
    left, right, bottom, top = map(float, root.get("data-box", "").split())
    assert 0 < left < right <= 234 and 0 <= top < bottom


@CHARTS
@pytest.mark.parametrize("text", [*HOSTILE, "$x^$ \\frac{", "漢字 ✓"])
def test_hostile_names_are_text(draw: Callable[..., Chart], text: str) -> None:
    chart = draw(text, ChartText(text, text, text, text))
    root = ElementTree.fromstring(render_inline(chart, "x"))
    known = {"svg", "title", "desc", "g", "defs", "path", "use", "text", "tspan"}
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= known
    assert not any(name.startswith("on") for element in root.iter() for name in element.attrib)
    assert root.findtext(f"{SVG}title") == _style.cut(text, 200)
    for form in FORMS:
        assert "\u202e".encode() not in render_file(chart, form)


def test_the_settings_of_the_user_change_nothing() -> None:
    expected = render_file(draw_curves(), "svg")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "none", "text.usetex": True}):
        assert render_file(draw_curves(), "svg") == expected
