"""The figures of a report: learning curves, student against teacher and base, accuracy against cost."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

from orchestrator import models
from orchestrator.data.registry import title_of
from orchestrator.records import State, TrialRecord
from orchestrator.report import _charts
from orchestrator.report._charts import Chart, ChartText, Curve, CurveRun, Point, Row, Rule
from orchestrator.report.content import Facts
from orchestrator.results import store
from orchestrator.results.summary import Comparison, Group, Statistic, compare_to_base, group_tables
from orchestrator.study import labels

# Limits on the size of a page.
MAX_PAIRS = 8  # figures of each kind
MAX_SERIES = 6  # settings in one figure: the number of colours
MAX_RUNS = 24  # runs that are drawn in one figure, besides the means of all
MAX_DOTS = 40  # runs in one row
_ZOOM = 0.75  # the second panel starts after this fraction of the training

MORE = "kdctl query"  # prints what a page leaves out


@dataclass(frozen=True)
class Figure:
    """Charts side by side, with a heading and a caption. `name` is unique on a page, and part of a file name."""

    name: str
    title: str
    caption: str
    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class Pair:
    """Every setting of one student on one dataset, with any teacher."""

    dataset: str
    student: str
    entries: tuple[Comparison, ...]

    @property
    def title(self) -> str:
        """Like `ResNet8 on Digits`."""
        return f"{models.title(self.student)} on {title_of(self.dataset)}"

    @property
    def slug(self) -> str:
        """The part of a figure's name that identifies the pair."""
        return f"{self.dataset}-{re.sub('[^A-Za-z0-9.]+', '-', self.student).strip('-')}"

    @cached_property
    def _teachers(self) -> set[str]:
        return {entry.table.teacher for entry in self.entries if entry.table.teacher}

    def label(self, entry: Comparison) -> str:
        """A setting's label, with its teacher if the pair has several teachers."""
        many = len(self._teachers) > 1
        label = entry.group.label
        return f"{label} ← {models.title(entry.table.teacher)}" if many and entry.table.teacher else label


def group_pairs(rows: Iterable[TrialRecord]) -> list[Pair]:
    """The settings by student and dataset; pairs with a teacher come first."""
    found: dict[tuple[str, str], list[Comparison]] = {}
    for entry in compare_to_base(group_tables(rows)):
        found.setdefault((entry.table.dataset, entry.table.student), []).append(entry)
    made = [Pair(*key, tuple(entries)) for key, entries in found.items()]
    return sorted(made, key=lambda pair: all(entry.table.teacher is None for entry in pair.entries))


def choose_settings(entries: Sequence[Comparison], limit: int) -> list[Comparison]:
    """At most `limit` settings in their order: a base first, then those with the best last epoch."""
    if len(entries) <= limit:
        return list(entries)
    bases = {id(entry.base) for entry in entries if entry.base}

    def rank(entry: Comparison) -> tuple[bool, float]:
        statistic = entry.group.statistic("last_acc")
        return id(entry.group) not in bases, -statistic.mean if statistic else float("inf")

    # One base per figure is enough, even if every setting has its own.
    ranked = sorted(entries, key=rank)
    first = [entry for entry in ranked if id(entry.group) in bases][:1]
    rest = sorted((entry for entry in entries if entry not in first), key=lambda entry: rank(entry)[1])
    kept = {id(entry) for entry in [*first, *rest[: limit - len(first)]]}
    return [entry for entry in entries if id(entry) in kept]


def _assign_slots(entries: Sequence[Comparison]) -> list[int]:
    """A palette index for each: grey for the first base, colours for the others, finished settings first."""
    free = iter(_charts.METHODS * len(entries))
    slots: dict[int, int] = {}
    for entry in sorted(entries, key=lambda entry: not entry.group.finished):
        is_base = entry.group.method == "base" and _charts.BASE not in slots.values()
        slots[id(entry)] = _charts.BASE if is_base else next(free)
    return [slots[id(entry)] for entry in entries]


def _describe_omitted(count: int, total: int) -> str:
    if count == total:
        return ""
    return (
        f" This figure shows {count} of {total:,} settings, those with the best last epoch; {MORE} prints the others."
    )


def _teacher_rules(pair: Pair) -> list[Rule]:
    """The accuracy of the teachers' weights, each teacher counted once; one line per kind of teacher, at most two."""
    found: dict[str, dict[str | None, float]] = {}
    for entry in pair.entries:
        for row in entry.group.finished:
            if row.teacher and row.teacher_acc is not None:
                origin = (labels.teacher_of(row) or "").removeprefix(row.teacher)  # what it is distilled from
                name = f"{models.title(row.teacher)}{origin}"
                found.setdefault(name, {})[row.teacher_id] = row.teacher_acc
    rules = []
    for name, by_id in sorted(found.items())[:2]:
        statistic = Statistic.over(list(by_id.values()))
        assert statistic, "there is one"
        rules.append(Rule(f"teacher {name}", _charts.TEACHER, str(statistic), statistic.mean))
    return rules


