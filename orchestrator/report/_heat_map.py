"""A heat map: a value for each pair of two numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex, to_rgb
from matplotlib.patches import Rectangle

from orchestrator.report._charts import Axis, Chart, ChartText, in_style, open_chart, set_axes
from orchestrator.report._style import INK, LINE, SMALL, WIDTH, choose_ticks, format_number, measure, space_ticks

_BAR = 40.0  # width of the colour bar with its labels
_STEPS = 48  # colours; of more, matplotlib makes a picture of dots


@dataclass(frozen=True, slots=True)
class Cell:
    """A value at a position of a heat map; `difference` is that to the base of the same setting."""

    x: float
    y: float
    value: float
    difference: float | None
    note: str


@in_style
def draw_heat_map(texts: ChartText, cells: Sequence[Cell]) -> Chart:
    """A cell for each pair of values, with its numbers where there is room; the best has a frame."""
    columns, lines = sorted({cell.x for cell in cells}), sorted({cell.y for cell in cells})
    names_x, names_y = list(map(format_number, columns)), list(map(format_number, lines))
    left = 19 + max(measure(name, SMALL) for name in names_y)
    width = (WIDTH - left - _BAR) / len(columns)
    text_lines = {cell: _format_cell(cell) for cell in cells}
    has_text = max(measure(line, SMALL) for own in text_lines.values() for line in own) + 3 <= width
    height = min(max(120 / len(lines), max(map(len, text_lines.values())) * LINE + 4 if has_text else 2.0), 32.0)
    chart = open_chart(texts, "heat-map", left, height * len(lines), (), _BAR)
    ticks_x = space_ticks([number * width for number in range(len(columns))], names_x)
    ticks_y = range(0, len(lines), math.ceil(LINE / height))
    x = Axis(-0.5, len(columns) - 0.5, ticks_x, lambda at: names_x[int(at)])
    set_axes(chart, x, Axis(-0.5, len(lines) - 0.5, ticks_y, lambda at: names_y[int(at)]))
    chart.axes.grid(visible=False)
    low, high = _widen(min(cell.value for cell in cells), max(cell.value for cell in cells))
    colours = colormaps["viridis"].resampled(_STEPS)
    best = max(cells, key=lambda cell: cell.value)
    for cell in cells:
        at = columns.index(cell.x), lines.index(cell.y)
        colour = to_hex(colours((cell.value - low) / (high - low)))
        _draw_cell(chart, cell, at, colour, text_lines[cell] if has_text else (), is_best=cell is best)
    _draw_colour_bar(chart, ScalarMappable(Normalize(low, high), colours))
    return chart


def _widen(low: float, high: float) -> tuple[float, float]:
    """Two ends that differ."""
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _format_cell(cell: Cell) -> tuple[str, ...]:
    own = f"{cell.value:.1f}"
    return (own,) if cell.difference is None else (own, f"{cell.difference:+.1f}".replace("-", "−"))


def _draw_cell(
    chart: Chart, cell: Cell, at: tuple[int, int], colour: str, lines: Sequence[str], *, is_best: bool
) -> None:
    corner = (at[0] - 0.5, at[1] - 0.5)
    tile = Rectangle(corner, 1, 1, facecolor=colour, edgecolor="white", linewidth=0.6)
    chart.axes.add_patch(tile)
    chart.mark(tile, "cell", cell.note)
    if is_best:
        chart.axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=INK, linewidth=1.6, zorder=3))
    if lines:
        red, green, blue = to_rgb(colour)
        ink = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else INK
        text = "\n".join(lines)
        chart.axes.text(*at, text, color=ink, fontsize=SMALL, ha="center", va="center", linespacing=1.15)


def _draw_colour_bar(chart: Chart, colours: ScalarMappable) -> None:
    """A strip of colours with its values, to the right of the plot."""
    box = chart.axes.get_position()
    strip = chart.drawing.add_axes((box.x1 + 5 / WIDTH, box.y0, 6 / WIDTH, box.height))
    bar = chart.drawing.colorbar(colours, cax=strip)
    assert bar.solids
    bar.solids.set_edgecolor("face")  # no gaps between the colours
    bar.outline.set_visible(False)
    ticks = choose_ticks(*colours.get_clim())
    bar.set_ticks(ticks, labels=list(map(format_number, ticks)))
