"""Sweeps: settings of a method that differ in one number, drawn as lines, or in two, drawn as a heat map."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

from orchestrator.report import _charts
from orchestrator.report._charts import ChartText, Curve
from orchestrator.report._figures import ACCURACY, MAX_SERIES, Figure, Pair, find_shared_base, name_settings
from orchestrator.report._heat_map import Cell, draw_heat_map
from orchestrator.report._style import Look
from orchestrator.results.summary import DIFFERENCE, Comparison, Statistic
from orchestrator.study import labels

MAX_SWEEPS = 6  # figures
_FEWEST_VALUES = 3  # of a line
_FEWEST_CELLS = 6  # of a heat map, whose area must be half full
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[-+]?\d+)?")
_MOST_VALUES = 60  # of an axis of a heat map


@dataclass(frozen=True, eq=False)
class _Setting:
    """A setting, the parts of its label and its numbers by their names, and its accuracy."""

    entry: Comparison
    parts: Mapping[str, str]
    numbers: Mapping[str, float]
    accuracy: Statistic


@dataclass(frozen=True, eq=False)
class _Sweep:
    """Settings that differ only in the numbers `axes`; `rest` is what their labels share."""

    axes: tuple[str, ...]
    rest: str
    settings: tuple[_Setting, ...]

    @property
    def entries(self) -> list[Comparison]:
        """Its settings as comparisons."""
        return [setting.entry for setting in self.settings]


def draw_sweeps(found: Sequence[Pair]) -> Iterator[Figure]:
    """The last epoch's accuracy by what each pair's study sweeps: heat maps, then lines."""
    yield from islice((figure for pair in found for figure in _draw_sweeps(pair)), MAX_SWEEPS)


def _draw_sweeps(pair: Pair) -> Iterator[Figure]:
    methods: dict[str, list[_Setting]] = {}
    for setting in _read_settings(pair):
        methods.setdefault(setting.entry.group.method, []).append(setting)
    maps = [one for settings in methods.values() for one in _find_maps(settings)]
    lines: dict[str, list[_Sweep]] = {}
    for settings in methods.values():
        for line in _find_lines([one for one in settings if not any(one in sweep.settings for sweep in maps)]):
            lines.setdefault(line.axes[0], []).append(line)
    names, shared = name_settings([one.rest for one in maps])
    drawings = [partial(_draw_map, pair, one, name, shared) for one, name in zip(maps, names, strict=True)]
    drawings += [partial(_draw_lines, pair, series) for series in lines.values()]
    for number, draw in enumerate(drawings, 1):
        yield draw(f"sweep-{pair.slug}-{number}")


def _read_settings(pair: Pair) -> Iterator[_Setting]:
    for entry in pair.entries:
        if accuracy := entry.group.statistic(DIFFERENCE):
            numbers = _find_numbers(labels.setting_of_row(entry.group.rows[0]).values)
            yield _Setting(entry, labels.split_label(pair.label(entry)), numbers, accuracy)


def _find_numbers(settings: Mapping[str, str]) -> dict[str, float]:
    """The settings that are numbers, but for those of the teacher."""
    own = {name: value for name, value in settings.items() if not name.startswith("teacher.")}
    return {name: float(value) for name, value in own.items() if _NUMBER.fullmatch(value)}


def _find_maps(settings: Sequence[_Setting]) -> list[_Sweep]:
    """The sweeps over the two numbers with the most values, if they are about grids."""
    axes = _find_axes(settings)[:2]
    return [sweep for sweep in _group(settings, axes) if _is_grid(sweep)] if len(axes) == 2 else []


def _is_grid(sweep: _Sweep) -> bool:
    x, y = (len({setting.numbers[axis] for setting in sweep.settings}) for axis in sweep.axes)
    count = len(sweep.settings)
    return min(x, y) > 1 and max(x, y) <= _MOST_VALUES and count >= max(_FEWEST_CELLS, x * y / 2)


def _find_lines(settings: Sequence[_Setting]) -> list[_Sweep]:
    found = [sweep for axis in _find_axes(settings) for sweep in _group(settings, [axis])]
    return [sweep for sweep in found if len(sweep.settings) >= _FEWEST_VALUES]


def _group(settings: Sequence[_Setting], axes: Sequence[str]) -> list[_Sweep]:
    """The settings that differ only in these numbers, in order of the numbers.

    A label names what a teacher has other than its student, so sweeping the student's number changes that part too.
    Where several settings have the same numbers, it is the teacher's number that differs.
    """
    ordered = sorted(settings, key=lambda one: [one.numbers[axis] for axis in axes])
    found: list[tuple[str, list[_Setting]]] = []
    for rest, own in _split(ordered, {*axes, *(f"teacher.{axis}" for axis in axes)}).items():
        is_unique = len({tuple(one.numbers[axis] for axis in axes) for one in own}) == len(own)
        found += [(rest, own)] if is_unique else _split(own, axes).items()
    return [_Sweep(tuple(axes), rest, tuple(own)) for rest, own in found]


def _split(settings: Sequence[_Setting], names: Collection[str]) -> dict[str, list[_Setting]]:
    """The settings by their labels without some parts."""
    found: dict[str, list[_Setting]] = {}
    for setting in settings:
        rest = " ".join(part for name, part in setting.parts.items() if name not in names)
        found.setdefault(rest, []).append(setting)
    return found


def _find_axes(settings: Sequence[_Setting]) -> list[str]:
    """The numbers in which settings differ, those with the most values first."""
    if not settings:
        return []
    shared = [name for name in settings[0].numbers if all(name in setting.numbers for setting in settings)]
    counts = {name: len({setting.numbers[name] for setting in settings}) for name in shared}
    return sorted((name for name in shared if counts[name] > 1), key=lambda name: -counts[name])


def _draw_map(pair: Pair, sweep: _Sweep, method: str, shared: str, name: str) -> Figure:
    x, y = sweep.axes
    base = find_shared_base(sweep.entries)
    cells = [_cell(sweep, setting, has_own_base=base is None) for setting in sweep.settings]
    title = f"{pair.title}: {method} by {x} and {y}"
    chart = draw_heat_map(ChartText(title, "; ".join(cell.note for cell in cells), x, y), cells)
    caption = f"Colours and numbers: mean {ACCURACY}, after the last epoch; the frame marks the highest mean."
    if base:
        caption += f" Base: {base.note}."
    elif any(cell.difference is not None for cell in cells):
        caption += " Second number: the difference to the base of the same setting, on the same seeds."
    return Figure(name, title, f"{caption} {_describe_counts(sweep.settings)}.{shared}", (chart,))


def _cell(sweep: _Sweep, setting: _Setting, *, has_own_base: bool) -> Cell:
    x, y = (setting.numbers[axis] for axis in sweep.axes)
    difference = setting.entry.difference(DIFFERENCE) if has_own_base else None
    values = ", ".join(f"{axis} = {setting.numbers[axis]:g}" for axis in sweep.axes)
    return Cell(x, y, setting.accuracy.mean, difference.mean if difference else None, f"{values}: {setting.accuracy}")


def _describe_counts(settings: Sequence[_Setting]) -> str:
    counts = [setting.accuracy.n for setting in settings]
    return f"n={min(counts)}" if min(counts) == max(counts) else f"n={min(counts)} to {max(counts)}"


def _draw_lines(pair: Pair, found: Sequence[_Sweep], name: str) -> Figure:
    """One line for each sweep over the same number; the base is a line of its own, or the same for all."""
    best = sorted(found, key=lambda one: -max(setting.accuracy.mean for setting in one.settings))[:MAX_SERIES]
    kept = [sweep for sweep in found if sweep in best]
    names, shared = name_settings([sweep.rest for sweep in kept])
    axis, looks = kept[0].axes[0], pair.choose_looks([sweep.entries[0] for sweep in kept])
    curves = [_curve(*series) for series in zip(names, looks, kept, strict=True)]
    base = find_shared_base([entry for sweep in kept for entry in sweep.entries])
    title = f"{pair.title}: accuracy by {axis}"
    texts = ChartText(title, "; ".join(f"{curve.label} {curve.note}" for curve in curves), axis, ACCURACY)
    chart = _charts.draw_sweep(texts, curves, [base] if base else [])
    caption = "Line: mean over the finished runs, after the last epoch; band: ± 1 sample standard deviation."
    if len(kept) < len(found):
        caption += f" This figure shows the best {len(kept)} of {len(found)} lines."
    return Figure(name, title, caption + shared, (chart,))


def _curve(name: str, look: Look, sweep: _Sweep) -> Curve:
    values = [setting.accuracy for setting in sweep.settings]
    return Curve(
        name, look, _describe_counts(sweep.settings),
        tuple(setting.numbers[sweep.axes[0]] for setting in sweep.settings),
        tuple(value.mean for value in values),
        tuple(value.mean - (value.std or 0.0) for value in values),
        tuple(value.mean + (value.std or 0.0) for value in values),
    )  # fmt: skip
