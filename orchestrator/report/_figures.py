"""The figures of a report: learning curves, student against teacher and base, accuracy against cost."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any

from orchestrator import models
from orchestrator.data.registry import title_of
from orchestrator.records import State, TrialRecord
from orchestrator.report import _charts
from orchestrator.report._charts import Chart, ChartText, Curve, CurveRun, Point, Row, Rule
from orchestrator.report._style import BASE, METHOD, TEACHER, Look, format_number
from orchestrator.report.content import Facts
from orchestrator.results import store
from orchestrator.results.summary import Comparison, Group, Statistic, compare_to_base, group_tables
from orchestrator.study import labels

# Limits on the size of a page.
MAX_PAIRS = 6  # figures of each kind
MAX_SERIES = 6  # settings in one figure: the number of colours
MAX_RUNS = 12  # runs that are drawn in one figure, besides the means of all
MAX_DOTS = 200  # runs in one row
_ZOOM = 0.75  # the second panel starts after this fraction of the training

ACCURACY = "test accuracy, %"
MORE = "kdctl query"  # prints what a page leaves out


@dataclass(frozen=True)
class Figure:
    """Charts side by side, with a heading and a caption. `name` is unique on a page, and part of file names."""

    name: str
    title: str
    caption: str
    charts: tuple[Chart, ...]

    def named_charts(self) -> list[tuple[str, Chart]]:
        """Its charts, each with a name that no other chart of a report has."""
        return [(f"{self.name}-{number}", chart) for number, chart in enumerate(self.charts, 1)]


@dataclass(frozen=True)
class Pair:
    """Every setting of one student on one dataset, with any teacher. `slots` gives the methods their colours."""

    dataset: str
    student: str
    entries: tuple[Comparison, ...]
    slots: Mapping[str, int]

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

    def choose_looks(self, entries: Sequence[Comparison], slots: Mapping[int, int] | None = None) -> list[Look]:
        """The look of each setting in a figure: its method's, varied where a method has several settings.

        `slots` are other ones than those of the methods, by the id of an entry.
        """
        seen: Counter[int] = Counter()
        looks = []
        for entry in entries:
            slot = (slots or {}).get(id(entry), self.slots[entry.group.method])
            looks.append(Look.of(slot, seen[slot]))
            seen[slot] += 1
        return looks

    def name_settings(self, entries: Sequence[Comparison]) -> tuple[list[str], str]:
        """Short labels, without the settings that all have, and a sentence with those for the caption."""
        return name_settings(complete_labels([self.label(entry) for entry in entries], entries))


def complete_labels(found: Sequence[str], entries: Sequence[Comparison]) -> list[str]:
    """Labels that also state a default, where the label of another setting of the method states another value."""
    settings = [labels.setting_of_row(entry.group.rows[0]) for entry in entries]
    changed: dict[str, dict[str, None]] = {}
    for entry, setting in zip(entries, settings, strict=True):
        changed.setdefault(entry.group.method, {}).update(dict.fromkeys(setting.changed))
    completed = []
    for label, entry, setting in zip(found, entries, settings, strict=True):
        missing = [name for name in changed[entry.group.method] if name not in setting.changed]
        # A setting of the teacher that no label states is that of the student.
        stated = [name for name in missing if name in setting.values and not name.startswith("teacher.")]
        method, *parts = label.split(" ")
        order = {f"{name}=": number for number, name in enumerate(setting.values)}
        parts = [*(f"{name}={setting.values[name]}" for name in stated), *parts]
        parts.sort(key=lambda part: order.get(part[: part.find("=") + 1], len(order)))  # alike for all settings
        completed.append(" ".join([method, *parts]))
    return completed


def name_settings(found: Sequence[str]) -> tuple[list[str], str]:
    """Labels without the settings that all of them have, and a sentence with those; `base` has none of a teacher."""
    parts = [label.split(" ") for label in found]
    known = next((own for own in parts if "base" not in own), parts[0] if parts else [])
    shared = [part for part in known if "=" in part and all(part in own or _is_of_base(own, part) for own in parts)]
    short = [" ".join(part for part in own if part not in shared) for own in parts]
    return short, f" All with {', '.join(shared)}." if shared else ""


def _is_of_base(own: Sequence[str], part: str) -> bool:
    """Whether `base` lacks a setting only because it has no teacher."""
    return part.startswith("teacher.") and "base" in own


def group_pairs(rows: Iterable[TrialRecord]) -> list[Pair]:
    """The settings by student and dataset; pairs with a teacher come first."""
    found: dict[tuple[str, str], list[Comparison]] = {}
    for entry in compare_to_base(group_tables(rows)):
        found.setdefault((entry.table.dataset, entry.table.student), []).append(entry)
    methods = dict.fromkeys(entry.group.method for entries in found.values() for entry in entries)
    slots = {"base": BASE}
    slots |= {name: slot for slot, name in enumerate(sorted(methods.keys() - slots), METHOD)}
    made = [Pair(*key, tuple(entries), slots) for key, entries in found.items()]
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
        rules.append(Rule(f"teacher {name}", Look.of(TEACHER), str(statistic), statistic.mean))
    return rules


# Learning curves.

_Epochs = Mapping[str, Mapping[str, list[Any]]]  # columns by trial


def draw_learning_curves(facts: Facts, found: Sequence[Pair]) -> Iterator[Figure]:
    """Test accuracy by epoch: all epochs next to the last quarter. Raises StorageError for damaged epochs."""
    drawable = [pair for pair in found if any(entry.group.rows for entry in pair.entries)][:MAX_PAIRS]
    kept = {pair.slug: choose_settings(pair.entries, MAX_SERIES) for pair in drawable}
    ids = [row.trial_id for entries in kept.values() for entry in entries for row in entry.group.rows]
    epochs = store.read_epoch_columns(facts.storage, ids, ("epoch", "test_acc"))
    for pair in drawable:
        if figure := _draw_learning_curves(pair, kept[pair.slug], epochs):
            yield figure


def _draw_learning_curves(pair: Pair, entries: Sequence[Comparison], epochs: _Epochs) -> Figure | None:
    names, shared = pair.name_settings(entries)
    drawn = _runs_to_draw([entry.group for entry in entries], epochs)
    series = zip(names, pair.choose_looks(entries), entries, strict=True)
    lines = [line for name, look, entry in series if (line := _curve(name, look, entry.group, epochs, drawn)).x]
    if not lines:
        return None
    last, rules = max(line.x[-1] for line in lines), _teacher_rules(pair)
    description = "; ".join(f"{line.label} {line.note}" for line in lines)
    texts = ChartText(
        f"{pair.title}: test accuracy by epoch", f"Mean over the finished runs: {description}", "epoch", ACCURACY
    )
    panels = [_charts.draw_curves(texts, lines, rules)]
    caption = "Line: mean over the finished runs; band: ± 1 sample standard deviation, if at least two runs finished."
    if last >= 8:
        start = round(last * _ZOOM) + 1  # just after a milestone at this epoch took effect
        zoom = replace(texts, title=f"{pair.title}: epochs {start:g} to {last:g}")
        panels.append(_charts.draw_curves(zoom, lines, rules, start))
        caption += " The second panel is the last quarter of the training."
    caption += _describe_runs(entries, lines) + shared + _describe_omitted(len(entries), len(pair.entries))
    return Figure(f"curves-{pair.slug}", pair.title, caption, tuple(panels))


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


def _runs_to_draw(groups: Sequence[Group], epochs: _Epochs) -> set[str]:
    """The ids of at most `MAX_RUNS` runs, taken from every group in turn."""
    ids = [[row.trial_id for row in group.rows if row.trial_id in epochs] for group in groups]
    turns = [trial_id for turn in zip_longest(*ids) for trial_id in turn if trial_id is not None]
    return set(turns[:MAX_RUNS])


def _curve(label: str, look: Look, group: Group, epochs: _Epochs, drawn: set[str]) -> Curve:
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
        label, look, f"n={len(done)}", tuple(map(float, numbers)),
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
        if kept:
            yield _draw_comparison(pair, kept, len(entries))


def _draw_comparison(pair: Pair, entries: Sequence[Comparison], total: int) -> Figure:
    names, shared = pair.name_settings(entries)
    rules = _teacher_rules(pair)
    base = find_shared_base(entries)
    if base:
        rules.append(base)
    looks = pair.choose_looks(entries)
    rows = [_row(*series, has_own_base=base is None) for series in zip(names, looks, entries, strict=True)]
    title = f"{pair.title}: accuracy after the last epoch"
    texts = ChartText(
        title, "; ".join(f"{row.label}: {row.note}" for row in rows), "test accuracy after the last epoch, %", ""
    )
    caption = (
        "Mark: mean; bar: its 95 % confidence interval (Student's t), none for a single run; dots below: runs."
        f"{shared}{_describe_omitted(len(entries), total)}"
    )
    return Figure(f"standing-{pair.slug}", pair.title, caption, (_charts.draw_rows(texts, rows, rules),))


def find_shared_base(entries: Sequence[Comparison]) -> Rule | None:
    """The base that every setting with a base has, as a reference line; None if there are several, or none."""
    bases = {id(entry.base): entry.base for entry in entries if entry.base}
    bases |= {id(entry.group): entry.group for entry in entries if entry.group.method == "base"}
    if len(bases) != 1 or not (statistic := next(iter(bases.values())).statistic("last_acc")):
        return None
    return Rule("base", Look.of(BASE), str(statistic), statistic.mean)


def _row(name: str, look: Look, entry: Comparison, *, has_own_base: bool) -> Row:
    statistic = entry.group.statistic("last_acc")
    assert statistic, "only settings with a last epoch are drawn"
    values = tuple(row.last_acc for row in entry.group.finished if row.last_acc is not None)
    low, high = statistic.interval() or (statistic.mean, statistic.mean)
    base = entry.base.statistic("last_acc") if entry.base and has_own_base else None
    return Row(
        f"{name} (n={statistic.n})", look, str(statistic), values[:MAX_DOTS], statistic.mean,
        max(low, 0.0), min(high, 100.0), base.mean if base else None,
    )  # fmt: skip


# Accuracy against cost.


def draw_costs(facts: Facts, found: Sequence[Pair]) -> Iterator[Figure]:
    """Accuracy against the seconds and the parameters of a run, one figure per dataset."""
    for dataset in list(dict.fromkeys(pair.dataset for pair in found))[:MAX_PAIRS]:
        own = [(pair, entry) for pair in found if pair.dataset == dataset for entry in pair.entries]
        own = [(pair, entry) for pair, entry in own if entry.group.statistic("last_acc")]
        taught = [entry for _, entry in own if _is_teacher(facts, entry.group)][:2]
        others = [entry for _, entry in own if entry not in taught]
        kept_ids = {id(entry) for entry in [*taught, *choose_settings(others, MAX_SERIES - len(taught))]}
        kept = [(pair, entry) for pair, entry in own if id(entry) in kept_ids]
        if kept and (figure := _draw_costs(facts, dataset, kept, len(own))):
            yield figure


def _draw_costs(facts: Facts, dataset: str, kept: Sequence[tuple[Pair, Comparison]], total: int) -> Figure | None:
    entries, title = [entry for _, entry in kept], title_of(dataset)
    names, shared = name_settings(complete_labels([pair.label(entry) for pair, entry in kept], entries))
    names = [f"{models.title(pair.student)} {name}" for (pair, _), name in zip(kept, names, strict=True)]
    teachers = {id(entry): TEACHER for entry in entries if _is_teacher(facts, entry.group)}
    names = [f"{name} (teacher)" if id(entry) in teachers else name for name, entry in zip(names, entries, strict=True)]
    looks = kept[0][0].choose_looks(entries, teachers)
    panels = []
    for column, name, unit in (("seconds", "training time of one run", "s"), ("params", "parameters", "")):
        series = zip(names, looks, entries, strict=True)
        points = [point for label, look, entry in series if (point := _point(label, look, entry.group, column, unit))]
        if points:
            panels.append(_cost_chart(f"{title}: accuracy against {name}", name, unit, points))
    caption = (
        "Marks: means over the finished runs, after the last epoch; bars: ± 1 sample standard deviation. A star marks "
        "a teacher."
    )
    if len({row.device for entry in entries for row in entry.group.finished}) > 1:
        caption += " The runs used several kinds of devices, so their times are not comparable."
    caption += shared + _describe_omitted(len(kept), total)
    return Figure(f"cost-{dataset}", title, caption, tuple(panels)) if panels else None


def _cost_chart(title: str, name: str, unit: str, points: Sequence[Point]) -> Chart:
    values = [point.x for point in points]
    is_log = min(values) > 0 and max(values) / min(values) > 8
    x = f"{name}{f', {unit}' if unit else ''}{' (log scale)' if is_log else ''}"
    description = "; ".join(f"{point.label}: {point.note}" for point in points)
    return _charts.draw_scatter(ChartText(title, description, x, ACCURACY), points, is_log=is_log)


def _point(label: str, look: Look, group: Group, column: str, unit: str) -> Point | None:
    x, y = group.statistic(column), group.statistic("last_acc")
    if x is None or y is None:
        return None
    at = f"{x.mean:,.1f} {unit}" if unit else format_number(x.mean)
    return Point(label, look, f"{at}, {y.mean:.2f} % (n={y.n})", x.mean, y.mean, x.std or 0.0, y.std or 0.0)


def _is_teacher(facts: Facts, group: Group) -> bool:
    return any(row.trial_id in facts.teacher_ids for row in group.rows)
