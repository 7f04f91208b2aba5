"""Plans: the trials of a study, that ids depend only on what matters, and what each trial waits for."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import codec, losses
from orchestrator.records import State, TableKey, TrialConfig
from orchestrator.study import fields
from orchestrator.study.plan import Plan, PlannedTrial, make_plan
from orchestrator.study.reader import load_study

ROOT = Path(__file__).resolve().parents[2]
Planner = Callable[..., Plan]

STUDENT: dict[str, Any] = {
    "method": "logit",
    "dataset": "digits",
    "teacher": {"model": "resnet_32_14"},
    "student": "resnet_32_8",
}
RECIPE: dict[str, Any] = {"epochs": 8, "milestones": [4, 6]}


@pytest.fixture(scope="module")
def plan_of(tmp_path_factory: pytest.TempPathFactory) -> Planner:
    """Makes the plan of a study with these experiments (one or more) and the recipe changed by keywords."""
    folder = tmp_path_factory.mktemp("plans")

    def plan(*experiments: dict[str, Any], states: Any = None, tables: Any = (), **recipe: Any) -> Plan:
        data = {"study": "s", "recipe": RECIPE | recipe, "experiments": list(experiments)}
        return plan_text(folder, json.dumps(data), states, tables)

    return plan


def plan_text(folder: Path, text: str, states: Any = None, tables: Any = ()) -> Plan:
    (folder / "s.yaml").write_text(text, encoding="utf-8")
    return make_plan(load_study(folder / "s.yaml"), states, tables)


def ids(plan: Plan) -> set[str]:
    found = [trial.trial_id for trial in plan.trials]
    assert len(found) == len(set(found))
    return set(found)


def students(plan: Plan) -> list[PlannedTrial]:
    return [trial for trial in plan.trials if trial.role == "student"]


def teachers(plan: Plan) -> list[PlannedTrial]:
    return [trial for trial in plan.trials if trial.role == "teacher"]


# Changes that an id does not depend on.


PLAIN = """
study: one
recipe: {epochs: 8, lr: 0.1}
experiments:
- method: logit
  dataset: digits
  student: resnet_32_8
  teacher: {model: resnet_32_14, lr: [0.1, 0.01]}
  seed: [0, 1, 2]
  weight_decay: [0.001, 0]
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("study: one", "study: another  # comment"),
        ("lr: 0.1}", "lr: 1e-1}"),
        ("{epochs: 8, lr: 0.1}", "{lr: .1, epochs: 8e0}"),
        ("[0.1, 0.01]", "{grid: [1.0e-2, 1.0e-1]}"),
        ("[0, 1, 2]", "[2, 0, 1]"),
        ("[0, 1, 2]", "[0, 1, 2, 2, 0]"),
        ("[0, 1, 2]", "{grid: [0, 1, 2]}"),
        ("[0.001, 0]", "[1e-3, -0.0]"),
        ("{model: resnet_32_14, lr: [0.1, 0.01]}", "[{lr: 0.01, model: resnet_32_14}, {model: resnet_32_14}]"),
        ("study: one", "study: one\nresources: {gpus_per_trial: 0.5, cpus_per_trial: 2}"),
    ],
)
def test_ids_do_not_depend_on_spelling(tmp_path: Path, old: str, new: str) -> None:
    assert PLAIN.count(old) == 1
    assert ids(plan_text(tmp_path, PLAIN.replace(old, new))) == ids(plan_text(tmp_path, PLAIN))


@settings(max_examples=25)
@given(
    st.permutations(range(6)), st.permutations([0, 1, 2]), st.text("abc-9", min_size=1, max_size=9).map("s{}".format)
)
def test_ids_do_not_depend_on_order(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], seeds: list[int], name: str
) -> None:
    folder = tmp_path_factory.getbasetemp()
    experiment = STUDENT | {"seed": seeds, "lr": [0.1, 0.01]}
    shuffled = {key: experiment[key] for key in (list(experiment)[index] for index in order)}
    plan = plan_text(folder, json.dumps({"experiments": [shuffled], "study": name}))
    plain = plan_text(folder, json.dumps({"study": "s", "experiments": [experiment | {"seed": [0, 1, 2]}]}))
    assert ids(plan) == ids(plain)
    if seeds == [0, 1, 2]:
        assert [trial.trial_id for trial in plan.trials] == [trial.trial_id for trial in plain.trials]


