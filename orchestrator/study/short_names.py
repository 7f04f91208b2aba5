"""What varies within one study: the settings that a view of it has to show, and names and ids as short as they can be.

Elsewhere trials have the titles of `labels`, which hold for every study.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.records import TrialConfig
from orchestrator.study import fields

_SHORTEST = 4  # hex digits of a short id
_DIGITS = 12  # of a weights file's SHA-256
_WHOLE = ("method", "dataset", "student", "teacher")  # settings of which the value alone says what it is


def settings_of(config: TrialConfig) -> dict[str, str]:
    """Every setting of a trial by its key in a study file, but for the seed, in the order of a label."""
    found = {"method": config.method, **_texts(dict(config.options)), **_recipe(config)}
    found |= {"dataset": config.dataset, "student": config.student}
    if config.teacher:
        own = {"seed": config.teacher.seed, **_recipe(config.teacher)}
        found |= {"teacher": config.teacher.student, **{f"teacher.{name}": str(value) for name, value in own.items()}}
    return found


def all_settings(configs: Iterable[TrialConfig]) -> list[Mapping[str, str]]:
    """Those of each trial; trials that differ in their seeds alone share one mapping, as a study may have thousands."""
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
    order = {name: place for place, name in enumerate([*values])}
    return sorted((name for name, found in values.items() if len(found) > 1), key=lambda name: _place(name, order))


def names(configs: Sequence[TrialConfig]) -> list[str]:
    """A name for each trial of one study, like `st lr=0.05 seed 0`: its method, what varies with it, and its seed."""
    trials = all_settings(configs)
    by_method: dict[str, list[Mapping[str, str]]] = defaultdict(list)
    for settings in {id(settings): settings for settings in trials}.values():
        by_method[settings["method"]].append(settings)
    shown = {method: ["method", *find_varying(of)] for method, of in by_method.items()}
    return [
        " ".join([*_words(settings, shown[settings["method"]]), f"seed {config.seed}"])
        for settings, config in zip(trials, configs, strict=True)
    ]


def default(name: str) -> str | None:
    """The text of a setting that nobody has set; None where it has no fixed default."""
    key = fields.RECIPE_KEYS.get(name.removeprefix("teacher."))
    return None if key is None or name.endswith("milestones") else _text(key.default)


def short_ids(trial_ids: Collection[str]) -> dict[str, str]:
    """The beginning of each id, of as few digits as tell these ids apart, and at least four."""
    size = _SHORTEST
    while len({trial_id[:size] for trial_id in trial_ids}) < len(set(trial_ids)):
        size += 1
    return {trial_id: trial_id[:size] for trial_id in trial_ids}


def _words(settings: Mapping[str, str], names: Iterable[str]) -> Iterable[str]:
    for name in names:
        if name in settings:
            value = settings[name]
            yield f"← {value}" if name == "teacher" else value if name in _WHOLE else f"{name}={value}"


def _place(name: str, order: Mapping[str, int]) -> tuple[int, int]:
    """Where a setting stands: after those of the methods that come first, before what every label ends with."""
    kind = 2 if name.startswith("teacher") else 1 if name in ("dataset", "student") else 0
    return kind, order[name]


def _recipe(config: TrialConfig) -> dict[str, str]:
    if config.weights:  # nothing is trained
        return {"weights": config.weights[:_DIGITS]}
    found = {name: getattr(config, name) for name in fields.RECIPE_KEYS if name != "teacher_cache" or config.teacher}
    found["optimizer"] = fields.Selection(config.optimizer, config.optimizer_options)
    found["schedule"] = fields.Selection(config.schedule, config.schedule_options)
    return _texts({name: value for name, value in found.items() if name != "momentum" or value is not None})


def _texts(settings: Mapping[str, Any]) -> dict[str, str]:
    return {name: _text(value) for name, value in settings.items()}


def _text(value: Any) -> str:
    if value is None:
        return "all"  # images
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(_text, value)) or "none"
    return f"{value:.15g}" if isinstance(value, float) else str(value)
