"""Every setting of a study against every other on shared seeds: paired t-tests, corrected by Holm for their number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import combinations
from statistics import fmean
from typing import Any

from orchestrator.records import TrialRecord
from orchestrator.results.summary import (
    DIFFERENCE,
    SUMMARY_COLUMNS,
    Comparison,
    Group,
    PairTable,
    Statistic,
    compare_by_table,
    group_tables,
)

MAX_GROUPS = 8  # of a pair: up to this number, each is compared with each other
SIGNIFICANCE = 0.05
_NO_SPREAD = 1e-6  # in points: below the steps of any accuracy, above the rounding of their differences


class Verdict(StrEnum):
    """What a comparison shows."""

    BETTER = "better"  # the corrected p value is at most 0.05
    WORSE = "worse"
    UNCORRECTED = "not after correction"  # only the p value of the single test is at most 0.05
    NOT_SHOWN = "not shown"
    NO_SPREAD = "no spread"  # all differences are equal
    ONE_SEED = "one seed"


@dataclass(frozen=True, slots=True)
class Teachers:
    """The teachers behind a comparison, and whether no two of its seeds share one."""

    count: int
    is_one_per_seed: bool

    @property
    def scope(self) -> str:
        """What the interval of the difference covers."""
        if not self.count:
            return "seeds"
        return "seeds and teachers" if self.is_one_per_seed else "seeds, given the teachers"


@dataclass(frozen=True, slots=True)
class Contrast:
    """A setting of a pair against another, or against `base` of the same training; the difference is ours − theirs.

    `p` is that of the paired t-test, two-sided; None for a single seed. `p_holm` is corrected for all tests of the
    study.
    """

    table: PairTable
    group: Group
    other: Group
    is_with_base: bool
    difference: Statistic
    teachers: Teachers
    p: float | None
    p_holm: float | None = None

    @property
    def verdict(self) -> Verdict:
        """What it shows."""
        if self.p is None or self.p_holm is None:
            return Verdict.ONE_SEED
        if not self.difference.std:
            return Verdict.NO_SPREAD
        if self.p_holm <= SIGNIFICANCE:
            return Verdict.BETTER if self.difference.mean > 0 else Verdict.WORSE
        return Verdict.UNCORRECTED if self.p <= SIGNIFICANCE else Verdict.NOT_SHOWN


@dataclass(frozen=True, slots=True)
class ComparedPair:
    """The settings of a pair, each with its `base`, and their comparisons: those with `base` first."""

    table: PairTable
    entries: tuple[Comparison, ...]
    contrasts: tuple[Contrast, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """The comparisons of a study. `tests` is the number that Holm's correction counts.

    It is greater than that of the comparisons where one side was chosen by its results out of several.
    """

    pairs: tuple[ComparedPair, ...]
    tests: int

    @property
    def contrasts(self) -> list[Contrast]:
        """The comparisons of all pairs."""
        return [each for pair in self.pairs for each in pair.contrasts]


def compute_p(difference: Statistic) -> float | None:
    """The two-sided p value of a paired t-test (Student's t, n − 1 degrees of freedom); None for a single pair.

    It is 1 if all differences are equal. The t-test divides by their spread, which would make any such difference
    certain; but accuracies have steps, and so a few equal differences occur by chance.
    """
    if difference.std is None:
        return None
    if difference.std < _NO_SPREAD:
        return 1.0
    from scipy.special import stdtr  # its import takes a third of a second, and few commands need it

    t = abs(difference.mean) / (difference.std / math.sqrt(difference.n))
    return float(2 * stdtr(difference.n - 1, -t))


def correct_holm(p_values: Sequence[float], tests: int) -> list[float]:
    """P values corrected by Holm's step-down method (1979) for a number of tests, of which these may be a part.

    The p values of the other tests count as 1, which can only make the correction stronger.
    """
    corrected, least = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (tests - rank) * p_values[index]))
        corrected[index] = least
    return corrected


def compare_settings(found: Sequence[PairTable]) -> Family:
    """All comparisons of one study, whose tables these are.

    Each setting of a pair is compared with its `base`, and with each other setting if there are at most `MAX_GROUPS`.
    Of more settings, only those without any `base` are compared with each other: with the best of them.
    """
    rows = (row for table in found for group in table.groups for row in group.rows)
    teacher_ids = {row.teacher_id for row in rows if row.teacher_id}
    pairs, unlisted = [], 0
    for table, entries in compare_by_table(found):
        to_base = _compare(table, ((entry.group, entry.base) for entry in entries if entry.base), is_with_base=True)
        groups = [entry.group for entry in entries if not _is_teacher(entry.group, teacher_ids)]
        between = _compare(table, _choose_pairs(groups, has_base=any(entry.base for entry in entries)))
        if between and len(groups) > MAX_GROUPS:
            # The best was chosen by its results, so any two settings could have been compared.
            unlisted += math.comb(len(groups), 2) - sum(each.p is not None for each in between)
        pairs.append(ComparedPair(table, tuple(entries), (*to_base, *between)))
    return _correct(pairs, unlisted)


def _correct(pairs: Sequence[ComparedPair], unlisted: int) -> Family:
    """The same comparisons with corrected p values; that of a single seed is no test."""
    p_values = [each.p for pair in pairs for each in pair.contrasts if each.p is not None]
    tests = len(p_values) + unlisted
    corrected = iter(correct_holm(p_values, tests))

    def correct(contrast: Contrast) -> Contrast:
        return contrast if contrast.p is None else replace(contrast, p_holm=next(corrected))

    return Family(tuple(replace(pair, contrasts=tuple(map(correct, pair.contrasts))) for pair in pairs), tests)


def _choose_pairs(groups: Sequence[Group], *, has_base: bool) -> Iterator[tuple[Group, Group]]:
    """What is compared: a later setting with an earlier one, as with `base`; of many, the best with each other."""
    if len(groups) <= MAX_GROUPS:
        yield from ((later, earlier) for earlier, later in combinations(groups, 2))
    elif not has_base and (best := find_best(groups)):
        yield from ((best, group) for group in groups if group is not best)


def find_best(groups: Iterable[Group]) -> Group | None:
    """The group with the highest mean over its seeds; None where no run has finished."""
    means = [(fmean(values.values()), group) for group in groups if (values := group.by_seed(DIFFERENCE))]
    return max(means, key=lambda pair: pair[0])[1] if means else None


def _is_teacher(group: Group, teacher_ids: set[str]) -> bool:
    """Whether a group is there to teach others: which of two teachers is better is no question of a study."""
    return all(row.trial_id in teacher_ids for row in group.rows)


def _compare(table: PairTable, pairs: Iterable[tuple[Group, Group]], *, is_with_base: bool = False) -> list[Contrast]:
    """The comparisons of some groups; groups without a common seed have none."""
    return [
        Contrast(table, group, other, is_with_base, difference, _find_teachers(group, other), compute_p(difference))
        for group, other in pairs
        if (difference := _find_difference(group, other))
    ]


def _find_difference(group: Group, other: Group) -> Statistic | None:
    """The paired difference; a spread that is only rounding is 0."""
    found = group.difference(other, DIFFERENCE)
    return replace(found, std=0.0) if found and found.std is not None and found.std < _NO_SPREAD else found


def _find_teachers(group: Group, other: Group) -> Teachers:
    """The teachers of two groups, over the seeds that both have."""
    seeds = group.by_seed(DIFFERENCE).keys() & other.by_seed(DIFFERENCE).keys()
    by_seed: dict[int, set[str]] = {seed: set() for seed in seeds}
    for row in (*group.finished, *other.finished):
        if row.seed in seeds and (teacher := row.teacher_id or row.teacher):
            by_seed[row.seed].add(teacher)
    count = len(set().union(*by_seed.values()))
    return Teachers(count, 1 < len(seeds) <= count == sum(map(len, by_seed.values())))


# One row of `comparisons`: name → (type, meaning).
COMPARISON_COLUMNS: Mapping[str, tuple[str, str]] = {
    **{name: SUMMARY_COLUMNS[name] for name in ("study", "dataset", "student", "teacher")},
    "setting": ("string", "a setting, named as in summary"),
    "other": ("string", "the setting that it is compared with; base of the same training comes first"),
    "diff_n": ("int", "seeds that both have"),
    "diff": ("float", "mean of the differences in the last epoch's test accuracy on these: setting minus other"),
    "diff_std": ("float", "their sample standard deviation (n − 1); null for a single seed"),
    "diff_low": ("float", "lower end of the 95 % confidence interval of diff, not corrected"),
    "diff_high": ("float", "its upper end"),
    "p": ("float", "two-sided p value of the paired t-test; null for a single seed, 1 if all differences are equal"),
    "p_holm": ("float", "p after Holm's correction for all comparisons of the study"),
    "verdict": ("string", f"what is shown at 0.05: {', '.join(Verdict)}"),
    "teachers": ("int", "distinct teachers of the runs that are compared; 0 without any"),
    "scope": ("string", "what the interval covers: seeds; seeds, given the teachers; seeds and teachers"),
}


def summarize_comparisons(rows: Iterable[TrialRecord], study: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows with the columns of `COMPARISON_COLUMNS`: all comparisons of one study. Raises StorageError."""
    for each in compare_settings(group_tables(rows)).contrasts:
        table, difference = each.table, each.difference
        values = (
            study, table.dataset, table.student, table.teacher, each.group.label, each.other.label,
            difference.n, difference.mean, difference.std, *(difference.interval() or (None, None)),
            each.p, each.p_holm, each.verdict.value, each.teachers.count, each.teachers.scope,
        )  # fmt: skip
        yield dict(zip(COMPARISON_COLUMNS, values, strict=True))
