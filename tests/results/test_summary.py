"""Statistics over seeds: closed forms, scipy's intervals, pairs on the same seeds, and the base of each."""

from __future__ import annotations

import math
import sys
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from test_tables import row

from orchestrator.records import State, TrialRecord
from orchestrator.results import summary
from orchestrator.results.summary import (
    METRICS,
    SUMMARY_COLUMNS,
    Statistic,
    compare_to_base,
    group_tables,
    summarize_metrics,
)

TEACHER = {"seed": 0, "epochs": 200, "options": {}, "teacher": None}
NUMBERS = st.floats(-1e6, 1e6)


def student(seed: int, acc: float | None, teacher: dict[str, Any] | None = None, **settings: Any) -> TrialRecord:
    """A finished `logit` student; settings are those of its recipe, `state` the row's."""
    state = settings.pop("state", State.FINISHED)
    own = {"epochs": 200, "options": {"ce_weight": 1.0}, "teacher_cache": "auto", "weights": None}
    return row(seed, acc, state=state, recipe={**own, **settings, "teacher": {**TEACHER, **(teacher or {})}})


def base(seed: int, acc: float | None, **settings: Any) -> TrialRecord:
    """The same training without a teacher."""
    own = {"epochs": 200, "options": {}, "teacher_cache": None, "weights": None, "teacher": None}
    state, name = settings.pop("state", State.FINISHED), settings.pop("student", "resnet_32_20")
    dataset = settings.pop("dataset", "cifar10")
    return row(
        seed, acc, method="base", teacher=None, student=name, dataset=dataset, state=state, recipe={**own, **settings}
    )


def found(rows: list[TrialRecord], metric: str = "acc") -> dict[str, dict[str, Any]]:
    """The rows of `summary` of one metric by their setting."""
    return {line["setting"]: line for line in summarize_metrics(rows) if line["metric"] == metric}


# One group.


def test_the_closed_form_of_three_runs() -> None:
    statistic = Statistic.over([1.0, 2.0, 3.0])
    assert statistic == Statistic(2.0, 1.0, 3)
    # Student's t with 2 degrees has a closed form: its 97.5 % quantile is (2·0.975 − 1)·√(2 / (1 − (2·0.975 − 1)²)).
    half = 0.95 * math.sqrt(2 / (1 - 0.95**2)) / math.sqrt(3)
    assert statistic.interval() == pytest.approx((2 - half, 2 + half), rel=1e-12)


def test_the_interval_of_two_runs_is_that_of_cauchy() -> None:
    statistic = Statistic.over([0.0, 2.0])
    assert statistic
    half = math.tan(math.pi * 0.475) * math.sqrt(2) / math.sqrt(2)
    assert statistic.interval() == pytest.approx((1 - half, 1 + half), rel=1e-12)


@given(st.lists(NUMBERS, min_size=2, max_size=30))
def test_the_interval_is_scipys(values: list[float]) -> None:
    statistic = Statistic.over(values)
    assert statistic and statistic.std is not None
    assert statistic.mean == pytest.approx(sum(values) / len(values), abs=1e-6)
    if statistic.std:
        scale = statistic.std / math.sqrt(len(values))
        expected = stats.t.interval(0.95, len(values) - 1, loc=statistic.mean, scale=scale)
        assert statistic.interval() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    else:
        assert statistic.interval() == (statistic.mean, statistic.mean)


def test_nothing_is_no_statistic_and_one_run_has_no_spread() -> None:
    assert Statistic.over([]) is None
    alone = Statistic.over([91.0])
    assert alone == Statistic(91.0, None, 1) and alone.interval() is None


def test_nan_and_infinity_do_not_count() -> None:
    rows = [base(0, 90.0), base(1, math.inf), base(2, math.nan), base(3, None), base(4, 92.0)]
    assert found(rows)["base"]["n"] == 2 and found(rows)["base"]["runs"] == 5
    assert found(rows)["base"]["mean"] == 91.0
    assert group_tables(rows)[0].groups[0].by_seed("acc") == {0: 90.0, 4: 92.0}


@pytest.mark.parametrize("state", [state for state in State if state is not State.FINISHED])
def test_only_finished_runs_count(state: State) -> None:
    line = found([base(0, 90.0), base(1, 10.0, state=state)])["base"]
    assert (line["runs"], line["n"], line["mean"], line["std"], line["low"]) == (2, 1, 90.0, None, None)