def test_the_order_of_a_teachers_keys_does_not_order_the_plan(tmp_path: Path, plan_of: Planner) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    axes = {"model": ["resnet_32_8", "resnet_32_14"], "weights": [str(tmp_path / "a"), str(tmp_path / "b")]}
    turned = dict(reversed(axes.items()))
    assert plan_of(STUDENT | {"teacher": axes}).trials == plan_of(STUDENT | {"teacher": turned}).trials


@pytest.mark.parametrize(
    "change",
    [
        {"milestones": [4, 6, 8]},  # nothing is trained after the last epoch
        {"milestones": [4, 6, 100]},
        {"limit_train": 1297},  # all that exist
        {"limit_test": 500},
        {"limit_train": None},
        {"gamma": 0.1},  # the default
    ],
    ids=str,
)
def test_settings_that_cannot_matter_change_no_id(plan_of: Planner, change: dict[str, Any]) -> None:
    assert ids(plan_of(STUDENT, **change)) == ids(plan_of(STUDENT))
    assert ids(plan_of(STUDENT | change)) == ids(plan_of(STUDENT))


def test_padding_matters_only_where_there_is_a_border(plan_of: Planner) -> None:
    assert ids(plan_of(STUDENT, crop_padding=0, padding="zero")) == ids(plan_of(STUDENT, crop_padding=0))


def test_gamma_matters_only_with_milestones(plan_of: Planner) -> None:
    assert ids(plan_of(STUDENT, milestones=[], gamma=0.5)) == ids(plan_of(STUDENT, milestones=[]))
    assert not ids(plan_of(STUDENT, gamma=0.5)) & ids(plan_of(STUDENT))


def test_the_cache_of_a_trial_without_a_teacher_does_not_matter(plan_of: Planner) -> None:
    base = {"method": "base", "dataset": "digits", "student": "resnet_32_8"}
    assert ids(plan_of(base, teacher_cache="live")) == ids(plan_of(base))


# Changes that an id depends on.

CHANGES: dict[str, Any] = {
    "method": "st",
    "dataset": "cifar10",
    "student": "resnet_32_20",
    "seed": 1,
    "epochs": 9,
    "batch_size": 64,
    "lr": 0.2,
    "momentum": 0.8,
    "weight_decay": 2e-4,
    "milestones": [4],
    "gamma": 0.2,
    "crop_padding": 3,
    "flip": False,
    "precision": "float32",
    "limit_train": 100,
    "limit_test": 100,
    "holdout": 1,
    "teacher_cache": "live",
    "ce_weight": 0.5,
    "match": "pooled",
    "optimizer": "adamw",
    "schedule": "cosine",
    "padding": "zero",
    "label_smoothing": 0.1,
    "clip_norm": 1.0,
    "ema": 0.999,
}


def test_every_study_key_has_a_change() -> None:
    assert set(CHANGES) | set(fields.OPTION_KEYS) == set(fields.EXPERIMENT_KEYS)


@pytest.mark.parametrize("name", CHANGES)
def test_every_key_of_an_experiment_changes_its_trial(plan_of: Planner, name: str) -> None:
    (plain,), (changed,) = students(plan_of(STUDENT)), students(plan_of(STUDENT | {name: CHANGES[name]}))
    assert plain.trial_id != changed.trial_id
    # A teacher takes only the images from its student.
    same = plain.teacher_id == changed.teacher_id
    assert same == (name not in {"dataset", *fields.DATA_KEYS})


