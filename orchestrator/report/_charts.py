"""Charts as matplotlib figures, as wide as a column of a paper, in which nothing lies on anything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, ParamSpec

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.lines import Line2D

from orchestrator.report._style import (
    BASE,
    LINE,
    LONGEST,
    SMALL,
    WIDTH,
    Look,
    choose_log_ticks,
    choose_ticks,
    cut,
    find_limits,
    format_number,
    measure,
    space_ticks,
    thin,
    use_style,
    wrap,
)  # fmt: skip

_PLOT = 118.0  # height between the ends of a y axis
_TOP, _RIGHT, _BELOW = 5.0, 8.0, 28.0  # margins of the plot; below are the tick labels and the name of the x axis
_HANDLE = 21.0  # width of the sample in a legend, with its gap

_P = ParamSpec("_P")


@dataclass(frozen=True, slots=True)
class CurveRun:
    """One run of a curve, at the curve's x; `counts` is whether it is part of the mean."""

    name: str
    y: tuple[float | None, ...]
    counts: bool = True


@dataclass(frozen=True, slots=True)
class Curve:
    """A mean over runs with its band, and the runs; `note` is n, for whoever points at it."""

    label: str
    look: Look
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
    look: Look
    note: str
    value: float


@dataclass(frozen=True, slots=True)
class Point:
    """A mean over runs in two dimensions, each with the half length of its error bar, 0 for none."""

    label: str
    look: Look
    note: str
    x: float
    y: float
    x_error: float = 0.0
    y_error: float = 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """A mean with its interval, the runs behind it, and the mean of the base of the same setting."""

    label: str
    look: Look
    note: str
    values: tuple[float, ...]
    mean: float
    low: float
    high: float
    base: float | None = None


@dataclass(frozen=True, slots=True)
class ChartText:
    """The texts of a chart. `description` is for readers who cannot see the chart."""

    title: str
    description: str
    x: str
    y: str


