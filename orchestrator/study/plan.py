"""`Study` → `Plan`: the trials of a study, each with its id and the teacher that it waits for. Does no I/O."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from orchestrator import codec, losses, models
from orchestrator.data.registry import OwnDataset, facts_of, facts_of_trial
from orchestrator.own_code.source import OwnCode
from orchestrator.records import State, TableKey, TrialConfig
from orchestrator.study import fields, labels
from orchestrator.study.fields import Selection
from orchestrator.study.values import Axis, Experiment, Resources, Study, Teacher
from orchestrator.training.optimizers import OPTIMIZERS
from orchestrator.training.schedules import SCHEDULES

# The order in which axes multiply. The last one varies fastest, so that the seeds of one setting are next to each
# other. It is fixed, so that the order of the keys in the file has no effect.
_ORDER = ("dataset", "model", "weights", "student", "method", *fields.RECIPE_KEYS, *fields.OPTION_KEYS, "seed")


class PlanState(StrEnum):
    """The state of a planned trial in a storage."""

    NEW = "new"
    UNFINISHED = "unfinished"
    FAILED = "failed"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """One trial of a plan, with its state in the storage.

    `member_ids` are those of the trials that an ensemble consists of. `teacher_cache` is the decided teacher mode:
    `table`, `live`, or None without a teacher.
    """

    trial_id: str
    role: str
    config: TrialConfig
    teacher_id: str | None
    state: PlanState
    teacher_cache: str | None
    table: TableKey | None
    member_ids: tuple[str, ...] = ()

    @property
    def waits_for(self) -> tuple[str, ...]:
        """The trials that have to finish before this one starts: its teacher, or the members of an ensemble."""
        return (self.teacher_id,) if self.teacher_id else self.member_ids

    def tables(self) -> tuple[TableKey, ...]:
        """The tables that it uses: its teacher's, after those of the members of an ensemble."""
        members = self.config.teacher.members if self.config.teacher else ()
        return (*(replace(self.table, teacher_id=m.trial_id()) for m in members), self.table) if self.table else ()

    def title(self) -> str:
        """Its title for people, see `labels.title`."""
        return labels.title(self.config)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data: what most readers need as flat keys, and the complete config."""
        config = self.config
        return {
            "trial_id": self.trial_id,
            "role": self.role,
            "method": config.method,
            "dataset": config.dataset,
            "student": config.student,
            "teacher": config.teacher.student if config.teacher else None,
            "teacher_id": self.teacher_id,
            "waits_for": list(self.waits_for),
            "seed": config.seed,
            "nepoch": config.epochs,
            "lr": config.lr,
            "batch_size": config.batch_size,
            "state": self.state,
            "teacher_cache": self.teacher_cache,
            "config": codec.encode(config),
        }

    def table_bytes(self) -> int:
        """The size of the table that it reads, in float16; 0 without one."""
        if self.table is None or self.config.teacher is None:
            return 0
        pooled = models.widths(self.config.teacher.student).pooled
        width = pooled if self.table.outputs == "pooled" else facts_of_trial(self.config).classes
        return 2 * self.table.views * self.table.images * width

    def with_teacher_mode(self, mode: str | None) -> PlannedTrial:
        """The same trial with another teacher mode: `table`, `live` or None."""
        table = _find_table_key(self.config, self.teacher_id) if mode == "table" else None
        return replace(self, teacher_cache=mode, table=table)


@dataclass(frozen=True, slots=True)
class Plan:
    """Every trial of a study, teachers before the students that wait for them.

    `weights` maps the SHA-256 of each weights file of the user to its path. `folders` maps the digest of the user's
    own images to them. `text` is the text of the study file as it was read, and `own_code` maps the name of each loss
    of the user to its files; JSON leaves both out.
    """

    study: str
    source: str
    trials: tuple[PlannedTrial, ...]
    resources: Resources
    weights: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    text: str = field(default="", compare=False, repr=False)
    folders: Mapping[str, OwnDataset] = field(default_factory=dict)
    own_code: Mapping[str, OwnCode] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, for programs."""
        return {
            "study": self.study,
            "source": self.source,
            "trials": [trial.to_json() for trial in self.trials],
            "resources": asdict(self.resources),
            "weights": dict(self.weights),
            "warnings": list(self.warnings),
            **({"folders": {key: own.to_json() for key, own in self.folders.items()}} if self.folders else {}),
        }


