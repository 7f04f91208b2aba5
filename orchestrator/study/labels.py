"""The label of a trial: its method, then every setting that is not the default, like `st temperature=2 lr=0.05`.

A label depends on the settings alone, never on what else a storage holds, and different settings never have the same
label. It does not contain the seed: runs of one pair with the same label differ only in their seeds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator import losses, models
from orchestrator.records import TrialConfig, TrialRecord
from orchestrator.study import fields
from orchestrator.training.optimizers import OPTIMIZERS
from orchestrator.training.schedules import SCHEDULES

_TEACHER_SETTINGS = (*fields.TRAINING_KEYS, *fields.DATA_KEYS)  # the settings of a teacher
_TEACHING = ("options", "teacher", "teacher_cache", "own_code")  # what a training without a teacher does not have
_TABLES = ("optimizer", "schedule")  # settings that have options of their own
# What a recipe holds that is not an unknown setting: the known settings, the seed, and how a trial was run.
_HANDLED = {
    *fields.RECIPE_KEYS, *(f"{name}_options" for name in _TABLES), "options", "teacher", "weights", "folder", "seed",
    "teacher_answers", "arithmetic", "own_code", "method", "student", "dataset", "members",
}  # fmt: skip
_DIGITS = 12  # of a weights file's SHA-256
_PLAIN = re.compile(r"[\w.-]+")


def of_config(config: TrialConfig) -> str:
    """The label of a planned trial; its row gets the same label."""
    return _format_label(config.method, config.recipe())


def of_row(row: TrialRecord) -> str:
    """The label of a stored row; a setting that an older kdctl did not store has today's default."""
    return _format_label(row.method, recipe_of(row))


def base_of_row(row: TrialRecord) -> str:
    """The label of the same training without a teacher."""
    recipe = {name: value for name, value in recipe_of(row).items() if name not in _TEACHING}
    if digest := (row.recipe.get("own_code") or {}).get(row.student):
        recipe["own_code"] = {row.student: digest}
    return _format_label("base", recipe)


@dataclass(frozen=True, slots=True)
class Setting:
    """A label, and the settings behind it by their keys in a study file, also those at their defaults.

    `changed` are those that the label names, in its order.
    """

    label: str
    values: Mapping[str, str]
    changed: tuple[str, ...]


def setting_of_row(row: TrialRecord) -> Setting:
    """The setting of a stored row, its teacher's included."""
    return _make_setting(row.method, recipe_of(row))


def teacher_setting_of_row(row: TrialRecord) -> Setting:
    """The setting of a row's teacher; teachers with the same label differ only in their seeds."""
    recipe = row.recipe.get("teacher") or {}
    return _make_setting(str(recipe.get("method", "base")), recipe)


def _make_setting(method: str, recipe: Mapping[str, Any]) -> Setting:
    label = _format_label(method, recipe)
    pairs = (part.partition("=") for part in label.removeprefix(method).split(" ") if part)
    named = {name: value for name, _, value in pairs}
    return Setting(label, {**_format_all(method, recipe), **named}, tuple(named))


def _format_all(method: str, recipe: Mapping[str, Any]) -> dict[str, str]:
    """Every option and key of a recipe, then those of the teacher: a label has only what differs from the student."""
    own, teacher = _fill_defaults(recipe), recipe.get("teacher") or {}
    options = losses.find_builtin_options(method)
    found = {fields.name_option(method, name): _format(option.default) for name, option in options.items()}
    found |= {name: _format(own[name]) for name in fields.RECIPE_KEYS if teacher or name != "teacher_cache"}
    if teacher and not teacher.get("members"):
        settings = _make_setting(str(teacher.get("method", "base")), teacher).values
        found |= {f"teacher.{name}": value for name, value in settings.items()}
    return found


def recipe_of(row: TrialRecord) -> dict[str, Any]:
    """The settings of a row except its method, data, models and seed."""
    return {"epochs": row.nepoch, "lr": row.lr, "batch_size": row.batch_size, **row.recipe}


def split_label(label: str) -> dict[str, str]:
    """The parts of a label, each by its name: `temperature` → `temperature=2`; a method is its own name."""
    return {part.partition("=")[0]: part for part in label.split(" ")}