@dataclass(slots=True)
class Chart:
    """A drawn chart: `marks` holds what a page says about an artist, by the artist's gid."""

    texts: ChartText
    kind: str
    drawing: Drawing
    axes: Axes
    marks: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, bottom, right and top of its plot, in points from the upper left corner."""
        width, height = (72 * inches for inches in self.drawing.get_size_inches())
        box = self.axes.get_position()
        return box.x0 * width, (1 - box.y0) * height, box.x1 * width, (1 - box.y1) * height

    def mark(self, artist: Artist, css: str, title: str, **data: str) -> None:
        """Gives an artist a class, a title and data in the page."""
        gid = f"mark{len(self.marks)}"
        artist.set_gid(gid)
        self.marks[gid] = {"class": css, "title": title, **data}


# Frames.


@dataclass(frozen=True, slots=True)
class Axis:
    """The ends of an axis and its ticks."""

    low: float
    high: float
    ticks: Sequence[float]
    format: Callable[[float], str] = format_number
    is_log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], *, is_log: bool = False) -> Axis:
        """An axis with room around the values, and round ticks."""
        low, high = find_limits(values, is_log=is_log)
        return cls(low, high, choose_log_ticks(low, high) if is_log else choose_ticks(low, high), is_log=is_log)

    @property
    def labels(self) -> list[str]:
        """The texts of the ticks."""
        return list(map(self.format, self.ticks))


def in_style(draw: Callable[_P, Chart]) -> Callable[_P, Chart]:
    """Has a function draw with the style of charts, not with that of the user."""

    @wraps(draw)
    def draw_in_style(*args: _P.args, **kwargs: _P.kwargs) -> Chart:
        with use_style():
            return draw(*args, **kwargs)

    return draw_in_style


_Legend = Sequence[tuple[Line2D, str]]  # a sample and its label


def open_chart(texts: ChartText, kind: str, left: float, plot: float, legend: _Legend, right: float = _RIGHT) -> Chart:
    """An empty plot of this height, its legend below."""
    columns, labels = _arrange([label for _, label in legend])
    length = math.ceil(len(labels) / columns)
    rows = [labels[start : start + length] for start in range(0, len(labels), length)] if labels else []
    depth = max((sum(label.count("\n") + 1 for label in row) * LINE + len(row) * 1.4 for row in rows), default=0)
    below = _BELOW + depth
    height = _TOP + plot + below
    drawing = Drawing(figsize=(WIDTH / 72, height / 72))
    axes = drawing.add_axes((left / WIDTH, below / height, (WIDTH - left - right) / WIDTH, plot / height))
    axes.patch.set_visible(False)
    if labels:
        drawing.legend(
            [handle for handle, _ in legend], labels, loc="upper left",
            bbox_to_anchor=(4 / WIDTH, (below - _BELOW + 1) / height), ncols=columns, frameon=False, borderpad=0,
            borderaxespad=0, labelspacing=0.3, columnspacing=1.2, handlelength=2.2, handletextpad=0.6,
        )  # fmt: skip
    return Chart(texts, kind, drawing, axes)


def _arrange(labels: Sequence[str]) -> tuple[int, list[str]]:
    """How many columns of a legend the labels fit in, and the labels, wrapped."""
    widest = max((measure(cut(label, LONGEST), SMALL) for label in labels), default=0.0)
    columns = max(1, min(3, len(labels), int((WIDTH - 8) / (widest + _HANDLE + 10))))
    return columns, ["\n".join(wrap(label, WIDTH - 12 - _HANDLE)) for label in labels]


def set_axes(chart: Chart, x: Axis, y: Axis) -> None:
    """Limits, ticks and names of both axes, and a grid for reading y."""
    axes = chart.axes
    if x.is_log:
        axes.set_xscale("log")
    axes.set_xlim(x.low, x.high)
    axes.set_ylim(y.low, y.high)
    for axis, own in ((axes.xaxis, x), (axes.yaxis, y)):
        axis.set_ticks(own.ticks, labels=own.labels)
        axis.set_ticks([], minor=True)
    axes.grid(axis="y")
    axes.set_xlabel(cut(chart.texts.x, 60), labelpad=2)
    axes.set_ylabel(cut(chart.texts.y, 40), labelpad=2)


def _left_of(axis: Axis) -> float:
    """The room that the tick labels and the name of a y axis need."""
    return 19 + max((measure(label, SMALL) for label in axis.labels), default=0.0)


def _style_line(look: Look) -> dict[str, Any]:
    return {"color": look.colour, "linestyle": look.dash, "linewidth": 1.2}


def _style_mark(look: Look, size: float = 4.2) -> dict[str, Any]:
    """A marker's outline and filling; a star needs to be larger to look as large."""
    is_empty = look.fill == "none"
    return {
        "color": look.colour, "marker": look.marker, "markersize": size * (1.5 if look.marker == "*" else 1),
        "fillstyle": "full" if is_empty else look.fill, "markeredgewidth": 0.8, "markerfacecoloralt": "white",
        "markerfacecolor": "white" if is_empty else look.colour,
    }  # fmt: skip


def _sample(look: Look, *, is_line: bool = True, has_mark: bool = True) -> Line2D:
    """What a legend shows of a series."""
    mark = _style_mark(look) if has_mark else {"color": look.colour}
    return Line2D([], [], **{**mark, **(_style_line(look) if is_line else {"linestyle": "none"})})


def _sample_rules(rules: Sequence[Rule]) -> list[tuple[Line2D, str]]:
    return [(_sample(_rule_look(rule), has_mark=False), f"{rule.label}: {rule.note}") for rule in rules]


def _rule_look(rule: Rule) -> Look:
    """A reference is dashed, whatever the dash of its method."""
    return replace(rule.look, dash=(0, (3, 2)))


def _nan(values: Iterable[float | None]) -> list[float]:
    """Missing values as matplotlib takes them, which leaves a gap."""
    return [math.nan if value is None else value for value in values]


# Charts.


@in_style
def draw_curves(texts: ChartText, found: Sequence[Curve], rules: Sequence[Rule] = (), start: float = 0.0) -> Chart:
    """Lines with bands over x from `start` on. Single runs are drawn only if all of x is drawn."""
    pieces = [_select_points(curve, start) for curve in found]
    at = [value for piece in pieces for value in piece.x]
    low, high = min(at, default=0.0), max(at, default=1.0)
    room = (high - low) * 0.02 or 0.5
    x = Axis(low - room, high + room, choose_ticks(low, high, is_whole=True))
    y = Axis.over([value for piece in pieces for value in _values(piece)] + [rule.value for rule in rules])
    legend = [(_sample(curve.look), f"{curve.label} ({curve.note})") for curve in found] + _sample_rules(rules)
    chart = open_chart(texts, "curves", _left_of(y), _PLOT, legend)
    set_axes(chart, x, y)
    for rule in rules:
        chart.axes.axhline(rule.value, **_style_line(_rule_look(rule)), zorder=1.5)
    for number, piece in enumerate(pieces):
        _draw_curve(chart, piece, number / len(pieces))
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
    return replace(curve, x=x, mean=of(curve.mean), low=of(curve.low), high=of(curve.high), runs=drawn)


