"""Teachers that are distilled themselves: their ids, the order of the plan, what each waits for, and every fault."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import codec
from orchestrator.errors import StudyError
from orchestrator.records import State, TableKey, TrialConfig
from orchestrator.study import short_names
from orchestrator.study.plan import Plan, make_plan
from orchestrator.study.reader import MAX_CHAIN, load_study

MIDDLE: dict[str, Any] = {"method": "logit", "student": "resnet_32_14", "teacher": "resnet_32_20"}
STUDENT: dict[str, Any] = {"method": "st", "dataset": "digits", "student": "resnet_32_8", "teacher": MIDDLE}


def plan_of(folder: Path, *experiments: dict[str, Any], states: Any = None, **recipe: Any) -> Plan:
    text = json.dumps({"study": "s", "recipe": {"epochs": 8, **recipe}, "experiments": list(experiments)})
    return make_plan(load_study(folder / "s.yaml", text=text), states)


def test_each_teacher_comes_before_its_students(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, STUDENT)
    assert [(trial.role, trial.config.method, trial.config.student) for trial in plan.trials] == [
        ("teacher", "base", "resnet_32_20"),
        ("teacher", "logit", "resnet_32_14"),
        ("student", "st", "resnet_32_8"),
    ]
    top, middle, student = plan.trials
    assert [trial.to_json()["waits_for"] for trial in plan.trials] == [[], [top.trial_id], [middle.trial_id]]
    assert student.to_json()["teacher"] == "resnet_32_14"
    assert student.title().startswith("st epochs=8 · digits · resnet_32_8 ← resnet_32_14 (logit ← resnet_32_20) · seed")


def test_a_distilled_teacher_is_the_trial_of_the_same_experiment(tmp_path: Path) -> None:
    options = {"ce_weight": 0.5, "lr": 0.05, "seed": 3, "teacher_cache": "live"}
    middle = {**MIDDLE, **options, "teacher": {"model": "resnet_32_20", "epochs": 2}}
    plan = plan_of(tmp_path, {**STUDENT, "teacher": middle, "holdout": 10}, holdout=0)
    alone = plan_of(tmp_path, {**middle, "dataset": "digits", "holdout": 10})
    assert [trial.trial_id for trial in plan.trials[:2]] == [trial.trial_id for trial in alone.trials]
    student = {**STUDENT, "teacher": middle, "holdout": 10}
    both = plan_of(tmp_path, student, {**middle, "dataset": "digits", "holdout": 10})
    assert [trial.trial_id for trial in both.trials] == [trial.trial_id for trial in plan.trials]


def test_every_table_belongs_to_the_teacher_of_its_trial(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, STUDENT, crop_padding=0, epochs=100)
    top, middle, student = plan.trials
    assert [trial.table for trial in plan.trials] == [
        None,
        TableKey(top.trial_id, "logits", 0, True, 1297),
        TableKey(middle.trial_id, "logits", 0, True, 1297),
    ]
    done = {middle.trial_id: State.FINISHED, top.trial_id: State.FINISHED}
    again = plan_of(tmp_path, STUDENT, states=done, crop_padding=0, epochs=100)
    assert [trial.state for trial in again.trials] == ["finished", "finished", "new"]
    assert codec.decode(TrialConfig, codec.encode(student.config)) == student.config


def test_axes_multiply_at_every_level(tmp_path: Path) -> None:
    top = {"model": "resnet_32_20", "seed": [0, 1]}
    middle = {"method": {"st": {"temperature": [2, 4, 8]}}, "student": "resnet_32_14", "teacher": [top, "resnet_32_8"]}
    plan = plan_of(tmp_path, {**STUDENT, "seed": [0, 1], "teacher": [middle, "resnet_32_26"]})
    assert len(plan.trials) == 3 + 3 * 3 + 1 + 2 * (3 * 3 + 1)
    assert len({trial.trial_id for trial in plan.trials}) == len(plan.trials)
    names = short_names.names([trial.config for trial in plan.trials])
    assert "st temperature=4 ← resnet_32_14 (st ← resnet_32_20) teacher.temperature=2 seed 1" not in names
    assert len(set(names)) == len(names)


def test_a_chain_uses_the_images_of_its_last_student(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {**STUDENT, "limit_train": 60, "holdout": 10}, limit_test=20)
    assert {(t.config.limit_train, t.config.holdout, t.config.limit_test) for t in plan.trials} == {(60, 10, 20)}


def chains() -> st.SearchStrategy[Any]:
    """A teacher: a model, or a distilled one."""
    models = st.sampled_from(["resnet_32_8", "resnet_32_14", "resnet_32_20"])
    seeds = st.integers(0, 2) | st.lists(st.integers(0, 2), min_size=1, max_size=2, unique=True)

    trained = st.fixed_dictionaries({"model": models}, optional={"seed": seeds})

    def distil(teacher: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        required = {"student": models, "method": st.sampled_from(["logit", "st", "fitnet"]), "teacher": teacher}
        return st.fixed_dictionaries(required, optional={"seed": seeds})

    return st.recursive(models | trained, distil, max_leaves=3)


@settings(max_examples=40)
@given(st.lists(chains(), min_size=1, max_size=3))
def test_any_chain_is_ordered_and_has_its_own_id(tmp_path_factory: pytest.TempPathFactory, teachers: list[Any]) -> None:
    plan = plan_of(tmp_path_factory.getbasetemp(), {**STUDENT, "teacher": teachers})
    seen: dict[str, TrialConfig] = {}
    for trial in plan.trials:
        assert trial.trial_id == trial.config.trial_id()  # worked out from the whole chain
        assert (trial.teacher_id is None) == (trial.config.teacher is None)
        assert trial.teacher_id is None or seen[trial.teacher_id] == trial.config.teacher
        assert trial.trial_id not in seen
        seen[trial.trial_id] = trial.config
    assert len({trial.title() for trial in plan.trials}) == len(plan.trials)


def nested(count: int) -> Any:
    """A chain of so many teachers."""
    return MIDDLE["teacher"] if count == 1 else {**MIDDLE, "teacher": nested(count - 1)}


FAULTS: dict[str, tuple[Any, str]] = {
    "no teacher": ({"student": "resnet_32_14", "method": "logit"}, "add `teacher: resnet_32_20` to this teacher"),
    "no method": ({"student": "resnet_32_14", "teacher": "resnet_32_20"}, "key 'method' is missing"),
    "no student": ({"method": "logit", "teacher": "resnet_32_20"}, "key 'student' is missing"),
    "model": ({"model": "resnet_32_14", "method": "logit", "teacher": "resnet_32_20"}, "write student instead"),
    "weights": ({**MIDDLE, "weights": "w.pt"}, "a teacher from a file is not trained"),
    "base": ({**MIDDLE, "method": "base"}, "method base has no use for the teacher"),
    "unknown": ({**MIDDLE, "lrr": 1}, "did you mean lr?"),
    "option": ({**MIDDLE, "stage": 1}, "stage belongs to method fitnet"),
    "value": ({**MIDDLE, "epochs": 0}, "expected a whole number from 1"),
    "dataset": ({**MIDDLE, "dataset": "cifar10"}, "remove the teacher's dataset"),
    "pair": (
        {**MIDDLE, "method": {"logit": {"match": "pooled"}}, "student": "wrn_16_2"},
        "resnet_32_20 cannot teach wrn_16_2",
    ),
    "padding": ({**MIDDLE, "teacher": {"model": "resnet_32_20", "crop_padding": 8}}, "digits has 8 pixels a side"),
    "a number": ({**MIDDLE, "teacher": 3}, "found the number 3"),
    "an empty axis": ({**MIDDLE, "teacher": []}, "found an empty list"),
    "too deep": (nested(MAX_CHAIN + 1), f"at most {MAX_CHAIN} are allowed"),
    "far too deep": (nested(11), f"at most {MAX_CHAIN} are allowed"),
    "too many": (
        {**MIDDLE, "seed": list(range(400)), "teacher": {"model": "resnet_32_20", "seed": list(range(400))}},
        "160,000 teacher",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_one_message(tmp_path: Path, name: str) -> None:
    teacher, message = FAULTS[name]
    with pytest.raises(StudyError) as error:
        plan_of(tmp_path, {**STUDENT, "teacher": teacher})
    [fault] = error.value.faults
    assert message in fault.message
    assert fault.path.startswith("experiments[0]")


def test_a_chain_of_the_greatest_length_is_planned(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {**STUDENT, "teacher": nested(MAX_CHAIN)})
    assert len(plan.trials) == MAX_CHAIN + 1
    assert all(a.trial_id == b.teacher_id for a, b in itertools.pairwise(plan.trials))


def test_a_teacher_of_a_teacher_that_saw_held_out_images_is_warned_of(tmp_path: Path) -> None:
    top = {"model": "resnet_32_20", "holdout": 0}
    plan = plan_of(tmp_path, {**STUDENT, "holdout": 20, "teacher": {**MIDDLE, "teacher": top}})
    assert any("trained on 20 of the 20 images" in warning for warning in plan.warnings)
