"""Tables of results: exactly the published form, honest statistics, and five formats that can hold any row."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from orchestrator.records import State, TrialRecord
from orchestrator.results.output_formats import ResultsFormat
from orchestrator.results.summary import Statistic, group_tables
from orchestrator.results.tables import MAX_ROWS, PUBLISHED_COLUMNS, render, render_studies
from orchestrator.study.stored_studies import StudyRows

START = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)


def row(seed: int = 0, acc: float | None = 92.5, **overrides: Any) -> TrialRecord:
    """A finished student of a resnet_32_20."""
    recipe = {"lr": 0.1, "epochs": 200, "teacher": {"seed": 0, "lr": 0.1, "teacher": None}}
    filled = {
        **dict.fromkeys(field.name for field in fields(TrialRecord)),
        **{"no": 7, "method": "logit", "dataset": "cifar10", "student": "resnet_32_20", "teacher": "resnet_32_20"},
        **{"start_time": START + timedelta(minutes=seed), "acc": acc, "epoch": 190, "nepoch": 200, "lr": 0.1},
        **{"batch_size": 128, "trial_id": f"{seed:012x}", "study": "s", "state": State.FINISHED, "seed": seed},
        **{"last_acc": acc, "kdctl_version": "0.1.0", "recipe": recipe},
    }
    return TrialRecord(**{**filled, **overrides})


def show_results(rows: Sequence[TrialRecord], form: str = "table", **how: Any) -> str:
    """The tables of one study."""
    return render_studies([StudyRows("s", tuple(rows))] if rows else [], form, **how)


PAPER = [row(0, 92.52, last_acc=92.0), row(1, 92.49, last_acc=92.1), row(2, 92.53, last_acc=92.2)]
GOLDEN = """\
         best epoch          last epoch
dataset  Cifar10             Cifar10
teacher  ResNet20            ResNet20
student  ResNet20            ResNet20

logit    92.513 ± 0.021 (3)  92.10 ± 0.10 (3)

Test accuracy in %: mean ± sample standard deviation (number of runs). The best epoch is picked on the test set, \
which is optimistic.

On ResNet20, whether distillation helps cannot be said, as the study has no base for logit.

ResNet20>>20/Cifar10, 95 % intervals

       best epoch        last epoch
logit  [92.462, 92.565]  [91.85, 92.35]
"""
GOLDEN_RUNS = """
ResNet20>>20/Cifar10 (92.5)

no  method  dataset  student       teacher       start_time           acc    epoch  nepoch  lr   batch_size
1   logit   cifar10  resnet_32_20  resnet_32_20  2024-01-02 03:04:05  92.52  190    200     0.1  128
2   logit   cifar10  resnet_32_20  resnet_32_20  2024-01-02 03:05:05  92.49  190    200     0.1  128
3   logit   cifar10  resnet_32_20  resnet_32_20  2024-01-02 03:06:05  92.53  190    200     0.1  128
"""
LOST = replace(PAPER[2], state=State.FAILED, error="a | b\nsecond line", acc=10.0, last_acc=10.0)
GOLDEN_MARKDOWN = """\
|  | best epoch, ResNet20&#62;&#62;20/Cifar10 | last epoch, ResNet20&#62;&#62;20/Cifar10 |
| --- | --- | --- |
| logit | 92.52 (1) | 92.00 (1) |

- Test accuracy in %: mean ± sample standard deviation (number of runs). The best epoch is picked on the test set, \
which is optimistic.

- On ResNet20, whether distillation helps cannot be said, as the study has no base for logit.

### ResNet20&#62;&#62;20/Cifar10, 95 % intervals

|  | finished |
| --- | --- |
| logit | 1 of 2 |

### ResNet20&#62;&#62;20/Cifar10 (92.5)

| no | method | dataset | student | teacher | start_time | acc | epoch | nepoch | lr | batch_size |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| 1 | logit | cifar10 | resnet_32_20 | resnet_32_20 | 2024-01-02 03:04:05 | 92.52 | 190 | 200 | 0.1 | 128 |
| 2 | logit | cifar10 | resnet_32_20 | resnet_32_20 | 2024-01-02 03:06:05 | 10.00 | 190 | 200 | 0.1 | 128 |

