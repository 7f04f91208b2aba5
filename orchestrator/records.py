"""Frozen value types: what to train (`TrialConfig`), and what came of it (`EpochRecord`, `TrialRecord`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any

from orchestrator.losses import METHODS

# What every id of training version 2 contains, be it at its default or not.
_FIELDS_OF_VERSION_2 = 21  # the first so many of TrialConfig
_OPTIONS_OF_VERSION_2 = {"logit": ("ce_weight", "match"), "st": ("temperature",)}
# Part of every trial id. Raise it when the same TrialConfig would train to another result.
TRAINING_VERSION = 2


class State(StrEnum):
    """Where a trial stands in the storage."""

    RUNNING = "running"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"
    SKIPPED = "skipped"


class Failure(StrEnum):
    """Why a trial failed. The first two are the fault of no setting: they are retried."""

    LOST_WORKER = "lost_worker"
    OUT_OF_MEMORY = "out_of_memory"
    STORAGE = "storage"
    DIVERGED = "diverged"
    TEACHER = "teacher"
    DATA = "data"
    ERROR = "error"

    @property
    def is_retried(self) -> bool:
        """Whether another attempt, from the last checkpoint, may well end better."""
        return self in (Failure.LOST_WORKER, Failure.OUT_OF_MEMORY)


@dataclass(frozen=True, slots=True)
class TrialConfig:
    """One training run, fully resolved: everything that can change its result, and nothing else.

    `options` are all of the method's; those of the optimizer and the schedule are there where they are not at their
    defaults. `momentum` is None for an optimizer without. What stands in `_LATER` is left out of ids and JSON at its
    default, as it is newer than the ids of stored trials: a new field belongs there too.

    A teacher is a `TrialConfig` too, nested in the configs of its students. `weights` is the SHA-256 of a
    weights file that the user brought; such a teacher trains for 0 epochs.
    """

    method: str
    dataset: str
    student: str
    seed: int
    epochs: int
    batch_size: int
    lr: float
    momentum: float | None
    weight_decay: float
    milestones: tuple[int, ...]
    gamma: float
    crop_padding: int
    flip: bool
    precision: str
    limit_train: int | None
    limit_test: int | None
    holdout: int
    options: tuple[tuple[str, float | str], ...] = ()
    teacher: TrialConfig | None = None
    teacher_cache: str | None = None
    weights: str | None = None
    optimizer: str = "sgd"
    optimizer_options: tuple[tuple[str, float | str], ...] = ()
    schedule: str = "steps"
    schedule_options: tuple[tuple[str, float | str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data from which `from_json` makes an equal config."""
        return {**self._flat(), "teacher": self.teacher.to_json() if self.teacher else None}

    def _flat(self) -> dict[str, Any]:
        """The fields as JSON data, the teacher left as it is."""
        names = (name for name in self.__slots__ if name not in _LATER or getattr(self, name) != _LATER[name])
        data = {name: getattr(self, name) for name in names}
        mappings = {name: dict(data[name]) for name in _OPTIONS if name in data}
        return {**data, **mappings, "milestones": list(self.milestones)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrialConfig:
        """The config that `to_json` was asked of. Raises KeyError or TypeError on other data."""
        teacher = data["teacher"]
        return cls(
            **{
                **data,
                "milestones": tuple(data["milestones"]),
                **{name: tuple(sorted(data[name].items())) for name in _OPTIONS if name in data},
                "teacher": cls.from_json(teacher) if teacher else None,
            }
        )

    def trial_id(self, teacher_id: str | None = None) -> str:
        """12 hex digits that are the same in every process and on every machine.

        `teacher_id` spares working out the teacher's own id again where it is known.
        """
        data = self._flat()
        data["options"] = _counted(self.method, data["options"])
        data["teacher"] = (teacher_id or self.teacher.trial_id()) if self.teacher else None
        data["training_version"] = TRAINING_VERSION
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def recipe(self) -> dict[str, Any]:
        """What the columns of the results do not already say, the teacher's own recipe included."""
        columns = {"method", "dataset", "student", "seed"}
        data = {key: value for key, value in self.to_json().items() if key not in columns}
        if self.teacher:
            data["teacher"] = {"seed": self.teacher.seed, **self.teacher.recipe()}
        return data


_OPTIONS = ("options", "optimizer_options", "schedule_options")
_LATER: Mapping[str, Any] = {field.name: field.default for field in fields(TrialConfig)[_FIELDS_OF_VERSION_2:]}


def _counted(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a method that are part of an id: those that always were, and others that are not at defaults."""
    facts = METHODS.get(method)
    defaults = facts.defaults() if facts else {}
    always = _OPTIONS_OF_VERSION_2.get(method, ())
    return {name: value for name, value in options.items() if name in always or value != defaults.get(name)}


def view_count(crop_padding: int, flip: bool) -> int:
    """V = 2·(2p+1)² views of an image with flips, half of it without."""
    return (2 if flip else 1) * (2 * crop_padding + 1) ** 2


@dataclass(frozen=True, slots=True)
class TableKey:
    """Which answers of which teacher: `answers` (logits or pooled) for every view of so many training images."""

    teacher_id: str
    answers: str
    crop_padding: int
    flip: bool
    images: int

    @property
    def views(self) -> int:
        """V, the number of views."""
        return view_count(self.crop_padding, self.flip)

    @property
    def name(self) -> str:
        """A file name, unique among the tables of one teacher."""
        return f"{self.answers}-p{self.crop_padding}-{'flip' if self.flip else 'noflip'}-n{self.images}"


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch of one trial. Accuracies are percentages, losses are means over the images of the epoch."""

    epoch: int  # from 1
    lr: float
    train_loss: float
    ce_loss: float
    kd_loss: float | None
    train_acc: float
    test_loss: float
    test_acc: float
    val_acc: float | None
    seconds: float  # training and evaluation
    images_per_second: float  # training alone


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One row of the `trials` table; the columns and their meaning stand in `results.TRIAL_COLUMNS`."""

    no: int
    method: str
    dataset: str
    student: str
    teacher: str | None
    start_time: datetime
    acc: float | None
    epoch: int | None
    nepoch: int
    lr: float
    batch_size: int
    trial_id: str
    study: str
    state: State
    error: str | None
    failure: Failure | None
    seed: int
    last_acc: float | None
    selected_acc: float | None
    top5: float | None
    teacher_id: str | None
    teacher_acc: float | None
    agreement: float | None
    params: int | None
    seconds: float | None
    images_per_second: float | None
    device: str | None
    host: str | None
    recipe: str
    kdctl_version: str
    torch_version: str | None
    ray_version: str | None
    git_commit: str | None
    end_time: datetime | None
    resumed: int
    weights_bytes: int | None
    weights_sha256: str | None