def test_options_under_the_method_equal_options_next_to_it(plan_of: Planner) -> None:
    beside = plan_of(STUDENT | {"method": "st", "temperature": [4, 2]})
    nested = plan_of(STUDENT | {"method": {"st": {"temperature": [4, 2]}}})
    assert [trial.trial_id for trial in nested.trials] == [trial.trial_id for trial in beside.trials]


def test_methods_with_their_options_are_an_axis(plan_of: Planner) -> None:
    plan = plan_of(
        STUDENT | {"method": ["logit", {"st": {"temperature": {"grid": [2, 8]}}}, {"logit": {"ce_weight": 0}}]}
    )
    assert [(trial.config.method, dict(trial.config.options)) for trial in students(plan)] == [
        ("logit", losses.METHODS["logit"].defaults()),
        ("st", {**losses.METHODS["st"].defaults(), "temperature": 2.0}),
        ("st", {**losses.METHODS["st"].defaults(), "temperature": 8.0}),
        ("logit", {**losses.METHODS["logit"].defaults(), "ce_weight": 0.0}),
    ]


def test_an_option_that_is_true_makes_another_trial(plan_of: Planner) -> None:
    plan = plan_of(STUDENT | {"method": [{"st": {"standardize": [False, True]}}, "st"]})
    plain, standardized = students(plan)  # the third is the first
    assert dict(standardized.config.options)["standardize"] is True
    assert plain.trial_id != standardized.trial_id
    assert codec.decode(TrialConfig, json.loads(json.dumps(codec.encode(standardized.config)))) == standardized.config