def _values(curve: Curve) -> Iterator[float]:
    lists = [curve.mean, curve.low, curve.high, *(run.y for run in curve.runs)]
    return (value for values in lists for value in values if value is not None)


def _draw_curve(chart: Chart, curve: Curve, share: float) -> None:
    """The band, the runs, and the mean with about 6 markers; `share` moves them off those of other curves."""
    colour = curve.look.colour
    if any(value is not None for value in curve.low):
        chart.axes.fill_between(curve.x, _nan(curve.low), _nan(curve.high), color=colour, alpha=0.16, linewidth=0)
    x = {"data-x": " ".join(f"{value:g}" for value in curve.x)}  # stated once, by the first line of a curve
    for run in curve.runs:
        dash = "-" if run.counts else (0, (1.5, 1.5))
        [line] = chart.axes.plot(curve.x, _nan(run.y), color=colour, linewidth=0.5, alpha=0.4, linestyle=dash)
        css = "run" if run.counts else "run open"
        chart.mark(line, css, f"{curve.label}, {run.name}", **{"data-y": _format_values(run.y)}, **x)
        x = {}
    if curve.mean:
        step = max(len(curve.x) / 6, 1)
        every = sorted({round(share * step + number * step) for number in range(6)} & set(range(len(curve.x))))
        style = {**_style_mark(curve.look, 3.4), **_style_line(curve.look)}
        [line] = chart.axes.plot(curve.x, _nan(curve.mean), **style, markevery=every)
        title = f"{curve.label}, mean, {curve.note}"
        chart.mark(line, "line", title, **{"data-y": _format_values(curve.mean)}, **x)


def _format_values(values: Sequence[float | None]) -> str:
    """Values for the page's script, with two decimals as in the tables."""
    return " ".join("-" if value is None else f"{value:.2f}" for value in values)


@in_style
def draw_scatter(texts: ChartText, points: Sequence[Point], *, is_log: bool = False) -> Chart:
    """Means in two dimensions with error bars; a log scale of x on request."""
    reach = [value for p in points for value in (p.x - p.x_error, p.x, p.x + p.x_error) if value > 0 or not is_log]
    x = Axis.over(reach, is_log=is_log)
    y = Axis.over(value for p in points for value in (p.y - p.y_error, p.y + p.y_error))
    legend = [(_sample(point.look, is_line=False), point.label) for point in points]
    chart = open_chart(texts, "scatter", _left_of(y), _PLOT, legend)
    set_axes(chart, x, y)
    for point in points:
        low = max(point.x - point.x_error, x.low) if point.x_error else point.x
        bars: dict[str, Any] = {"color": point.look.colour, "linewidth": 0.8}
        chart.axes.plot([low, point.x + point.x_error], [point.y, point.y], **bars)
        chart.axes.plot([point.x, point.x], [point.y - point.y_error, point.y + point.y_error], **bars)
    for point in points:  # above all bars
        [mark] = chart.axes.plot([point.x], [point.y], **_style_mark(point.look, 5), linestyle="none", zorder=3)
        chart.mark(mark, "mark", f"{point.label}: {point.note}")
    return chart