def title(trial: TrialConfig | TrialRecord) -> str:
    """A title of a planned or stored trial for people, like `logit cifar10 resnet_32_20 ← resnet_32_110 seed 0`.

    With a setting that is not kdctl's default: `st lr=0.05 · cifar10 · resnet_32_20 ← resnet_32_110 (seed 1) · seed 0`.
    """
    model, recipe = _model_and_recipe(trial)
    label = _format_label(trial.method, recipe, names_chain=False)
    gap = " " if label == trial.method else " · "
    arrow = f" ← {_describe_teacher(model, recipe.get('teacher') or {}, with_seeds=True)}" if model else ""
    student = _describe_teacher(trial.student, recipe, with_seeds=True) if recipe.get("members") else trial.student
    return gap.join([label, trial.dataset, f"{student}{arrow}", f"seed {trial.seed}"])


def teacher_of(trial: TrialConfig | TrialRecord) -> str | None:
    """A trial's teacher without its seed: a model, and what that is distilled from: `resnet_32_56 (logit ← …)`."""
    model, recipe = _model_and_recipe(trial)
    return _describe_teacher(model, recipe.get("teacher") or {}, with_seeds=False) if model else None


def _model_and_recipe(trial: TrialConfig | TrialRecord) -> tuple[str | None, Mapping[str, Any]]:
    """The model of a trial's teacher, and the settings of the trial."""
    if isinstance(trial, TrialConfig):
        return trial.teacher.student if trial.teacher else None, trial.recipe()
    return trial.teacher, recipe_of(trial)


def _describe_teacher(model: str, recipe: Mapping[str, Any], *, with_seeds: bool) -> str:
    if members := recipe.get("members"):
        return models.name_ensemble(_describe_teacher(own["student"], own, with_seeds=with_seeds) for own in members)
    notes = []
    if own := recipe.get("teacher"):
        notes.append(f"{recipe['method']} ← {_describe_teacher(own['student'], own, with_seeds=with_seeds)}")
    if with_seeds and recipe.get("seed"):
        notes.append(f"seed {recipe['seed']}")
    return f"{model} ({', '.join(notes)})" if notes else model


def _format_label(method: str, recipe: Mapping[str, Any], *, names_chain: bool = True) -> str:
    """Options first, then the recipe in the order of its keys, then the teacher.

    With `names_chain`, what a distilled teacher is distilled with and from is part of it.
    """
    own, teacher = _fill_defaults(recipe), recipe.get("teacher")
    parts = [method, *_format_options(method, recipe)]
    parts += [
        *_format_differences(own, _find_defaults(own), fields.RECIPE_KEYS),
        *_format_weights(recipe),
        *_format_own_code(recipe),
        *_format_unknown(recipe, _HANDLED),
    ]
    if recipe.get("members"):
        parts += _format_members(recipe, {**_fill_defaults({}), "limit_test": own["limit_test"]}, names_chain)
    return " ".join([*parts, *(_format_teacher(teacher, own, names_chain) if teacher else ())])


def _format_members(recipe: Mapping[str, Any], student: Mapping[str, Any], names_chain: bool) -> Iterator[str]:
    """The settings of an ensemble's members that differ from those of its student: first those that all share."""
    found = [
        [part.removeprefix("teacher.") for part in _format_teacher(member, student, names_chain)]
        for member in recipe["members"]
    ]
    shared = [part for part in found[0] if all(part in parts for parts in found)]
    yield from (f"members.{part}" for part in shared)
    for number, parts in enumerate(found, 1):
        yield from (f"member{number}.{part}" for part in parts if part not in shared)


def _format_options(method: str, recipe: Mapping[str, Any]) -> Iterator[str]:
    """The options that are not at their defaults, and all options of a user's own loss: its file is not read here."""
    known, given = losses.find_builtin_options(method), _drop_none(recipe.get("options") or {})
    changed = [name for name in known if name in given and given[name] != known[name].default]
    for name in (*changed, *sorted(given.keys() - known.keys())):
        owner = name.rpartition(".")[0] or method
        prefix = "" if name in known or ":" in owner else "options."
        yield f"{prefix}{fields.name_option(method, name)}={_format(given[name])}"


