"""The figures of a report: learning curves, student against teacher and base, accuracy against cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

from orchestrator import models
from orchestrator.data.registry import title_of
from orchestrator.records import State, TrialRecord
from orchestrator.report import charts
from orchestrator.report.charts import Chart, ChartText, Curve, CurveRun, Point, Row, Rule
from orchestrator.report.content import Facts
from orchestrator.results import store
from orchestrator.results.summary import Compared, Group, Statistic, compare_to_base, tables

# What bounds the size of a page.
MAX_PAIRS = 8  # figures of each kind
MAX_SERIES = 6  # settings in one, as many as there are colours
MAX_RUNS = 24  # runs that are drawn in one figure, besides the means of all
MAX_DOTS = 40  # of one row
_ZOOM = 0.75  # the second panel begins after such a part of the training

MORE = "kdctl query"  # where the rest is to be had


@dataclass(frozen=True)
class Figure:
    """Charts side by side, with a heading and a caption. `name` is unique on a page, and part of a file name."""

    name: str
    title: str
    caption: str
    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class Pair:
    """Every setting of one student on one dataset, under whatever teachers."""

    dataset: str
    student: str
    entries: tuple[Compared, ...]

    @property
    def title(self) -> str:
        """Like `ResNet8 on Digits`."""
        return f"{models.parse(self.student).title} on {title_of(self.dataset)}"

    @property
    def slug(self) -> str:
        """For the name of a figure."""
        return f"{self.dataset}-{self.student.replace('_', '-')}"

    @cached_property
    def _teachers(self) -> set[str]:
        return {entry.table.teacher for entry in self.entries if entry.table.teacher}

    def label(self, entry: Compared) -> str:
        """A setting's label, with its teacher where there are several."""
        many = len(self._teachers) > 1
        label = entry.group.label
        return f"{label} ← {models.parse(entry.table.teacher).title}" if many and entry.table.teacher else label


def pairs(rows: Iterable[TrialRecord]) -> list[Pair]:
    """The settings by student and dataset; those with a teacher's students first."""
    found: dict[tuple[str, str], list[Compared]] = {}
    for entry in compare_to_base(tables(rows)):
        found.setdefault((entry.table.dataset, entry.table.student), []).append(entry)
    made = [Pair(*key, tuple(entries)) for key, entries in found.items()]
    return sorted(made, key=lambda pair: all(entry.table.teacher is None for entry in pair.entries))


def choose(entries: Sequence[Compared], limit: int) -> list[Compared]:
    """At most `limit` settings, in their order: what the others are compared with, then the best in the last epoch."""
    if len(entries) <= limit:
        return list(entries)
    bases = {id(entry.base) for entry in entries if entry.base}

    def rank(entry: Compared) -> tuple[bool, float]:
        statistic = entry.group.statistic("last_acc")
        return id(entry.group) not in bases, -statistic.mean if statistic else float("inf")

    # One base in the figure is enough where every setting has one of its own.
    ranked = sorted(entries, key=rank)
    first = [entry for entry in ranked if id(entry.group) in bases][:1]
    rest = sorted((entry for entry in entries if entry not in first), key=lambda entry: rank(entry)[1])
    kept = {id(entry) for entry in [*first, *rest[: limit - len(first)]]}
    return [entry for entry in entries if id(entry) in kept]


def _slots(entries: Sequence[Compared]) -> list[int]:
    """A place in the palette for each: grey for the first base, a colour for each other; what finished comes first."""
    free = iter(charts.METHODS * len(entries))
    slots: dict[int, int] = {}
    for entry in sorted(entries, key=lambda entry: not entry.group.finished):
        is_base = entry.group.method == "base" and charts.BASE not in slots.values()
        slots[id(entry)] = charts.BASE if is_base else next(free)
    return [slots[id(entry)] for entry in entries]


def _more(shown: int, of: int) -> str:
    if shown == of:
        return ""
    return f" Shown are {shown} of {of:,} settings, the best of the last epoch; the others: {MORE}."