def test_a_metric_that_no_run_has_has_no_row() -> None:
    assert {line["metric"] for line in summarize_metrics([base(0, 90.0)])} == {"acc", "last_acc"}
    assert list(summarize_metrics([base(0, 90.0, state=State.FAILED)])) == []
    assert list(summarize_metrics([])) == []


def test_a_row_has_every_column() -> None:
    lines = list(summarize_metrics([base(0, 90.0), base(1, 91.0), student(0, 92.0), student(1, 92.5)]))
    assert all(list(line) == list(SUMMARY_COLUMNS) for line in lines)
    kinds = {"string": (str, type(None)), "int": (int, type(None)), "float": (float, type(None))}
    assert all(isinstance(line[name], kinds[kind]) for line in lines for name, (kind, _) in SUMMARY_COLUMNS.items())
    assert {line["metric"] for line in lines} <= set(METRICS)


# Groups and their names.


def test_a_setting_that_an_older_row_lacks_is_a_default() -> None:
    assert list(found([base(0, 90.0), base(1, 91.0, limit_train=None)])) == ["base"]


def test_the_teacher_mode_is_no_setting() -> None:
    rows = [student(0, 1.0, teacher_answers="table"), student(1, 2.0, teacher_answers="live")]
    assert found(rows)["logit"]["n"] == 2


def test_runs_in_another_dtype_have_another_mean() -> None:
    rows = [
        make(seed, acc, arithmetic=dtype) for make, acc in ((base, 90.0), (student, 91.0)) for seed, dtype in DTYPES
    ]
    lines = found(rows)
    assert {name: line["n"] for name, line in lines.items()} == {
        "base": 1, "base bfloat16": 2, "logit": 1, "logit bfloat16": 2,
    }  # fmt: skip
    assert (lines["logit"]["diff_n"], lines["logit bfloat16"]["diff_n"]) == (1, 2)
    alone = found([student(0, 91.0, arithmetic="bfloat16"), base(0, 90.0, arithmetic="float32")])
    assert alone["logit bfloat16"]["diff_n"] is None


DTYPES = ((0, "float32"), (1, "bfloat16"), (2, "bfloat16"))


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_a_dtype_in_the_setting_is_not_named_twice(half: str) -> None:
    rows = [base(seed, 90.0, precision=half, arithmetic=dtype.replace("bfloat16", half)) for seed, dtype in DTYPES]
    assert {name: line["n"] for name, line in found(rows).items()} == {
        f"base precision={half}": 2, f"base precision={half} float32": 1,
    }  # fmt: skip


def test_a_trial_that_has_not_started_joins_the_only_group_of_its_setting() -> None:
    waiting = base(3, None, state=State.SKIPPED)
    rows = [base(seed, 90.0, arithmetic=dtype) for seed, dtype in DTYPES]
    assert found([waiting, *rows[1:]])["base bfloat16"]["runs"] == 3
    both = found([waiting, *rows])
    assert (both["base"]["runs"], both["base bfloat16"]["runs"]) == (2, 2)
    assert [group.label for group in group_tables([waiting])[0].groups] == ["base"]
    # A finished row without a dtype is from a version of kdctl that knew only one.
    assert found([base(0, 90.0), *rows[1:]])["base"]["n"] == 1


def test_values_that_mean_the_same_are_one_setting() -> None:
    rows = [student(0, 1.0, lr=lr, flip=flip) for lr in (1, 1.0, 0.1) for flip in (True, None, False)]
    labels = [group.label for group in group_tables(rows)[0].groups]
    assert len(labels) == len(set(labels)) == 4
    assert "logit flip=false teacher.flip=true" in labels and "logit lr=1 teacher.lr=0.1" in labels


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "lr": st.sampled_from([None, 0.1, 1.0]), "epochs": st.sampled_from([None, 1, 60]), "flip": st.booleans(),
        "arithmetic": st.sampled_from([None, "float32", "bfloat16"]),
    },
)  # fmt: skip


@given(st.lists(SETTINGS, max_size=8))
def test_groups_are_a_partition_with_a_name_each(settings: list[dict[str, Any]]) -> None:
    rows = [student(seed, float(seed), **own) for seed, own in enumerate(settings)]
    groups = [group for table in group_tables(rows) for group in table.groups]
    assert sorted(member.seed for group in groups for member in group.rows) == list(range(len(rows)))
    assert len({group.label for group in groups}) == len(groups)
    for group in groups:
        alone = {group_tables([member])[0].groups[0].label for member in group.rows}
        assert alone == {group.label}, "the name of a setting depends on what else there is"


# Differences to base.