def test_a_recipe_key_is_not_an_option_of_the_same_name(plan_of: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    method = losses.METHODS["st"]
    more = replace(method, options={**method.options, "gamma": losses.Option(2.0, "a power")})
    monkeypatch.setitem(losses.METHODS, "st", more)
    (plain,) = students(plan_of(STUDENT | {"method": "st", "gamma": 0.5}))
    (nested,) = students(plan_of(STUDENT | {"method": {"st": {"gamma": 3}}}, gamma=0.5))
    assert (plain.config.gamma, dict(plain.config.options)["gamma"]) == (0.5, 2.0)
    assert (nested.config.gamma, dict(nested.config.options)["gamma"]) == (0.5, 3.0)


def test_an_optimizer_brings_its_own_defaults(plan_of: Planner) -> None:
    (sgd,), (adamw,) = students(plan_of(STUDENT)), students(plan_of(STUDENT, optimizer="adamw"))
    assert [getattr(sgd.config, name) for name in ("lr", "weight_decay", "momentum")] == [0.1, 1e-4, 0.9]
    assert [getattr(adamw.config, name) for name in ("lr", "weight_decay", "momentum")] == [1e-3, 1e-2, None]
    (given,) = students(plan_of(STUDENT, optimizer="adamw", lr=0.1, momentum=0.5))
    assert (given.config.lr, given.config.momentum) == (0.1, None)


def test_options_with_default_values_do_not_change_the_trial(plan_of: Planner) -> None:
    plain = ids(plan_of(STUDENT, optimizer="adamw", schedule="cosine"))
    same = {"optimizer": {"adamw": {"beta1": 0.9}}, "schedule": {"cosine": {"warmup": 0}}}
    assert ids(plan_of(STUDENT, **same)) == plain
    assert not ids(plan_of(STUDENT, **{**same, "schedule": {"cosine": {"warmup": 1}}})) & plain


def test_nesterov_matters_only_with_momentum(plan_of: Planner) -> None:
    nesterov = {"optimizer": {"sgd": {"nesterov": True}}}
    assert not ids(plan_of(STUDENT, **nesterov)) & ids(plan_of(STUDENT))
    assert ids(plan_of(STUDENT, **nesterov, momentum=0)) == ids(plan_of(STUDENT, momentum=0))
    assert ids(plan_of(STUDENT, optimizer={"sgd": {"nesterov": False}})) == ids(plan_of(STUDENT))


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_cosine_and_a_line_have_no_milestones(plan_of: Planner, schedule: str) -> None:
    plain = ids(plan_of(STUDENT, schedule=schedule))
    assert ids(plan_of(STUDENT, schedule=schedule, milestones=[3], gamma=0.5)) == plain


def test_a_warm_up_of_steps_is_an_option_of_them(plan_of: Planner) -> None:
    assert ids(plan_of(STUDENT, schedule={"steps": {"warmup": 0}})) == ids(plan_of(STUDENT))
    (warm,) = students(plan_of(STUDENT | {"schedule": {"steps": {"warmup": 2}}}))
    assert warm.config.schedule_options == (("warmup", 2),) and warm.config.milestones == (4, 6)


def test_a_temperature_changes_its_trial(plan_of: Planner) -> None:
    plan = plan_of(STUDENT | {"method": "st", "temperature": [4, 2]})
    assert [dict(trial.config.options)["temperature"] for trial in students(plan)] == [4.0, 2.0]


@pytest.mark.parametrize("name", fields.RECIPE_KEYS)
def test_every_key_of_the_recipe_changes_every_student(plan_of: Planner, name: str) -> None:
    plain, changed = plan_of(STUDENT), plan_of(STUDENT, **{name: CHANGES[name]})
    assert students(plain)[0].trial_id != students(changed)[0].trial_id
    assert (teachers(plain)[0].trial_id != teachers(changed)[0].trial_id) == (name != "teacher_cache")


@pytest.mark.parametrize("name", sorted(set(fields.TEACHER_MAPPING_KEYS) - {"dataset", "weights"}))
def test_every_key_of_the_teacher_changes_it_and_its_student(plan_of: Planner, name: str) -> None:
    value = "resnet_32_20" if name == "model" else CHANGES[name]
    plan = plan_of(STUDENT | {"teacher": STUDENT["teacher"] | {name: value}})
    assert not ids(plan) & ids(plan_of(STUDENT))


def test_a_teacher_has_the_images_of_its_student_but_its_own_recipe(plan_of: Planner) -> None:
    own = {"limit_train": 300, "limit_test": 200, "holdout": 20, "lr": 0.5, "epochs": 3, "crop_padding": 1, "seed": 5}
    (teacher,) = teachers(plan_of(STUDENT | own))
    config = teacher.config
    assert (config.limit_train, config.limit_test, config.holdout) == (300, 200, 20)
    assert (config.lr, config.epochs, config.crop_padding, config.seed) == (0.1, 8, 4, 0)
    assert (config.method, config.student, config.teacher, config.teacher_cache) == ("base", "resnet_32_14", None, None)


def test_milestones_follow_the_epochs_of_each_trial(tmp_path: Path) -> None:
    experiment = "{method: base, dataset: digits, student: resnet_32_8, epochs: [200, 10, 2, 1]}"
    plan = plan_text(tmp_path, f"study: s\nexperiments: [{experiment}]")
    assert [trial.config.milestones for trial in plan.trials] == [(100, 150), (5, 7), (1,), ()]
    assert [trial.config.gamma for trial in plan.trials] == [0.1, 0.1, 0.1, 1.0]


# Axes.


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=1, unique=True),
    st.lists(st.sampled_from(["resnet_32_8", "resnet_32_14"]), min_size=1, unique=True),
    st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
    st.lists(st.sampled_from(["resnet_32_14", "resnet_32_20"]), min_size=1, unique=True),
)
def test_axes_multiply(
    plan_of: Planner, seeds: list[int], lrs: list[float], models: list[str], own: list[int], nets: list[str]
) -> None:
    teacher = {"model": nets, "seed": own}
    plan = plan_of(STUDENT | {"seed": seeds, "lr": lrs, "student": models, "teacher": teacher})
    found = [(t.config.student, t.config.lr, t.config.seed, t.config.teacher) for t in students(plan)]
    assert len(found) == len(set(found)) == len(seeds) * len(lrs) * len(models) * len(own) * len(nets)
    assert {(t.config.student, t.config.seed) for t in teachers(plan)} == set(itertools.product(nets, own))


