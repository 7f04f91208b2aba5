"""Charts: round ticks, labels that keep their distance, exact paths, and names that are text whatever they hold."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reported import HOSTILE

from orchestrator.report import _charts
from orchestrator.report._charts import ChartText, Curve, CurveRun, Point, Row, Rule, Scale

SVG = "{http://www.w3.org/2000/svg}"
WORDS = ChartText("a title", "a description", "epoch", "acc, %")
NUMBERS = st.floats(-1e6, 1e6)


def drawn(chart: _charts.Chart) -> ElementTree.Element:
    """Parses the chart, as a reader of its file does."""
    return ElementTree.fromstring(chart.standalone())


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (96.1, 97.9, [96.5, 97, 97.5]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-5, 5, [-4, -2, 0, 2, 4]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert _charts.choose_ticks(low, high) == pytest.approx(expected)


@given(NUMBERS, st.floats(1e-3, 1e6))
def test_ticks_are_inside_evenly_spaced_and_few(low: float, span: float) -> None:
    found = _charts.choose_ticks(low, low + span)
    assert 1 <= len(found) <= 7
    assert all(low - span * 1e-6 <= value <= low + span * (1 + 1e-6) for value in found)
    steps = [after - before for before, after in pairwise(found)]
    assert all(step == pytest.approx(steps[0], rel=1e-3) for step in steps)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(1, 10, [1, 2, 5, 10]), (1, 1e6, [10.0**power for power in range(7)]), (30, 60, [50])],
)
def test_ticks_of_a_log_scale(low: float, high: float, expected: list[float]) -> None:
    assert _charts.choose_log_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(98.5, "98.5"), (0.1 + 0.2, "0.3"), (1000, "1000"), (272_474, "272k"), (1_700_000, "1.7M"), (2e9, "2G")],
)
def test_numbers_are_short(value: float, expected: str) -> None:
    assert _charts.format_number(value) == expected


@given(st.integers(0, 5000), st.integers(2, 200))
def test_a_line_is_thinned_evenly_and_keeps_its_ends(count: int, limit: int) -> None:
    kept = _charts.thin(count, limit)
    assert len(kept) == min(count, limit) == len(set(kept))
    assert kept == sorted(kept)
    if count:
        assert (kept[0], kept[-1]) == (0, count - 1)
        assert max((b - a for a, b in pairwise(kept)), default=1) <= math.ceil(count / (limit - 1)) + 1


@given(st.lists(st.floats(0, 200), max_size=8))
def test_labels_keep_apart_in_their_order(targets: list[float]) -> None:
    found = _charts.spread(targets, 13, 0, 200)
    order = sorted(range(len(targets)), key=lambda index: (targets[index], index))
    assert all(found[b] - found[a] >= 13 - 1e-6 for a, b in pairwise(order))
    assert all(-1e-6 <= position <= 200 + 1e-6 for position in found)


def test_labels_that_have_room_stay_where_they_are() -> None:
    assert _charts.spread([20, 100, 60], 13, 0, 200) == [20, 100, 60]
    assert _charts.spread([100, 100], 10, 0, 100) == [90, 100]


def test_a_scale_is_linear_and_clamps() -> None:
    scale = Scale(0, 10, 100, 200)
    assert [scale(value) for value in (0, 5, 10, 20, -1)] == [100, 150, 200, 200, 100]
    assert Scale(1, 100, 0, 2, is_log=True)(10) == pytest.approx(1)
    assert Scale.over([], 0, 1)(0.5) == pytest.approx(0.5)
    assert Scale.over([5.0], 0, 1)(5.0) == pytest.approx(0.5)


def test_a_path_has_gaps_where_values_are_missing() -> None:
    assert _charts.format_path([(1, 2), (3, 4.25), None, (5, 6)]) == "M1,2L3,4.2M5,6"
    assert _charts.format_path([]) == ""


CURVE = Curve(
    "logit", 2, "n=2", (1.0, 2.0, 3.0), (10.0, 20.0, 30.0), (9.0, 19.0, 29.0), (11.0, 21.0, 31.0),
    (CurveRun("seed 0", (9.0, 19.0, 29.0)), CurveRun("seed 1", (11.0, None, 31.0), counts=False)),
)  # fmt: skip


def paths(root: ElementTree.Element, css: str) -> list[ElementTree.Element]:
    return [path for path in root.iter(f"{SVG}path") if path.get("class") == css]


def test_a_curve_is_drawn_with_its_mean_band_and_runs() -> None:
    root = drawn(_charts.draw_curves(WORDS, [CURVE], [Rule("teacher", _charts.TEACHER, "95.00 (n=1)", 25.0)]))
    [line] = paths(root, "line")
    points = [tuple(map(float, pair.split(","))) for pair in re.findall(r"[\d.]+,[\d.]+", line.get("d", ""))]
    assert len(points) == 3
    assert points[1][0] == pytest.approx((points[0][0] + points[2][0]) / 2, abs=0.1)  # even epochs, even steps
    assert points[1][1] == pytest.approx((points[0][1] + points[2][1]) / 2, abs=0.1)
    assert points[0][1] > points[2][1]  # more is higher up
    assert line.get("data-y") == "10.00 20.00 30.00"
    [band] = paths(root, "band")
    assert band.get("d", "").count("L") == 5 and band.get("d", "").endswith("Z")
    assert [run.get("data-y") for run in paths(root, "run")] == ["9.00 19.00 29.00"]
    assert [run.get("d", "").count("M") for run in paths(root, "run open")] == [2]
    assert {"logit: n=2", "teacher: 95.00 (n=1)", "epoch", "acc, %"} <= set(texts(root))


def test_a_curve_from_an_epoch_on_has_no_runs() -> None:
    root = drawn(_charts.draw_curves(WORDS, [CURVE], start=2))
    assert [line.get("data-y") for line in paths(root, "line")] == ["20.00 30.00"]
    assert not paths(root, "run")


def test_ticks_of_epochs_are_whole() -> None:
    root = drawn(_charts.draw_curves(WORDS, [Curve("a", 1, "", (1.0, 2.0), (1.0, 2.0))]))
    frame = next(group for group in root.iter(f"{SVG}g") if group.get("class") == "frame")
    middle = [text.text for text in frame.iter(f"{SVG}text") if text.get("text-anchor") == "middle"]
    assert middle == ["1", "2", "epoch"]


def test_a_long_curve_has_no_more_points_than_are_visible() -> None:
    x = tuple(map(float, range(1, 5001)))
    [line] = paths(drawn(_charts.draw_curves(WORDS, [Curve("a", 1, "", x, x)])), "line")
    assert line.get("d", "").count("L") == _charts.POINTS - 1


def test_points_have_bars_marks_and_a_legend() -> None:
    points = [Point("a", 2, "1 s", 1.0, 90.0, 0.1, 1.0), Point("b", 0, "100 s", 100.0, 95.0)]
    root = drawn(_charts.draw_scatter(WORDS, points, is_log=True))
    assert len([line for line in root.iter(f"{SVG}line") if line.get("class") == "bar"]) == 2
    assert {"a: 1 s", "b: 100 s", "a", "b"} <= set(texts(root))
    assert len(paths(root, "mark")) == 4


def test_labels_of_points_do_not_lie_on_each_other() -> None:
    points = [Point(f"same {index}", 2, "", 1.0 + index / 1000, 90.0) for index in range(5)]
    found = [text for text in texts(drawn(_charts.draw_scatter(WORDS, points))) if text.startswith("same")]
    assert len(found) < 10 and {f"same {index}" for index in range(5)} == set(found)  # the legend has them all


def test_rows_have_their_interval_and_their_runs() -> None:
    root = drawn(_charts.draw_dots(WORDS, [Row("logit", 2, "91.0 (n=2)", (90.0, 92.0), 91.0, 89.0, 93.0)]))
    circles = [float(circle.get("cx", "")) for circle in root.iter(f"{SVG}circle")]
    [bar] = [line for line in root.iter(f"{SVG}line") if line.get("class") == "bar"]
    assert float(bar.get("x1", "")) < circles[0] < circles[1] < float(bar.get("x2", ""))
    assert sum(circles) / 2 == pytest.approx((float(bar.get("x1", "")) + float(bar.get("x2", ""))) / 2, abs=0.2)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_text(text: str) -> None:
    words = ChartText(text, text, text, text)
    curve = Curve(text, 2, text, (1.0, 2.0), (1.0, 2.0), runs=(CurveRun(text, (1.0, 2.0)),))
    for chart in (
        _charts.draw_curves(words, [curve], [Rule(text, 0, text, 1.0)]),
        _charts.draw_scatter(words, [Point(text, 2, text, 1.0, 1.0)]),
        _charts.draw_dots(words, [Row(text, 2, text, (1.0,), 1.0, 1.0, 1.0)]),
    ):
        root = drawn(chart)
        known = {"svg", "title", "desc", "style", "g", "path", "line", "rect", "circle", "text"}
        assert {element.tag.removeprefix(SVG) for element in root.iter()} <= known
        assert not any(name.startswith("on") for element in root.iter() for name in element.attrib)
        assert root.findtext(f"{SVG}title") == _charts.cut(text, 200)
        assert "\u202e" not in chart.inline()


@given(st.text(), st.integers(4, 50))
def test_any_text_is_cut_and_fits_into_xml(text: str, limit: int) -> None:
    assert len(_charts.cut(text, limit)) <= limit
    assert drawn(_charts.draw_dots(ChartText(text, text, text, ""), [])).get("role") == "img"


def test_a_long_text_is_cut_with_a_mark() -> None:
    assert _charts.cut("abcdef", 4) == "abc…"
    assert _charts.cut("abcd", 4) == "abcd"


def test_the_same_numbers_give_the_same_text() -> None:
    assert _charts.draw_curves(WORDS, [CURVE]).standalone() == _charts.draw_curves(WORDS, [CURVE]).standalone()
    chart = _charts.draw_curves(WORDS, [CURVE])
    assert chart.standalone() and "<style>" not in chart.inline()  # a page has the style once


def luminance(colour: str) -> float:
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_all_colours_of_text_can_be_read_in_light_and_dark() -> None:
    schemes = [dict(re.findall(r"--(\w+):(#\w{6})", block)) for block in re.findall(r":root\{[^}]*\}", _charts.STYLE)]
    assert len(schemes) == 2 and schemes[0].keys() == schemes[1].keys()
    for scheme in schemes:
        for name in scheme.keys() - {"paper", "rule"}:
            light, dark = sorted((luminance(scheme[name]), luminance(scheme["paper"])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, name
