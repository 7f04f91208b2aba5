"""Charts as SVG, deterministic: light and dark colours, series that differ in colour and shape, labels as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

from orchestrator.text import printable

WIDTH = 460.0  # px of a chart as drawn; a page scales it
POINTS = 120  # of a line; more would not be visible at this width
TEACHER = 0  # slots of the palette: the references that methods are compared with are black or grey, not coloured
BASE = 1
METHODS = (2, 3, 4, 5, 6)

_LEFT, _TOP, _HEIGHT, _AXIS = 50.0, 12.0, 230.0, 42.0
_ROW = 17.0  # px of a line of text
_LETTER = 6.6  # px of a letter, slightly more than average

# Colours like those of Paul Tol and Okabe-Ito, darkened or lightened so that text has a contrast of at least 4.5 to 1.
_LIGHT = {
    "paper": "#ffffff", "ink": "#1b1f24", "soft": "#57606a", "rule": "#d4d9df", "accent": "#0b5c9e",
    "c0": "#1b1f24", "c1": "#6a737d", "c2": "#0b6bb0", "c3": "#b84300", "c4": "#00775a",
    "c5": "#9c3a73", "c6": "#7a5f00",
}  # fmt: skip
_DARK = {
    "paper": "#14171c", "ink": "#e8ebef", "soft": "#a3adb8", "rule": "#363d47", "accent": "#76b7f2",
    "c0": "#e8ebef", "c1": "#98a2ad", "c2": "#62b1f0", "c3": "#ff9a5c", "c4": "#45cfa4",
    "c5": "#ec94c8", "c6": "#dcb93f",
}  # fmt: skip
_DASHES = ("5 4", "", "", "8 3", "2 3", "9 3 2 3", "5 2")


def _variables(colours: dict[str, str]) -> str:
    return ":root{" + "".join(f"--{name}:{value};" for name, value in colours.items()) + "}"


# Used by a page with charts and inside each standalone chart. Printed pages use the light colours.
STYLE = (
    f"{_variables(_LIGHT)}\n@media screen and (prefers-color-scheme:dark){{{_variables(_DARK)}}}\n"
    + "".join(f".k{slot}{{--c:var(--c{slot})}}" for slot in range(7))
    + """
