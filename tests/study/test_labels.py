"""Labels: they depend on the settings alone, differ between settings, and are the same for plans and rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_tables import row

from orchestrator import losses
from orchestrator.records import TrialConfig, TrialRecord
from orchestrator.study import fields, labels, short_names
from orchestrator.study.plan import PlannedTrial

DEFAULT = TrialConfig(
    method="base", dataset="cifar10", student="resnet_32_20", seed=0, epochs=200, batch_size=128, lr=0.1, momentum=0.9,
    weight_decay=1e-4, milestones=(100, 150), gamma=0.1, crop_padding=4, flip=True, precision="auto", limit_train=None,
    limit_test=None, holdout=0,
)  # fmt: skip
TEACHER = replace(DEFAULT, student="resnet_32_110")
OPTIONS = {name: tuple(sorted(method.defaults().items())) for name, method in losses.METHODS.items()}
FILE = hashlib.sha256(b"a file").hexdigest()


def student(method: str = "st", teacher: TrialConfig = TEACHER, **settings: Any) -> TrialConfig:
    """A student with the given settings and defaults for all others."""
    return replace(
        DEFAULT, method=method, **{"options": OPTIONS[method], "teacher": teacher, "teacher_cache": "auto", **settings}
    )


def stored(config: TrialConfig, **how: Any) -> TrialRecord:
    """The row of a config; `how` is how it was run."""
    columns = {name: getattr(config, name) for name in ("method", "dataset", "student", "lr", "batch_size")}
    teacher = config.teacher.student if config.teacher else None
    return row(config.seed, nepoch=config.epochs, teacher=teacher, recipe={**config.recipe(), **how}, **columns)


def from_file(**settings: Any) -> TrialConfig:
    """A teacher from a file, as `plan` represents it."""
    return replace(TEACHER, epochs=0, milestones=(), gamma=1.0, weights=FILE, **settings)


HALF = replace(TEACHER, epochs=60, milestones=(30, 45))
POOLED = (("ce_weight", 1.0), ("match", "pooled"))
SLOW = replace(TEACHER, lr=0.05)


@pytest.mark.parametrize(
    ("config", "label"),
    [
        (DEFAULT, "base"),
        (student(), "st"),
        (student(teacher=SLOW, lr=0.05, options=(("temperature", 2.0),)), "st temperature=2 lr=0.05"),
        (student(options=(("standardize", True),)), "st standardize=true"),
        (student("logit", HALF, options=POOLED, epochs=60, milestones=(30, 45)), "logit match=pooled epochs=60"),
        (student(lr=0.05), "st lr=0.05 teacher.lr=0.1"),
        (student(teacher=HALF), "st teacher.epochs=60"),
        (student(teacher=replace(TEACHER, seed=3), limit_test=9), "st limit_test=9 teacher.limit_test=all"),
        (student(teacher_cache="live", flip=False), "st flip=false teacher_cache=live teacher.flip=true"),
        (student(teacher=from_file()), f"st teacher.weights={FILE[:12]}"),
        (student(teacher=from_file(limit_test=9), limit_test=9), f"st limit_test=9 teacher.weights={FILE[:12]}"),
        (from_file(), f"base weights={FILE[:12]}"),
        (replace(DEFAULT, milestones=(30,)), "base milestones=30"),
        (replace(DEFAULT, padding="zero"), "base padding=zero"),
        (replace(DEFAULT, optimizer_options=(("nesterov", True),)), "base optimizer=sgd:nesterov=true"),
        (student(label_smoothing=0.1), "st label_smoothing=0.1 teacher.label_smoothing=0"),
        (student(ema=0.999, clip_norm=5.0), "st clip_norm=5 ema=0.999 teacher.clip_norm=0 teacher.ema=0"),
        (student(padding="zero"), "st padding=zero teacher.padding=reflect"),
        (replace(DEFAULT, milestones=(), gamma=1.0), "base milestones=none"),
        (replace(DEFAULT, epochs=60, milestones=(30, 45)), "base epochs=60"),
        (replace(DEFAULT, epochs=60, milestones=(100, 150)), "base epochs=60 milestones=100,150"),
        (replace(DEFAULT, weight_decay=5e-4, precision="float32"), "base weight_decay=0.0005 precision=float32"),
        (
            replace(
                DEFAULT,
                optimizer="adamw",
                lr=1e-3,
                weight_decay=0.01,
                momentum=None,
                schedule="cosine",
                schedule_options=(("floor", 0.5), ("warmup", 5)),
                milestones=(),
                gamma=1.0,
            ),
            "base optimizer=adamw schedule=cosine:floor=0.5,warmup=5",
        ),
    ],
)
def test_the_label_is_the_method_and_every_setting_that_is_not_the_default(config: TrialConfig, label: str) -> None:
    assert labels.of_config(config) == labels.of_row(stored(config)) == label
    seeded = replace(config, seed=7, teacher=replace(config.teacher, seed=9) if config.teacher else None)
    how = {"arithmetic": "bfloat16", "teacher_answers": "table"}
    assert labels.of_config(seeded) == labels.of_row(stored(seeded, **how)) == label


TRAINING: dict[str, st.SearchStrategy[Any]] = {
    "epochs": st.sampled_from([1, 60, 100, 200]),
    "batch_size": st.sampled_from([32, 128]),
    "lr": st.sampled_from([0.1, 1e-05, 1.0]),
    "gamma": st.sampled_from([0.1, 0.2]),
    "crop_padding": st.integers(1, 4),
    "padding": st.sampled_from(["reflect", "zero"]),
    "label_smoothing": st.sampled_from([0.0, 0.1]),
    "clip_norm": st.sampled_from([0.0, 5.0]),
    "ema": st.sampled_from([0.0, 0.999]),
    "flip": st.booleans(),
    "precision": st.sampled_from(["auto", "float32"]),
    "limit_train": st.sampled_from([None, 512]),
    "limit_test": st.sampled_from([None, 1, 100]),
    "holdout": st.sampled_from([0, 1]),
}
MILESTONES = st.sampled_from([None, (), (30,), (30, 45), (50, 75), (100, 150)])


def values(option: losses.Option) -> st.SearchStrategy[Any]:
    """Some values of an option, its default among them."""
    if option.choices or isinstance(option.default, bool):
        return st.sampled_from(option.choices or (False, True))
    return st.sampled_from([option.default, 1, 3] if isinstance(option.default, int) else [option.default, 1.0, 2.5])


NO_MILESTONES = {"milestones": (), "gamma": 1.0}
OPTIMIZERS_AND_SCHEDULES: list[dict[str, Any]] = [
    {},
    {"optimizer": "adamw", "momentum": None, "lr": 1e-3, "weight_decay": 0.01},
    {"optimizer": "adamw", "momentum": None, "optimizer_options": (("beta1", 0.8),)},
    {"optimizer_options": (("nesterov", True),)},
    {"schedule_options": (("warmup", 5),)},
    {"schedule": "linear", **NO_MILESTONES},
    {"schedule": "cosine", **NO_MILESTONES},
    {"schedule": "cosine", "schedule_options": (("warmup", 5),), **NO_MILESTONES},
]


@st.composite
def trained(draw: st.DrawFn) -> TrialConfig:
    """A training without a teacher, in the normal form that `plan` gives it."""
    own = {name: draw(values) for name, values in TRAINING.items()}
    chosen = draw(MILESTONES)
    milestones = fields.default_milestones(own["epochs"]) if chosen is None else chosen
    milestones = tuple(milestone for milestone in milestones if milestone < own["epochs"])
    own |= {"milestones": milestones, "gamma": own["gamma"] if milestones else 1.0}
    own |= draw(st.sampled_from(OPTIMIZERS_AND_SCHEDULES))
    return replace(DEFAULT, seed=draw(st.integers(0, 1)), **own)


@st.composite
def settings(draw: st.DrawFn) -> TrialConfig:
    """Any trial of one pair."""
    config = draw(trained())
    method = draw(st.sampled_from(sorted(losses.METHODS)))
    if method == "base":
        return config
    options = tuple((name, draw(values(losses.METHODS[method].options[name]))) for name, _ in OPTIONS[method])
    file = from_file(limit_test=draw(TRAINING["limit_test"]))
    teacher = replace(draw(st.one_of(trained(), st.just(config), st.just(file), distilled())), student="resnet_32_110")
    cache = draw(st.sampled_from(["auto", "live", "table"]))
    return replace(config, method=method, options=options, teacher=teacher, teacher_cache=cache)


def distilled() -> st.SearchStrategy[TrialConfig]:
    """A teacher that has a teacher of one of two models, which may be distilled too."""
    models = st.sampled_from(["resnet_32_20", "resnet_32_56"])
    pairs = st.tuples(st.deferred(settings).filter(lambda config: config.teacher), models)
    return pairs.map(lambda pair: replace(pair[0], teacher=replace(pair[0].teacher, student=pair[1])))


def seedless(config: TrialConfig) -> TrialConfig:
    """The setting: a trial without its seeds."""
    return replace(config, seed=0, teacher=seedless(config.teacher) if config.teacher else None)


@given(st.lists(settings(), min_size=2, max_size=6))
def test_two_settings_never_share_a_label_nor_two_trials_a_title(configs: list[TrialConfig]) -> None:
    assert len({labels.of_config(config) for config in configs}) == len(set(map(seedless, configs)))
    assert len({labels.title(config) for config in configs}) == len(set(configs))


@given(settings())
def test_a_row_has_the_label_of_its_plan(config: TrialConfig) -> None:
    assert labels.of_row(stored(config)) == labels.of_config(config)
    planned = PlannedTrial(config.trial_id(), "student", config, None, "new", None, None)
    assert labels.title(stored(config)) == planned.title()


@given(settings(), settings())
def test_a_setting_has_every_value_behind_its_label(config: TrialConfig, other: TrialConfig) -> None:
    found, theirs = (labels.setting_of_row(stored(each)) for each in (config, other))
    assert found.label == labels.of_config(config)
    assert all(f"{name}={found.values[name]}" in found.label.split() for name in found.changed)
    assert len(found.changed) == len(found.label.split()) - 1 and set(fields.RECIPE_KEYS) - {"teacher_cache"} <= set(
        found.values
    )
    assert (found.values == theirs.values) == (found.label == theirs.label) or config.method != other.method
    if config.teacher:
        taught = labels.teacher_setting_of_row(stored(config))
        assert taught.label == labels.of_config(replace(config.teacher, student="resnet_32_20"))
        assert found.values["teacher.epochs"] == taught.values["epochs"] == str(config.teacher.epochs)


def test_values_are_written_as_in_a_study_file() -> None:
    values = labels.setting_of_row(stored(student(options=(("temperature", 2.0),)))).values
    assert (values["temperature"], values["ce_weight"], values["lr"], values["milestones"]) == (
        "2",
        "1",
        "0.1",
        "100,150",
    )
    assert (values["flip"], values["limit_train"], values["teacher.lr"]) == ("true", "all", "0.1")


@given(settings())
def test_the_base_of_a_setting_is_its_training_without_a_teacher(config: TrialConfig) -> None:
    base = replace(config, method="base", options=(), teacher=None, teacher_cache=None)
    assert labels.base_of_row(stored(config)) == labels.of_config(base)


def test_a_setting_that_an_older_kdctl_did_not_store_has_its_default() -> None:
    assert labels.of_row(row(recipe={})) == "logit"
    assert labels.of_row(row(recipe={}, nepoch=60, lr=0.2, batch_size=64)) == "logit epochs=60 batch_size=64 lr=0.2"
    old = {"epochs": 60, "lr": None, "options": {"ce_weight": None}, "teacher": {"seed": 1, "epochs": 60}}
    assert labels.of_row(row(recipe=old)) == "logit epochs=60"


def test_a_setting_that_a_newer_kdctl_stored_is_in_the_label() -> None:
    new = {
        "warmup": 5,
        "options": {"beta": 0.5, "match": "pooled"},
        "teacher": {"ema": "a b", "options": {"c": [1, 2]}},
    }
    expected = 'logit match=pooled options.beta=0.5 warmup=5 teacher.ema="a\\u0020b" teacher.options.c=[1,2]'
    assert labels.of_row(row(recipe=new)) == expected
    assert labels.of_row(row(method="fitnet", recipe={"options": {"beta": 0.5}})) == "fitnet options.beta=0.5"


def test_titles_name_the_teacher(make_config: Callable[..., TrialConfig]) -> None:
    assert labels.title(student()) == "st cifar10 resnet_32_20 ← resnet_32_110 seed 0"
    taught = student(teacher=replace(TEACHER, seed=1), seed=2)
    assert labels.title(taught) == "st cifar10 resnet_32_20 ← resnet_32_110 (seed 1) seed 2"

    swept = student(options=(("temperature", 2.0),), lr=0.05, teacher=replace(TEACHER, lr=0.05))
    assert labels.title(swept) == "st temperature=2 lr=0.05 · cifar10 · resnet_32_20 ← resnet_32_110 · seed 0"
    assert stored(swept).recipe["options"] == {"temperature": 2.0}
    assert labels.title(make_config()).endswith("limit_train=128 limit_test=100 · digits · resnet_32_8 · seed 0")


def test_a_teacher_that_is_distilled_is_named_with_its_own_teacher() -> None:
    middle = student("kd", replace(TEACHER, seed=5), student="resnet_32_56")
    assert labels.of_config(student(teacher=middle)) == "st teacher.method=kd teacher.teacher=resnet_32_110"
    assert labels.title(student(teacher=middle)) == (
        "st cifar10 resnet_32_20 ← resnet_32_56 (kd ← resnet_32_110 (seed 5)) seed 0"
    )
    warm = replace(middle, options=(*OPTIONS["kd"][:-1], ("weight", 0.5)), seed=2, teacher=replace(TEACHER, lr=0.05))
    assert labels.title(student(teacher=warm)) == (
        "st teacher.weight=0.5 teacher.teacher.lr=0.05 · cifar10 · "
        "resnet_32_20 ← resnet_32_56 (kd ← resnet_32_110, seed 2) · seed 0"
    )
    for trial in (student(teacher=warm), stored(student(teacher=warm))):
        assert labels.teacher_of(trial) == "resnet_32_56 (kd ← resnet_32_110)"
    assert labels.teacher_of(DEFAULT) is None


def test_an_option_named_like_a_key_of_the_recipe_has_its_method_in_front(
    make_config: Callable[..., TrialConfig],
) -> None:
    options = {"beta": 1.0, "ce_weight": 1.0, "standardize": False, "temperature": 4.0, "weight": 2.0}
    dist = make_config(method="dist", options=tuple(sorted({**options, "gamma": 2.0}.items())))
    plain = replace(dist, options=tuple(sorted({**options, "gamma": 1.0}.items())))
    assert labels.of_config(dist) == f"{labels.of_config(plain).replace('dist', 'dist dist.gamma=2', 1)}"
    names = short_names.names([dist, plain])
    assert [name.split()[1] for name in names] == ["dist.gamma=2", "dist.gamma=1"]
