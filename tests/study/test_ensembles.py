"""Teachers that are ensembles: their ids, their place in the plan, their names, and every fault."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator import codec
from orchestrator.errors import StudyError
from orchestrator.records import TableKey, TrialConfig
from orchestrator.study import labels, short_names
from orchestrator.study.plan import Plan, make_plan
from orchestrator.study.reader import load_study

SEEDED: dict[str, Any] = {"model": "resnet_32_8", "seed": 1}
DISTILLED: dict[str, Any] = {"student": "resnet_32_8", "method": "st", "teacher": "resnet_32_20"}
STUDENT: dict[str, Any] = {"method": "logit", "dataset": "digits", "student": "resnet_32_8"}


def plan_of(folder: Path, *teachers: Any, tables: Any = (), **settings: Any) -> Plan:
    experiment = {**STUDENT, **settings, "teacher": list(teachers)}
    text = json.dumps({"study": "s", "recipe": {"epochs": 8}, "experiments": [experiment]})
    return make_plan(load_study(folder / "s.yaml", text=text), None, tables)


def mean(*members: Any) -> dict[str, Any]:
    return {"mean": list(members)}


def test_an_ensemble_waits_for_its_members(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, mean("resnet_32_14", SEEDED, DISTILLED))
    by_id = {trial.trial_id: trial for trial in plan.trials}
    *members, ensemble, student = plan.trials
    assert {(trial.config.method, trial.config.student, trial.role) for trial in members} == {
        ("base", "resnet_32_14", "teacher"),
        ("base", "resnet_32_8", "teacher"),
        ("base", "resnet_32_20", "teacher"),
        ("st", "resnet_32_8", "teacher"),
    }
    assert (ensemble.role, ensemble.config.method, ensemble.config.epochs) == ("teacher", "mean", 0)
    assert ensemble.config.student == "mean(resnet_32_14, resnet_32_8, resnet_32_8)"
    assert [by_id[waits].config for waits in ensemble.waits_for] == list(ensemble.config.members)
    assert student.to_json()["waits_for"] == [ensemble.trial_id] == [student.teacher_id]
    assert codec.decode(TrialConfig, codec.encode(student.config)) == student.config


def test_the_order_of_members_changes_nothing_and_each_member_does(tmp_path: Path) -> None:
    members = ["resnet_32_14", SEEDED, DISTILLED]
    plans = [plan_of(tmp_path, mean(*order)) for order in itertools.permutations(members)]
    assert len({plan.trials[-1].trial_id for plan in plans}) == 1
    others = [members[:2], members[1:], [*members, "resnet_32_8"], [*members[:2], {**DISTILLED, "seed": 1}]]
    found = [plan_of(tmp_path, mean(*other)).trials[-1] for other in others]
    assert len({trial.trial_id for trial in [*found, plans[0].trials[-1]]}) == 5
    for trial in found:
        assert trial.trial_id == trial.config.trial_id()


def test_members_are_the_trials_of_the_same_teachers(tmp_path: Path) -> None:
    alone = {trial.trial_id for trial in plan_of(tmp_path, "resnet_32_14", SEEDED, DISTILLED).trials}
    plan = plan_of(tmp_path, mean("resnet_32_14", SEEDED, DISTILLED))
    assert {trial.trial_id for trial in plan.trials[:-2]} <= alone


def test_axes_within_members_multiply(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path, mean({"model": "resnet_32_8", "seed": [0, 1]}, {"model": "resnet_32_14", "lr": [0.1, 0.05]})
    )
    assert [trial.config.method for trial in plan.trials].count("mean") == 4
    assert len(plan.trials) == 4 + 4 + 4
    assert len({trial.title() for trial in plan.trials}) == len(plan.trials)
    assert len(set(short_names.names([trial.config for trial in plan.trials]))) == len(plan.trials)
    students = [trial.config for trial in plan.trials if trial.role == "student"]
    assert len({labels.of_config(config) for config in students}) == 2  # seeds are in no label


def test_a_mean_of_tables_that_exist_costs_nothing(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, mean("resnet_32_14", SEEDED))
    ensemble, student = plan.trials[-2:]
    assert student.teacher_cache == "live"
    tables = [TableKey(member, "logits", 4, True, 1297) for member in ensemble.member_ids]
    student = plan_of(tmp_path, mean("resnet_32_14", SEEDED), tables=tables).trials[-1]
    assert student.table == TableKey(ensemble.trial_id, "logits", 4, True, 1297)
    assert student.tables() == (*tables, student.table)
    assert plan_of(tmp_path, mean("resnet_32_14", SEEDED), tables=tables[:1]).trials[-1].table is None


def test_labels_and_titles_name_the_members(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, mean("resnet_32_14", {**SEEDED, "lr": 0.05}, DISTILLED))
    ensemble, student = plan.trials[-2:]
    names = "resnet_32_8 (seed 1)", "resnet_32_8 (st ← resnet_32_20)"
    assert all(name in title for name in names for title in (ensemble.title(), student.title()))
    assert student.title().startswith("logit epochs=8 teacher.member")
    assert labels.teacher_of(student.config) in (
        "mean(resnet_32_14, resnet_32_8, resnet_32_8 (st ← resnet_32_20))",
        "mean(resnet_32_14, resnet_32_8 (st ← resnet_32_20), resnet_32_8)",
    )
    label = labels.of_config(student.config)
    assert ".lr=0.05" in label and ".method=st" in label and "epochs=8" in label and "members.epochs" not in label
    assert labels.of_config(ensemble.config).startswith("mean members.epochs=8 member")


FAULTS: dict[str, tuple[Any, Any, str]] = {
    "none": ("logit", mean(), "expected at least two teachers"),
    "one": ("logit", mean("resnet_32_8"), "a mean needs at least two"),
    "no list": ("logit", {"mean": "resnet_32_8"}, "expected at least two teachers"),
    "twice": ("logit", mean("resnet_32_8", {"model": "resnet_32_8"}), "change its seed, or remove one"),
    "nested": ("logit", mean("resnet_32_8", mean("resnet_32_8", "resnet_32_14")), "list its members in the outer one"),
    "a setting": ("logit", {**mean("resnet_32_8", "resnet_32_14"), "seed": 1}, "an ensemble has no settings"),
    "a number": ("logit", mean("resnet_32_8", 3), "found the number 3"),
    "a model": ("logit", mean("resnet_32_8", "resnet_32_9"), "did you mean resnet_32_8?"),
    "a name": ("logit", "mean(resnet_32_8, resnet_32_14)", "unknown model"),
    "maps": ("fitnet", mean("resnet_32_8", "resnet_32_14"), "needs maps of its teacher"),
    "pooled": ({"logit": {"match": "pooled"}}, mean("resnet_32_8", "resnet_32_14"), "needs pooled features"),
    "in a chain": ("st", {**DISTILLED, "method": "at", "teacher": mean("resnet_32_8", "resnet_32_14")}, "needs maps"),
    "an image size": ("logit", mean("resnet_32_8", {**SEEDED, "crop_padding": 8}), "digits has 8 pixels a side"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_one_message(tmp_path: Path, name: str) -> None:
    method, teacher, message = FAULTS[name]
    with pytest.raises(StudyError) as error:
        plan_of(tmp_path, teacher, method=method)
    [fault] = error.value.faults
    assert message in fault.message
