"""The content of a report: figures computed by hand, honest gaps and costs, unfinished trials, and its limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from reported import SETTING, TEACHER, facts, fill, member, row, study, teacher

from orchestrator.errors import KdctlError, StorageError
from orchestrator.records import State, TrialRecord
from orchestrator.report import _figures, sections
from orchestrator.report._figures import Figure
from orchestrator.report.content import Facts, gather
from orchestrator.report.sections import Section, Table, Text
from orchestrator.results.published import DIFFERENCES, OPTIONS, PUBLISHED, RECIPE, describe_differences
from orchestrator.storage.layout import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """An empty storage."""
    made = Storage.at(tmp_path / "runs")
    made.prepare()
    return made


def build(storage: Storage, rows: list[TrialRecord]) -> dict[str, Section]:
    fill(storage, rows)
    return {section.name: section for section in sections.build_sections(facts(storage, rows))}


def table(section: Section, title: str) -> Table:
    return next(block for block in section.blocks if isinstance(block, Table) and block.title == title)


def cells(found: Table, row: int) -> dict[str, tuple[str, str]]:
    return {name: (cell.text, cell.small) for name, cell in zip(found.header, found.rows[row], strict=True)}


def test_means_and_paired_differences_stand_beside_their_n(storage: Storage) -> None:
    found = cells(table(build(storage, study())["results"], "ResNet20>>8/Digits"), 0)
    assert found["setting"] == (f"logit {SETTING}", "")
    assert found["finished"] == ("3 of 3", "")
    assert found["best epoch, %"] == found["last epoch, %"] == ("93.0 ± 1.0", "n=3")  # 92, 93, 94
    assert found["difference to base [95 %]"] == ("+1.00", "[+1.00, +1.00], n=3")


def test_the_table_of_a_paper_comes_first(storage: Storage) -> None:
    found = build(storage, study())["results"].blocks[0]
    assert isinstance(found, Table) and found.title == "ResNet20>>8/Digits: test accuracy, %"
    assert found.header == ("method", "best epoch", "last epoch")
    lines = {line[0].text: line[2] for line in found.rows}
    assert (lines["teacher"].text, lines["base"].text) == ("95.00", "92.0 ± 1.0")
    best = next(cell for name, cell in lines.items() if name.startswith("logit") and cell.value)
    assert (best.text, best.small, best.is_marked) == ("93.0 ± 1.0", "n=3", True)
    assert any(note.startswith("bold: best of its column") for note in found.notes)


def test_more_columns_than_a_page_holds_are_tables_of_their_own(storage: Storage) -> None:
    rows = [row(no, student=f"resnet_32_{depth}", seed=no % 2) for no, depth in enumerate([8, 8, 14, 14, 20, 20])]
    found = [block for block in build(storage, rows)["results"].blocks if isinstance(block, Table)]
    first, second = (block for block in found if not block.folded)
    assert first.title == "Test accuracy, best epoch, %" and second.title == "Test accuracy, last epoch, %"
    assert first.header == second.header == ("method", "ResNet8/Digits", "ResNet14/Digits", "ResNet20/Digits")
    assert not first.notes and second.notes, "notes stand once, below the last part"


def test_a_failed_run_is_in_no_mean_and_in_the_list(storage: Storage) -> None:
    found = build(storage, study())
    assert cells(table(found["results"], "ResNet20>>8/Digits"), 1)["last epoch, %"] == ("-", "")
    [line] = table(found["unfinished"], "Trials that did not finish").rows
    assert [cell.text for cell in line][1:3] == ["failed", "the mean training loss is nan"]
    assert line[3].text.endswith("logs/000000000014.log")


def test_the_gap_closed_is_that_of_paired_means(storage: Storage) -> None:
    gap = cells(table(build(storage, study())["teacher"], "The gap to the teacher, ResNet8 on Digits"), 0)
    assert gap["teacher, %"] == ("95.00", "n=1")  # one teacher, though three were taught
    assert gap["teacher − base"][0] == "+3.0"  # 95 less the mean of 91, 92 and 93
    assert gap["gap closed"] == ("33 %", "n=3")


def test_no_gap_is_given_unless_the_teacher_is_clearly_better(storage: Storage) -> None:
    rows = [replace(one, teacher_acc=92.0) if one.teacher_id else one for one in study()]
    gap = cells(table(build(storage, rows)["teacher"], "The gap to the teacher, ResNet8 on Digits"), 0)
    assert gap["teacher − base"][0] == "0.0"
    assert gap["gap closed"] == ("-", "")


def test_a_teacher_costs_once(storage: Storage) -> None:
    found = table(build(storage, study())["cost"], "What it cost")
    assert found.notes == ("All with epochs=10, batch_size=32.",)
    by_setting = {cells(found, index)["setting"][0]: cells(found, index) for index in range(len(found.rows))}
    assert by_setting["logit"]["seconds, all runs"] == ("30.0", "")
    assert by_setting["logit"]["seconds, teachers"] == ("40.0", "1 teacher")
    assert by_setting["base (teacher)"]["seconds per run"] == ("40.0", "n=1")
    assert by_setting["base"]["seconds, teachers"] == ("-", "no teacher")


def test_the_cost_of_another_studys_teacher_is_unknown(storage: Storage) -> None:
    found = table(build(storage, [one for one in study() if one.trial_id != TEACHER])["cost"], "What it cost")
    costs = {cells(found, index)["setting"][0]: cells(found, index) for index in range(len(found.rows))}
    assert costs["logit"]["seconds, teachers"] == ("-", "not in this study")


def published_runs(match: str = "pooled", **overrides: object) -> list[TrialRecord]:

    options = {**OPTIONS, "match": match}
    recipe = {**RECIPE, "options": options, "teacher": {**RECIPE, "options": {}}, **overrides}
    own = {"dataset": "cifar10", "student": "resnet_32_20", "teacher": "resnet_32_20", "nepoch": 200, "batch_size": 128}
    return [row(no, "logit", 92.0 + no, **own, recipe=recipe) for no in (0, 1)]


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        (published_runs(), None),
        (published_runs(match="logits"), "match logits, not pooled"),
        (published_runs(limit_train=512), "limit_train 512, not unset"),
    ],
)
def test_the_notes_figures_are_marked_as_another_experiment(
    storage: Storage, runs: list[TrialRecord], expected: str | None
) -> None:
    assert describe_differences(runs[0]) == (expected or "")
    found = table(build(storage, runs)["results"], "ResNet20>>20/Cifar10")
    cell = cells(found, 0)["lab note (another experiment), best epoch, %"]
    assert cell == ("92.51 ± 0.02", "n=3, another experiment")
    assert str(PUBLISHED[0].statistic) == "92.51 ± 0.02 (n=3)"
    assert all(difference in found.notes[0] for difference in DIFFERENCES) and "match: pooled" in found.notes[0]
    notes = [note for note in found.notes if note.startswith("Settings that differ from the lab note's as well")]
    assert [note.split(": ")[-1] for note in notes] == ([f"{expected}."] if expected else [])
    assert any(note.startswith("Trained on 512 of 50,000 images") for note in found.notes) == (
        expected or ""
    ).startswith("limit_train")


def test_curves_are_means_over_finished_runs(storage: Storage) -> None:
    rows = study()
    rows.append(row(30, "logit", 10.0, seed=9, state=State.STOPPED))
    fill(storage, rows)
    found = {
        figure.name: figure
        for figure in _figures.draw_learning_curves(facts(storage, rows), _figures.group_pairs(rows))
    }
    assert set(found) == {"curves-digits-resnet-32-8", "curves-digits-resnet-32-20"}
    marks = found["curves-digits-resnet-32-8"].charts[0].marks.values()
    [mean] = [mark for mark in marks if mark["title"] == "logit, mean, n=3"]
    assert mean["data-y"] == " ".join(f"{value}.00" for value in range(84, 94))  # without the run of 10 %
    assert [mark["title"] for mark in marks if mark["class"] == "run open"] == [
        "logit, seed 9 (00000000001e)", "st, seed 1 (000000000014)",
    ]  # fmt: skip
    assert "dashed runs did not finish" in found["curves-digits-resnet-32-8"].caption


def test_a_running_study_is_marked_as_incomplete(storage: Storage) -> None:
    rows = study()[:2]
    fill(storage, rows)
    own = facts(storage, rows, [member(row(77, "logit"), "logit digits, to come")])
    assert sections.describe_progress(own) == "2 of 3 trials finished; 1 not started"
    note = sections.describe_incomplete(own)
    assert note.startswith("This study is not complete: 1 of its 3 trials is missing") and "Launch it again" in note
    running = [*rows, replace(row(78), state=State.RUNNING)]
    fill(storage, running)
    note = sections.describe_incomplete(facts(storage, running, [member(row(77, "logit"), "logit digits, to come")]))
    assert note.startswith("This study is running, 1 trial at this moment: 2 of its 4 trials are missing")
    found = {section.name: section for section in sections.build_sections(own)}
    [line] = table(found["unfinished"], "Trials that did not finish").rows
    assert [cell.text for cell in line] == ["logit digits, to come", "not started", "-", "-"]


def test_a_study_without_started_trials_has_a_report(storage: Storage) -> None:
    own = facts(storage, [], [member(row(1))])
    found = {section.name: section for section in sections.build_sections(own)}
    assert list(found) == ["answer", "results", "unfinished", "again"]
    assert found["results"].blocks == (Text("No trial has started yet."),)


def test_a_finished_study_needs_no_caution(storage: Storage) -> None:
    rows = [teacher(), row(1)]
    fill(storage, rows)
    assert sections.describe_incomplete(facts(storage, rows)) == ""


def test_an_empty_storage_is_one_message(storage: Storage) -> None:
    from reported import NOW

    with pytest.raises(KdctlError, match="holds no trial yet; launch a study"):
        gather(storage, "everything", None, None, NOW)


@pytest.mark.parametrize("change", [{"recipe": "[]"}, {"recipe": "{"}, {"dataset": "mnist"}, {"student": "vgg_1"}])
def test_a_row_that_kdctl_did_not_write_is_named(storage: Storage, change: dict[str, str]) -> None:
    record = replace(row(1), **change)
    fill(storage, [record])
    with pytest.raises(StorageError, match=r"000000000001\.parquet holds a damaged row"):
        facts(storage, [record])


def many(settings: int) -> list[TrialRecord]:
    """A base, and this many settings of logit, of which later ones are better."""
    bases = [row(1, seed=0)]
    return bases + [
        row(no + 10, "logit", 50 + no / 100, seed=0, lr=no / 1000, options={"ce_weight": no}) for no in range(settings)
    ]


def test_of_many_settings_the_base_and_the_best_are_drawn(storage: Storage) -> None:
    rows = many(30)
    fill(storage, rows)
    own = facts(storage, rows)
    [pair] = _figures.group_pairs(own.ordered)
    chosen = _figures.choose_settings(pair.entries, 4)
    assert [entry.group.method for entry in chosen] == ["base", "logit", "logit", "logit"]
    assert [entry.group.rows[0].acc for entry in chosen[1:]] == pytest.approx([50.27, 50.28, 50.29])
    [figure] = _figures.draw_comparisons([pair])
    assert "This figure shows 6 of 31 settings" in figure.caption and "kdctl query" in figure.caption


def test_limits_are_kept_and_reported(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"MAX_INLINE": 4, "MAX_SETTINGS": 5, "MAX_LISTED": 8, "MAX_UNFINISHED": 2, "MAX_IDS": 3}
    for name, value in limits.items():
        monkeypatch.setattr(sections, name, value)
    rows = [*many(30), *(row(100 + no, acc=None, state=State.FAILED, error="x") for no in range(4))]
    found = build(storage, rows)
    blocks = [block for block in found["results"].blocks if isinstance(block, Table)]
    best, all_rows, *others = blocks
    assert len(best.rows) == 4 and not best.folded, "the best rows of the table of a paper come first"
    assert len(all_rows.rows) == 5 and all_rows.folded == "5 rows: ResNet20>>8/Digits: test accuracy, %"
    details = [block for block in others if block.folded.startswith("Details")]
    assert sum(len(block.rows) for block in details) <= 5
    assert sum(len(block.rows) for block in others if block not in details) == 8
    assert any(
        "settings, those with the best last epoch; kdctl query prints the others" in note
        for b in blocks
        for note in b.notes
    )
    assert any("4 of 30 runs (kdctl query prints the others)" in block.folded for block in blocks)
    assert table(found["unfinished"], "Trials that did not finish").notes == ("And 2 more; kdctl query prints them.",)
    assert len(table(found["again"], "Trials").rows) == 3


def test_everything_needed_to_run_it_again_is_there(storage: Storage) -> None:
    section = build(storage, study())["again"]
    found = {line[0].text: line[1].text for line in table(section, "Facts of this study").rows}
    assert found["command"] == "kdctl launch study.yaml --set recipe.epochs=10"
    assert found["trials"] == "7 of 8 trials finished; 1 failed"
    assert (found["torch"], found["device"], found["machine"]) == ("2.11.0", "cpu, 1 threads", "here")
    assert "Ray" not in found  # nothing used it
    assert table(section, "Trials").rows[0][0].text == TEACHER


def test_unlike_values_are_counted() -> None:
    assert sections.describe_values(["a", "a"]) == "a"
    assert sections.describe_values(["a", "b", "a", None]) == "a (2 trials), b (1 trials), none (1 trials)"
    assert sections.describe_values([str(number) for number in range(20)], limit=1) == "0 (1 trials) and 19 more"


def test_names_of_figures_are_unique(storage: Storage) -> None:
    rows = [*study(), *published_runs()]
    found = build(storage, rows)
    names = [block.name for section in found.values() for block in section.blocks if isinstance(block, Figure)]
    assert len(names) == len(set(names)) >= 5


def test_facts_keep_the_order_of_the_plan(storage: Storage) -> None:
    rows = study()
    fill(storage, rows)
    own: Facts = facts(storage, rows[::-1])
    assert [one.trial_id for one in own.ordered] == [one.trial_id for one in rows[::-1]]
    assert own.teacher_ids == {TEACHER}


@pytest.mark.parametrize(
    ("needed", "total", "given"),
    [
        ([3, 5], 10, [3, 5]),
        ([3, 50, 50], 20, [3, 8, 9]),
        ([9, 9, 9], 5, [1, 2, 2]),
        ([], 5, []),
        ([1, 4000], 1000, [1, 999]),
    ],
)
def test_no_table_takes_the_rows_of_another(needed: list[int], total: int, given: list[int]) -> None:
    assert sections.share_rows(needed, total) == given


# The answer comes first.


def test_the_answer_is_the_first_section_and_its_comparisons_follow(storage: Storage) -> None:
    rows = [*study(), *(row(30 + no, "st", 95.0 - no % 2, seed=no) for no in (1, 2, 3))]
    found = build(storage, rows)
    assert list(found)[:3] == ["answer", "results", "comparisons"]
    first, *_, scope = found["answer"].blocks
    assert isinstance(first, Text) and isinstance(scope, Text) and (first.style, scope.style) == ("answer", "note")
    assert first.text.startswith("On ResNet8, st (+2.3 points [−0.5, +5.2], n = 3) is not shown to differ from base; ")
    assert scope.text.startswith("Differences are percentage points") and "3 comparisons" in scope.text
    compared = table(found["comparisons"], "Comparisons of ResNet20>>8/Digits")
    lines = [cells(compared, number) for number in range(len(compared.rows))]
    assert [(line["setting"][0], line["compared with"][0]) for line in lines] == [
        ("logit", "base"), ("st", "base"), ("st", "logit"),
    ]  # fmt: skip
    assert lines[0]["shown"] == ("no spread", "") and lines[0]["corrected p"] == ("1", "")
    assert lines[1]["difference [95 %]"] == ("+2.3", "[−0.5, +5.2]")
    assert (lines[1]["n"][0], lines[1]["p"][0], lines[1]["teachers"][0]) == ("3", "0.073", "1")


def test_many_comparisons_are_cut_to_those_with_the_smallest_p(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row(no, acc=90.0 + no % 3, seed=no) for no in (1, 2, 3)]
    rows += [
        row(100 + 10 * no + seed, "st", 80.0 + no + seed**2, seed=seed, options={"temperature": float(no)})
        for no in range(1, 10)
        for seed in (1, 2, 3)
    ]
    monkeypatch.setattr(sections, "MAX_COMPARED", 5)
    _, compared = build(storage, rows)["comparisons"].blocks
    assert isinstance(compared, Table) and len(compared.rows) == 5
    assert compared.notes == ("5 of 9 comparisons, those with the smallest p; kdctl query prints the others.",)
    shown = [line[compared.header.index("p")].value or 2 for line in compared.rows]
    assert shown == sorted(shown)