def make_plan(study: Study, states: Mapping[str, State] | None = None, tables: Collection[TableKey] = ()) -> Plan:
    """Makes the plan of a study, given what its storage holds: the state of each trial, and the finished tables."""
    teachers: dict[TrialConfig, None] = {}
    configs: dict[TrialConfig, None] = {}
    weights: dict[str, str] = {}
    folders: dict[str, OwnDataset] = {}
    for experiment in study.experiments:
        for config in _expand(study, experiment):
            configs[config] = None
            teachers |= dict.fromkeys(_list_teachers(config))
        for value in experiment.axes["dataset"]:
            if isinstance(folder := value.value, OwnDataset):
                path = str(study.source.parent / folder.path)
                folders[folder.facts.digest] = replace(folder, path=path)
        for _, teacher in experiment.chain():
            weights |= {digest: str(study.source.parent / path) for path, digest in teacher.digests.items()}
    ids: dict[TrialConfig, str] = {}  # of teachers
    trials = [_plan_trial("teacher", config, ids) for config in teachers]
    trials += [_plan_trial("student", config, ids) for config in configs if config not in ids]
    warnings = (*map(str, study.warnings), *_warn_of_missing_base(configs, teachers))
    plan = Plan(
        study.name, str(study.source), tuple(trials), study.resources, weights, warnings, study.text, folders,
        study.own_code,
    )  # fmt: skip
    return with_stored_state(plan, states or {}, tables)


def _plan_trial(role: str, config: TrialConfig, ids: dict[TrialConfig, str]) -> PlannedTrial:
    """A trial that is in no storage yet; `ids` has those of its teachers, and gets that of a teacher."""
    teacher_id = ids[config.teacher] if config.teacher else None
    trial_id = config.trial_id(teacher_id)
    if role == "teacher":
        ids[config] = trial_id
    members = tuple(ids[member] for member in config.members)
    return PlannedTrial(trial_id, role, config, teacher_id, PlanState.NEW, None, None, members)


def _list_teachers(config: TrialConfig) -> list[TrialConfig]:
    """The teacher of a trial after those that it waits for itself: its own teacher or members, and so on."""
    own = (*([config.teacher] if config.teacher else []), *config.members)
    return [found for teacher in own for found in (*_list_teachers(teacher), teacher)]


_LIMIT = 5  # settings in a warning, or seeds of one setting


def _warn_of_missing_base(configs: Collection[TrialConfig], teachers: Collection[TrialConfig]) -> Iterator[str]:
    """A warning that names the `base` runs that the study lacks, so that some students have nothing to compare with."""
    taught = [config for config in configs if config.teacher]
    planned = {config for config in configs if config.method == "base"}.union(teachers)
    missing: dict[TrialConfig, set[int]] = {}  # the seeds of each setting
    for config in taught:
        own_code = tuple(pair for pair in config.own_code if pair[0] == config.student)
        base = replace(config, method="base", options=(), teacher=None, teacher_cache=None, own_code=own_code)
        if base not in planned:
            missing.setdefault(replace(base, seed=0), set()).add(base.seed)
    if missing:
        listed = "; ".join(_limit([_describe_runs(base, seeds) for base, seeds in missing.items()]))
        yield (
            "warning: without these runs the difference of their students to base stays unknown: "
            f"{listed}; add them to the experiments with `method: base`"
        )


def _describe_runs(setting: TrialConfig, seeds: Collection[int]) -> str:
    """Runs of one setting without a teacher, by their seeds."""
    name = f"{labels.of_config(setting)} · {setting.dataset} · {setting.student}"
    return f"{name} · seed {', '.join(_limit(sorted(seeds)))}"


def _limit(values: Sequence[object]) -> list[str]:
    return [
        *map(str, values[:_LIMIT]),
        *([f"{len(values) - _LIMIT:,} more"] if len(values) > _LIMIT else []),
    ]