def test_a_grid_of_milestones(plan_of: Planner) -> None:
    plan = plan_of({**STUDENT, "milestones": {"grid": [[4], [2, 6], []]}})
    assert [trial.config.milestones for trial in students(plan)] == [(4,), (2, 6), ()]
    assert [trial.config.milestones for trial in teachers(plan)] == [(4, 6)]


def test_a_list_of_teachers(plan_of: Planner) -> None:
    plan = plan_of(STUDENT | {"teacher": ["resnet_32_8", {"model": ["resnet_32_14"], "epochs": [1, 2]}]})
    assert [(t.config.student, t.config.epochs) for t in teachers(plan)] == [
        ("resnet_32_8", 8),
        ("resnet_32_14", 1),
        ("resnet_32_14", 2),
    ]
    assert [trial.teacher_id for trial in students(plan)] == [trial.trial_id for trial in teachers(plan)]


def test_seeds_are_next_to_each_other(plan_of: Planner) -> None:
    plan = plan_of(STUDENT | {"seed": [0, 1], "lr": [0.1, 0.2]})
    order = [(trial.config.lr, trial.config.seed) for trial in students(plan)]
    assert order == [(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)]


# Equal trials are one, and teachers come first.


def test_equal_trials_are_one(plan_of: Planner) -> None:
    assert plan_of(STUDENT, STUDENT | {"seed": [0, 0]}).trials == plan_of(STUDENT).trials


def test_a_base_experiment_like_a_teacher_is_that_teacher(plan_of: Planner) -> None:
    base = {"method": "base", "dataset": "digits", "student": "resnet_32_14", "seed": [1, 0]}
    plan = plan_of(base, STUDENT)
    assert [(trial.role, trial.config.student, trial.config.seed) for trial in plan.trials] == [
        ("teacher", "resnet_32_14", 0),
        ("student", "resnet_32_14", 1),
        ("student", "resnet_32_8", 0),
    ]
    assert [trial.trial_id for trial in plan.trials] == [
        plan_of(STUDENT).trials[0].trial_id,
        plan_of(base).trials[0].trial_id,
        plan_of(STUDENT).trials[1].trial_id,
    ]


def test_teachers_precede_the_students_that_wait_for_them(plan_of: Planner) -> None:
    many = [STUDENT | {"seed": [0, 1], "holdout": holdout} for holdout in (0, 5, 9)]
    earlier: set[str] = set()
    for trial in plan_of(*many).trials:
        assert trial.teacher_id is None or trial.teacher_id in earlier
        assert trial.to_json()["waits_for"] == ([trial.teacher_id] if trial.teacher_id else [])
        earlier.add(trial.trial_id)
    assert len(earlier) == 9


def test_titles(plan_of: Planner) -> None:
    assert [trial.title() for trial in plan_of(STUDENT, epochs=200, milestones=[100, 150]).trials] == [
        "base digits resnet_32_14 seed 0",
        "logit digits resnet_32_8 ← resnet_32_14 seed 0",
    ]
    swept = plan_of(STUDENT | {"match": "pooled", "teacher": {"model": "resnet_32_14", "seed": 1}})
    assert [trial.title() for trial in swept.trials] == [
        "base epochs=8 · digits · resnet_32_14 · seed 1",
        "logit match=pooled epochs=8 · digits · resnet_32_8 ← resnet_32_14 (seed 1) · seed 0",
    ]


# Teachers from a file.


def test_a_weights_file_is_known_by_its_bytes(tmp_path: Path, plan_of: Planner) -> None:
    def plan(name: str, raw: bytes) -> Plan:
        (tmp_path / name).write_bytes(raw)
        return plan_of(STUDENT | {"teacher": {"model": "resnet_32_14", "weights": str(tmp_path / name)}})

    one = plan("one.pt", b"abc")
    assert ids(one) == ids(plan("two.pt", b"abc"))
    assert not ids(one) & ids(plan("one.pt", b"abd"))
    (teacher,) = teachers(one)
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (teacher.config.weights, teacher.config.epochs) == (digest, 0)
    assert one.weights == {digest: str(tmp_path / "one.pt")}
    assert teacher.title() == "base weights=ba7816bf8f01 · digits · resnet_32_14 · seed 0"


