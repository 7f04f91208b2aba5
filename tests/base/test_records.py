"""A trial's id: the same everywhere, another for every setting that can change the result."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import codec
from orchestrator.dataset import Dataset
from orchestrator.losses import METHODS, Method, Option
from orchestrator.records import Failure, State, TableKey, TrialConfig

TEACHER = TrialConfig(
    method="base",
    dataset="cifar10",
    student="resnet_32_110",
    seed=0,
    epochs=200,
    batch_size=128,
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    milestones=(100, 150),
    gamma=0.1,
    crop_padding=4,
    flip=True,
    precision="auto",
    limit_train=None,
    limit_test=None,
    holdout=0,
)
STUDENT = replace(
    TEACHER,
    method="logit",
    student="resnet_32_20",
    options=(("ce_weight", 1.0), ("match", "logits")),
    teacher=TEACHER,
    teacher_cache="auto",
)
FOLDER = Dataset(3, 90, 30, 16, (0.5, 0.4, 0.3), (0.2, 0.2, 0.1), "0123456789ab")
CHANGES: dict[str, Any] = {
    "method": "st",
    "dataset": "cifar100",
    "student": "resnet_32_8",
    "seed": 1,
    "epochs": 199,
    "batch_size": 64,
    "lr": math.nextafter(0.1, 1),  # ids tell apart what prints alike with few digits
    "momentum": 0.8,
    "weight_decay": 2e-4,
    "milestones": (100,),
    "gamma": 0.2,
    "crop_padding": 3,
    "flip": False,
    "precision": "float32",
    "limit_train": 100,
    "limit_test": 100,
    "holdout": 1,
    "options": (("ce_weight", 0.5), ("match", "logits")),
    "teacher": None,
    "teacher_cache": "live",
    "weights": "00" * 32,
    "optimizer": "adamw",
    "optimizer_options": (("beta1", 0.8),),
    "schedule": "cosine",
    "schedule_options": (("warmup", 5),),
    "folder": FOLDER,
    "padding": "zero",
    "own_code": (("my_loss:MyLoss", "0123456789ab"),),
    "label_smoothing": 0.1,
    "clip_norm": 1.0,
    "ema": 0.999,
    "members": (replace(TEACHER, seed=7), replace(TEACHER, seed=8)),
}
OPTIONS = st.dictionaries(st.text(max_size=5), st.floats(0, 1) | st.integers(0, 9) | st.text(max_size=5), max_size=2)
OPTIONS = OPTIONS.map(lambda options: tuple(sorted(options.items())))
WORD = st.text(max_size=5)
CONFIGS = st.builds(
    TrialConfig,
    method=WORD,
    dataset=WORD,
    student=WORD,
    seed=st.integers(0, 2**63 - 1),
    epochs=st.integers(0, 999),
    batch_size=st.integers(1, 999),
    lr=st.floats(0, 1),
    momentum=st.none() | st.floats(0, 1),
    weight_decay=st.floats(0, 1),
    milestones=st.lists(st.integers(1, 999), max_size=3).map(tuple),
    gamma=st.floats(0, 1),
    crop_padding=st.integers(0, 9),
    flip=st.booleans(),
    precision=st.sampled_from(["auto", "float32", "bfloat16", "float16"]),
    limit_train=st.none() | st.integers(1),
    limit_test=st.none() | st.integers(1),
    holdout=st.integers(0),
    options=OPTIONS,
    teacher=st.sampled_from([None, TEACHER]),
    teacher_cache=st.none() | WORD,
    weights=st.none() | WORD,
    optimizer=WORD,
    optimizer_options=OPTIONS,
    schedule=WORD,
    schedule_options=OPTIONS,
    own_code=st.dictionaries(WORD, WORD, max_size=2).map(lambda found: tuple(sorted(found.items()))),
    folder=st.none() | st.builds(replace, st.just(FOLDER), classes=st.integers(2), digest=WORD),
    padding=WORD,
    label_smoothing=st.floats(0, 1),
    clip_norm=st.floats(0, 1),
    ema=st.floats(0, 1),
)


def test_images_of_a_folder_are_what_they_are_and_not_what_the_folder_is_called() -> None:
    config = replace(STUDENT, folder=FOLDER, dataset="flowers-0123", teacher=replace(TEACHER, folder=FOLDER))
    assert config.trial_id() == replace(config, dataset="elsewhere").trial_id()
    for name in ("classes", "train", "test", "side", "mean", "std", "digest"):
        value = getattr(FOLDER, name)
        other = {int: 7, str: "0" * 12, tuple: (0.1, 0.2, 0.3)}[type(value)]
        assert replace(config, folder=replace(FOLDER, **{name: other})).trial_id() != config.trial_id()


def test_a_dataset_with_a_name_stores_no_facts() -> None:
    assert "folder" not in codec.encode(STUDENT) and "folder" not in STUDENT.recipe()
    config = replace(STUDENT, folder=FOLDER, teacher=replace(TEACHER, folder=FOLDER))
    assert config.recipe()["folder"] == codec.encode(FOLDER)
    assert "folder" not in config.recipe()["teacher"]  # it sees the same images


def test_the_ids_of_these_trials_stay() -> None:
    """A failure here means that every result in every storage would be trained again."""
    assert TEACHER.trial_id() == "81cadb989721"
    assert STUDENT.trial_id() == "07a9610c016e"


def test_a_new_setting_at_its_default_is_in_no_id_and_in_no_json() -> None:
    assert set(codec.encode(STUDENT)) == set(CHANGES) - {
        "folder",
        "optimizer",
        "optimizer_options",
        "schedule",
        "schedule_options",
        "padding",
        "own_code",
        "label_smoothing",
        "clip_norm",
        "ema",
        "members",
    }
    changed = replace(STUDENT, schedule="cosine")
    assert codec.encode(changed) == {**codec.encode(STUDENT), "schedule": "cosine"}


def test_an_option_that_a_method_gains_is_in_no_id_at_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    method = METHODS["logit"]
    more = replace(method, options={**method.options, "power": Option(2, "an exponent")})
    monkeypatch.setitem(cast("dict[str, Method]", METHODS), "logit", more)
    same, other = (replace(STUDENT, options=(*STUDENT.options, ("power", power))) for power in (2, 3))
    assert same.trial_id() == STUDENT.trial_id() != other.trial_id()


def test_every_field_has_a_change() -> None:
    assert set(CHANGES) == {field.name for field in fields(TrialConfig)}


@pytest.mark.parametrize("name", CHANGES)
def test_every_field_is_part_of_the_id(name: str) -> None:
    changed = replace(STUDENT, **{name: CHANGES[name]})
    assert changed != STUDENT
    assert changed.trial_id() != STUDENT.trial_id()


@pytest.mark.parametrize("name", sorted(set(CHANGES) - {"teacher"}))
def test_every_field_of_the_teacher_is_part_of_the_id(name: str) -> None:
    changed = replace(STUDENT, teacher=replace(TEACHER, **{name: CHANGES[name]}))
    assert changed.trial_id() != STUDENT.trial_id()


def test_all_changes_have_different_ids() -> None:
    ids = {replace(STUDENT, **{name: value}).trial_id() for name, value in CHANGES.items()}
    assert len(ids) == len(CHANGES)


def test_a_raised_training_version_is_another_id(monkeypatch: pytest.MonkeyPatch) -> None:
    before = STUDENT.trial_id()
    monkeypatch.setattr("orchestrator.records.TRAINING_VERSION", 0)
    assert STUDENT.trial_id() != before


def test_a_known_teacher_id_spares_work_and_changes_nothing() -> None:
    assert STUDENT.trial_id(TEACHER.trial_id()) == STUDENT.trial_id()
    assert STUDENT.trial_id("0" * 12) != STUDENT.trial_id()
    assert TEACHER.trial_id("0" * 12) == TEACHER.trial_id()


def test_a_number_that_is_not_finite_has_no_id() -> None:
    with pytest.raises(ValueError, match="JSON"):
        replace(TEACHER, lr=float("nan")).trial_id()


@settings(max_examples=60)
@given(CONFIGS)
def test_a_config_comes_back_from_json(config: TrialConfig) -> None:
    again = codec.decode(TrialConfig, json.loads(json.dumps(codec.encode(config))))
    assert again == config
    assert hash(again) == hash(config)
    assert again.trial_id() == config.trial_id()
    assert len(config.trial_id()) == 12 and int(config.trial_id(), 16) >= 0


@settings(max_examples=60)
@given(CONFIGS, CONFIGS)
def test_ids_are_equal_where_configs_are(one: TrialConfig, other: TrialConfig) -> None:
    assert (one.trial_id() == other.trial_id()) == (one == other)


def test_the_recipe_is_what_no_column_says() -> None:
    recipe = STUDENT.recipe()
    assert not {"method", "dataset", "student", "seed"} & set(recipe)
    assert recipe["options"] == {"ce_weight": 1.0, "match": "logits"}
    assert recipe["teacher"] == {"seed": 0, **TEACHER.recipe()}
    assert TEACHER.recipe()["teacher"] is None


@pytest.mark.parametrize(("padding", "flip", "views"), [(4, True, 162), (4, False, 81), (0, True, 2), (0, False, 1)])
def test_views_of_a_table(padding: int, flip: bool, views: int) -> None:
    assert TableKey("t", "logits", padding, flip, 100).views == views


def test_tables_of_one_teacher_have_names_of_their_own() -> None:
    key = TableKey("t", "logits", 4, True, 100)
    assert key.name == "logits-p4-flip-n100"
    changes: list[dict[str, Any]] = [
        {"outputs": "pooled"}, {"crop_padding": 3}, {"flip": False}, {"images": 99}, {"padding": "zero"}
    ]  # fmt: skip
    assert len({key.name, *(replace(key, **change).name for change in changes)}) == 6
    zero = replace(key, padding="zero")
    assert zero.name == "logits-p4-zero-flip-n100" and TableKey.parse("t", zero.name) == zero
    assert TableKey.parse("t", key.name) == key and TableKey.parse("t", "logits-p4-reflect-flip-n100") is None


# States and failures, whose names stand in rows.


def test_the_names_in_rows_stay() -> None:
    assert [*State] == ["running", "stopped", "finished", "failed", "skipped"]
    assert [*Failure] == ["lost_worker", "out_of_memory", "device", "storage", "diverged", "teacher", "data", "error"]
    assert f"{State.STOPPED} {Failure.LOST_WORKER}" == "stopped lost_worker"


@pytest.mark.parametrize("failure", Failure)
def test_what_is_the_fault_of_no_setting_is_retried(failure: Failure) -> None:
    assert failure.is_retried == (failure in ("lost_worker", "out_of_memory", "device"))