def with_stored_state(plan: Plan, states: Mapping[str, State], tables: Collection[TableKey]) -> Plan:
    """The same plan with the states and teacher modes that follow from what a storage holds, see `make_plan`.

    A table costs one forward pass for each view of each image, and some for its check. A live teacher costs one for
    each image in each epoch. So a table pays off if the students that share it still have enough epochs to train, see
    `_table_pays_off`.
    """
    keys = [_find_table_key(trial.config, trial.teacher_id) for trial in plan.trials]
    epochs_left: Counter[TableKey] = Counter()
    for trial, key in zip(plan.trials, keys, strict=True):
        if key and trial.config.teacher_cache != "live" and states.get(trial.trial_id) is not State.FINISHED:
            epochs_left[key] += trial.config.epochs
    trials = []
    for trial, key in zip(plan.trials, keys, strict=True):
        config = trial.config
        decision = _decide_teacher_mode(config, key, epochs_left, tables) if config.teacher else None
        state = _to_plan_state(states.get(trial.trial_id))
        table = key if decision == "table" else None
        known = trial.trial_id, trial.role, config, trial.teacher_id  # `replace` is slow, and plans are long
        trials.append(PlannedTrial(*known, state, decision, table, trial.member_ids))
    return replace(plan, trials=tuple(trials))


def _to_plan_state(state: State | None) -> PlanState:
    if state is None:
        return PlanState.NEW
    return PlanState(state.value) if state in (State.FINISHED, State.FAILED) else PlanState.UNFINISHED


def _expand(study: Study, experiment: Experiment) -> Iterator[TrialConfig]:
    """The trials of one experiment; equal trials are repeated."""
    recipe: dict[str, Any] = {name: value.value for name, value in study.recipe.items()}
    recipe["own_code"] = study.own_code
    for own in _multiply_axes(experiment.axes):
        yield from _make_configs(experiment, recipe, own)


