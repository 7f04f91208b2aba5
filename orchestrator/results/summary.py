"""Statistics over the seeds of one setting: groups of runs, their means and intervals, their differences to `base`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator import models
from orchestrator.data.registry import title_of
from orchestrator.records import State, TrialRecord
from orchestrator.results.store import TRIAL_COLUMNS
from orchestrator.study import labels

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

_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Statistic:
    """Mean and sample standard deviation (n − 1) over n runs; `std` is None for a single one."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def over(cls, values: Sequence[float]) -> Statistic | None:
        """The statistic of some values; None if there are none."""
        if not values:
            return None
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the mean (Student's t, n − 1 degrees of freedom); None for a single run."""
        if self.std is None:
            return None
        from scipy.special import stdtrit  # its import takes a third of a second, and few commands need it

        half = float(stdtrit(self.n - 1, (1 + _CONFIDENCE) / 2)) * self.std / math.sqrt(self.n)
        return self.mean - half, self.mean + half

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ± {self.std:.2f}"
        return f"{self.mean:.2f}{spread} (n={self.n})"


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seeds, and were computed in the same dtype.

    `base` is the label of the same training without a teacher.
    """

    label: str
    base: str
    rows: tuple[TrialRecord, ...]

    @property
    def method(self) -> str:
        """The method of its runs."""
        return self.rows[0].method

    @property
    def finished(self) -> list[TrialRecord]:
        """The finished runs: only these count."""
        return [row for row in self.rows if row.state is State.FINISHED]

    def statistic(self, column: str) -> Statistic | None:
        """The statistic of a column over the finished runs; None without any, or if the column is empty."""
        return Statistic.over([value for _, value in self._values(column)])

    def by_seed(self, column: str) -> dict[int, float]:
        """The mean of a column for each seed; a seed may have several runs, with different teachers."""
        values: dict[int, list[float]] = {}
        for seed, value in self._values(column):
            values.setdefault(seed, []).append(value)
        return {seed: statistics.fmean(found) for seed, found in values.items()}

    def _values(self, column: str) -> Iterator[tuple[int, float]]:
        """Seed and value of each finished run that has a finite value."""
        for row in self.finished:
            value = getattr(row, column)
            if value is not None and math.isfinite(value):
                yield row.seed, value

    def difference(self, base: Group, column: str) -> Statistic | None:
        """Its paired difference to another group: ours minus theirs, over the seeds that both have."""
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
        """As published, like `ResNet20>>20/Cifar10 (92.5)`: teacher, student, dataset, mean acc."""
        return f"{self.name} ({self._means()})"

    @property
    def name(self) -> str:
        """The title without the means."""
        return name_pair(self.dataset, self.student, self.teacher)

    def _means(self) -> str:
        means = [(group.label, group.statistic("acc")) for group in self.groups]
        if len(means) == 1:
            return f"{means[0][1].mean:.1f}" if means[0][1] else "-"
        # Several methods or settings are not one result, so each has its own mean.
        return ", ".join(f"{label} {statistic.mean:.1f}" if statistic else f"{label} -" for label, statistic in means)


def name_pair(dataset: str, student: str, teacher: str | None) -> str:
    """A pair on a dataset, like `ResNet20>>20/Cifar10`; the teacher comes first."""
    pair = models.title(student)
    if teacher:
        pair = f"{models.title(teacher)}>>{models.title_beside(student, teacher)}"
    return f"{pair}/{title_of(dataset)}"


def group_tables(rows: Iterable[TrialRecord]) -> list[PairTable]:
    """Rows sorted into tables, and within a table into groups that differ only in their seeds. Raises StorageError."""
    pairs: dict[tuple[str, str, str | None], list[TrialRecord]] = {}
    for row in rows:
        pairs.setdefault((row.dataset, row.student, row.teacher), []).append(row)
    return [PairTable(*pair, _groups(members)) for pair, members in pairs.items()]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A group of a table, and the group without a teacher that it is compared with, if there is one."""

    table: PairTable
    group: Group
    base: Group | None

    def difference(self, column: str) -> Statistic | None:
        """The paired difference to the base; None without a base on any of the seeds."""
        return self.group.difference(self.base, column) if self.base else None


def compare_to_base(found: Sequence[PairTable]) -> list[Comparison]:
    """Every group of some tables with its `base`: the same student, data and training, without a teacher."""
    bases = {
        (table.dataset, table.student, group.label): group
        for table in found
        for group in table.groups
        if group.method == "base"
    }
    return [
        Comparison(
            table, group, None if group.method == "base" else bases.get((table.dataset, table.student, group.base))
        )
        for table in found
        for group in table.groups
    ]


def compare_by_table(found: Sequence[PairTable]) -> list[tuple[PairTable, list[Comparison]]]:
    """The tables, each with its groups and their bases."""
    entries = iter(compare_to_base(found))
    return [(table, [next(entries) for _ in table.groups]) for table in found]


# One row of `summary`, a group and a metric: name → (type, meaning).
SUMMARY_COLUMNS: Mapping[str, tuple[str, str]] = {
    "study": ("string", "the study whose last plan wants these trials; null for trials that no study wants any more"),
    "dataset": ("string", "what was trained on"),
    "student": ("string", "the model that was trained"),
    "teacher": ("string", "the teacher's model; null without one"),
    "method": TRIAL_COLUMNS["method"],
    "setting": ("string", "the method, then every setting that is no default; ends in bfloat16 where that was chosen"),
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


# One row of `results`, a group as `kdctl results` prints it: name → (type, meaning).
RESULT_COLUMNS: Mapping[str, tuple[str, str]] = {
    **{name: SUMMARY_COLUMNS[name] for name in ("study", "dataset", "student", "teacher", "method", "setting", "runs")},
    "n": ("int", "finished trials: those in the means"),
    "acc": ("float", "mean of the best epoch's test accuracy, picked on the test set"),
    "acc_std": ("float", "sample standard deviation (n − 1); null for a single run"),
    "acc_low": ("float", "lower end of the mean's 95 % confidence interval (Student's t); null for a single run"),
    "acc_high": ("float", "its upper end"),
    "last_acc": ("float", "mean of the last epoch's test accuracy"),
    "last_acc_std": ("float", "its sample standard deviation"),
    "selected_acc": ("float", "mean of the test accuracy at the epoch that was best on held-out images"),
    "selected_acc_std": ("float", "its sample standard deviation"),
    "diff_n": ("int", "seeds that base, the same training without a teacher, has too; null where there is none"),
    "diff": ("float", "mean of the last epoch's differences to base on the same seeds"),
    "diff_low": ("float", "lower end of its 95 % confidence interval; with 0 in it, no difference is shown"),
    "diff_high": ("float", "its upper end"),
}
DIFFERENCE = "last_acc"  # what is compared with base, in `results` and in the report


def summarize_metrics(rows: Iterable[TrialRecord], study: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows with the columns of `SUMMARY_COLUMNS`; a metric that no run of a group has is left out.

    All `rows` belong to one study. Raises StorageError if one is damaged.
    """
    for entry in compare_to_base(group_tables(rows)):
        for metric in METRICS:
            own = entry.group.statistic(metric)
            if own is None:
                continue
            values = (*_names(entry, study), metric, len(entry.group.rows), *_figures(own))
            values += _figures(entry.difference(metric))
            yield dict(zip(SUMMARY_COLUMNS, values, strict=True))


def summarize_results(rows: Iterable[TrialRecord], study: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows with the columns of `RESULT_COLUMNS`: every group of one study, in order, even without finished runs.

    Raises StorageError where a row is damaged.
    """
    for entry in compare_to_base(group_tables(rows)):
        group = entry.group
        n, *own = _figures(group.statistic("acc"))
        last, selected = (_figures(group.statistic(column))[1:3] for column in ("last_acc", "selected_acc"))
        count, difference, _, *interval = _figures(entry.difference(DIFFERENCE))
        values = (*_names(entry, study), len(group.rows), n or 0, *own, *last, *selected, count, difference, *interval)
        yield dict(zip(RESULT_COLUMNS, values, strict=True))


def _names(entry: Comparison, study: str | None) -> tuple[str | None, ...]:
    table, group = entry.table, entry.group
    return study, table.dataset, table.student, table.teacher, group.method, group.label


def _figures(found: Statistic | None) -> tuple[float | None, ...]:
    """n, mean, standard deviation and both ends of the interval."""
    return (found.n, found.mean, found.std, *(found.interval() or (None, None))) if found else (None,) * 5


@dataclass(frozen=True, slots=True)
class _Setting:
    """A row's setting, that of its base, and the dtype of its convolutions, if known."""

    label: str
    base: str
    precision: str
    dtype: str | None

    def in_dtype(self, dtype: str) -> tuple[str, str]:
        """Both labels of runs in this dtype, which names it unless it follows from the setting."""
        suffix = "" if dtype == implied_dtype(self.precision) else f" {dtype}"
        return f"{self.label}{suffix}", f"{self.base}{suffix}"


def implied_dtype(precision: str) -> str:
    """The dtype of convolutions that follows from a setting's precision; rows with another one name theirs."""
    return precision if precision in ("bfloat16", "float16") else "float32"


def _setting_of(row: TrialRecord) -> _Setting:
    recipe = labels.recipe_of(row)
    dtype = recipe.get("arithmetic")
    if dtype is None and row.state is State.FINISHED:
        dtype = "float32"  # an old kdctl that knew no other, or nothing was trained
    return _Setting(labels.of_row(row), labels.base_of_row(row), str(recipe.get("precision")), dtype)


def _groups(rows: Sequence[TrialRecord]) -> tuple[Group, ...]:
    """Rows with one label and one dtype; a run that has not started to train joins the only group of its setting."""
    known: dict[tuple[Any, ...], _Setting] = {}
    found = []
    for row in rows:
        key = (row.method, id(row.recipe), row.nepoch, row.lr, row.batch_size, row.state is State.FINISHED)
        found.append(known.get(key) or known.setdefault(key, _setting_of(row)))
    dtypes: dict[str, set[str]] = {}
    for named in found:
        if named.dtype:
            dtypes.setdefault(named.label, set()).add(named.dtype)
    members: dict[tuple[str, str], list[TrialRecord]] = {}
    for row, named in zip(rows, found, strict=True):
        own = dtypes.get(named.label, ())
        dtype = named.dtype or (next(iter(own)) if len(own) == 1 else implied_dtype(named.precision))
        members.setdefault(named.in_dtype(dtype), []).append(row)
    return tuple(Group(label, base, tuple(own)) for (label, base), own in members.items())