# Learning curves.


def draw_learning_curves(facts: Facts, found: Sequence[Pair]) -> Iterator[Figure]:
    """Test accuracy by epoch: all epochs next to the last quarter. Raises StorageError for damaged epochs."""
    drawable = [pair for pair in found if any(entry.group.rows for entry in pair.entries)][:MAX_PAIRS]
    kept = {pair.slug: choose_settings(pair.entries, MAX_SERIES) for pair in drawable}
    ids = [row.trial_id for entries in kept.values() for entry in entries for row in entry.group.rows]
    epochs = store.read_epoch_columns(facts.storage, ids, ("epoch", "test_acc"))
    for pair in drawable:
        entries = kept[pair.slug]
        lines = [line for line in _curves(pair, entries, epochs) if line.x]
        if lines:
            yield _learning_figure(pair, entries, lines)


def _learning_figure(pair: Pair, entries: Sequence[Comparison], lines: Sequence[Curve]) -> Figure:
    last = max(line.x[-1] for line in lines)
    rules = _teacher_rules(pair)
    description = "; ".join(f"{line.label} {line.note}" for line in lines)
    texts = ChartText(
        f"{pair.title}: test accuracy by epoch", f"Mean over the finished runs: {description}", "epoch", "acc, %"
    )
    panels = [_charts.draw_curves(texts, lines, rules)]
    caption = "Line: mean over the finished runs; band: ± 1 sample standard deviation, if at least two runs finished."
    if last >= 8:
        start = round(last * _ZOOM) + 1  # just after a milestone at this epoch took effect
        zoom = ChartText(f"{pair.title}: epochs {start:g} to {last:g}", texts.description, texts.x, texts.y)
        panels.append(_charts.draw_curves(zoom, lines, rules, start))
        caption += " The second panel is the last quarter of the training."
    caption += _describe_runs(entries, lines)
    return Figure(
        f"curves-{pair.slug}", pair.title, caption + _describe_omitted(len(entries), len(pair.entries)), tuple(panels)
    )


def _describe_runs(entries: Sequence[Comparison], lines: Sequence[Curve]) -> str:
    """What thin lines are, and how many runs have one."""
    drawn = [run for line in lines for run in line.runs]
    text = " Thin lines are individual runs" if drawn else ""
    runs = sum(len(entry.group.rows) for entry in entries)
    if drawn and len(drawn) < runs:
        text += f", {len(drawn)} of {runs:,}"
    if any(not run.counts for run in drawn):
        text += "; dashed runs did not finish and are not part of the mean"
    return f"{text}." if text else ""


def _curves(pair: Pair, entries: Sequence[Comparison], epochs: Mapping[str, Mapping[str, list[Any]]]) -> list[Curve]:
    drawn = _runs_to_draw([entry.group for entry in entries], epochs)
    return [
        _curve(pair.label(entry), slot, entry.group, epochs, drawn)
        for entry, slot in zip(entries, _assign_slots(entries), strict=True)
    ]


def _runs_to_draw(groups: Sequence[Group], epochs: Mapping[str, Any]) -> set[str]:
    """The ids of at most `MAX_RUNS` runs, taken from every group in turn."""
    ids = [[row.trial_id for row in group.rows if row.trial_id in epochs] for group in groups]
    turns = [trial_id for turn in zip_longest(*ids) for trial_id in turn if trial_id is not None]
    return set(turns[:MAX_RUNS])


def _curve(
    label: str, slot: int, group: Group, epochs: Mapping[str, Mapping[str, list[Any]]], drawn: set[str]
) -> Curve:
    found = {row.trial_id: _by_epoch(epochs[row.trial_id]) for row in group.rows if row.trial_id in epochs}
    numbers = sorted({number for values in found.values() for number in values})
    done = [found[row.trial_id] for row in group.finished if row.trial_id in found]
    at = [Statistic.over([values[number] for values in done if number in values]) for number in numbers]
    runs = [
        CurveRun(
            f"seed {row.seed} ({row.trial_id})",
            tuple(map(found[row.trial_id].get, numbers)),
            row.state is State.FINISHED,
        )
        for row in group.rows
        if row.trial_id in drawn
    ]
    return Curve(
        label, slot, f"n={len(done)}", tuple(map(float, numbers)),
        tuple(mean.mean if mean else None for mean in at) if done else (),
        tuple(max(mean.mean - mean.std, 0.0) if mean and mean.std is not None else None for mean in at),
        tuple(min(mean.mean + mean.std, 100.0) if mean and mean.std is not None else None for mean in at),
        tuple(runs),
    )  # fmt: skip


def _by_epoch(columns: Mapping[str, list[Any]]) -> dict[int, float]:
    return {
        number: value
        for number, value in zip(columns["epoch"], columns["test_acc"], strict=True)
        if number is not None and value is not None
    }


