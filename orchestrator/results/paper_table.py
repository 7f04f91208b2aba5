"""The table of a paper: methods as rows, pairs and datasets as columns, with the teacher and `base` among the rows.

It consists of values; what writes it as text, Markdown, LaTeX or HTML decides how a mark looks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

from orchestrator.records import TrialRecord
from orchestrator.results.summary import (
    DIFFERENCE,
    Comparison,
    Group,
    PairTable,
    Statistic,
    compare_to_base,
    group_tables,
    implied_dtype,
    name_pair,
)
from orchestrator.study import fields, labels
from orchestrator.study.labels import Setting

# Column of `trials` → what the group of columns with its means is called.
COLUMN_GROUPS: Mapping[str, str] = {"acc": "best epoch", "last_acc": "last epoch", "selected_acc": "selected epoch"}
TEACHER = "teacher"  # the name of its row
BASE = "base"
_ALWAYS = ("acc", "last_acc")  # there before they have values
_DTYPE = "compute dtype"

Settings = tuple[tuple[str, str], ...]  # name and value


class Mark(StrEnum):
    """How a cell compares with the best of its column.

    The test is the 95 % interval of the mean difference between the two, paired over the seeds that both have. Each
    comparison stands for itself: nothing corrects for how many there are.
    """

    BEST = "best"
    TIED = "not distinguishable"  # the interval contains 0
    WORSE = "worse"  # it does not
    UNKNOWN = "unknown"  # they share fewer than two seeds, or their differences are all equal


@dataclass(frozen=True, slots=True)
class Column:
    """One student under one teacher on one dataset; a model that nobody teaches has no teacher."""

    dataset: str
    student: str
    teacher: str | None

    @property
    def name(self) -> str:
        """Like `ResNet20>>8/Digits`: teacher, student, dataset."""
        return name_pair(self.dataset, self.student, self.teacher)


@dataclass(frozen=True, slots=True)
class Cell:
    """A statistic of a row in a column. A teacher, and what has nothing to be compared with, has no mark."""

    statistic: Statistic | None
    mark: Mark | None = None


@dataclass(frozen=True)
class Row:
    """A method, with those of its settings that differ between rows.

    `comparisons` has its runs in each column, and those of `base`; None where it has none.
    """

    method: str
    settings: Settings
    comparisons: tuple[Comparison | None, ...]
    cells: Mapping[str, tuple[Cell, ...]]  # metric → one for each column

    @property
    def name(self) -> str:
        """Like `st (temperature = 4, lr = 0.05)`."""
        settings = ", ".join(f"{name} = {value}" for name, value in self.settings)
        return f"{self.method} ({settings})" if settings else self.method

    @property
    def is_teacher(self) -> bool:
        """Whether it is the row of a teacher: its runs are those of the teachers themselves."""
        return self.method == TEACHER


@dataclass(frozen=True, slots=True)
class SharedSetting:
    """A setting that is not at its default, and that no row names, as it has one value in each column.

    `methods` are those that have it, empty for all. A value is None where none of them has it.
    """

    name: str
    methods: tuple[str, ...]
    values: tuple[str | None, ...]


@dataclass(frozen=True)
class PaperTable:
    """The results of one study. `metrics` are the groups of its columns; `left_out` counts the rows dropped from it."""

    metrics: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    shared: tuple[SharedSetting, ...]
    left_out: int = 0

    @cached_property
    def marks(self) -> frozenset[Mark]:
        """The marks of its cells."""
        cells = (cell for row in self.rows for metric in self.metrics for cell in row.cells[metric])
        return frozenset(cell.mark for cell in cells if cell.mark)

    @cached_property
    def names(self) -> Mapping[tuple[str, str, str], str]:
        """The names of its students' rows, by the dataset, the student and the label of their runs."""
        entries = ((row, entry) for row in self.rows for entry in row.comparisons if entry and not row.is_teacher)
        return {(entry.table.dataset, entry.table.student, entry.group.label): row.name for row, entry in entries}

    def keep_best(self, limit: int) -> PaperTable:
        """At most `limit` rows in their order: those with the best last epoch in some column, and one `base`.

        A quarter of them may be teachers.
        """
        if len(self.rows) <= limit:
            return self
        places = self._find_places()
        ranked = sorted(self.rows, key=lambda row: places[id(row)])
        teachers = [row for row in ranked if row.is_teacher][: limit // 4]
        bases = [row for row in ranked if row.method == BASE][:1]
        kept = {id(row) for row in (*teachers, *bases)}
        others = [row for row in ranked if not row.is_teacher and id(row) not in kept]
        kept |= {id(row) for row in others[: limit - len(kept)]}
        rows = tuple(row for row in self.rows if id(row) in kept)
        return replace(self, rows=rows, left_out=self.left_out + len(self.rows) - len(rows))

    def _find_places(self) -> dict[int, float]:
        """The best place of each row among those of its columns, by the id of the row."""
        places = {id(row): math.inf for row in self.rows}
        for number in range(len(self.columns)):
            found = [(row.cells[DIFFERENCE][number].statistic, id(row)) for row in self.rows]
            means = [(statistic.mean, row) for statistic, row in found if statistic]
            for place, (_, row) in enumerate(sorted(means, key=lambda pair: -pair[0])):  # equal ones as they stand
                places[row] = min(places[row], place)
        return places


def build_paper_table(rows: Iterable[TrialRecord]) -> PaperTable:
    """The table of one study, whose rows these are. Raises StorageError where one is damaged."""
    study = _Study(tuple(group_tables(rows)))
    columns = study.find_columns()
    students = [list(study.list_students(column)) for column in columns]
    teachers = [list(study.list_teachers(entries)) for entries in students]
    metrics = tuple(name for name in COLUMN_GROUPS if name in _ALWAYS or _has_values(students, name))
    varying = _find_varying(students)
    made = [
        *_make_rows(teachers, _find_varying(teachers), metrics),
        *_mark_rows(_make_rows(students, varying, metrics), metrics),
    ]
    return PaperTable(metrics, columns, tuple(made), tuple(_find_shared(students, varying)))


# What is in a column.


@dataclass(frozen=True, slots=True)
class _Entry:
    """The runs of one setting in a column, or the teachers of one."""

    method: str
    setting: Setting
    statistics: Mapping[str, Statistic | None]
    comparison: Comparison | None


@dataclass(frozen=True)
class _Study:
    """The runs of a study by pair."""

    tables: tuple[PairTable, ...]

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Its groups, each with its base."""
        return compare_to_base(self.tables)

    @cached_property
    def runs(self) -> dict[str, tuple[PairTable, TrialRecord]]:
        """Its rows by trial id, each with its pair."""
        return {row.trial_id: (each.table, row) for each in self.comparisons for row in each.group.rows}

    @cached_property
    def teacher_ids(self) -> set[str]:
        """The trials that taught others, and the members of ensembles."""
        rows = [row for _, row in self.runs.values()]
        members = {
            (row.dataset, member.get("student"), member.get("seed"))
            for row in rows
            for member in row.recipe.get("members") or ()
        }
        found = {row.trial_id for row in rows if (row.dataset, row.student, row.seed) in members}
        return found.union(row.teacher_id for row in rows if row.teacher_id)

    def is_teacher(self, group: Group) -> bool:
        """Whether all of its runs are teachers."""
        return all(row.trial_id in self.teacher_ids for row in group.rows)

    def find_columns(self) -> tuple[Column, ...]:
        """Every pair. Without a teacher, only models that are not students or teachers elsewhere in the table."""
        taught = {(table.dataset, table.student) for table in self.tables if table.teacher}
        columns = [
            Column(table.dataset, table.student, table.teacher)
            for table in self.tables
            if table.teacher
            or ((table.dataset, table.student) not in taught and not all(map(self.is_teacher, table.groups)))
        ]
        datasets = list(dict.fromkeys(column.dataset for column in columns))
        return tuple(sorted(columns, key=lambda column: datasets.index(column.dataset)))

    def list_students(self, column: Column) -> Iterator[_Entry]:
        """The groups of a column, those of `base` first."""
        of_student = [
            each
            for each in self.comparisons
            if (each.table.dataset, each.table.student) == (column.dataset, column.student)
        ]
        own = [each for each in of_student if each.table.teacher == column.teacher]
        bases = {id(each.base) for each in own}
        # A teacher may be of the student's model, but trained in another way.
        alone = [each for each in of_student if each.table.teacher is None and column.teacher]
        yield from (_describe(each) for each in alone if id(each.group) in bases or not self.is_teacher(each.group))
        yield from map(_describe, own)

    def list_teachers(self, students: Sequence[_Entry]) -> Iterator[_Entry]:
        """The teachers of a column's groups; those that differ only in their seeds are one entry."""
        found: dict[str, tuple[Setting, dict[str, float | None]]] = {}
        for entry in students:
            rows = [row for row in entry.comparison.group.rows if row.teacher_id] if entry.comparison else []
            if rows:
                setting = labels.teacher_setting_of_row(rows[0])  # its own label names it
                _, accuracies = found.setdefault(setting.label, (setting, {}))
                for row in rows:
                    accuracies[row.teacher_id or ""] = accuracies.get(row.teacher_id or "") or row.teacher_acc
        return (self._describe_teachers(setting, accuracies) for setting, accuracies in found.values())

    def _describe_teachers(self, setting: Setting, accuracies: Mapping[str, float | None]) -> _Entry:
        """Teachers by their ids, with the accuracies of the weights that taught."""
        runs = [self.runs[trial_id] for trial_id in accuracies if trial_id in self.runs]
        rows = {row.trial_id: row for _, row in runs}
        group = Group(setting.label, setting.label, tuple(rows.values())) if rows else None
        statistics = {metric: group.statistic(metric) if group else None for metric in COLUMN_GROUPS}
        last = [
            rows[trial_id].last_acc if acc is None and trial_id in rows else acc for trial_id, acc in accuracies.items()
        ]
        statistics["last_acc"] = Statistic.over([acc for acc in last if acc is not None and math.isfinite(acc)])
        return _Entry(TEACHER, setting, statistics, Comparison(runs[0][0], group, None) if group else None)


def _describe(entry: Comparison) -> _Entry:
    group = entry.group
    setting = labels.setting_of_row(group.rows[0])
    dtype = group.label.removeprefix(setting.label).strip()
    implied = implied_dtype(setting.values["precision"])
    changed = (*setting.changed, *([_DTYPE] if dtype else []))
    setting = Setting(group.label, {**setting.values, _DTYPE: dtype or implied}, changed)
    return _Entry(group.method, setting, {metric: group.statistic(metric) for metric in COLUMN_GROUPS}, entry)


def _has_values(columns: Sequence[Sequence[_Entry]], metric: str) -> bool:
    return any(entry.statistics[metric] for entries in columns for entry in entries)


# From entries to rows.


def _find_varying(columns: Sequence[Sequence[_Entry]]) -> dict[str, list[str]]:
    """The settings by which the rows of each method are told apart, in the order of a study file.

    Keys of the recipe count if any two entries of a column differ in them, others if two of the same method do.
    """
    every = [entry.setting for entries in columns for entry in entries]
    changed = {name for setting in every for name in setting.changed}  # the others follow from these
    known = dict.fromkeys(name for setting in every for name in setting.values)
    names = sorted((name for name in known if name in changed), key=_find_part)
    found: dict[str, set[str]] = {}
    for entries in columns:
        methods: dict[str, list[_Entry]] = {}
        for entry in entries:
            methods.setdefault(entry.method, []).append(entry)
        shared = {name for name in names if name in (*fields.RECIPE_KEYS, _DTYPE) and _differ(name, entries)}
        for method, own in methods.items():
            found.setdefault(method, set()).update(shared, (name for name in names if _differ(name, own)))
    return {method: [name for name in names if name in own] for method, own in found.items()}


def _find_part(name: str) -> int:
    """The part of a label that a setting belongs to: options, recipe, teacher."""
    return 2 if name.startswith("teacher.") else int(name in (*fields.RECIPE_KEYS, _DTYPE))


def _differ(name: str, entries: Iterable[_Entry]) -> bool:
    """Whether entries differ in a setting; for one of the teacher, other than by following that of the student."""
    settings = [entry.setting.values for entry in entries]
    if name == "teacher_cache":
        settings = [own for own in settings if name in own]  # `base` has none
    follows = name.startswith("teacher.") and all(own.get(name) == own.get(name[8:]) for own in settings)
    return len({own.get(name) for own in settings}) > 1 and not follows


def _make_rows(
    columns: Sequence[Sequence[_Entry]], varying: Mapping[str, Sequence[str]], metrics: Sequence[str]
) -> list[Row]:
    """One row for each method and the settings that vary; `base` first, then the methods in their order."""
    grid: dict[tuple[str, Settings], list[_Entry | None]] = {}
    for number, entries in enumerate(columns):
        for entry in entries:
            values = entry.setting.values
            settings = tuple((name, values[name]) for name in varying[entry.method] if name in values)
            grid.setdefault((entry.method, settings), [None] * len(columns))[number] = entry
    methods = list(dict.fromkeys([BASE, *(method for method, _ in grid)]))
    return [
        Row(
            method,
            settings,
            tuple(entry.comparison if entry else None for entry in own),
            {name: tuple(Cell(entry.statistics[name] if entry else None) for entry in own) for name in metrics},
        )
        for (method, settings), own in sorted(grid.items(), key=lambda item: methods.index(item[0][0]))
    ]


def _mark_rows(rows: Sequence[Row], metrics: Sequence[str]) -> Iterator[Row]:
    """The rows with the marks of their cells."""
    columns = range(len(rows[0].comparisons) if rows else 0)
    marks = {metric: [_compare_with_best(rows, metric, number) for number in columns] for metric in metrics}
    for index, row in enumerate(rows):
        cells = {
            metric: tuple(replace(cell, mark=marks[metric][no][index]) for no, cell in enumerate(row.cells[metric]))
            for metric in metrics
        }
        yield replace(row, cells=cells)


def _compare_with_best(rows: Sequence[Row], metric: str, number: int) -> list[Mark | None]:
    """The marks of one column; none if it has a single value, which is not the best of anything."""
    found = [row.cells[metric][number].statistic for row in rows]
    means = [statistic.mean for statistic in found if statistic]
    if len(means) < 2:
        return [None] * len(rows)
    highest = max(means)
    best = next(no for no, statistic in enumerate(found) if statistic and statistic.mean == highest)
    return [
        None
        if statistic is None
        else Mark.BEST
        if statistic.mean == highest
        else _compare(rows[best].comparisons[number], row.comparisons[number], metric)
        for row, statistic in zip(rows, found, strict=True)
    ]


def _compare(best: Comparison | None, other: Comparison | None, metric: str) -> Mark:
    difference = best.group.difference(other.group, metric) if best and other else None
    interval = difference.interval() if difference and difference.std else None
    if interval is None:
        return Mark.UNKNOWN
    return Mark.TIED if interval[0] <= 0 <= interval[1] else Mark.WORSE


def _find_shared(columns: Sequence[Sequence[_Entry]], varying: Mapping[str, Sequence[str]]) -> Iterator[SharedSetting]:
    """The settings that are not at their defaults, and that no row names."""
    every = [entry for entries in columns for entry in entries]
    # An option belongs to its method, and methods that have another one of the same name do not matter.
    changed = {(_find_owner(name, entry), name) for entry in every for name in entry.setting.changed}
    found: dict[str, dict[str, list[str | None]]] = {}
    for number, entries in enumerate(columns):
        for entry in entries:
            for name, value in entry.setting.values.items():
                if (_find_owner(name, entry), name) in changed and name not in varying[entry.method]:
                    found.setdefault(name, {}).setdefault(entry.method, [None] * len(columns))[number] = value
    for name, methods in sorted(found.items(), key=lambda item: _find_part(item[0])):
        having = {entry.method for entry in every if name in entry.setting.values}
        for named, values in _merge_methods(methods):
            yield SharedSetting(name, () if having == set(named) else tuple(named), tuple(values))


def _find_owner(name: str, entry: _Entry) -> str | None:
    """The method whose option a setting is; None for settings of all methods."""
    return None if _find_part(name) else entry.method


def _merge_methods(methods: Mapping[str, Sequence[str | None]]) -> list[tuple[list[str], list[str | None]]]:
    """Methods with the same values, wherever they have any."""
    merged: list[tuple[list[str], list[str | None]]] = []
    for method, own in methods.items():
        for named, values in merged:
            if all(None in pair or pair[0] == pair[1] for pair in zip(values, own, strict=True)):
                named.append(method)
                values[:] = [mine or theirs for mine, theirs in zip(values, own, strict=True)]
                break
        else:
            merged.append(([method], list(own)))
    return merged
