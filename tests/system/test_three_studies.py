"""One storage, three studies that share trials: `results`, `query` and `report` give the same figures of each."""

from __future__ import annotations

import json
import random
import re
import shlex
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_stored_studies import launched

from orchestrator import cli
from orchestrator.commands.launch import _query
from orchestrator.records import State, TrialRecord
from orchestrator.results import store
from orchestrator.storage.layout import Storage
from orchestrator.study import labels, stored_studies
from orchestrator.study.plan import Plan, PlannedTrial, make_plan
from orchestrator.study.reader import load_study

HEAD = "recipe: {epochs: 60}\nexperiments:\n"
BASE = "- {method: base, dataset: digits, student: resnet_32_8, seed: [0, 1, 2, 3, 4], lr: [0.05, 0.1]}\n"
SWEEP = (
    "- {method: st, dataset: digits, student: resnet_32_8, teacher: resnet_32_20, seed: [0, 1, 2, 3, 4],"
    " lr: [0.05, 0.1], temperature: [2, 4]}\n"
)
STUDIES = {
    "sweep": f"study: sweep\n{HEAD}{BASE}{SWEEP}",
    "few": f"study: few\n{HEAD}{BASE}{SWEEP}".replace("[0, 1, 2, 3, 4]", "[0, 1, 7]").replace("[2, 4]", "2"),
    "sweep-2": f"study: sweep-2\n{HEAD}{SWEEP}".replace("[0.05, 0.1]", "0.05"),  # renamed, and a part of it
}
RATES = random.Random(0)


def row(trial: PlannedTrial, no: int, study: str) -> TrialRecord:
    """Its row, as if it had been trained; every fifth in bfloat16, every eleventh not to its end."""
    config = trial.config
    columns = {name: getattr(config, name) for name in ("method", "dataset", "student", "seed", "lr", "batch_size")}
    is_done = no % 11 > 0
    dtype = {"arithmetic": "bfloat16" if no % 5 == 0 else "float32"} if is_done else {}
    acc, last = RATES.uniform(90, 99), RATES.uniform(80, 90)
    return TrialRecord(
        **{
            **dict.fromkeys(TrialRecord.__slots__), **columns, "no": no, "study": study, "nepoch": config.epochs,
            "teacher": config.teacher.student if config.teacher else None, "teacher_id": trial.teacher_id,
            "start_time": datetime(2026, 1, 1, tzinfo=UTC), "trial_id": trial.trial_id, "resumed": 0,
            "state": State.FINISHED if is_done else State.STOPPED, "kdctl_version": "1",
            "acc": acc if is_done else None, "last_acc": last if is_done else None,
            "recipe": {**config.recipe(), **dtype},
        }
    )  # fmt: skip


