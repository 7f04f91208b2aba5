"""What varies within one study: the settings that a view of it must show, and the shortest possible names and ids.

Outside a view of one study, trials have the titles of `labels`, which are valid for every study.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.records import TrialConfig
from orchestrator.study import fields, labels

_SHORTEST = 4  # hex digits of a short id
_DIGITS = 12  # of a weights file's SHA-256
_VALUE_ONLY = ("method", "dataset", "student", "teacher")  # settings whose value is clear without their name


def settings_of(config: TrialConfig) -> dict[str, str]:
    """Every setting of a trial except its seed, by its key in a study file, in the order of a label."""
    found = {"method": config.method, **_own_settings(config), "dataset": config.dataset, "student": config.student}
    if teacher := labels.teacher_of(config):
        found["teacher"] = teacher
    prefix = ""
    while config.teacher:
        config, prefix = config.teacher, f"{prefix}teacher."
        own = _own_settings(config) if config.members else {"seed": str(config.seed), **_own_settings(config)}
        found |= {f"{prefix}{name}": value for name, value in own.items()}
    return found


def _own_settings(config: TrialConfig) -> dict[str, str]:
    """The options and the recipe of a trial, or the seeds and settings of an ensemble's members."""
    if not config.members:
        return {**_format_values(_name_options(config)), **_format_recipe(config)}
    found = {"seeds": ",".join(str(member.seed) for member in config.members)}
    for number, member in enumerate(config.members, 1):
        found |= {f"member{number}.{name}": value for name, value in _own_settings(member).items()}
    return found


def all_settings(configs: Iterable[TrialConfig]) -> list[Mapping[str, str]]:
    """The settings of each trial; those that differ only in seeds share one mapping, as there may be thousands."""
    known: dict[TrialConfig, Mapping[str, str]] = {}
    found = []
    for config in configs:
        setting = replace(config, seed=0)
        if setting not in known:
            known[setting] = settings_of(setting)
        found.append(known[setting])
    return found


def find_varying(trials: Iterable[Mapping[str, str]]) -> list[str]:
    """The settings that differ between some of the trials that have them, in the order of a label."""
    values: dict[str, set[str]] = defaultdict(set)
    for settings in trials:
        for name, value in settings.items():
            values[name].add(value)
    order = {name: index for index, name in enumerate(values)}
    return sorted((name for name, found in values.items() if len(found) > 1), key=lambda name: _sort_key(name, order))


def names(configs: Sequence[TrialConfig]) -> list[str]:
    """A name for each trial of one study, like `st lr=0.05 seed 0`: its method, what varies with it, and its seed."""
    trials = all_settings(configs)
    by_method: dict[str, list[Mapping[str, str]]] = defaultdict(list)
    for settings in {id(settings): settings for settings in trials}.values():
        by_method[settings["method"]].append(settings)
    named = {method: ["method", *find_varying(group)] for method, group in by_method.items()}
    return [
        " ".join([*_format(settings, named[settings["method"]]), f"seed {config.seed}"])
        for settings, config in zip(trials, configs, strict=True)
    ]


def default(name: str) -> str | None:
    """The text of a setting's default; None where it has no fixed default."""
    key = fields.RECIPE_KEYS.get(name.rpartition(".")[2])
    return None if key is None or name.endswith("milestones") else _format_value(key.default)


def short_ids(trial_ids: Collection[str]) -> dict[str, str]:
    """The beginning of each id: as few digits as distinguish these ids, but at least four."""
    size = _SHORTEST
    while len({trial_id[:size] for trial_id in trial_ids}) < len(set(trial_ids)):
        size += 1
    return {trial_id: trial_id[:size] for trial_id in trial_ids}


def _format(settings: Mapping[str, str], names: Iterable[str]) -> Iterable[str]:
    for name in names:
        if name in settings:
            value = settings[name]
            yield f"← {value}" if name == "teacher" else value if name in _VALUE_ONLY else f"{name}={value}"


def _sort_key(name: str, order: Mapping[str, int]) -> tuple[int, int]:
    """Sorts a setting by its part of a label (recipe, then dataset and student, then teacher), then by `order`."""
    part = 2 if name.startswith("teacher") else 1 if name in ("dataset", "student") else 0
    return part, order[name]


def _name_options(config: TrialConfig) -> dict[str, Any]:
    return {fields.name_option(config.method, name): value for name, value in config.options}


def _format_recipe(config: TrialConfig) -> dict[str, str]:
    if config.weights:  # nothing is trained
        return {"weights": config.weights[:_DIGITS]}
    found = {name: getattr(config, name) for name in fields.RECIPE_KEYS if name != "teacher_cache" or config.teacher}
    found["optimizer"] = fields.Selection(config.optimizer, config.optimizer_options)
    found["schedule"] = fields.Selection(config.schedule, config.schedule_options)
    return _format_values({name: value for name, value in found.items() if name != "momentum" or value is not None})


def _format_values(settings: Mapping[str, Any]) -> dict[str, str]:
    return {name: _format_value(value) for name, value in settings.items()}


def _format_value(value: Any) -> str:
    if value is None:
        return "all"  # images
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(_format_value, value)) or "none"
    return f"{value:.15g}" if isinstance(value, float) else str(value)