def test_the_difference_is_paired_on_the_seeds_that_both_have() -> None:
    rows = [base(0, 90.0), base(1, 91.0), base(2, 80.0), student(0, 91.0), student(1, 93.0), student(3, 10.0)]
    line = found(rows)["logit"]
    assert (line["n"], line["diff_n"], line["diff"]) == (3, 2, 1.5)
    assert line["diff_std"] == pytest.approx(math.sqrt(0.5))
    half = math.tan(math.pi * 0.475) * math.sqrt(0.5) / math.sqrt(2)
    assert (line["diff_low"], line["diff_high"]) == pytest.approx((1.5 - half, 1.5 + half))


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=12))
def test_the_difference_is_that_of_a_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    rows = [base(seed, theirs) for seed, (theirs, _) in enumerate(pairs)]
    rows += [student(seed, ours) for seed, (_, ours) in reversed(list(enumerate(pairs)))]
    line = found(rows)["logit"]
    assert line["diff_n"] == len(pairs)
    assert line["diff"] == pytest.approx(sum(ours - theirs for theirs, ours in pairs) / len(pairs), abs=1e-5)
    if line["diff_std"] > 1e-3:
        tested = stats.ttest_rel([ours for _, ours in pairs], [theirs for theirs, _ in pairs])
        expected = tested.confidence_interval(0.95)
        assert (line["diff_low"], line["diff_high"]) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-4)


def test_several_teachers_of_a_seed_are_one_pair() -> None:
    rows = [base(0, 90.0), base(1, 90.0)]
    rows += [student(seed, 91.0 + teacher, {"seed": teacher}) for seed in (0, 1) for teacher in (0, 1, 2)]
    line = found(rows)["logit"]
    assert (line["runs"], line["n"], line["diff_n"]) == (6, 6, 2)
    assert (line["mean"], line["diff"], line["diff_std"]) == (92.0, 2.0, 0.0)


def test_settings_of_distillation_have_the_same_base() -> None:
    rows = [base(0, 90.0), base(1, 90.0)]
    rows += [student(seed, 91.0, teacher_cache="live") for seed in (0, 1)]
    rows += [student(seed, 92.0, options={"ce_weight": 0.0}) for seed in (0, 1)]
    rows += [student(seed, 93.0, {"epochs": 10}) for seed in (0, 1)]
    differences = sorted(line["diff"] for line in found(rows).values() if line["method"] == "logit")
    assert differences == [1.0, 2.0, 3.0]
    assert found(rows)["base"]["diff"] is None


@pytest.mark.parametrize(
    "other", [{"epochs": 100}, {"lr": 0.2}, {"limit_train": 512}, {"student": "resnet_32_8"}, {"dataset": "cifar100"}]
)
def test_another_training_is_no_base(other: dict[str, Any]) -> None:
    rows = [base(0, 90.0, **other), base(1, 91.0, **other), student(0, 92.0), student(1, 93.0)]
    line = found(rows)["logit"]
    assert [line[name] for name in SUMMARY_COLUMNS if name.startswith("diff")] == [None] * 5


def test_each_setting_finds_its_own_base_among_several() -> None:
    rows = [
        make(seed, acc + lr, lr=lr)
        for lr in (1.0, 2.0)
        for make, acc in ((base, 0.0), (student, 5.0))
        for seed in (0, 1)
    ]
    bases = [entry.base and entry.base.label for entry in compare_to_base(group_tables(rows))]
    assert bases == [None, None, "base lr=1", "base lr=2"]
    assert {line["diff"] for line in summarize_metrics(rows) if line["method"] == "logit"} == {5.0}


def test_without_common_seeds_there_is_no_difference() -> None:
    assert found([base(0, 90.0), student(1, 92.0)])["logit"]["diff_n"] is None


def test_the_work_grows_in_proportion_to_the_settings() -> None:
    def lines(count: int) -> int:
        """Counts the lines of the module that run for this many settings."""
        rows = [make(0, 90.0, lr=number / 7) for number in range(count) for make in (base, student)]
        ran = 0

        def tracer(frame: FrameType, event: str, _: object) -> Any:
            nonlocal ran
            if frame.f_code.co_filename != summary.__file__:
                return None
            ran += event == "line"
            return tracer

        before = sys.gettrace()
        sys.settrace(tracer)
        try:
            assert sum(1 for _ in summary.summarize_metrics(rows)) == 4 * count
        finally:
            sys.settrace(before)
        return ran

    assert lines(400) < 4.5 * lines(100)
