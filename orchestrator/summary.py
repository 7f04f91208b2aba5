"""Statistics over the seeds of one setting: groups of runs, their means and intervals, their differences to `base`."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from orchestrator import models
from orchestrator.datasets import DATASETS
from orchestrator.errors import StorageError
from orchestrator.records import State, TrialRecord

# What is summarised: column of `trials` → unit.
METRICS: Mapping[str, str] = {
    "acc": "%",
    "last_acc": "%",
    "selected_acc": "%",
    "top5": "%",
    "agreement": "%",
    "seconds": "s",
    "images_per_second": "images/s",
}

# Settings of a teacher or of the distillation, which a run without a teacher has not.
_OF_TEACHING = ("teacher", "options", "weights")
_HOW_RUN = ("teacher_answers", "arithmetic")  # how a trial was run, not what it is
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Statistic:
    """Mean and sample standard deviation (n − 1) over n runs; `std` is None for a single one."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def over(cls, values: Sequence[float]) -> Statistic | None:
        """That of some values; None where there are none."""
        if not values:
            return None
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the mean, by Student's t with n − 1 degrees; None for a single run."""
        if self.std is None:
            return None
        from scipy.special import stdtrit  # takes a third of a second, and few ask

        half = float(stdtrit(self.n - 1, (1 + _CONFIDENCE) / 2)) * self.std / math.sqrt(self.n)
        return self.mean - half, self.mean + half

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ± {self.std:.2f}"
        return f"{self.mean:.2f}{spread} (n={self.n})"


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone."""

    label: str
    rows: tuple[TrialRecord, ...]

    @property
    def method(self) -> str:
        """What its runs were trained with."""
        return self.rows[0].method

    @property
    def finished(self) -> list[TrialRecord]:
        """The runs that count."""
        return [row for row in self.rows if row.state is State.FINISHED]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What its runs have in common and others may not: everything but the seeds."""
        return _settings(self.rows[0])

    def statistic(self, column: str) -> Statistic | None:
        """Over the finished runs; None where there are none, or where the column is empty."""
        return Statistic.over([value for _, value in self._values(column)])

    def by_seed(self, column: str) -> dict[int, float]:
        """The mean of a column for each seed of the student, of which there may be several with other teachers."""
        values: dict[int, list[float]] = {}
        for seed, value in self._values(column):
            values.setdefault(seed, []).append(value)
        return {seed: statistics.fmean(found) for seed, found in values.items()}

    def _values(self, column: str) -> Iterator[tuple[int, float]]:
        """Seed and value of each finished run that has one; what is no finite number has no mean."""
        for row in self.finished:
            value = getattr(row, column)
            if value is not None and math.isfinite(value):
                yield row.seed, value

    def difference(self, base: Group, column: str) -> Statistic | None:
        """Its paired difference to another group: over the seeds that both have, ours less theirs."""
        ours, theirs = self.by_seed(column), base.by_seed(column)
        return Statistic.over([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


@dataclass(frozen=True)
class PairTable:
    """All runs of one student under one teacher on one dataset."""

    dataset: str
    student: str
    teacher: str | None
    groups: tuple[Group, ...]

    @property
    def title(self) -> str:
        """As published, like `ResNet20>>20/Cifar10 (92.5)`: teacher's depth, student's depth, mean acc."""
        return f"{self.name} ({self._means()})"

    @property
    def name(self) -> str:
        """The title without figures."""
        student = models.parse(self.student)
        pair = f"{student.title}{student.depth}"
        if self.teacher:
            teacher = models.parse(self.teacher)
            pair = f"{teacher.title}{teacher.depth}>>{student.depth}"
        return f"{pair}/{DATASETS[self.dataset].title}"

    def _means(self) -> str:
        means = [(group.label, group.statistic("acc")) for group in self.groups]
        if len(means) == 1:
            return f"{means[0][1].mean:.1f}" if means[0][1] else "-"
        # Several methods or settings are not one result, so each has its own mean.
        return ", ".join(f"{label} {statistic.mean:.1f}" if statistic else f"{label} -" for label, statistic in means)


def tables(rows: Iterable[TrialRecord]) -> list[PairTable]:
    """Rows sorted into tables, and within a table into groups that differ in their seeds alone."""
    pairs: dict[tuple[str, str, str | None], list[TrialRecord]] = {}
    for row in rows:
        pairs.setdefault((row.dataset, row.student, row.teacher), []).append(row)
    return [PairTable(*pair, _groups(members)) for pair, members in pairs.items()]


@dataclass(frozen=True, slots=True)
class Compared:
    """A group of some table, and the group without a teacher that it is to be compared with, where there is one."""

    table: PairTable
    group: Group
    base: Group | None


def compared(found: Sequence[PairTable]) -> list[Compared]:
    """Every group of some tables beside its `base`: the same student, data and training, without a teacher."""
    bases = {_key_of_base(table, group): group for table in found for group in table.groups if group.method == "base"}
    return [
        Compared(table, group, None if group.method == "base" else bases.get(_key_of_base(table, group)))
        for table in found
        for group in table.groups
    ]


def _key_of_base(table: PairTable, group: Group) -> tuple[str, str, str]:
    own = {
        name: value for name, value in group.settings.items() if name != "method" and not name.startswith(_OF_TEACHING)
    }
    return table.dataset, table.student, json.dumps(own, sort_keys=True)


# One row of `summary`, a group and a metric: name → (type, meaning).
SUMMARY_COLUMNS: Mapping[str, tuple[str, str]] = {
    "dataset": ("string", "what was trained on"),
    "student": ("string", "the model that was trained"),
    "teacher": ("string", "the teacher's model; null without one"),
    "method": ("string", "base, logit or st"),
    "setting": ("string", "the method, and what tells its runs from others of the same pair"),
    "metric": ("string", f"the column of trials that is summarised: {', '.join(METRICS)}"),
    "runs": ("int", "trials of this setting, in whatever state"),
    "n": ("int", "finished trials that have the metric: those in the mean"),
    "mean": ("float", "mean over those"),
    "std": ("float", "sample standard deviation (n − 1); null for a single run"),
    "low": ("float", "lower end of the mean's 95 % confidence interval (Student's t); null for a single run"),
    "high": ("float", "its upper end"),
    "diff_n": ("int", "seeds that base, the same training without a teacher, has too; null where there is none"),
    "diff": ("float", "mean of the differences to base on the same seeds"),
    "diff_std": ("float", "their sample standard deviation"),
    "diff_low": ("float", "lower end of the 95 % confidence interval of diff; with 0 in it, no difference is shown"),
    "diff_high": ("float", "its upper end"),
}


def summaries(rows: Iterable[TrialRecord]) -> Iterator[dict[str, Any]]:
    """Rows with the columns of `SUMMARY_COLUMNS`; a metric that no run of a group has is left out."""
    for entry in compared(tables(rows)):
        table, group = entry.table, entry.group
        names = (table.dataset, table.student, table.teacher, group.method, group.label)
        for metric in METRICS:
            own = group.statistic(metric)
            if own is None:
                continue
            difference = group.difference(entry.base, metric) if entry.base else None
            values = (*names, metric, len(group.rows), *_figures(own), *_figures_of_difference(difference))
            yield dict(zip(SUMMARY_COLUMNS, values, strict=True))


def _figures(found: Statistic) -> tuple[float | None, ...]:
    return found.n, found.mean, found.std, *(found.interval() or (None, None))


def _figures_of_difference(found: Statistic | None) -> tuple[float | None, ...]:
    return _figures(found) if found else (None,) * 5


def _groups(rows: Sequence[TrialRecord]) -> tuple[Group, ...]:
    settings: dict[str, dict[str, Any]] = {}
    members: dict[str, list[TrialRecord]] = {}
    for row in rows:
        flat = _settings(row)
        key = json.dumps(flat, sort_keys=True)
        settings[key] = flat
        members.setdefault(key, []).append(row)
    labels = _labels(list(settings.values()))
    return tuple(Group(label, tuple(found)) for label, found in zip(labels, members.values(), strict=True))


def _settings(row: TrialRecord) -> dict[str, Any]:
    """What distinguishes one result from another: everything but the seeds, the teacher's included."""
    flat: dict[str, Any] = {"method": row.method}
    for name, value in _recipe(row).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items() if inner is not None}
        elif value is not None:  # a row of an older version may lack what a newer one leaves open
            flat[name] = value
    for name in ("teacher.seed", *_HOW_RUN):
        flat.pop(name, None)
    return flat


def _recipe(row: TrialRecord) -> dict[str, Any]:
    try:
        found = json.loads(row.recipe)
    except (ValueError, TypeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise StorageError(
            f"the row of trial {row.trial_id} is damaged: its recipe is no JSON object; launch its study again, which "
            "writes it anew"
        )
    return found


def _labels(settings: Sequence[dict[str, Any]]) -> list[str]:
    """The method, and where that is not enough the settings that differ between groups of the same method."""
    methods = {own["method"] for own in settings}
    differing = {method: _differing([own for own in settings if own["method"] == method]) for method in methods}
    return [
        " ".join([own["method"], *(f"{name}={own.get(name)}" for name in differing[own["method"]])]) for own in settings
    ]


def _differing(rivals: Sequence[dict[str, Any]]) -> list[str]:
    """The settings in which some of these differ, in the order of their names."""
    names = sorted({name for own in rivals for name in own})
    return [name for name in names if len({repr(own.get(name)) for own in rivals}) > 1]