def _teacher_rules(pair: Pair) -> list[Rule]:
    """The accuracy of the weights that taught, each teacher counted once; a rule a model."""
    found: dict[str, dict[str | None, float]] = {}
    for entry in pair.entries:
        for row in entry.group.finished:
            if row.teacher and row.teacher_acc is not None:
                found.setdefault(row.teacher, {})[row.teacher_id] = row.teacher_acc
    rules = []
    for model, by_id in sorted(found.items())[:2]:
        statistic = Statistic.over(list(by_id.values()))
        assert statistic, "there is one"
        rules.append(Rule(f"teacher {models.parse(model).title}", charts.TEACHER, str(statistic), statistic.mean))
    return rules


# Learning curves.


def learning_curves(facts: Facts, found: Sequence[Pair]) -> Iterator[Figure]:
    """Test accuracy over the epochs, the whole training beside its last quarter. Raises StorageError."""
    wanted = [pair for pair in found if any(entry.group.rows for entry in pair.entries)][:MAX_PAIRS]
    shown = {pair.slug: choose(pair.entries, MAX_SERIES) for pair in wanted}
    ids = [row.trial_id for entries in shown.values() for entry in entries for row in entry.group.rows]
    epochs = store.epoch_columns(facts.storage, ids, ("epoch", "test_acc"))
    for pair in wanted:
        entries = shown[pair.slug]
        lines = [line for line in _curves(pair, entries, epochs) if line.x]
        if lines:
            yield _learning_figure(pair, entries, lines)


def _learning_figure(pair: Pair, entries: Sequence[Compared], lines: Sequence[Curve]) -> Figure:
    last = max(line.x[-1] for line in lines)
    rules = _teacher_rules(pair)
    told = "; ".join(f"{line.label} {line.note}" for line in lines)
    words = ChartText(
        f"{pair.title}: test accuracy by epoch", f"Mean over the finished runs: {told}", "epoch", "acc, %"
    )
    panels = [charts.curves(words, lines, rules)]
    caption = "Line: mean over the finished runs; band: ± 1 sample standard deviation, where there are two and more."
    if last >= 8:
        start = round(last * _ZOOM) + 1  # what a milestone there changed has just happened
        zoom = ChartText(f"{pair.title}: epochs {start:g} to {last:g}", words.description, words.x, words.y)
        panels.append(charts.curves(zoom, lines, rules, start))
        caption += " The second panel is the last quarter of the training."
    caption += _drawn(entries, lines)
    return Figure(f"curves-{pair.slug}", pair.title, caption + _more(len(entries), len(pair.entries)), tuple(panels))


def _drawn(entries: Sequence[Compared], lines: Sequence[Curve]) -> str:
    """What thin lines are, and of which runs there is none."""
    drawn = [run for line in lines for run in line.runs]
    text = " Thin lines are single runs" if drawn else ""
    runs = sum(len(entry.group.rows) for entry in entries)
    if drawn and len(drawn) < runs:
        text += f", {len(drawn)} of {runs:,}"
    if any(not run.counts for run in drawn):
        text += "; dashed ones did not finish and are in no mean"
    return f"{text}." if text else ""


def _curves(pair: Pair, entries: Sequence[Compared], epochs: Mapping[str, Mapping[str, list[Any]]]) -> list[Curve]:
    drawn = _runs_to_draw([entry.group for entry in entries], epochs)
    return [
        _curve(pair.label(entry), slot, entry.group, epochs, drawn)
        for entry, slot in zip(entries, _slots(entries), strict=True)
    ]


def _runs_to_draw(groups: Sequence[Group], epochs: Mapping[str, Any]) -> set[str]:
    """The ids of at most `MAX_RUNS` runs, some of every group."""
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
        tuple(one.mean if one else None for one in at) if done else (),
        tuple(max(one.mean - one.std, 0.0) if one and one.std is not None else None for one in at),
        tuple(min(one.mean + one.std, 100.0) if one and one.std is not None else None for one in at),
        tuple(runs),
    )  # fmt: skip


def _by_epoch(columns: Mapping[str, list[Any]]) -> dict[int, float]:
    return {
        number: value
        for number, value in zip(columns["epoch"], columns["test_acc"], strict=True)
        if number is not None and value is not None
    }


# Student against teacher and base.


