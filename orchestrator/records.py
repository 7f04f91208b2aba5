"""Frozen value types: what to train (`TrialConfig`), and what came of it (`EpochRecord`, `TrialRecord`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

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
class Dataset:
    """What is true of a dataset before its images are read.

    `digest` (12 hex digits) is over every label and pixel in canonical order, see `data.order`; images that do not have
    it are not this dataset.
    """

    classes: int
    train: int  # images
    test: int
    side: int  # images are side × side, three channels
    mean: tuple[float, float, float]  # per channel, of the training pixels scaled to 0..1
    std: tuple[float, float, float]
    digest: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data from which `from_json` makes equal facts."""
        return {name: list(v) if isinstance(v := getattr(self, name), tuple) else v for name in Dataset.__slots__}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Dataset:
        """The facts that `to_json` returned. Raises KeyError or TypeError on other data."""
        (red, green, blue), (red_std, green_std, blue_std) = data["mean"], data["std"]
        mean, std = (red, green, blue), (red_std, green_std, blue_std)
        return cls(data["classes"], data["train"], data["test"], data["side"], mean, std, data["digest"])


@dataclass(frozen=True, slots=True)
class TrialConfig:
    """One training run, fully resolved: everything that can change its result, and nothing else.

    A teacher is a `TrialConfig` too, nested in the configs of its students. `weights` is the SHA-256 of a
    weights file that the user brought; such a teacher trains for 0 epochs. `folder` describes images from a folder of
    the user's; for a dataset with a name it is None, and then neither stored nor part of the id.
    """

    method: str
    dataset: str
    student: str
    seed: int
    epochs: int
    batch_size: int
    lr: float
    momentum: float
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
    folder: Dataset | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data from which `from_json` makes an equal config."""
        return {**self._flat(), "teacher": self.teacher.to_json() if self.teacher else None}

    def _flat(self) -> dict[str, Any]:
        """The fields as JSON data, the teacher left as it is."""
        data = {name: getattr(self, name) for name in self.__slots__}
        data |= {"milestones": list(self.milestones), "options": dict(self.options)}
        if self.folder is None:
            del data["folder"]
        else:
            data["folder"] = self.folder.to_json()
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrialConfig:
        """The config that `to_json` was asked of. Raises KeyError or TypeError on other data."""
        teacher, folder = data["teacher"], data.get("folder")
        return cls(
            **{
                **data,
                "milestones": tuple(data["milestones"]),
                "options": tuple(sorted(data["options"].items())),
                "teacher": cls.from_json(teacher) if teacher else None,
                "folder": Dataset.from_json(folder) if folder else None,
            }
        )

    def trial_id(self, teacher_id: str | None = None) -> str:
        """12 hex digits that are the same in every process and on every machine.

        `teacher_id` spares working out the teacher's own id again where it is known.
        """
        data = self._flat()
        data["teacher"] = (teacher_id or self.teacher.trial_id()) if self.teacher else None
        data["training_version"] = TRAINING_VERSION
        if self.folder:
            del data["dataset"]  # what the folder is called changes nothing
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def recipe(self) -> dict[str, Any]:
        """What the columns of the results do not already say, the teacher's own recipe included."""
        columns = {"method", "dataset", "student", "seed"}
        data = {key: value for key, value in self.to_json().items() if key not in columns}
        if self.teacher:
            data["teacher"] = {"seed": self.teacher.seed, **self.teacher.recipe()}
            data["teacher"].pop("folder", None)  # it sees the images of its students
        return data


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