- 000000000002 logit cifar10 resnet_32_20 ← resnet_32_20 seed 2 failed: a &#124; b second line
"""


def test_the_published_table_is_reproduced() -> None:
    assert show_results(PAPER) == render(PAPER) == GOLDEN
    assert show_results(PAPER, runs=True) == GOLDEN + GOLDEN_RUNS
    assert GOLDEN_RUNS.splitlines()[3].split() == list(PUBLISHED_COLUMNS)


def test_a_failed_run_is_listed_and_does_not_count() -> None:
    assert show_results([PAPER[0], LOST], "markdown") == GOLDEN_MARKDOWN
    assert show_results([PAPER[0], LOST]).endswith("seed 2 failed: a | b second line\n")


def test_a_bar_in_a_cell_is_escaped_only_in_markdown() -> None:
    odd = replace(PAPER[0], method="a|b")
    assert "| a&#124;b |" in show_results([odd], "markdown")
    assert "a|b" in show_results([odd], "table", runs=True)


def test_the_deviation_is_that_of_a_sample() -> None:
    found = group_tables([row(0, 1.0), row(1, 2.0), row(2, 4.0)])[0].groups[0].statistic("acc")
    assert found == Statistic(pytest.approx(7 / 3), pytest.approx((7 / 3) ** 0.5), 3)  # (16+1+25)/9 over n-1 = 2
    assert str(found) == "2.33 ± 1.53 (n=3)"


def test_a_single_run_has_no_deviation() -> None:
    group = group_tables([row(0, 91.0)])[0].groups[0]
    assert group.statistic("acc") == Statistic(91.0, None, 1)
    assert "logit    91.00 (1)" in show_results([row(0, 91.0)]) and "intervals" not in show_results([row(0, 91.0)])


def test_the_held_out_split_is_named_where_there_is_one() -> None:
    rows = [row(0, selected_acc=90.0), row(1, selected_acc=91.0)]
    header, *_, line = show_results(rows).splitlines()[:6]
    assert re.split(r"\s\s+", header.strip()) == ["best epoch", "last epoch", "selected epoch"]
    assert line.endswith("  90.50 ± 0.71 (2)")
    assert "selected" not in show_results(PAPER)


def test_settings_split_groups_and_seeds_do_not() -> None:
    slow, fast = ({"lr": lr, "teacher": {"seed": 0}} for lr in (0.01, 0.1))
    other_teacher = {"lr": 0.1, "teacher": {"seed": 5}}
    rows = [row(0, 80.0, recipe=slow), row(1, 90.0, recipe=fast), row(2, 91.0, recipe=other_teacher)]
    (table,) = group_tables(rows)
    assert [(group.label, len(group.rows)) for group in table.groups] == [
        ("logit lr=0.01 teacher.lr=0.1", 1),
        ("logit", 2),
    ]
    assert table.title == "ResNet20>>20/Cifar10 (logit lr=0.01 teacher.lr=0.1 80.0, logit 90.5)"
    names = [line.partition("  ")[0] for line in show_results(rows).splitlines() if line.startswith("logit")]
    assert names == ["logit (lr = 0.01)", "logit (lr = 0.1)", "logit (lr = 0.1)"], "the last is in the intervals"


def test_settings_of_the_teacher_split_groups() -> None:
    rows = [row(seed, recipe={"teacher": {"seed": 0, "epochs": 10 * seed}}) for seed in (1, 2)]
    assert [group.label for group in group_tables(rows)[0].groups] == [
        "logit teacher.epochs=10",
        "logit teacher.epochs=20",
    ]


def test_titles_name_the_pair_and_the_dataset() -> None:
    rows = [
        row(0, 71.8, dataset="cifar100", teacher="resnet_32_110"),
        row(1, 92.0, method="base", teacher=None),
        row(2, 97.0, dataset="digits", student="resnet_32_8", state=State.FAILED),
        row(3, 92.5, teacher="wrn_40_2"),
        row(4, 75.0, student="wrn_40_1", teacher="wrn_40_2"),
    ]
    titles = [
        "ResNet110>>20/Cifar100 (71.8)", "ResNet20/Cifar10 (92.0)", "ResNet20>>8/Digits (-)",
        "WRN-40-2>>ResNet20/Cifar10 (92.5)", "WRN-40-2>>40-1/Cifar10 (75.0)",
    ]  # fmt: skip
    assert [table.title for table in group_tables(rows)] == titles


def test_numbers_are_formatted_as_in_the_study() -> None:
    text = show_results([row(lr=1.001, acc=0.123), row(1, lr=1e-05, acc=100.0)], runs=True)
    assert "  0.12 " in text and "  100.00 " in text
    assert "  1.001  " in text and "  1e-05  " in text


def test_csv_holds_every_column() -> None:
    found = list(csv.DictReader(io.StringIO(show_results([PAPER[0], LOST], "csv"))))
    assert list(found[0]) == [*(field.name for field in fields(TrialRecord)), "setting"]
    assert [line["setting"] for line in found] == ["logit", "logit"]
    assert [line["acc"] for line in found] == ["92.52", "10.0"]
    assert found[1]["error"] == LOST.error and found[1]["state"] == "failed"
    assert found[0]["start_time"] == "2024-01-02T03:04:05+00:00" and found[0]["error"] == ""


def test_json_holds_statistics_and_every_trial() -> None:
    (table,) = json.loads(show_results([*PAPER[:2], LOST], "json"))["tables"]
    (group,) = table["groups"]
    assert table["title"] == "ResNet20>>20/Cifar10 (92.5)"
    low, high = Statistic.over([92.52, 92.49]).interval()  # type: ignore[union-attr, misc]
    spread = {"std": pytest.approx(0.0212132), "low": low, "high": high}
    assert group["acc"] == {"mean": pytest.approx(92.505), "n": 2, **spread}
    assert group["selected_acc"] is None and group["difference"] is None and table["study"] == "s"
    assert [trial["state"] for trial in group["trials"]] == ["finished", "finished", "failed"]
    assert group["trials"][0]["start_time"] == "2024-01-02T03:04:05+00:00"


def test_every_form_for_people_and_json_say_what_a_study_shows() -> None:
    bases = [replace(row(no, 90.0 + no, method="base", teacher=None, recipe={}), trial_id=f"b{no}") for no in range(3)]
    taught = [row(no, 92.0 + no * 1.1, teacher_id="a") for no in range(3)]
    sentence = "On ResNet20, logit is better than base by 2.10 points [1.85, 2.35], n = 3."
    text = show_results([*bases, *taught])
    assert text.index("Test accuracy in %") < text.index(sentence) < text.index("95 % intervals")
    assert f"- {sentence}" in show_results([*bases, *taught], "markdown").replace("&#91;", "[").replace("&#93;", "]")
    found = json.loads(show_results([*bases, *taught], "json"))
    (conclusions,) = found["conclusions"]
    assert conclusions["study"] == "s" and conclusions["answers"] == [sentence] and len(conclusions["scope"]) == 2
    (comparison,) = found["comparisons"]
    assert (comparison["setting"], comparison["other"], comparison["verdict"]) == ("logit", "base", "better")
    assert comparison["p"] == pytest.approx(ttest_rel([92, 93.1, 94.2], [90, 91, 92]).pvalue)


def test_tables_without_trials() -> None:
    assert show_results([]) == show_results([], "markdown") == "no trials yet\n"
    assert json.loads(show_results([], "json")) == {
        "conclusions": [], "paper_tables": [], "comparisons": [], "tables": [],
    }  # fmt: skip
    assert show_results([], "latex") == "% no trials yet\n"
    assert show_results([], "csv").count("\n") == 1


ACC = st.none() | st.floats(0, 100)
RECIPES = st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5), max_size=3)
ROWS = st.lists(
    st.builds(
        row,
        seed=st.integers(0, 1000),
        acc=ACC,
        last_acc=ACC,
        selected_acc=ACC,
        method=st.sampled_from(["base", "logit", "st"]),
        dataset=st.sampled_from(["digits", "cifar10", "cifar100"]),
        student=st.sampled_from(["resnet_32_8", "resnet_32_110"]),
        teacher=st.sampled_from([None, "resnet_32_8", "resnet_32_20"]),
        state=st.sampled_from(State),
        error=st.none() | st.text(),
        lr=st.floats(1e-9, 1e6),
        epoch=st.none() | st.integers(1, 10),
        recipe=st.builds(lambda own, teacher: {**own, "teacher": teacher}, RECIPES, st.none() | RECIPES),
    ),
    max_size=6,
)


@given(ROWS)
def test_any_rows_render_in_every_format(rows: list[TrialRecord]) -> None:
    texts = {form: show_results(rows, form) for form in ResultsFormat}
    assert all(text.endswith("\n") for text in texts.values())
    assert len(list(csv.reader(io.StringIO(texts["csv"])))) == 1 + len(rows)
    groups = [group for table in json.loads(texts["json"])["tables"] for group in table["groups"]]
    assert sorted(trial["seed"] for group in groups for trial in group["trials"]) == sorted(r.seed for r in rows)
    finished = [r.acc for r in rows if r.state is State.FINISHED and r.acc is not None]
    assert sum(group["acc"]["n"] for group in groups if group["acc"]) == len(finished)
    if len(groups) == 1 and len(finished) > 1:
        assert groups[0]["acc"]["std"] == pytest.approx(statistics.stdev(finished))


# Several settings and studies.


def test_each_setting_has_its_difference_to_base() -> None:
    def trial(no: int, acc: float, method: str = "base") -> TrialRecord:
        teacher = "resnet_32_20" if method == "logit" else None
        recipe = {"teacher": {"seed": 0} if teacher else None}
        return row(no, acc, method=method, teacher=teacher, recipe=recipe, trial_id=f"{method}{no}")

    rows = [trial(0, 90.0), trial(1, 91.0), trial(0, 92.0, "logit"), trial(1, 93.0, "logit"), trial(2, 10.0, "logit")]
    *_, header, _, line = show_results(rows).splitlines()
    assert header.endswith("last epoch − base") and line.endswith("+2.00 [+2.00, +2.00] (2)")
    difference = json.loads(show_results(rows, "json"))["tables"][1]["groups"][0]["difference"]
    assert difference == {"mean": 2.0, "std": 0.0, "n": 2, "low": 2.0, "high": 2.0}


def test_studies_have_tables_of_their_own() -> None:
    parts = [StudyRows("a", tuple(PAPER)), StudyRows("b", (PAPER[0],)), StudyRows(None, (PAPER[1],))]
    heads = [line for line in render_studies(parts).splitlines() if line.startswith(("Study", "In no"))]
    assert heads == ["Study a", "Study b", "In no study's last plan"]
    assert "## Study a\n\n|  | best epoch, ResNet20&#62;" in render_studies(parts, "markdown")
    assert re.findall(r"label{(.*)}", render_studies(parts, "latex")) == [
        "tab:results-a",
        "tab:results-b",
        "tab:results",
    ]
    papers = json.loads(render_studies(parts, "json"))["paper_tables"]
    assert [paper["study"] for paper in papers] == ["a", "b", None]
    found = json.loads(render_studies(parts, "json"))["tables"]
    assert [(table["study"], table["groups"][0]["acc"]["n"]) for table in found] == [("a", 3), ("b", 1), (None, 1)]
    assert len(render_studies(parts, "csv").splitlines()) == 1 + len(PAPER), (
        "a row a trial, however many studies want it"
    )


@pytest.mark.parametrize("width", [30, 79, 80])
def test_tables_are_no_wider_than_the_terminal(width: int) -> None:
    recipe = {"lr": 0.01, "options": {"match": "pooled"}, "teacher": {"seed": 0, "epochs": 60}}
    rows = [row(no, 90.0, recipe=recipe, selected_acc=90.0) for no in range(3)]
    lines = show_results([*rows, row(5), LOST], runs=True, width=width).splitlines()
    assert max(map(len, lines)) <= width and any("match = pooled" in line for line in lines)


def test_a_large_sweep_is_cut_only_on_a_terminal() -> None:
    rows = [row(no % 2, 50.0 + no / 10, recipe={"lr": 1 + no // 2}, trial_id=f"{no:012x}") for no in range(400)]
    text = show_results(rows)
    assert text.count("\nlogit (lr = ") == 2 * MAX_ROWS and f"{MAX_ROWS} of 200 rows" in text
    assert "logit (lr = 200)" in text and "logit (lr = 1)" not in text, "the best remain"
    for form in ("markdown", "latex"):
        whole = show_results(rows, form)
        assert whole.count("logit (lr = ") >= 200 and "of 200 rows" not in whole


def test_parts_of_the_data_are_named_with_their_pair() -> None:
    few = {"limit_train": 1000}
    rows = [
        row(0, recipe={**few, "teacher": {"seed": 0, "limit_train": None}}, teacher_id="f" * 12),
        row(1, recipe=few, method="base", teacher=None, trial_id="f" * 12),
        row(2, student="resnet_32_8"),
    ]
    *_, note = show_results(rows).splitlines()
    assert note == "ResNet20>>20/Cifar10: trained on 1,000 of 50,000 images, tested on 10,000 of 10,000"
    assert show_results(rows[:1]).splitlines()[-1].startswith("trained on 1,000")