def _make_configs(experiment: Experiment, recipe: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[TrialConfig]:
    """The trials with these values of the axes, one for each teacher."""
    images = {name: own[name] for name in fields.DATA_KEYS if name in own}
    images["dataset"] = own["dataset"]
    teachers = [config for teacher in experiment.teachers for config in _make_teacher_configs(teacher, recipe, images)]
    for config in teachers or (None,):
        yield _make_config({"seed": 0, **recipe, **own}, config)


def _multiply_axes(axes: Mapping[str, Axis]) -> Iterator[dict[str, Any]]:
    names = sorted(axes, key=_ORDER.index)
    for values in itertools.product(*(axes[name] for name in names)):
        yield {name: value.value for name, value in zip(names, values, strict=True)}


def _make_teacher_configs(
    teacher: Teacher, recipe: Mapping[str, Any], images: Mapping[str, Any]
) -> Iterator[TrialConfig]:
    """The teachers of one entry: those of all values of its axes, which see the images of their student."""
    if teacher.is_ensemble:
        choices = (list(_make_teacher_configs(member, recipe, images)) for member in teacher.teachers)
        for members in itertools.product(*choices):
            yield _make_ensemble_config(members, {**recipe, **images})
        return
    for mapping in _multiply_axes(teacher.axes):
        own = {**images, **mapping, "dataset": images["dataset"]}
        if teacher.is_distilled:
            yield from _make_configs(teacher, recipe, own)
        else:
            yield _make_base_config(teacher, {**recipe, **own})


# What is not trained has fixed values of the settings that matter only in training, so that they do not change its id.
_UNTRAINED: Mapping[str, Any] = {
    **{name: key.default for name, key in fields.TRAINING_KEYS.items() if key.default is not None},
    **{"epochs": 0, "milestones": (), "limit_train": None, "holdout": 0},
}


def _make_ensemble_config(members: Iterable[TrialConfig], settings: Mapping[str, Any]) -> TrialConfig:
    """An ensemble; the order in which the study file lists the members changes nothing."""
    ordered = tuple(sorted(members, key=lambda member: (member.student, member.trial_id())))
    name = models.name_ensemble(member.student for member in ordered)
    base = {**settings, **_UNTRAINED, "seed": 0, "method": Selection("base"), "student": name}
    return replace(_make_config(base, None), method="mean", members=ordered)


def _make_base_config(teacher: Teacher, settings: Mapping[str, Any]) -> TrialConfig:
    base = {"seed": 0, **settings, "method": Selection("base"), "student": settings["model"]}
    if "weights" not in settings:
        return _make_config(base, None)
    return replace(_make_config({**base, **_UNTRAINED}, None), weights=teacher.digests[settings["weights"]])


def _make_config(settings: Mapping[str, Any], teacher: TrialConfig | None) -> TrialConfig:
    """One trial, in a normal form: settings that cannot change its result do not distinguish it."""
    dataset = settings["dataset"]
    facts = facts_of(dataset)
    method, optimizer, schedule = (settings[name] for name in ("method", "optimizer", "schedule"))
    trainer = OPTIMIZERS[optimizer.name]
    epochs = settings["epochs"]
    momentum = settings["momentum"] if trainer.has_momentum else None
    if not momentum:
        optimizer = replace(optimizer, options=tuple(each for each in optimizer.options if each[0] != "nesterov"))
    milestones: tuple[int, ...] = ()
    if SCHEDULES[schedule.name].has_milestones:
        milestones = tuple(m for m in settings.get("milestones", fields.default_milestones(epochs)) if m < epochs)
    return TrialConfig(
        method=method.name,
        dataset=str(dataset),
        student=settings["student"],
        seed=settings["seed"],
        epochs=epochs,
        batch_size=settings["batch_size"],
        lr=settings.get("lr", trainer.lr),
        momentum=momentum,
        weight_decay=settings.get("weight_decay", trainer.weight_decay),
        milestones=milestones,
        gamma=settings["gamma"] if milestones else 1.0,
        crop_padding=settings["crop_padding"],
        flip=settings["flip"],
        precision=settings["precision"],
        limit_train=None if settings["limit_train"] == facts.train else settings["limit_train"],
        limit_test=None if settings["limit_test"] == facts.test else settings["limit_test"],
        holdout=settings["holdout"],
        options=_resolve_options(method, settings),
        teacher=teacher,
        teacher_cache=settings["teacher_cache"] if teacher else None,
        folder=dataset.facts if isinstance(dataset, OwnDataset) else None,
        own_code=_digests(settings["own_code"], method.name, settings["student"]),
        optimizer=optimizer.name,
        optimizer_options=_drop_defaults(optimizer, trainer.options),
        schedule=schedule.name,
        schedule_options=_drop_defaults(schedule, SCHEDULES[schedule.name].options),
        label_smoothing=settings["label_smoothing"],
        clip_norm=settings["clip_norm"],
        ema=settings["ema"],
        padding=settings["padding"] if settings["crop_padding"] else "reflect",
    )


def _digests(own_code: Mapping[str, OwnCode], method: str, student: str) -> tuple[tuple[str, str], ...]:
    """The digest of each of the user's files that a trial uses, by the name of what it defines."""
    if not own_code:
        return ()
    return tuple(
        (name, own_code[name].digest) for name in sorted((*method.split(losses.JOIN), student)) if name in own_code
    )


def _resolve_options(method: Selection, settings: Mapping[str, Any]) -> tuple[tuple[str, float | str | bool], ...]:
    """Every option of a method, given under its name or next to `method`, or its default."""
    options = losses.get(method.name).defaults()
    options |= {name: settings[name] for name in options if name in settings and name in fields.OPTION_KEYS}
    return tuple(sorted((options | dict(method.options)).items()))


def _drop_defaults(
    selection: Selection, known: Mapping[str, losses.Option]
) -> tuple[tuple[str, float | str | bool], ...]:
    """The options that do not have their defaults."""
    return tuple((name, value) for name, value in selection.options if value != known[name].default)


def _find_table_key(config: TrialConfig, teacher_id: str | None) -> TableKey | None:
    """The table that this trial could use; None where no table is possible."""
    if teacher_id is None:
        return None
    output = losses.find_table_output(losses.get(config.method).needs(dict(config.options)))
    if output is None:
        return None
    facts = facts_of_trial(config)
    images = (config.limit_train or facts.train) - config.holdout
    return TableKey(teacher_id, output, config.crop_padding, config.flip, images, config.padding)


def _decide_teacher_mode(
    config: TrialConfig, key: TableKey | None, epochs_left: Counter[TableKey], tables: Collection[TableKey]
) -> str:
    if key is None:
        return "live"
    if config.teacher_cache != "auto":
        return str(config.teacher_cache)
    members = config.teacher.members if config.teacher else ()
    if members and all(replace(key, teacher_id=member.trial_id()) in tables for member in members):
        return "table"  # the mean of tables takes no time
    return "table" if key in tables or _table_pays_off(key, epochs_left[key]) else "live"


# What one teacher output costs when a table is built, relative to its cost in a training step: measured with
# bench/decision.py. Larger batches and a folded teacher outweigh the cost of views and files.
BUILD_COST = 0.8
_CHECK_COST = 1000  # teacher outputs that the check of a table computes


def _table_pays_off(key: TableKey, epochs: int) -> bool:
    """Whether building a table takes less time than a live teacher in this number of epochs."""
    return epochs * key.images > BUILD_COST * (key.views * key.images + _CHECK_COST)
