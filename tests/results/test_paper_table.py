"""The table of a paper: what its rows, columns and marks are, whatever a study compares."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reported import row, study, teacher
from test_tables import ROWS

from orchestrator.records import State, TrialRecord
from orchestrator.results.paper_table import Column, Mark, PaperTable, SharedSetting, build_paper_table
from orchestrator.results.summary import Statistic, group_tables

TAUGHT = {"seed": 0, "epochs": 10, "batch_size": 32}


def runs(method: str, *accuracies: float, first: int = 1, **overrides: Any) -> list[TrialRecord]:
    """Runs of one setting with the seeds 1, 2, …, and these accuracies after the last epoch."""
    return [row(no, method, acc, seed=no, **overrides) for no, acc in enumerate(accuracies, first)]


def distilled(*accuracies: float, lr: float = 0.1, teacher_recipe: Any = None, **options: Any) -> list[TrialRecord]:
    """The same for `st`, with other settings."""
    recipe = {
        "epochs": 10,
        "batch_size": 32,
        "lr": lr,
        "options": options,
        "teacher": {**TAUGHT, **(teacher_recipe or {})},
    }
    return runs("st", *accuracies, lr=lr, recipe=recipe)


def names(table: PaperTable) -> list[str]:
    return [line.name for line in table.rows]


def marks(table: PaperTable, metric: str = "last_acc") -> dict[str, Mark | None]:
    """The marks of the first column."""
    return {line.name: line.cells[metric][0].mark for line in table.rows}


def test_methods_are_rows_below_their_teacher_and_base() -> None:
    table = build_paper_table(study())
    assert table.columns == (Column("digits", "resnet_32_8", "resnet_32_20"),), "the teacher has no column of its own"
    assert [column.name for column in table.columns] == ["ResNet20>>8/Digits"]
    assert names(table) == ["teacher", "base", "logit", "st"] and table.metrics == ("acc", "last_acc")
    cells = [line.cells["acc"][0].statistic for line in table.rows]
    assert cells == [Statistic(95.0, None, 1), Statistic(92.0, 1.0, 3), Statistic(93.0, 1.0, 3), None]
    logit = table.rows[2].comparisons[0]
    assert logit and logit.difference("last_acc") == Statistic(1.0, 0.0, 3)


def test_settings_that_all_rows_share_are_not_in_their_names() -> None:
    table = build_paper_table([*study(), *distilled(91.0, 92.0, temperature=2.0), *distilled(91.0, temperature=4.0)])
    assert names(table)[3:] == ["st (temperature = 4)", "st (temperature = 2)"], "the default is named, and not as 4.0"
    assert table.shared == (SharedSetting("epochs", (), ("10",)), SharedSetting("batch_size", (), ("32",)))


def test_a_setting_of_the_recipe_is_named_at_every_row_that_it_tells_apart() -> None:
    fast = {"epochs": 10, "batch_size": 32, "lr": 0.2, "options": {}, "teacher": None}
    table = build_paper_table(
        [*runs("base", 90.0, 91.0, lr=0.2, recipe=fast), *distilled(92.0, 93.0), *distilled(94.0, lr=0.2)]
    )
    assert names(table)[1:] == ["base (lr = 0.2)", "st (lr = 0.1)", "st (lr = 0.2)"]


def test_what_differs_between_columns_is_no_row_of_its_own() -> None:
    other = {"student": "resnet_32_14"}
    slow = [replace(each, **other) for each in distilled(93.0, lr=0.01, temperature=8.0, teacher_recipe={"lr": 0.1})]
    table = build_paper_table([*distilled(91.0, 92.0), *slow])
    assert names(table) == ["teacher", "st"]
    shared = {each.name: each.values for each in table.shared}
    assert shared["lr"] == ("0.1", "0.01") and shared["temperature"] == ("4", "8")
    assert shared["teacher.lr"] == ("0.1", "0.1") and shared["epochs"] == ("10", "10")


def test_settings_shared_by_some_methods_name_them() -> None:
    table = build_paper_table([*study(), *distilled(91.0, ce_weight=0.5)])
    assert names(table)[3:] == ["st (ce_weight = 1)", "st (ce_weight = 0.5)"]
    rows = [*study()[:-1], *distilled(91.0, ce_weight=0.5)]
    first = SharedSetting("ce_weight", ("st",), ("0.5",))
    assert build_paper_table(rows).shared[0] == first, "logit has this option too, at its default"
    without = [each for each in rows if each.method != "logit"]
    assert build_paper_table(without).shared[0] == replace(first, methods=())


def test_a_sweep_that_the_teacher_follows_names_the_setting_once() -> None:
    both = [each for lr in (0.1, 0.2) for each in distilled(90.0 + lr, lr=lr, teacher_recipe={"lr": lr})]
    assert names(build_paper_table(both))[-2:] == ["st (lr = 0.1)", "st (lr = 0.2)"]
    one = [each for lr in (0.1, 0.2) for each in distilled(90.0 + lr, lr=lr, teacher_recipe={"lr": 0.1})]
    assert names(build_paper_table(one)) == ["teacher", "st (lr = 0.1)", "st (lr = 0.2)"]


def test_teachers_with_other_settings_have_rows_of_their_own() -> None:
    found = [
        replace(each, teacher_id=f"{epochs:012x}", teacher_acc=90.0 + epochs)
        for epochs in (5, 10)
        for each in distilled(80.0, 81.0, teacher_recipe={"epochs": epochs})
    ]
    table = build_paper_table(found)
    assert names(table) == [
        "teacher (epochs = 5)",
        "teacher (epochs = 10)",
        "st (teacher.epochs = 5)",
        "st (teacher.epochs = 10)",
    ]
    last = [line.cells["last_acc"][0].statistic for line in table.rows[:2]]
    assert last == [Statistic(95.0, None, 1), Statistic(100.0, None, 1)], "without rows of their own"
    assert table.rows[0].cells["acc"][0].statistic is None and table.rows[0].comparisons == (None,)


def test_teachers_count_once_however_many_they_taught() -> None:
    found = [
        replace(each, teacher_id=f"{each.seed % 2:012x}", teacher_acc=94.0 + each.seed % 2)
        for each in runs("st", 1, 2, 3, 4)
    ]
    assert build_paper_table(found).rows[0].cells["last_acc"][0].statistic == Statistic.over([94.0, 95.0])


def test_a_student_of_its_own_model_has_its_teacher_as_base() -> None:
    rows = [teacher(), *(replace(each, student="resnet_32_20") for each in runs("st", 96.0, 97.0))]
    table = build_paper_table(rows)
    assert names(table) == ["teacher", "base", "st"] and table.rows[1].comparisons[0] is not None
    longer = replace(teacher(), nepoch=20, recipe={**teacher().recipe, "epochs": 20})
    assert names(build_paper_table([longer, *rows[1:]])) == ["teacher", "st"], "this teacher is no base of these"


def test_models_that_nobody_teaches_are_columns_without_a_teacher() -> None:
    table = build_paper_table([*runs("base", 90.0, 91.0), *runs("base", 92.0, student="resnet_32_14")])
    assert [(column.student, column.teacher) for column in table.columns] == [
        ("resnet_32_8", None),
        ("resnet_32_14", None),
    ]
    assert names(table) == ["base"] and Mark.BEST not in table.marks, "a single row is not the best of anything"


def test_members_of_an_ensemble_have_no_columns() -> None:
    member = teacher()
    members = [{"student": member.student, "seed": member.seed}]
    name = "mean(resnet_32_20,resnet_32_20)"
    both = row(
        7,
        "mean",
        96.0,
        trial_id="e" * 12,
        student="resnet_32_14",
        recipe={"members": members, "epochs": 0},
        teacher=None,
    )
    taught = runs("st", 91.0, teacher=name, teacher_id="e" * 12)
    assert {column.student for column in build_paper_table([member, both, *taught]).columns} == {"resnet_32_8"}


def test_datasets_stay_together_in_the_order_of_the_study() -> None:
    rows = [
        row(no, student=s, dataset=d)
        for no, (d, s) in enumerate([("digits", "resnet_32_8"), ("cifar10", "resnet_32_8"), ("digits", "resnet_32_14")])
    ]
    assert [(column.dataset, column.student[-2:]) for column in build_paper_table(rows).columns] == [
        ("digits", "_8"), ("digits", "14"), ("cifar10", "_8"),
    ]  # fmt: skip


def test_a_held_out_split_is_a_group_of_columns() -> None:
    assert build_paper_table(runs("base", 90.0, selected_acc=89.0)).metrics == ("acc", "last_acc", "selected_acc")


def test_the_chosen_dtype_tells_rows_apart() -> None:
    def in_dtype(dtype: str) -> list[TrialRecord]:
        recipe = {"epochs": 10, "batch_size": 32, "arithmetic": dtype, "precision": "auto"}
        return runs("base", 90.0, recipe=recipe)

    found = build_paper_table([*in_dtype("float32"), *in_dtype("bfloat16")])
    assert names(found) == ["base (compute dtype = float32)", "base (compute dtype = bfloat16)"]
    assert SharedSetting("compute dtype", (), ("bfloat16",)) in build_paper_table(in_dtype("bfloat16")).shared


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_dtype_that_the_setting_names_is_not_named_twice(dtype: str) -> None:
    recipe = {"epochs": 10, "batch_size": 32, "arithmetic": dtype, "precision": dtype}
    shared = build_paper_table(runs("base", 90.0, recipe=recipe)).shared
    assert SharedSetting("precision", (), (dtype,)) in shared
    assert "compute dtype" not in {setting.name for setting in shared}


# Marks.


def test_the_best_is_marked_and_what_cannot_be_told_from_it() -> None:
    best, close, worse = (90.0, 92.0, 94.0), (89.0, 92.5, 92.5), (85.0, 87.1, 88.9)
    table = build_paper_table([*runs("base", *worse), *runs("logit", *close), *runs("st", *best)])
    assert marks(table) == {"teacher": None, "base": Mark.WORSE, "logit": Mark.TIED, "st": Mark.BEST}
    low, _ = Statistic.over([5.0, 4.9, 5.1]).interval()  # type: ignore[union-attr, misc]
    assert low > 0, "the paired difference of base, although its own interval overlaps with that of st"


def test_without_two_shared_seeds_or_a_spread_nothing_can_be_told() -> None:
    single = build_paper_table([*runs("base", 90.0), *runs("st", 95.0)])
    assert marks(single) == {"teacher": None, "base": Mark.UNKNOWN, "st": Mark.BEST}
    apart = build_paper_table([*runs("base", 90.0, 90.1, first=5), *runs("st", 95.0, 95.1)])
    assert marks(apart)["base"] is Mark.UNKNOWN
    equal = build_paper_table([*runs("base", 90.0, 91.0), *runs("st", 92.0, 93.0)])
    assert marks(equal)["base"] is Mark.UNKNOWN, "two equal differences are no certainty"


def test_equal_means_are_both_the_best() -> None:
    assert marks(build_paper_table([*runs("base", 90.0, 92.0), *runs("st", 92.0, 90.0)]))["base"] is Mark.BEST


def test_best_and_last_epoch_are_marked_by_themselves() -> None:
    table = build_paper_table([*runs("base", 90.0, 91.0), *runs("logit", 92.0, 93.0, last_acc=10.0)])
    assert marks(table, "acc")["logit"] is Mark.BEST and marks(table)["base"] is Mark.BEST


# Large studies.


def test_the_best_rows_are_kept_in_their_order() -> None:
    rows = [
        teacher(),
        *runs("base", 10.0),
        *(each for no in range(20) for each in distilled(50.0 + no % 7, temperature=float(no + 1))),
    ]
    table = build_paper_table(rows)
    short = table.keep_best(5)
    assert names(short) == ["teacher", "base", "st (temperature = 6)", "st (temperature = 7)", "st (temperature = 14)"]
    assert short.left_out == 17 and short.keep_best(5) == short and table.keep_best(22) is table


@given(ROWS, st.integers(4, 9))
def test_every_setting_has_a_cell_and_every_column_a_best(rows: list[TrialRecord], limit: int) -> None:
    rows = [
        replace(each, trial_id=f"{no:012x}", teacher=None if each.method == "base" else each.teacher)
        for no, each in enumerate(rows)
    ]
    table = build_paper_table(rows)
    shown = Counter(id(run) for line in table.rows for entry in line.comparisons if entry for run in entry.group.rows)
    assert shown.keys() == {id(run) for pair in group_tables(rows) for group in pair.groups for run in group.rows}
    assert len(set(names(table))) == len(table.rows)
    for metric in table.metrics:
        for number in range(len(table.columns)):
            cells = [line.cells[metric][number] for line in table.rows if not line.is_teacher]
            values = [cell.statistic.mean for cell in cells if cell.statistic]
            best = [cell.statistic.mean for cell in cells if cell.mark is Mark.BEST and cell.statistic]
            assert set(best) == ({max(values)} if len(values) > 1 else set())
            assert all((cell.mark is None) == (cell.statistic is None or len(values) < 2) for cell in cells)
    short = table.keep_best(limit)
    assert len(short.rows) == min(limit, len(table.rows)) and len(short.rows) + short.left_out == len(table.rows)


def test_a_study_that_has_not_begun_has_no_columns() -> None:
    assert build_paper_table([]) == PaperTable(("acc", "last_acc"), (), (), ())
    waiting = build_paper_table([row(1, "st", None, state=State.RUNNING, teacher_acc=None)])
    assert names(waiting) == ["teacher", "st"] and not waiting.marks