def test_training_settings_do_not_change_a_teacher_from_a_file(tmp_path: Path, plan_of: Planner) -> None:
    (tmp_path / "w.pt").write_bytes(b"abc")
    experiment = STUDENT | {"teacher": {"model": "resnet_32_14", "weights": str(tmp_path / "w.pt")}}
    (plain,) = teachers(plan_of(experiment))
    changes = {name: CHANGES[name] for name in fields.RECIPE_KEYS if name != "limit_test"}
    assert teachers(plan_of(experiment, **changes)) == [plain]


# States and the decision on the teacher's table.


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (None, "new"),
        (State.RUNNING, "unfinished"),
        (State.STOPPED, "unfinished"),
        (State.FAILED, "failed"),
        (State.SKIPPED, "unfinished"),
        (State.FINISHED, "finished"),
    ],
)
def test_states(plan_of: Planner, state: State | None, word: str) -> None:
    (student,) = students(plan_of(STUDENT))
    plan = plan_of(STUDENT, states={student.trial_id: state} if state else {})
    assert [trial.state for trial in plan.trials] == ["new", word]


def decisions(plan: Plan) -> list[str | None]:
    assert all((trial.table is not None) == (trial.teacher_cache == "table") for trial in plan.trials)
    return [trial.teacher_cache for trial in plan.trials]


# With padding 1 and flips a table has 18 views of 1,297 images; 0.8 · (18 · 1,297 + 1,000) outputs equal 15.02 epochs.
VIEWS = STUDENT | {"crop_padding": 1, "milestones": []}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"epochs": 15}, ["live"]),
        ({"epochs": 16}, ["table"]),
        ({"epochs": 7, "seed": [0, 1]}, ["live"] * 2),
        ({"epochs": 8, "seed": [0, 1]}, ["table"] * 2),
        ({"epochs": 7, "flip": False}, ["live"]),
        ({"epochs": 8, "flip": False}, ["table"]),
        ({"epochs": 22, "limit_train": 100}, ["live"]),  # the check weighs more where there are few images
        ({"epochs": 23, "limit_train": 100}, ["table"]),
        ({"epochs": 24, "teacher_cache": "live"}, ["live"]),
        ({"epochs": 1, "teacher_cache": "table"}, ["table"]),
        ({"epochs": 12, "teacher_cache": ["auto", "live"]}, ["live"] * 2),  # a live trial needs no table
        ({"epochs": 12, "teacher_cache": ["auto", "table"]}, ["table"] * 2),
        ({"epochs": 12, "match": ["logits", "pooled"]}, ["live"] * 2),  # other outputs need another table
        ({"epochs": 18, "limit_train": [100, 200]}, ["live"] * 2),  # so are other images
    ],
)
def test_a_table_is_made_if_enough_epochs_remain(plan_of: Planner, change: dict[str, Any], expected: list[str]) -> None:
    plan = plan_of(VIEWS | change)
    assert decisions(plan) == [None] * len(teachers(plan)) + expected


def test_methods_share_a_table(plan_of: Planner) -> None:
    plan = plan_of(VIEWS | {"epochs": 12, "method": ["logit", "st"]})
    (one, other) = students(plan)
    assert one.table == other.table == TableKey(teachers(plan)[0].trial_id, "logits", 1, True, 1297)


def test_finished_students_need_no_table(plan_of: Planner) -> None:
    experiment = VIEWS | {"epochs": 12, "seed": [0, 1]}
    first = students(plan_of(experiment))[0].trial_id
    assert decisions(plan_of(experiment, states={first: State.FINISHED})) == [None, "live", "live"]
    assert decisions(plan_of(experiment, states={first: State.FAILED})) == [None, "table", "table"]