# Student against teacher and base.


def draw_comparisons(found: Sequence[Pair]) -> Iterator[Figure]:
    """The last epoch's accuracy of every setting of a student, with its interval, its teacher and its base."""
    for pair in [pair for pair in found if any(entry.table.teacher for entry in pair.entries)][:MAX_PAIRS]:
        entries = [entry for entry in pair.entries if entry.group.statistic("last_acc")]
        kept = choose_settings(entries, MAX_SERIES)
        if not kept:
            continue
        rows = [
            _row(pair.label(entry), slot, entry.group) for entry, slot in zip(kept, _assign_slots(kept), strict=True)
        ]
        description = "; ".join(f"{row.label} {row.note}" for row in rows)
        texts = ChartText(
            f"{pair.title}: accuracy after the last epoch", description, "test accuracy after the last epoch, %", ""
        )
        rules = _teacher_rules(pair)
        base = next((row for row in rows if row.slot == _charts.BASE), None)
        if base:
            rules.append(Rule(base.label, _charts.BASE, base.note, base.mean))
        caption = "Mark: mean; bar: its 95 % confidence interval (Student's t), none for a single run; dots: runs."
        yield Figure(
            f"standing-{pair.slug}", pair.title, caption + _describe_omitted(len(kept), len(entries)),
            (_charts.draw_dots(texts, rows, rules),),
        )  # fmt: skip


def _row(label: str, slot: int, group: Group) -> Row:
    statistic = group.statistic("last_acc")
    assert statistic, "only settings with a last epoch are drawn"
    values = tuple(row.last_acc for row in group.finished if row.last_acc is not None)
    low, high = statistic.interval() or (statistic.mean, statistic.mean)
    return Row(label, slot, str(statistic), values[:MAX_DOTS], statistic.mean, max(low, 0.0), min(high, 100.0))


# Accuracy against cost.


def draw_costs(facts: Facts, found: Sequence[Pair]) -> Iterator[Figure]:
    """Accuracy against the seconds and the parameters of a run, one figure per dataset."""
    for dataset in list(dict.fromkeys(pair.dataset for pair in found))[:MAX_PAIRS]:
        own = [pair for pair in found if pair.dataset == dataset]
        labels = {id(entry): f"{models.title(p.student)} {p.label(entry)}" for p in own for entry in p.entries}
        entries = [entry for pair in own for entry in pair.entries if entry.group.statistic("last_acc")]
        taught = [entry for entry in entries if _is_teacher(facts, entry.group)][:2]
        others = [entry for entry in entries if entry not in taught]
        kept_ids = {id(entry) for entry in [*taught, *choose_settings(others, MAX_SERIES - len(taught))]}
        kept = [entry for entry in entries if id(entry) in kept_ids]
        title = title_of(dataset)
        panels = []
        for column, name, unit in (("seconds", "training time of one run", "s"), ("params", "parameters", "")):
            points = [
                point
                for entry, slot in zip(kept, _assign_slots(kept), strict=True)
                if (point := _point(facts, entry.group, labels[id(entry)], slot, column, unit))
            ]
            if points:
                panels.append(_cost_chart(f"{title}: accuracy against {name}", name, unit, points))
        if panels:
            caption = (
                "Marks: means over the finished runs; bars: ± 1 sample standard deviation. A star marks a teacher."
            )
            if len({row.device for entry in kept for row in entry.group.finished}) > 1:
                caption += " The runs used several kinds of devices, so their times are not comparable."
            yield Figure(f"cost-{dataset}", title, caption + _describe_omitted(len(kept), len(entries)), tuple(panels))


def _cost_chart(title: str, name: str, unit: str, points: Sequence[Point]) -> Chart:
    values = [point.x for point in points]
    is_log = min(values) > 0 and max(values) / min(values) > 8
    x = f"{name}{f', {unit}' if unit else ''}{' (log scale)' if is_log else ''}"
    description = "; ".join(f"{point.label}: {point.note}" for point in points)
    return _charts.draw_scatter(ChartText(title, description, x, "acc, %"), points, is_log=is_log)


def _point(facts: Facts, group: Group, label: str, slot: int, column: str, unit: str) -> Point | None:
    x, y = group.statistic(column), group.statistic("last_acc")
    if x is None or y is None:
        return None
    at = f"{x.mean:,.1f} {unit}" if unit else _charts.format_number(x.mean)
    note = f"{at}, {y.mean:.2f} % (n={y.n})"
    slot = _charts.TEACHER if _is_teacher(facts, group) else slot
    return Point(label, slot, note, x.mean, y.mean, x.std or 0.0, y.std or 0.0)


def _is_teacher(facts: Facts, group: Group) -> bool:
    return any(row.trial_id in facts.teacher_ids for row in group.rows)
