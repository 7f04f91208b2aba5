"""The style of charts: sizes, the looks of methods, which no colour makes alone, and text that is measured."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

_logger = logging.getLogger("matplotlib")
_level = _logger.level
_logger.setLevel(logging.ERROR)  # its first import builds a cache of fonts and says so on standard error
import matplotlib.style  # noqa: E402
from matplotlib.colors import to_hex, to_rgb  # noqa: E402
from matplotlib.font_manager import FontProperties  # noqa: E402
from matplotlib.textpath import TextToPath  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

from orchestrator.text import printable  # noqa: E402

_logger.setLevel(_level)

WIDTH = 3.25 * 72  # points, a column of a paper; so are all lengths here
POINTS = 60  # of a line; more would not be visible at this width
TEACHER, BASE, METHOD = 0, 1, 2  # slots: the references are black and grey; methods count on from `METHOD`

TEXT, SMALL = 7.5, 7.0  # sizes of fonts; journals ask for at least 7
LINE = 8.6  # height of a line of small text
LONGEST = 300  # characters of a label, which is wrapped and not cut

INK, SOFT, RULE = "#1b1f24", "#57606a", "#d4d9df"
# Black, grey, then the colours of Okabe and Ito, which colour-blind readers tell apart; the light ones a little darker.
_COLOURS = ("#1b1f24", "#737a82", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#3f9bd1", "#c98500")
_MARKERS = ("*", "o", "s", "^", "D", "v", "P", "X", "h")
_DASHES = ("-", (0, (4, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.4, 1.4, 1.4)), (0, (2.6, 1)), (0, (8, 2)))
_FILLS = ("full", "none", "left", "bottom", "right", "top")
_SHADES = (0.0, -0.3, 0.3, -0.5, 0.4, -0.65)  # towards black or white; none so light that a dark page hides it

_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so a figure is the same everywhere
    "font.size": TEXT, "axes.labelsize": TEXT, "xtick.labelsize": SMALL, "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL, "text.parse_math": False, "text.color": INK,
    "axes.labelcolor": INK, "axes.edgecolor": SOFT, "axes.linewidth": 0.6, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "grid.color": RULE, "grid.linewidth": 0.5,
    "xtick.color": SOFT, "ytick.color": SOFT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "lines.solid_capstyle": "butt", "figure.dpi": 200, "pdf.fonttype": 42,
}  # fmt: skip


@contextmanager
def use_style(more: Mapping[str, str] | None = None) -> Iterator[None]:
    """The settings under which charts are drawn and written, whatever those of the user are."""
    with matplotlib.style.context(["default", {**_STYLE, **(more or {})}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # a letter that the font lacks
        yield


@dataclass(frozen=True, slots=True)
class Look:
    """What identifies a series: the method's colour and marker, then the setting's dash, fill and shade."""

    colour: str
    marker: str
    dash: str | tuple[float, tuple[float, ...]]
    fill: str

    @classmethod
    def of(cls, slot: int, variant: int = 0) -> Look:
        """The look of a method; `variant` counts its settings within a figure."""
        colour = _COLOURS[slot] if slot < METHOD else _COLOURS[METHOD + (slot - METHOD) % (len(_COLOURS) - METHOD)]
        shade = _SHADES[variant % len(_SHADES)]
        red, green, blue = (part + (float(shade > 0) - part) * abs(shade) for part in to_rgb(colour))
        marker = _MARKERS[slot] if slot < METHOD else _MARKERS[METHOD + (slot - METHOD) % (len(_MARKERS) - METHOD)]
        return cls(to_hex((red, green, blue)), marker, _DASHES[variant % len(_DASHES)], _FILLS[variant % len(_FILLS)])


# Text and numbers.


def cut(text: str, limit: int) -> str:
    """External text made printable and cut to `limit` characters; an ellipsis marks a cut."""
    # Also cut before making it printable, which looks at every character and may turn one into several.
    visible = printable(text[: 4 * limit])
    return visible if len(visible) <= limit and len(text) <= 4 * limit else visible[: limit - 1] + "…"


@lru_cache(maxsize=4096)
def measure(text: str, size: float) -> float:
    """The width of one line of text."""
    return float(
        TextToPath().get_text_width_height_descent(text, FontProperties(family="DejaVu Sans", size=size), False)[0]
    )


def wrap(text: str, width: float, size: float = SMALL) -> list[str]:
    """Printable text in lines of at most this width, broken at spaces, and within a word that is longer."""
    lines = [""]
    for word in cut(text, LONGEST).split(" "):
        candidate = f"{lines[-1]} {word}" if lines[-1] else word
        if measure(candidate, size) <= width:
            lines[-1] = candidate
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if lines[-1] and measure(lines[-1] + letter, size) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def format_number(value: float) -> str:
    """A number for an axis: 1.2M, 45k, 98.5, with a true minus sign."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}".replace("-", "−")
    return f"{value:.6g}".replace("-", "−")


def choose_ticks(low: float, high: float, *, is_whole: bool = False) -> list[float]:
    """A few round numbers from `low` to `high`: a step of 1, 2 or 5 times a power of ten."""
    found = MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=is_whole).tick_values(low, high)
    room = (high - low) * 1e-6
    return [round(float(value), 12) + 0.0 for value in found if low - room <= value <= high + room]


def choose_log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from `low` to `high`, or only the powers if there are more than 6."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    found = [value for value in found if low * 0.999 <= value <= high * 1.001]
    return found if len(found) <= 6 else [value for value in found if f"{value:e}".startswith("1.0")]


def thin(count: int, limit: int = POINTS) -> list[int]:
    """The indices of the points to draw: all `count`, or `limit` evenly spaced ones with the first and the last."""
    if count <= limit:
        return list(range(count))
    return [round(index * (count - 1) / (limit - 1)) for index in range(limit)]


def find_limits(values: Iterable[float], *, is_log: bool = False) -> tuple[float, float]:
    """The ends of an axis, with room around the values; 0 to 1 if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if is_log:
        return low / 1.25, high * 1.25
    room = (high - low) * 0.06 or abs(high) * 0.02 or 1.0
    return low - room, high + room


def space_ticks(places: Sequence[float], names: Sequence[str]) -> list[int]:
    """The indices of the names that do not touch when centred at these places, from the first on."""
    kept, end = [], -math.inf
    for index, (place, name) in enumerate(zip(places, names, strict=True)):
        half = measure(name, SMALL) / 2
        if place - half >= end:
            kept.append(index)
            end = place + half + 4
    return kept