@in_style
def draw_rows(texts: ChartText, rows: Sequence[Row], rules: Sequence[Rule] = ()) -> Chart:
    """A row for each mean: its interval, and below it the runs as a strip. Reference lines run from top to bottom."""
    labels = [wrap(row.label, 84) for row in rows]
    heights = [max(len(lines) * LINE + 5, 24.0) for lines in labels]
    ends = [sum(heights[: number + 1]) for number in range(len(rows))]
    x = Axis.over(
        [value for row in rows for value in (row.low, row.high, *row.values)]
        + [row.base for row in rows if row.base is not None]
        + [rule.value for rule in rules]
    )
    left = 8 + max((measure(line, SMALL) for lines in labels for line in lines), default=0.0)
    legend = _sample_rules(rules)
    if any(row.base is not None for row in rows):
        legend.append((_sample(replace(Look.of(BASE), dash=_OWN_BASE), has_mark=False), "base of the same setting"))
    total = sum(heights) or 24.0
    chart = open_chart(texts, "rows", left, total, legend)
    middles = [end - height / 2 for end, height in zip(ends, heights, strict=True)]
    named = dict(zip(middles, ("\n".join(lines) for lines in labels), strict=True))
    set_axes(chart, x, Axis(total, 0, middles, named.__getitem__))
    chart.axes.grid(visible=False, axis="y")
    chart.axes.grid(axis="x")
    chart.axes.tick_params(axis="y", length=0)
    for rule in rules:
        chart.axes.axvline(rule.value, **_style_line(_rule_look(rule)), zorder=1.5)
    points = (WIDTH - left - _RIGHT) / (x.high - x.low)  # of one unit
    for row, middle in zip(rows, middles, strict=True):
        _draw_row(chart, row, middle, points)
    return chart


_OWN_BASE = (0, (1, 0.6))


def _draw_row(chart: Chart, row: Row, middle: float, points: float) -> None:
    """One row around its `middle`; `points` is the length of one unit of x."""
    colour, many = row.look.colour, len(row.values) > 1
    if row.base is not None:
        own: dict[str, Any] = {"color": Look.of(BASE).colour, "linewidth": 1.2, "linestyle": _OWN_BASE}
        chart.axes.plot([row.base, row.base], [middle - 10, middle + 10], **own)
    above = middle - 4 if many else middle
    if many:
        levels = swarm([value * points for value in row.values], 2.6)
        at = [middle + 5 + 1.7 * level for level in levels]
        chart.axes.plot(sorted(row.values), at, color=colour, alpha=0.45, **_DOT)
    chart.axes.plot([row.low, row.high], [above, above], color=colour, linewidth=1.2)
    [mark] = chart.axes.plot([row.mean], [above], **_style_mark(row.look, 5), linestyle="none", zorder=3)
    chart.mark(mark, "mark", f"{row.label}: {row.note}")


_DOT: dict[str, Any] = {"marker": "o", "markersize": 2.6, "markeredgewidth": 0, "linestyle": "none"}


def swarm(positions: Sequence[float], width: float) -> list[int]:
    """The level of each dot, in order of position: the first of 0, 1, −1, 2, −2 where it touches no other."""
    ends: dict[int, float] = {}
    found = []
    for position in sorted(positions):
        free = (level for level in (0, 1, -1, 2, -2) if position - ends.get(level, -math.inf) >= width)
        found.append(level := next(free, 0))
        ends[level] = position
    return found


@in_style
def draw_sweep(texts: ChartText, found: Sequence[Curve], rules: Sequence[Rule] = ()) -> Chart:
    """Lines with bands over a setting's values: each value is a marker, and a tick where there is room."""
    values = sorted({value for curve in found for value in curve.x})
    is_log = values[0] > 0 and values[-1] / values[0] > 8
    low, high = find_limits(values, is_log=is_log)
    y = Axis.over([value for curve in found for value in _values(curve)] + [rule.value for rule in rules])
    left = _left_of(y)
    place = math.log if is_log else float
    points = (WIDTH - left - _RIGHT) / (place(high) - place(low))
    kept = space_ticks([place(value) * points for value in values], list(map(format_number, values)))
    x = Axis(low, high, [values[index] for index in kept], is_log=is_log)
    legend = [(_sample(curve.look), f"{curve.label} ({curve.note})") for curve in found] + _sample_rules(rules)
    chart = open_chart(texts, "sweep", left, _PLOT, legend)
    set_axes(chart, x, y)
    for rule in rules:
        chart.axes.axhline(rule.value, **_style_line(_rule_look(rule)), zorder=1.5)
    for curve in found:
        colour = curve.look.colour
        chart.axes.fill_between(curve.x, _nan(curve.low), _nan(curve.high), color=colour, alpha=0.16, linewidth=0)
        [line] = chart.axes.plot(curve.x, _nan(curve.mean), **{**_style_mark(curve.look), **_style_line(curve.look)})
        data = {"data-x": " ".join(f"{value:g}" for value in curve.x), "data-y": _format_values(curve.mean)}
        chart.mark(line, "line", f"{curve.label}, mean", **data)
    return chart