def standings(found: Sequence[Pair]) -> Iterator[Figure]:
    """The last epoch's accuracy of every setting of a student, with its interval, its teacher and its base."""
    for pair in [pair for pair in found if any(entry.table.teacher for entry in pair.entries)][:MAX_PAIRS]:
        entries = [entry for entry in pair.entries if entry.group.statistic("last_acc")]
        shown = choose(entries, MAX_SERIES)
        if not shown:
            continue
        rows = [_row(pair.label(entry), slot, entry.group) for entry, slot in zip(shown, _slots(shown), strict=True)]
        told = "; ".join(f"{row.label} {row.note}" for row in rows)
        words = ChartText(
            f"{pair.title}: accuracy after the last epoch", told, "test accuracy after the last epoch, %", ""
        )
        rules = _teacher_rules(pair)
        base = next((row for row in rows if row.slot == charts.BASE), None)
        if base:
            rules.append(Rule(base.label, charts.BASE, base.note, base.mean))
        caption = "Mark: mean; bar: its 95 % confidence interval (Student's t), none for a single run; dots: runs."
        yield Figure(
            f"standing-{pair.slug}", pair.title, caption + _more(len(shown), len(entries)),
            (charts.dots(words, rows, rules),),
        )  # fmt: skip


def _row(label: str, slot: int, group: Group) -> Row:
    statistic = group.statistic("last_acc")
    assert statistic, "only those that have one are shown"
    values = tuple(row.last_acc for row in group.finished if row.last_acc is not None)
    low, high = statistic.interval() or (statistic.mean, statistic.mean)
    return Row(label, slot, str(statistic), values[:MAX_DOTS], statistic.mean, max(low, 0.0), min(high, 100.0))


# Accuracy against cost.


def costs(facts: Facts, found: Sequence[Pair]) -> Iterator[Figure]:
    """Accuracy against the seconds and the parameters of a run, a figure a dataset."""
    for dataset in list(dict.fromkeys(pair.dataset for pair in found))[:MAX_PAIRS]:
        own = [pair for pair in found if pair.dataset == dataset]
        labels = {id(entry): f"{models.parse(p.student).title} {p.label(entry)}" for p in own for entry in p.entries}
        entries = [entry for pair in own for entry in pair.entries if entry.group.statistic("last_acc")]
        taught = [entry for entry in entries if _has_taught(facts, entry.group)][:2]
        others = [entry for entry in entries if entry not in taught]
        kept = {id(entry) for entry in [*taught, *choose(others, MAX_SERIES - len(taught))]}
        shown = [entry for entry in entries if id(entry) in kept]
        title = title_of(dataset)
        panels = []
        for column, name, unit in (("seconds", "training time of one run", "s"), ("params", "parameters", "")):
            points = [
                point
                for entry, slot in zip(shown, _slots(shown), strict=True)
                if (point := _point(facts, entry.group, labels[id(entry)], slot, column, unit))
            ]
            if points:
                panels.append(_cost_chart(f"{title}: accuracy against {name}", name, unit, points))
        if panels:
            caption = "Marks: means over the finished runs; bars: ± 1 sample standard deviation. A star taught others."
            if len({row.device for entry in shown for row in entry.group.finished}) > 1:
                caption += " The runs were on several kinds of devices: their seconds do not compare."
            yield Figure(f"cost-{dataset}", title, caption + _more(len(shown), len(entries)), tuple(panels))


def _cost_chart(title: str, name: str, unit: str, points: Sequence[Point]) -> Chart:
    values = [point.x for point in points]
    is_log = min(values) > 0 and max(values) / min(values) > 8
    x = f"{name}{f', {unit}' if unit else ''}{' (log scale)' if is_log else ''}"
    told = "; ".join(f"{point.label}: {point.note}" for point in points)
    return charts.scatter(ChartText(title, told, x, "acc, %"), points, is_log=is_log)


def _point(facts: Facts, group: Group, label: str, slot: int, column: str, unit: str) -> Point | None:
    x, y = group.statistic(column), group.statistic("last_acc")
    if x is None or y is None:
        return None
    at = f"{x.mean:,.1f} {unit}" if unit else charts.short(x.mean)
    note = f"{at}, {y.mean:.2f} % (n={y.n})"
    slot = charts.TEACHER if _has_taught(facts, group) else slot
    return Point(label, slot, note, x.mean, y.mean, x.std or 0.0, y.std or 0.0)


def _has_taught(facts: Facts, group: Group) -> bool:
    return any(row.trial_id in facts.teacher_ids for row in group.rows)