def _format_teacher(recipe: Mapping[str, Any], student: Mapping[str, Any], names_chain: bool) -> Iterator[str]:
    """The settings of a teacher that differ from those of its student, then those of the teacher's own teacher."""
    if recipe.get("members"):
        yield from (f"teacher.{part}" for part in _format_members(recipe, student, names_chain))
        return
    own = _fill_defaults(recipe)
    settings, method, taught = _TEACHER_SETTINGS, recipe.get("method", "base"), recipe.get("teacher") or {}
    if taught:
        yield from (f"teacher.method={method}", f"teacher.teacher={_format(taught['student'])}") if names_chain else ()
        settings = (*settings, "teacher_cache")
    expected = {**_find_defaults(own), "limit_test": student["limit_test"]}
    if not own["weights"]:
        defaults, same = _find_defaults(own), {name: own[name].name == student[name].name for name in _TABLES}
        follows = same["schedule"] and own["epochs"] == student["epochs"]
        gamma = student["gamma"] if own["milestones"] and student["milestones"] else expected["gamma"]
        milestones = student["milestones"] if follows else expected["milestones"]
        expected = {**student, "milestones": milestones, "gamma": gamma}
        if not same["optimizer"]:
            expected |= {name: defaults[name] for name in ("lr", "weight_decay")}
    for part in (
        *_format_differences(own, expected, settings), *_format_weights(recipe), *_format_own_code(recipe),
        *_format_unknown(recipe, _HANDLED), *_format_options(method, recipe),
        *(_format_teacher(taught, own, names_chain) if taught else ()),
    ):  # fmt: skip
        yield f"teacher.{part}"


def _fill_defaults(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Every key of a recipe, and the weights; a key that is not given has its default."""
    given = _drop_none(recipe)
    weights = given.get("weights")
    epochs = given.get("epochs", 0 if weights else fields.RECIPE_KEYS["epochs"].default)
    milestones = tuple(given.get("milestones", fields.default_milestones(epochs)))
    own = {"weights": weights, "epochs": epochs, "milestones": milestones}
    own |= {name: _make_selection(name, given) for name in _TABLES}
    return {**_find_defaults(own), **{name: given[name] for name in fields.RECIPE_KEYS if name in given}, **own}


def _make_selection(name: str, given: Mapping[str, Any]) -> fields.Selection:
    """The optimizer or schedule of a recipe, with the options that are not at their defaults."""
    default: fields.Selection = fields.RECIPE_KEYS[name].default
    return fields.Selection(given.get(name, default.name), tuple(sorted(given.get(f"{name}_options", {}).items())))


def _find_defaults(own: Mapping[str, Any]) -> dict[str, Any]:
    """The default of every key; some follow from other settings."""
    found = {name: key.default for name, key in fields.RECIPE_KEYS.items()}
    if not own["epochs"]:  # nothing is trained
        found["epochs"] = 0
    if not own["milestones"]:
        found["gamma"] = 1.0  # lr is never multiplied, see `plan`
    if facts := OPTIMIZERS.get(own["optimizer"].name):
        found |= {"lr": facts.lr, "weight_decay": facts.weight_decay}
    schedule = SCHEDULES.get(own["schedule"].name)
    has_milestones = schedule is None or schedule.has_milestones
    return {**found, "milestones": fields.default_milestones(own["epochs"]) if has_milestones else ()}


def _drop_none(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


def _format_differences(own: Mapping[str, Any], expected: Mapping[str, Any], names: Collection[str]) -> Iterator[str]:
    yield from (f"{name}={_format(own[name])}" for name in names if own[name] != expected[name])


def _format_weights(recipe: Mapping[str, Any]) -> Iterator[str]:
    if weights := recipe.get("weights"):
        yield f"weights={_format(weights[:_DIGITS])}"


def _format_own_code(recipe: Mapping[str, Any]) -> Iterator[str]:
    """Which version of a user's own files: an edit is another setting."""
    if own := recipe.get("own_code"):
        yield f"code={','.join(digest for _, digest in sorted(own.items()))}"


def _format_unknown(settings: Mapping[str, Any], known: Collection[str], prefix: str = "") -> Iterator[str]:
    """Settings that another version of kdctl stored: always formatted, as their defaults are not known here."""
    yield from (
        f"{prefix}{name}={_format(value)}" for name, value in sorted(_drop_none(settings).items()) if name not in known
    )


def _format(value: Any) -> str:
    """A value without spaces; only equal values have the same text."""
    if value is None:
        return "all"  # images
    if isinstance(value, tuple):
        return ",".join(map(_format, value)) or "none"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    if isinstance(value, fields.Selection) or (isinstance(value, str) and _PLAIN.fullmatch(value)):
        return str(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":")).replace(" ", "\\u0020")