svg.chart{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif;font-size:12px}
svg.chart text{fill:var(--ink);font-variant-numeric:tabular-nums}
svg.chart .soft{fill:var(--soft)}
svg.chart .own{fill:var(--c)}
svg.chart .small{font-size:10.5px}
svg.chart .grid{stroke:var(--rule);stroke-width:1}
svg.chart .axis{stroke:var(--soft);stroke-width:1}
svg.chart .line{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round}
svg.chart .run{fill:none;stroke:var(--c);stroke-width:1;opacity:.3}
svg.chart .open{stroke-dasharray:2 2;opacity:.7}
svg.chart .band{fill:var(--c);opacity:.15}
svg.chart .bar{stroke:var(--c);stroke-width:1.5}
svg.chart .mark{fill:var(--c);stroke:var(--paper);stroke-width:1}
svg.chart .dot{fill:var(--c);opacity:.4}
svg.chart .paper{fill:var(--paper)}
"""
)


@dataclass(frozen=True, slots=True)
class CurveRun:
    """One run of a curve, at the curve's x; `counts` is whether it is part of the mean."""

    name: str
    y: tuple[float | None, ...]
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Curve:
    """A mean over runs with its band, and the runs. `slot` is its index in the palette, `note` follows its label."""

    label: str
    slot: int
    note: str
    x: tuple[float, ...]
    mean: tuple[float | None, ...] = ()
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    runs: tuple[CurveRun, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """A reference value, drawn as a line across the chart."""

    label: str
    slot: int
    note: str
    value: float


@dataclass(frozen=True, slots=True)
class Point:
    """A mean over runs in two dimensions, each with the half length of its error bar, 0 for none."""

    label: str
    slot: int
    note: str
    x: float
    y: float
    x_error: float = 0.0
    y_error: float = 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """A mean with its interval and the runs behind it; `note` is printed at the right end."""

    label: str
    slot: int
    note: str
    values: tuple[float, ...]
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ChartText:
    """The texts of a chart. `description` is for readers who cannot see the chart."""

    title: str
    description: str
    x: str
    y: str


# Scales.


def choose_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`: a step of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def choose_log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from `low` to `high`, or only the powers if there are more than 6."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    found = [value for value in found if low * 0.999 <= value <= high * 1.001]
    return found if len(found) <= 6 else [value for value in found if f"{value:e}".startswith("1.0")]


def format_number(value: float) -> str:
    """A number for an axis: 1.2M, 45k, 98.5."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    return f"{value:.6g}"


def thin(count: int, limit: int = POINTS) -> list[int]:
    """The indices of the points to draw: all `count`, or `limit` evenly spaced ones with the first and the last."""
    if count <= limit:
        return list(range(count))
    return [round(index * (count - 1) / (limit - 1)) for index in range(limit)]


def spread(desired: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the desired ones, in their order, at least `gap` apart and within bounds if they fit."""
    order = sorted(range(len(desired)), key=lambda index: (desired[index], index))
    positions: list[float] = []
    for index in order:
        positions.append(max(desired[index], positions[-1] + gap) if positions else max(desired[index], low))
    limit = high
    for number in range(len(positions) - 1, -1, -1):
        positions[number] = limit = min(positions[number], limit)
        limit -= gap
    found = [0.0] * len(desired)
    for index, position in zip(order, positions, strict=True):
        found[index] = position
    return found


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values from `low` to `high` to pixels from `start` to `end`; values outside go to the nearer end."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False
    is_whole: bool = False  # whole numbers, like epochs

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float, *, is_log: bool = False) -> Scale:
        """A scale with a margin around the values; 0 to 1 if there are none."""
        finite = [value for value in values if math.isfinite(value)]
        low, high = min(finite, default=0.0), max(finite, default=1.0)
        if is_log:
            return cls(low / 1.25, high * 1.25, start, end, is_log=True)
        room = (high - low) * 0.06 or abs(high) * 0.02 or 1.0
        return cls(low - room, high + room, start, end)

    def __call__(self, value: float) -> float:
        low, high, own = self.low, self.high, value
        if self.is_log:
            low, high, own = math.log(low), math.log(high), math.log(max(value, self.low))
        share = min(max((own - low) / (high - low), 0.0), 1.0)
        return self.start + share * (self.end - self.start)

    def choose_ticks(self) -> list[float]:
        """Round numbers within it."""
        found = choose_log_ticks(self.low, self.high) if self.is_log else choose_ticks(self.low, self.high)
        return [value for value in found if value == round(value)] if self.is_whole else found


def cut(text: str, limit: int) -> str:
    """External text made printable and cut to `limit` characters; an ellipsis marks a cut."""
    # Also cut before making it printable, which looks at every character and may turn one into several.
    visible = printable(text[: 4 * limit])
    return visible if len(visible) <= limit and len(text) <= 4 * limit else visible[: limit - 1] + "…"


# Drawing.


class Chart:
    """A drawn chart."""

    def __init__(self, texts: ChartText, kind: str, height: float) -> None:
        self.texts = texts
        self.root = Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg", "class": f"chart {kind}", "role": "img",
                "viewBox": f"0 0 {WIDTH:g} {height:g}", "width": f"{WIDTH:g}", "height": f"{height:g}",
            },
        )  # fmt: skip
        _add_title(self.root, texts.title)
        SubElement(self.root, "desc").text = cut(texts.description, 600)

    def inline(self) -> str:
        """For a page that has `STYLE`."""
        return tostring(self.root, encoding="unicode")

    def standalone(self) -> str:
        """The content of an SVG file, marked as written by kdctl."""
        style = Element("style")
        style.text = STYLE
        self.root.insert(0, style)
        try:
            return f'<?xml version="1.0" encoding="UTF-8"?>\n<!-- kdctl report -->\n{self.inline()}\n'
        finally:
            self.root.remove(style)


def _add_title(parent: Element, text: str) -> None:
    SubElement(parent, "title").text = cut(text, 200)


def _add(parent: Element, tag: str, css: str, **attributes: float | str) -> Element:
    values = {name.rstrip("_").replace("_", "-"): _format_coordinate(value) for name, value in attributes.items()}
    return SubElement(parent, tag, {"class": css, **values} if css else values)


def _format_coordinate(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")


def _draw_text(parent: Element, css: str, x: float, y: float, text: str, anchor: str = "start") -> None:
    _add(parent, "text", css, x=x, y=y, text_anchor=anchor).text = printable(text)


def _draw_line(parent: Element, css: str, x1: float, y1: float, x2: float, y2: float) -> Element:
    return _add(parent, "line", css, x1=x1, y1=y1, x2=x2, y2=y2)


def format_path(points: Iterable[tuple[float, float] | None]) -> str:
    """The path through points; None is a gap."""
    found, letter = [], "M"
    for point in points:
        if point is None:
            letter = "M"
            continue
        found.append(f"{letter}{_format_coordinate(point[0])},{_format_coordinate(point[1])}")
        letter = "L"
    return "".join(found)


# Paths of markers around 0, about 9 px wide, distinguishable without colour.
_MARKS = (
    "M0,-6L1.6,-1.8L6,-1.8L2.5,1L3.8,5.4L0,2.8L-3.8,5.4L-2.5,1L-6,-1.8L-1.6,-1.8Z",
    "M-4.5,0A4.5,4.5 0 1 0 4.5,0A4.5,4.5 0 1 0 -4.5,0Z",
    "M-4,-4H4V4H-4Z",
    "M0,-5L5,4H-5Z",
    "M0,-5.5L5.5,0L0,5.5L-5.5,0Z",
    "M0,5L5,-4H-5Z",
    "M-2,-5H2V-2H5V2H2V5H-2V2H-5V-2H-2Z",
)


def _draw_mark(parent: Element, slot: int, x: float, y: float) -> Element:
    return _add(
        parent, "path", "mark", d=_MARKS[slot], transform=f"translate({_format_coordinate(x)},{_format_coordinate(y)})"
    )


def _draw_frame(chart: Chart, x: Scale, y: Scale, *, with_y: bool = True) -> None:
    """Axes with their ticks and names; `y` counts from the bottom up."""
    frame = _add(chart.root, "g", "frame")
    if with_y:
        for value in y.choose_ticks():
            _draw_line(frame, "grid", x.start, y(value), x.end, y(value))
            _draw_text(frame, "soft", x.start - 6, y(value) + 4, format_number(value), "end")
        _draw_text(frame, "soft", x.start - 6, _TOP + 1, cut(chart.texts.y, 8), "end")
    for value in x.choose_ticks():
        _draw_line(frame, "axis" if with_y else "grid", x(value), y.start, x(value), y.start + 4 if with_y else y.end)
        _draw_text(frame, "soft", x(value), y.start + 17, format_number(value), "middle")
    _draw_line(frame, "axis", x.start, y.start, x.end, y.start)
    _draw_text(frame, "soft", (x.start + x.end) / 2, y.start + 34, cut(chart.texts.x, 60), "middle")


def _draw_legend(chart: Chart, entries: Sequence[tuple[str, int, str]], top: float, *, is_line: bool) -> None:
    for number, (label, slot, note) in enumerate(entries):
        group = _add(chart.root, "g", f"legend k{slot}")
        y = top + number * _ROW
        if is_line:
            _draw_line(group, "line", 8, y, 34, y).set("stroke-dasharray", _DASHES[slot])
        else:
            _draw_mark(group, slot, 21, y)
        _draw_text(group, "", 42, y + 4, f"{cut(label, max(60 - len(note), 8))}{': ' * bool(note)}{note}")


def draw_curves(texts: ChartText, found: Sequence[Curve], rules: Sequence[Rule] = (), start: float = 0.0) -> Chart:
    """Lines with bands over x from `start` on. Single runs are drawn only if all of x is drawn."""
    legend = [(curve.label, curve.slot, curve.note) for curve in found] + [(r.label, r.slot, r.note) for r in rules]
    chart = Chart(texts, "curves", _TOP + _HEIGHT + _AXIS + 8 + _ROW * len(legend))
    pieces = [_select_points(curve, start) for curve in found]
    at = [value for piece in pieces for value in piece.x]
    x = Scale(min(at, default=0.0), max(at, default=1.0) + 0.01, _LEFT, WIDTH - 118, is_whole=True)
    values = [value for piece in pieces for value in _values(piece)] + [rule.value for rule in rules]
    y = Scale.over(values, _TOP + _HEIGHT, _TOP + 8)
    _draw_frame(chart, x, y)
    for rule in rules:
        group = _add(chart.root, "g", f"rule k{rule.slot}")
        _draw_line(group, "line", x.start, y(rule.value), x.end, y(rule.value)).set(
            "stroke-dasharray", _DASHES[rule.slot]
        )
    for piece in sorted(pieces, key=lambda piece: piece.slot):
        _draw_curve(chart, piece, x, y)
    ends = [(rule.label, rule.slot, y(rule.value)) for rule in rules]
    ends += [(curve.label, curve.slot, y(curve.mean[-1])) for curve in pieces if curve.mean and curve.mean[-1]]
    _draw_end_labels(chart, ends, x.end + 6, y)
    _draw_legend(chart, legend, _TOP + _HEIGHT + _AXIS + 6, is_line=True)
    return chart


def _select_points(curve: Curve, start: float) -> Curve:
    """The part of a curve to draw: from `start` on, at most `POINTS` points."""
    visible = [index for index, value in enumerate(curve.x) if value >= start]
    kept = [visible[index] for index in thin(len(visible))]

    def of(values: Sequence[float | None]) -> tuple[float | None, ...]:
        return tuple(values[index] for index in kept if index < len(values))

    runs = () if start > (curve.x[0] if curve.x else 0) else curve.runs
    drawn = tuple(CurveRun(run.name, of(run.y), run.counts) for run in runs)
    x = tuple(curve.x[index] for index in kept)
    return Curve(curve.label, curve.slot, curve.note, x, of(curve.mean), of(curve.low), of(curve.high), drawn)


def _values(curve: Curve) -> Iterable[float]:
    lists = [curve.mean, curve.low, curve.high, *(run.y for run in curve.runs)]
    return (value for values in lists for value in values if value is not None and math.isfinite(value))


def _draw_curve(chart: Chart, curve: Curve, x: Scale, y: Scale) -> None:
    group = _add(chart.root, "g", f"series k{curve.slot}", data_x=" ".join(f"{value:g}" for value in curve.x))
    group.set("data-at", " ".join(_format_coordinate(x(value)) for value in curve.x))

    def line(values: Sequence[float | None]) -> list[tuple[float, float] | None]:
        pairs = zip(curve.x, values, strict=False)
        return [None if v is None or not math.isfinite(v) else (x(at), y(v)) for at, v in pairs]

    upper, lower = [p for p in line(curve.high) if p], [p for p in line(curve.low) if p]
    if len(upper) > 1:
        _add(group, "path", "band", d=format_path([*upper, *reversed(lower)]) + "Z")
    for run in curve.runs:
        drawn = _add(
            group, "path", "run" if run.counts else "run open", d=format_path(line(run.y)), data_y=_format_values(run.y)
        )
        _add_title(drawn, f"{curve.label}, {run.name}")
    if curve.mean:
        mean = _add(group, "path", "line", d=format_path(line(curve.mean)), data_y=_format_values(curve.mean))
        mean.set("stroke-dasharray", _DASHES[curve.slot])
        _add_title(mean, f"{curve.label}, mean, {curve.note}")


def _format_values(values: Sequence[float | None]) -> str:
    """Values for the page's script, with two decimals as in the tables."""
    return " ".join("-" if value is None else f"{value:.2f}" for value in values)


def _draw_end_labels(chart: Chart, ends: Sequence[tuple[str, int, float]], x: float, y: Scale) -> None:
    positions = spread([end for _, _, end in ends], 13, y.end, y.start)
    for (label, slot, _), position in zip(ends, positions, strict=True):
        _draw_text(_add(chart.root, "g", f"label k{slot}"), "own small", x, position + 4, cut(label, 19))


def draw_scatter(texts: ChartText, points: Sequence[Point], *, is_log: bool = False) -> Chart:
    """Means in two dimensions with error bars; a log scale of x on request."""
    chart = Chart(texts, "scatter", _TOP + _HEIGHT + _AXIS + 8 + _ROW * len(points))
    reach = [value for p in points for value in (p.x - p.x_error, p.x + p.x_error) if value > 0 or not is_log]
    x = Scale.over(reach, _LEFT, WIDTH - 16, is_log=is_log)
    y = Scale.over((value for p in points for value in (p.y - p.y_error, p.y + p.y_error)), _TOP + _HEIGHT, _TOP + 8)
    _draw_frame(chart, x, y)
    taken: list[tuple[float, float, float]] = []
    for point in points:
        group = _add(chart.root, "g", f"point k{point.slot}", data_tip=cut(f"{point.label}: {point.note}", 200))
        at_x, at_y = x(point.x), y(point.y)
        if point.y_error:
            _draw_line(group, "bar", at_x, y(point.y - point.y_error), at_x, y(point.y + point.y_error))
        if point.x_error:
            _draw_line(group, "bar", x(point.x - point.x_error), at_y, x(point.x + point.x_error), at_y)
        _add_title(_draw_mark(group, point.slot, at_x, at_y), f"{point.label}: {point.note}")
        taken.append((at_x - 7, at_x + 7, at_y))
    for point in points:
        _label_point(chart, point, x(point.x), y(point.y), taken)
    _draw_legend(chart, [(p.label, p.slot, p.note) for p in points], _TOP + _HEIGHT + _AXIS + 6, is_line=False)
    return chart


def _label_point(chart: Chart, point: Point, x: float, y: float, taken: list[tuple[float, float, float]]) -> None:
    """Writes a label next to its point if there is room; the legend always has it."""
    text = cut(point.label, 24)
    width = len(text) * _LETTER
    for left, anchor, at in ((x + 9, "start", x + 9), (x - 9 - width, "end", x - 9)):
        is_free = all(
            left > other_end or left + width < other or abs(y - at_y) > 12 for other, other_end, at_y in taken
        )
        if is_free and left >= _LEFT and left + width <= WIDTH:
            _draw_text(_add(chart.root, "g", f"label k{point.slot}"), "own", at, y + 4, text, anchor)
            taken.append((left, left + width, y))
            return


def draw_dots(texts: ChartText, rows: Sequence[Row], rules: Sequence[Rule] = ()) -> Chart:
    """A row for each mean: its runs as dots, its interval as a bar. Reference lines run from top to bottom."""
    pitch, top = 38.0, 8.0
    bottom = top + pitch * len(rows) + 6
    chart = Chart(texts, "dots", bottom + _AXIS + 8 + _ROW * len(rules))
    values = [value for row in rows for value in (row.low, row.high, *row.values)]
    x = Scale.over([*values, *(rule.value for rule in rules)], 10, WIDTH - 10)
    _draw_frame(chart, x, Scale(0, 1, bottom, top), with_y=False)
    for rule in rules:
        group = _add(chart.root, "g", f"rule k{rule.slot}")
        _draw_line(group, "line", x(rule.value), top, x(rule.value), bottom).set("stroke-dasharray", _DASHES[rule.slot])
    for number, row in enumerate(rows):
        _draw_row(chart, row, x, top + number * pitch)
    _draw_legend(chart, [(rule.label, rule.slot, rule.note) for rule in rules], bottom + _AXIS + 6, is_line=True)
    return chart


def _draw_row(chart: Chart, row: Row, x: Scale, top: float) -> None:
    group = _add(chart.root, "g", f"row k{row.slot}", data_tip=cut(f"{row.label}: {row.note}", 200))
    middle = top + 27
    label = cut(row.label, max(62 - len(row.note), 8))
    # Reference lines pass behind the text, not through it.
    _add(group, "rect", "paper", x=10, y=top + 3, width=len(label) * _LETTER, height=13)
    _add(
        group,
        "rect",
        "paper",
        x=WIDTH - 10 - len(row.note) * _LETTER,
        y=top + 3,
        width=len(row.note) * _LETTER,
        height=13,
    )
    _draw_text(group, "own", 10, top + 14, label)
    _draw_text(group, "", WIDTH - 10, top + 14, row.note, "end")
    for value in row.values:
        _add(group, "circle", "dot", cx=x(value), cy=middle, r=3)
    _draw_line(group, "bar", x(row.low), middle, x(row.high), middle)
    _add_title(_draw_mark(group, row.slot, x(row.mean), middle), f"{row.label}: {row.note}")