def test_a_table_that_exists_is_used(plan_of: Planner) -> None:
    experiment = VIEWS | {"epochs": 1, "holdout": 97}
    (teacher,) = teachers(plan_of(experiment))
    key = TableKey(teacher.trial_id, "logits", 1, True, 1200)
    (student,) = students(plan_of(experiment, tables=[key]))
    assert (student.teacher_cache, student.table) == ("table", key)
    assert decisions(plan_of(experiment | {"teacher_cache": "live"}, tables=[key])) == [None, "live"]
    other = TableKey(teacher.trial_id, "logits", 1, True, 1297)
    assert decisions(plan_of(experiment, tables=[other])) == [None, "live"]


def test_the_decision_changes_no_id(plan_of: Planner) -> None:
    (student,) = students(plan_of(VIEWS))
    key = TableKey(str(student.teacher_id), "logits", 1, True, 1297)
    assert ids(plan_of(VIEWS, tables=[key])) == ids(plan_of(VIEWS))


# JSON, and other processes.


def test_a_plan_comes_back_from_json(tmp_path: Path, plan_of: Planner) -> None:
    (tmp_path / "w.pt").write_bytes(b"abc")
    weights = {"model": "resnet_32_8", "weights": str(tmp_path / "w.pt")}
    axes = {"teacher_cache": ["live", "table"], "match": ["logits", "pooled"], "teacher": ["resnet_32_8", weights]}
    plan = plan_of(VIEWS | axes)
    assert {"table", "live"} <= set(decisions(plan))
    assert codec.decode(Plan, json.loads(json.dumps(codec.encode(plan)))) == plan


def test_the_published_plan_comes_back_from_json() -> None:
    plan = make_plan(load_study(ROOT / "experiments.yaml"))
    assert codec.decode(Plan, json.loads(json.dumps(codec.encode(plan)))) == plan


def run(code: str, seed: str = "1") -> Any:
    """The output of a new process, as JSON."""
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    return json.loads(done.stdout)


def test_ids_are_the_same_in_every_process() -> None:
    code = (
        "import json; from orchestrator.study.plan import make_plan; from orchestrator.study.reader import load_study; "
        "print(json.dumps([t.trial_id for t in make_plan(load_study('experiments.yaml')).trials]))"
    )
    here = [trial.trial_id for trial in make_plan(load_study(ROOT / "experiments.yaml")).trials]
    assert len(set(here)) == 16
    assert run(code, "1") == here
    assert run(code, "2") == here


def test_planning_loads_nothing_heavy() -> None:
    loaded = run("import json, sys, orchestrator.study.plan; print(json.dumps(list(sys.modules)))")
    assert "orchestrator.study.plan" in loaded
    assert {"torch", "ray", "pyarrow"} & set(loaded) == set()


# Students without a `base`.

BASE: dict[str, Any] = {"method": "base", "dataset": "digits", "student": "resnet_32_8"}


def test_students_without_a_base_are_named_once(plan_of: Planner) -> None:
    (warning,) = plan_of(STUDENT | {"seed": [0, 1]}, BASE | {"seed": 1}).warnings
    assert "base epochs=8 · digits · resnet_32_8 · seed 0;" in warning and "method: base" in warning
    (warning,) = plan_of(STUDENT | {"lr": [0.1, 0.2], "seed": list(range(7))}, BASE | {"seed": list(range(7))}).warnings
    assert "base epochs=8 lr=0.2 · digits · resnet_32_8 · seed 0, 1, 2, 3, 4, 2 more;" in warning
    (warning,) = plan_of(STUDENT | {"lr": [number / 10 for number in range(1, 9)]}).warnings
    assert warning.count(" · digits") == 5 and "; 3 more;" in warning


def test_students_with_a_base_are_not_named(plan_of: Planner) -> None:
    own = {"seed": [0, 1], "lr": [0.1, 0.2]}
    assert plan_of(STUDENT | own | {"match": ["logits", "pooled"]}, BASE | own).warnings == ()
    itself = STUDENT | {"student": "resnet_32_14"}  # its teacher is the same training without a teacher
    assert plan_of(itself).warnings == () and plan_of(BASE).warnings == ()
