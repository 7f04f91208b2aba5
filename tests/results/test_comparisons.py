"""Comparisons of a study: SciPy's p values from raw rows, Holm's correction, what is compared, and false findings."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reported import row, teacher
from scipy import stats

from orchestrator.records import State, TrialRecord
from orchestrator.results.evidence.comparisons import (
    COMPARISON_COLUMNS,
    MAX_GROUPS,
    Contrast,
    Family,
    Verdict,
    compare_settings,
    compute_p,
    correct_holm,
    summarize_comparisons,
)
from orchestrator.results.summary import Statistic, group_tables

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def make_study(accuracies: Mapping[str, Sequence[float]], **overrides: Any) -> list[TrialRecord]:
    """Runs of several methods on a ResNet-8, seeds from 0, by their last accuracies."""
    return [
        row(100 * number + seed, method, acc, seed=seed, **overrides)
        for number, (method, found) in enumerate(accuracies.items(), 1)
        for seed, acc in enumerate(found)
    ]


def make_sweep(accuracies: Iterable[Sequence[float]]) -> list[TrialRecord]:
    """Settings of `st` that differ in their temperature."""
    return [
        row(100 * number + seed, "st", acc, seed=seed, options={"temperature": float(number)})
        for number, found in enumerate(accuracies, 1)
        for seed, acc in enumerate(found)
    ]


def compare(rows: Iterable[TrialRecord]) -> Family:
    return compare_settings(group_tables(rows))


def by_method(family: Family) -> dict[tuple[str, str], Contrast]:
    return {(each.group.method, each.other.method): each for each in family.contrasts}


STUDY = {
    "base": (79.1, 80.3, 78.0, 82.2, 79.4),
    "logit": (89.0, 90.9, 87.7, 92.1, 89.0),
    "st": (90.2, 91.5, 89.9, 93.0, 88.2),
    "kd": (79.9, 80.0, 79.0, 82.4, 79.6),
}


# Each test by itself.


def test_every_comparison_is_scipys_on_the_raw_rows() -> None:
    rows = [teacher(), *make_study(STUDY)]
    random.Random(1).shuffle(rows)
    family = compare(rows)
    assert family.tests == len(family.contrasts) == 6  # 3 with base, 3 with each other
    for (ours, theirs), each in by_method(family).items():
        expected = stats.ttest_rel(STUDY[ours], STUDY[theirs])
        interval = expected.confidence_interval(0.95)
        assert each.p == pytest.approx(expected.pvalue, rel=1e-9)
        assert each.difference.interval() == pytest.approx((interval.low, interval.high), rel=1e-9)
    raw = [each.p for each in family.contrasts]
    assert [each.p_holm for each in family.contrasts] == correct_holm([p for p in raw if p is not None], 6)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=12))
def test_p_is_scipys_for_any_values(pairs: list[tuple[float, float]]) -> None:
    found = Statistic.over([ours - theirs for ours, theirs in pairs])
    assert found and found.std is not None
    if found.std > 1e-3:
        ours, theirs = zip(*pairs, strict=True)
        assert compute_p(found) == pytest.approx(stats.ttest_rel(ours, theirs).pvalue, rel=1e-6, abs=1e-12)


def test_the_p_value_of_two_runs_is_that_of_cauchy() -> None:
    # With 1 degree of freedom, Student's t is Cauchy's distribution: P(|t| ≥ x) = 1 − 2·atan(x) / π.
    assert compute_p(Statistic(3.0, 2.0, 2)) == pytest.approx(1 - 2 * math.atan(3 / math.sqrt(2)) / math.pi)


@pytest.mark.parametrize("difference", [0.0, 1.0, 1.1])
def test_equal_differences_are_no_proof(difference: float) -> None:
    bases = (90.1, 91.7, 92.3)
    family = compare(make_study({"base": bases, "st": [acc + difference for acc in bases]}))
    [only] = family.contrasts
    assert only.difference.std == 0.0  # although subtracting accuracies leaves some rounding
    assert (only.p, only.p_holm, only.verdict) == (1.0, 1.0, Verdict.NO_SPREAD)


def test_a_single_seed_is_no_test() -> None:
    family = compare(make_study({"base": [90.0], "st": [95.0]}))
    [only] = family.contrasts
    assert (only.difference.mean, only.p, only.p_holm, only.verdict) == (5.0, None, None, Verdict.ONE_SEED)
    assert family.tests == 0


@pytest.mark.parametrize(
    ("p", "p_holm", "mean", "verdict"),
    [
        (0.01, 0.05, 1.0, Verdict.BETTER),
        (0.01, 0.05, -1.0, Verdict.WORSE),
        (0.05, 0.051, 1.0, Verdict.UNCORRECTED),
        (0.051, 0.051, 1.0, Verdict.NOT_SHOWN),
    ],
)
def test_a_verdict_needs_the_corrected_p(p: float, p_holm: float, mean: float, verdict: Verdict) -> None:
    [pair] = group_tables(make_study({"st": [90.0], "logit": [91.0]}))
    teachers = compare(make_study({"st": [90.0], "logit": [91.0]})).contrasts[0].teachers
    assert Contrast(pair, *pair.groups, False, Statistic(mean, 1.0, 5), teachers, p, p_holm).verdict is verdict


# Holm's correction.


def test_holms_correction_by_hand() -> None:
    # 0.01 × 4, 0.02 × 3, then 0.03 × 2 = 0.06 and 0.04 × 1, which may not be smaller than those before it.
    assert correct_holm([0.04, 0.01, 0.03, 0.02], 4) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert correct_holm([0.5, 0.4], 2) == [0.8, 0.8] and correct_holm([0.9, 0.7], 2) == [1.0, 1.0]
    assert correct_holm([], 0) == []


@given(P_VALUES, st.integers(0, 50))
def test_the_correction_is_monotone_and_only_raises(p_values: list[float], unlisted: int) -> None:
    corrected = correct_holm(p_values, len(p_values) + unlisted)
    assert all(p <= other <= 1 for p, other in zip(p_values, corrected, strict=True))
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [corrected[index] for index in order] == sorted(corrected)
    assert min(corrected) == min(1.0, min(p_values) * (len(p_values) + unlisted))  # Bonferroni's, for the smallest


@given(P_VALUES, P_VALUES)
def test_unlisted_tests_never_make_the_correction_weaker(listed: list[float], others: list[float]) -> None:
    whole = correct_holm([*listed, *others], len(listed) + len(others))[: len(listed)]
    part = correct_holm(listed, len(listed) + len(others))
    assert all(ours >= theirs - 1e-12 for ours, theirs in zip(part, whole, strict=True))


# What is compared.


def test_a_later_setting_is_compared_with_base_and_with_earlier_ones() -> None:
    found = by_method(compare(make_study(STUDY)))
    assert list(found) == [
        ("logit", "base"), ("st", "base"), ("kd", "base"), ("st", "logit"), ("kd", "logit"), ("kd", "st"),
    ]  # fmt: skip
    assert [each.is_with_base for each in found.values()] == [True] * 3 + [False] * 3
    assert found["st", "base"].difference.mean == pytest.approx(10.76) and found["kd", "st"].difference.mean < 0


def test_only_finished_runs_on_shared_seeds_count() -> None:
    rows = make_study({"base": [90.0, 91.0, 92.0, 50.0], "st": [93.0, 95.0, 96.0]})
    rows += [row(999, "st", 10.0, seed=3, state=State.FAILED)]
    [only] = compare(rows).contrasts
    assert only.difference == Statistic.over([3.0, 4.0, 4.0])


def test_models_and_teachers_are_not_compared_with_each_other() -> None:
    rows = make_study({"base": [90.0, 91.0]}) + make_study({"base": [70.0, 71.0]}, student="resnet_32_14")
    rows += make_study({"st": [91.0, 93.0]}) + make_study({"st": [95.0, 93.0]}, teacher="resnet_32_56")
    assert [each.table.teacher for each in compare(rows).contrasts] == ["resnet_32_20", "resnet_32_56"]


def test_settings_without_a_teacher_are_compared_but_not_teachers() -> None:
    rows = [row(10 * n + seed, acc=90.0 + seed + n**2 * seed, seed=seed, lr=n / 10) for n in (1, 2) for seed in (0, 1)]
    [only] = compare(rows).contrasts
    assert not only.is_with_base and only.difference.n == 2
    taught = [row(100 + seed, "st", 95.0, seed=seed, teacher_id=rows[seed].trial_id) for seed in (0, 1)]
    assert all(each.is_with_base for each in compare([*rows, *taught]).contrasts)


def test_many_settings_are_compared_with_base_alone() -> None:
    draw = random.Random(3)
    sweep = make_sweep([[draw.gauss(90, 1) for _ in range(3)] for _ in range(MAX_GROUPS + 1)])
    family = compare([*make_study({"base": [80.0, 81.0, 79.0]}), *sweep])
    assert family.tests == len(family.contrasts) == MAX_GROUPS + 1
    assert all(each.is_with_base for each in family.contrasts)


def test_the_best_of_many_counts_as_every_pair() -> None:
    draw = random.Random(4)
    values = [[draw.gauss(90, 1) for _ in range(3)] for _ in range(MAX_GROUPS + 2)]
    values[5] = [99.0, 98.0, 99.5]
    family = compare(make_sweep(values))
    assert {each.group.label for each in family.contrasts} == {"st temperature=6 epochs=10 batch_size=32"}
    assert len(family.contrasts) == MAX_GROUPS + 1
    assert family.tests == len(list(combinations(values, 2)))
    assert min(each.p_holm or 0 for each in family.contrasts) >= family.tests * min(
        each.p or 0 for each in family.contrasts
    )


# Teachers.


def teach(ids: Iterable[tuple[int, str]]) -> Contrast:
    """`st` against `base`, for some pairs of a seed and a teacher."""
    taught = [row(100 + no, "st", 90.0 + no, seed=seed, teacher_id=name) for no, (seed, name) in enumerate(ids)]
    return by_method(compare([*make_study({"base": [80.0, 82.0, 83.0]}), *taught]))["st", "base"]


@pytest.mark.parametrize(
    ("ids", "count", "scope"),
    [
        ([(0, "a"), (1, "a"), (2, "a")], 1, "seeds, given the teachers"),
        ([(0, "a"), (0, "b"), (1, "a"), (1, "b")], 2, "seeds, given the teachers"),
        ([(0, "a"), (1, "b"), (2, "a")], 2, "seeds, given the teachers"),
        ([(0, "a"), (1, "b"), (2, "c")], 3, "seeds and teachers"),
        ([(0, "a"), (0, "b"), (1, "c"), (1, "d")], 4, "seeds and teachers"),
        ([(0, "a"), (1, "a"), (7, "b")], 1, "seeds, given the teachers"),  # base has no seed 7
        ([(0, "a")], 1, "seeds, given the teachers"),
    ],
)
def test_an_interval_covers_teachers_only_if_no_seeds_share_one(
    ids: list[tuple[int, str]], count: int, scope: str
) -> None:
    found = teach(ids)
    assert (found.teachers.count, found.teachers.scope) == (count, scope)
    assert found.difference.n == len({seed for seed, _ in ids} - {7})  # a seed counts once, whatever its teachers


def test_without_teachers_an_interval_covers_seeds() -> None:
    rows = [row(10 * n + seed, acc=90.0 + seed * n, seed=seed, lr=n / 10) for n in (1, 2) for seed in (0, 1)]
    assert compare(rows).contrasts[0].teachers.scope == "seeds"


# Rows of the view.


def test_a_row_has_every_column_with_its_type() -> None:
    lines = list(summarize_comparisons([*make_study(STUDY), row(999, "at", 90.0, seed=0)], "s"))
    kinds = {"string": str, "int": int, "float": (float, type(None))}
    assert len(lines) == 10 and all(list(line) == list(COMPARISON_COLUMNS) for line in lines)
    assert all(isinstance(line[name], kinds[kind]) for line in lines for name, (kind, _) in COMPARISON_COLUMNS.items())
    [single] = [line for line in lines if line["verdict"] == "one seed" and line["other"].startswith("base")]
    assert (single["diff_n"], single["diff_std"], single["diff_low"], single["p"], single["p_holm"]) == (1, *[None] * 4)


# How often a study in which nothing differs shows a difference.


def count_findings(rows: Iterable[TrialRecord]) -> tuple[bool, bool]:
    """Whether any comparison of a study shows a difference, with and without the correction."""
    found = compare(rows).contrasts
    return any(each.verdict in (Verdict.BETTER, Verdict.WORSE) for each in found), any(
        (each.p or 1) <= 0.05 for each in found
    )


@pytest.mark.parametrize(("seeds", "images"), [(3, 10_000), (5, 10_000), (2, 360)])
def test_at_most_one_study_in_twenty_shows_what_is_not_there(seeds: int, images: int) -> None:
    """Four methods and base, equally good; few test images, of which differences are multiples."""
    draw, repeats = random.Random(7), 200
    findings = [
        count_findings(
            make_study(
                {
                    method: [100 * round(images * draw.gauss(0.9, 0.01)) / images for _ in range(seeds)]
                    for method in ("base", "logit", "st", "kd", "at")
                }
            )
        )
        for _ in range(repeats)
    ]
    corrected, single = (sum(column) / repeats for column in zip(*findings, strict=True))
    assert corrected <= 0.05 + 2.6 * math.sqrt(0.05 * 0.95 / repeats)  # 99.5 % of studies at exactly 5 %
    assert single > 0.1  # of ten comparisons