def plan_of(folder: Path, name: str, *settings: str) -> Plan:
    file = folder / f"{name}.yaml"
    file.write_text(STUDIES[name])
    return make_plan(load_study(file, settings))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the three files and the storage; `sweep` was launched with another number of epochs before."""
    folder = tmp_path_factory.mktemp("three")
    storage = Storage.at(folder / "runs")
    storage.prepare()
    known: set[str] = set()
    launches = [plan_of(folder, "sweep", "recipe.epochs=7"), *(plan_of(folder, name) for name in STUDIES)]
    for day, plan in enumerate(launches, 1):
        stored_studies.store_plan(storage, plan, launched(day))
        for no, trial in enumerate(plan.trials, 1):
            if trial.trial_id not in known:
                store.write_trial(storage, row(trial, no, plan.study))
        known |= {trial.trial_id for trial in plan.trials}
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def kdctl(*words: str) -> str:
    done = CliRunner().invoke(cli.cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def printed(study: str) -> list[dict[str, Any]]:
    """The tables that `results` prints as the rows of the view."""
    lines = []
    for table in json.loads(kdctl("results", study, "--json"))["tables"]:
        for group in table["groups"]:
            acc, last, selected, diff = (
                group[name] or {} for name in ("acc", "last_acc", "selected_acc", "difference")
            )
            line: dict[str, Any] = {name: table[name] for name in ("study", "dataset", "student", "teacher")}
            line |= {"method": group["trials"][0]["method"], "setting": group["label"], "runs": len(group["trials"])}
            line |= {"n": acc.get("n", 0), "acc": acc.get("mean"), "acc_std": acc.get("std")}
            line |= {"acc_low": acc.get("low"), "acc_high": acc.get("high")}
            line |= {"last_acc": last.get("mean"), "last_acc_std": last.get("std")}
            line |= {"selected_acc": selected.get("mean"), "selected_acc_std": selected.get("std")}
            line |= {"diff_n": diff.get("n"), "diff": diff.get("mean")}
            lines.append({**line, "diff_low": diff.get("low"), "diff_high": diff.get("high")})
    return lines


def fetch(sql: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(kdctl("query", sql, "--json"))
    return found


@pytest.mark.parametrize("study", STUDIES)
def test_the_printed_query_gives_the_printed_tables(study: str) -> None:
    (sql,) = shlex.split(_query(study))
    assert fetch(sql) == printed(study) == printed(f"{study}.yaml")


@pytest.mark.parametrize("study", STUDIES)
def test_the_summary_gives_the_same_figures(study: str) -> None:
    names = ("student", "teacher", "setting", "metric")
    lines = fetch(f"FROM summary WHERE study = '{study}'")
    found = {tuple(line[name] for name in names): line for line in lines}
    for line in printed(study):
        for metric in ("acc", "last_acc"):
            own = found.get((*(line[name] for name in names[:3]), metric), {"n": 0})
            figures = [own["n"], *(own.get(name) for name in ("runs", "mean", "std")[: 3 if own["n"] else 0])]
            assert figures == [line["n"], *([line["runs"], line[metric], line[f"{metric}_std"]] if line["n"] else [])]
            if own["n"] and metric == "last_acc":
                compared = ("diff_n", "diff", "diff_low", "diff_high")
                assert [own[name] for name in compared] == [line[name] for name in compared]


@pytest.mark.parametrize("study", STUDIES)
def test_the_report_gives_the_same_figures(study: str, tmp_path: Path) -> None:
    kdctl("report", study, "--format", "markdown", "--output", str(tmp_path / "r.md"))
    text = (tmp_path / "r.md").read_text().replace("&#95;", "_")
    cells = [[part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    rows = {(line[0], line[1]): line for line in cells if len(line) > 3}
    for line in printed(study):
        own = rows[line["setting"], f"{line['n']} of {line['runs']}"]
        for cell, name in zip(own[2:4], ("acc", "last_acc"), strict=True):
            numbers = re.findall(r"\d+\.\d+", cell)
            expected = [line[name], line[f"{name}_std"]]
            known = [number for number in expected if number is not None]
            assert len(numbers) == len(known) and all(map(is_rounded, numbers, known)), cell
        if line["diff"] is not None:
            assert any(is_rounded(cell.split(" ")[0].replace("−", "-"), line["diff"]) for cell in own)


def is_rounded(text: str, value: float) -> bool:
    """Whether a text is a number rounded to the decimals that it has, at least one."""
    return text == f"{value:{'+' if text[:1] == '+' else ''}.{len(text.partition('.')[2])}f}" and "." in text


def test_a_sweep_is_four_settings_of_one_study() -> None:
    lines = [line for line in printed("sweep") if line["method"] == "st" and "bfloat16" not in line["setting"]]
    assert len(lines) == 4 and len({line["setting"] for line in lines}) == 4
    trials = {trial.trial_id for trial in plan_of(Path(), "sweep").trials}
    assert sum(line["runs"] for line in printed("sweep")) == len(trials) == 31


def test_trials_have_the_studies_that_they_belong_to() -> None:
    plans = {name: {trial.trial_id for trial in plan_of(Path(), name).trials} for name in STUDIES}
    lines = fetch("SELECT trial_id, study, studies FROM trials")
    for line in lines:
        assert line["studies"] == sorted(name for name, ids in plans.items() if line["trial_id"] in ids)
    assert {len(line["studies"]) for line in lines} == {0, 1, 2, 3}
    assert {line["study"] for line in lines if not line["studies"]} == {"sweep"}, "those of the launch with 7 epochs"


def test_results_of_a_storage_have_a_section_for_each_study_and_one_for_the_rest() -> None:
    tables = json.loads(kdctl("results", "--json"))["tables"]
    assert list(dict.fromkeys(table["study"] for table in tables)) == ["few", "sweep", "sweep-2", None]
    left = [group["label"] for table in tables if table["study"] is None for group in table["groups"]]
    assert left and all(" epochs=7" in label for label in left)
    assert fetch("SELECT DISTINCT study FROM summary ORDER BY 1 NULLS LAST") == [
        {"study": name} for name in ("few", "sweep", "sweep-2", None)
    ]


def test_a_label_does_not_depend_on_the_other_rows() -> None:
    for line in fetch("SELECT DISTINCT study, setting FROM results"):
        planned = {labels.of_config(trial.config) for name in STUDIES for trial in plan_of(Path(), name).trials}
        assert line["study"] is None or line["setting"].removesuffix(" bfloat16") in planned


def test_rows_of_a_study_whose_plan_is_not_known_belong_to_it(folder: Path, tmp_path: Path) -> None:
    storage = Storage.at(tmp_path / "old")
    storage.prepare()
    plan = plan_of(folder, "few")
    rows = [row(trial, no, "old") for no, trial in enumerate(plan.trials, 1)]
    for one in (rows[0], replace(rows[1], study="older")):
        store.write_trial(storage, one)
    membership = stored_studies.Membership.of(storage)
    parts = [(part.study, [one.trial_id for one in part.rows]) for part in membership.split(store.read_trials(storage))]
    assert parts == [("old", [rows[0].trial_id]), ("older", [rows[1].trial_id])]
    stored_studies.store_plan(storage, plan, launched())
    parts = [
        (part.study, len(part.rows)) for part in stored_studies.Membership.of(storage).split(store.read_trials(storage))
    ]
    assert parts == [("few", 2), ("old", 1), ("older", 1)]
