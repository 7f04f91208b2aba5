"""Frozen value types: what to train (`TrialConfig`), and what came of it (`EpochRecord`, `TrialRecord`)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, cast, get_args, get_origin, get_type_hints

from orchestrator import codec, losses
from orchestrator.codec import OMIT_DEFAULT
from orchestrator.dataset import Dataset

# The options that every id of training version 2 contains, be they at their defaults or not.
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
    """Why a trial failed. The first three are the fault of no setting: they are retried."""

    LOST_WORKER = "lost_worker"
    OUT_OF_MEMORY = "out_of_memory"
    DEVICE = "device"
    STORAGE = "storage"
    DIVERGED = "diverged"
    TEACHER = "teacher"
    DATA = "data"
    ERROR = "error"

    @property
    def is_retried(self) -> bool:
        """Whether another attempt, from the last checkpoint, may well end better."""
        return self in (Failure.LOST_WORKER, Failure.OUT_OF_MEMORY, Failure.DEVICE)


@dataclass(frozen=True, slots=True)
class TrialConfig:
    """One training run, fully resolved: everything that can change its result, and nothing else.

    `options` are all of the method's; those of the optimizer and the schedule are there where they are not at their
    defaults. `momentum` is None for an optimizer without. A field that is newer than the ids of stored trials is left
    out of ids and JSON at its default (`OMIT_DEFAULT`), as every new one has to be.

    A teacher is a `TrialConfig` too, nested in the configs of its students. `weights` is the SHA-256 of a
    weights file that the user brought; such a teacher trains for 0 epochs. `folder` describes images from a folder of
    the user's; for a dataset with a name it is None, and then neither stored nor part of the id. `own_code` maps the
    name of each loss and model in a user's file to the digest of that file. An ensemble has the method `mean` and its
    `members`, in a fixed order; it trains for 0 epochs.
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
    options: tuple[tuple[str, float | str | bool], ...] = ()
    teacher: TrialConfig | None = None
    teacher_cache: str | None = None
    weights: str | None = None
    folder: Dataset | None = field(default=None, metadata=OMIT_DEFAULT)
    optimizer: str = field(default="sgd", metadata=OMIT_DEFAULT)
    optimizer_options: tuple[tuple[str, float | str | bool], ...] = field(default=(), metadata=OMIT_DEFAULT)
    schedule: str = field(default="steps", metadata=OMIT_DEFAULT)
    schedule_options: tuple[tuple[str, float | str | bool], ...] = field(default=(), metadata=OMIT_DEFAULT)
    padding: str = field(default="reflect", metadata=OMIT_DEFAULT)
    own_code: tuple[tuple[str, str], ...] = field(default=(), metadata=OMIT_DEFAULT)
    label_smoothing: float = field(default=0.0, metadata=OMIT_DEFAULT)
    clip_norm: float = field(default=0.0, metadata=OMIT_DEFAULT)
    ema: float = field(default=0.0, metadata=OMIT_DEFAULT)
    members: tuple[TrialConfig, ...] = field(default=(), metadata=OMIT_DEFAULT)

    def own_names(self) -> frozenset[str]:
        """The names of the losses and models in a user's files that it, its teacher or its members use."""
        names = frozenset(name for name, _ in self.own_code)
        others = (*([self.teacher] if self.teacher else []), *self.members)
        return names.union(*(other.own_names() for other in others))

    def trial_id(self, teacher_id: str | None = None) -> str:
        """12 hex digits that are the same in every process and on every machine.

        `teacher_id` spares working out the teacher's own id again where it is known.
        """
        data = codec.encode_fields(self, leave_out=("teacher", "members"))
        data["options"] = _options_in_id(self.method, data["options"])
        data["teacher"] = (teacher_id or self.teacher.trial_id()) if self.teacher else None
        data["training_version"] = TRAINING_VERSION
        if self.members:
            data["members"] = [member.trial_id() for member in self.members]
        if self.folder:
            del data["dataset"]  # what the folder is called changes nothing
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def recipe(self) -> dict[str, Any]:
        """What the columns of the results do not already say, the teacher's own recipe included."""
        columns = {"method", "dataset", "student", "seed"}
        data = {key: value for key, value in codec.encode(self).items() if key not in columns}
        if self.teacher:
            data["teacher"] = {"seed": self.teacher.seed, **self.teacher.recipe()}
            data["teacher"].pop("folder", None)  # it sees the images of its students
            if self.teacher.teacher:
                data["teacher"]["method"] = self.teacher.method
                data["teacher"]["teacher"]["student"] = self.teacher.teacher.student
        return data


def _options_in_id(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a method that are part of an id: those that always were, and others that are not at defaults.

    All options of a user's own loss are part of it, so that an id never depends on which files were read.
    """
    known, always = losses.find_builtin_options(method), _OPTIONS_OF_VERSION_2.get(method, ())
    found = {}
    for name, value in options.items():
        if name in always or name not in known or value != known[name].default:
            found[name] = value
    return found


PADDINGS = ("reflect", "zero")  # what surrounds an image before the random crop


def view_count(crop_padding: int, flip: bool) -> int:
    """V = 2·(2p+1)² views of an image with flips, half of it without."""
    return (2 if flip else 1) * (2 * crop_padding + 1) ** 2


@dataclass(frozen=True, slots=True)
class TableKey:
    """Which outputs of which teacher: `outputs` (logits or pooled) for every view of so many training images."""

    teacher_id: str
    outputs: str = field(metadata=codec.named("answers"))
    crop_padding: int
    flip: bool
    images: int
    padding: str = field(default="reflect", metadata=OMIT_DEFAULT)

    @property
    def views(self) -> int:
        """V, the number of views."""
        return view_count(self.crop_padding, self.flip)

    @property
    def name(self) -> str:
        """A file name, unique among the tables of one teacher."""
        padding = "" if self.padding == "reflect" else f"-{self.padding}"
        return f"{self.outputs}-p{self.crop_padding}{padding}-{'flip' if self.flip else 'noflip'}-n{self.images}"

    @classmethod
    def parse(cls, teacher_id: str, name: str) -> TableKey | None:
        """The key whose `name` this is; None where no key has this name."""
        match = _TABLE_NAME.fullmatch(name)
        if not match:
            return None
        outputs, crop_padding, padding, flip, images = match.groups("reflect")
        key = cls(teacher_id, outputs, int(crop_padding), flip == "flip", int(images), padding)
        return key if key.name == name else None  # numbers may begin with zeros


_TABLE_NAME = re.compile(r"([a-z]+)-p(\d{1,9})(?:-(zero))?-(flip|noflip)-n(\d{1,9})")


def is_trial_id(text: str) -> bool:
    """Whether a text has the form of a trial's id: 12 hex digits."""
    return _TRIAL_ID.fullmatch(text) is not None


_TRIAL_ID = re.compile(r"[0-9a-f]{12}")


def read_recipe(text: str | None) -> Mapping[str, Any]:
    """A row's `recipe`, which Parquet holds as JSON text; equal texts give one mapping, which nobody may change.

    Raises ValueError where kdctl did not write it: where it is no JSON object, or where one of its settings has a type
    that no version of kdctl gave it. Settings that this version does not know are kept.
    """
    try:
        return _read_recipe(text or "")
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"its recipe is damaged: {error}") from None


@lru_cache(maxsize=1024)  # the trials of one setting have the same recipe but for the seed of their teacher
def _read_recipe(text: str) -> Mapping[str, Any]:
    found = json.loads(text)
    _check_recipe(found)
    return cast(Mapping[str, Any], found)


def _check_recipe(found: Any) -> None:
    if not isinstance(found, dict):
        raise TypeError(f"expected a JSON object, found {type(found).__name__}")
    for name, value in found.items():
        kinds = _RECIPE_TYPES.get(name)
        if kinds and value is not None and type(value) not in kinds:
            raise TypeError(f"{name} is of type {type(value).__name__}")
    for inner in (found.get("teacher"), *(found.get("members") or ())):
        if inner:
            _check_recipe(inner)


# What JSON makes of the settings in a recipe, null aside.
_RECIPE_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("seed", "epochs", "batch_size", "crop_padding", "limit_train", "limit_test", "holdout"), (int,)),
    **dict.fromkeys(("lr", "momentum", "weight_decay", "gamma", "label_smoothing", "clip_norm", "ema"), (float, int)),
    **dict.fromkeys(("padding", "precision", "teacher_cache", "weights", "teacher_answers", "arithmetic"), (str,)),
    **dict.fromkeys(("method", "student"), (str,)),  # of a teacher that is distilled, and of that teacher's own
    **{"milestones": (list,), "flip": (bool,), "options": (dict,), "teacher": (dict,), "members": (list,)},
}


def write_recipe(recipe: Mapping[str, Any]) -> str:
    """The JSON text of a recipe, the same for equal ones."""
    return json.dumps(recipe, sort_keys=True)


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch of one trial, and a row of the `epochs` table but for its `trial_id`.

    Each field is declared with what its column means. Accuracies are percentages.
    """

    epoch: Annotated[int, "from 1"]
    lr: Annotated[float, "learning rate in this epoch"]
    train_loss: Annotated[float, "what was minimised, mean over the training images"]
    ce_loss: Annotated[float, "its cross-entropy, before any weight; that of smoothed labels with label_smoothing"]
    kd_loss: Annotated[float | None, "its distillation term; null without a teacher"]
    train_acc: Annotated[float, "accuracy on the training views while training, %"]
    test_loss: Annotated[float, "cross-entropy on the test set"]
    test_acc: Annotated[float, "accuracy on the test set, %"]
    val_acc: Annotated[float | None, "accuracy on the held-out images, %; null without a holdout"]
    seconds: Annotated[float, "wall time of the epoch, evaluation included"]
    images_per_second: Annotated[float, "training images a second, evaluation excluded"]


def list_names(names: Iterable[str], last: str = "or") -> str:
    """Names as a phrase, like `a, b or c`."""
    *others, final = names
    return f"{', '.join(others)} {last} {final}" if others else final


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One row of the `trials` table: each field is a column, declared with what it means.

    The first eleven are the published table's. What is measured is None until it is.
    """

    no: Annotated[int, "number of the trial in the plan it was trained for, from 1"]
    method: Annotated[str, f"how it was trained: {list_names(losses.METHODS)}"]
    dataset: Annotated[str, "the dataset that it was trained and tested on"]
    student: Annotated[str, "the model that was trained"]
    teacher: Annotated[str | None, "the teacher's model; null without one"] = None
    start_time: Annotated[datetime, "when training began, UTC"]
    acc: Annotated[float | None, "best test accuracy of all epochs, %: picked on the test set, as is customary"] = None
    epoch: Annotated[int | None, "the first epoch that reached acc, from 1"] = None
    nepoch: Annotated[int, "epochs to train; 0 for a teacher from a file"]
    lr: Annotated[float, "learning rate at the start"]
    batch_size: Annotated[int, "images in a batch"]
    trial_id: Annotated[str, "12 hex digits over everything that can change the result"]
    study: Annotated[str, "the study it was trained for first"]
    state: Annotated[State, f"{list_names(State)}"]
    error: Annotated[str | None, "why it failed, was skipped or stopped, and what to do; null otherwise"] = None
    failure: Annotated[Failure | None, f"class of a failure: {list_names(Failure)}"] = None
    seed: Annotated[int, "seed of the weights, the order of the images and their views"]
    last_acc: Annotated[float | None, "test accuracy after the last epoch, %: no pick on the test set"] = None
    selected_acc: Annotated[
        float | None, "test accuracy at the epoch with the best val_acc, %; null without a holdout"
    ] = None
    top5: Annotated[float | None, "share of test images with the label among the 5 best answers, last epoch, %"] = None
    teacher_id: Annotated[str | None, "trial_id of the teacher; null without one"] = None
    teacher_acc: Annotated[float | None, "test accuracy of the weights that taught, %"] = None
    agreement: Annotated[
        float | None, "share of test images for which student and teacher predict the same class, last epoch, %"
    ] = None
    params: Annotated[int | None, "trained parameters of the student"] = None
    seconds: Annotated[float | None, "wall time of all epochs, evaluation included"] = None
    images_per_second: Annotated[float | None, "training images a second, evaluation excluded"] = None
    device: Annotated[str | None, "what it was trained on"] = None
    host: Annotated[str | None, "the machine's name"] = None
    recipe: Annotated[Mapping[str, Any], "every other setting, the teacher's included, as JSON"]
    kdctl_version: Annotated[str, "version of kdctl"]
    torch_version: Annotated[str | None, "version of torch"] = None
    ray_version: Annotated[str | None, "version of Ray; null with --inline"] = None
    git_commit: Annotated[str | None, "commit of the repository that holds the study file; null outside one"] = None
    end_time: Annotated[datetime | None, "when it ended, in whatever state, UTC; null while it runs"] = None
    resumed: Annotated[int, "how many times it resumed from a checkpoint"] = 0
    weights_bytes: Annotated[int | None, "size of its weights file; null without one"] = None
    weights_sha256: Annotated[str | None, "SHA-256 of its weights file; null without one"] = None
    threads: Annotated[int | None, "CPU threads that trained it; null on a GPU and in rows of earlier versions"] = None

    def to_row(self) -> dict[str, Any]:
        """Its columns as files and commands show them: the recipe as JSON text."""
        row = {name: getattr(self, name) for name in self.__slots__}
        return {**row, "recipe": write_recipe(self.recipe)}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> TrialRecord:
        """The record of such columns. Raises ValueError where kdctl did not write them."""
        failure = None if row["failure"] is None else Failure(row["failure"])
        known = {"state": State(row["state"]), "failure": failure, "recipe": read_recipe(row["recipe"])}
        return cls(**{**row, **known})


_COLUMN_TYPES: Mapping[Any, str] = {
    str: "string", State: "string", Failure: "string", Mapping: "string",
    int: "int", float: "float", datetime: "timestamp",
}  # fmt: skip


def columns_of(record: type) -> dict[str, tuple[str, str]]:
    """The columns of a kind of record: name → (type, meaning), the types named as in `parquet.TYPES`."""
    found = {}
    for name, hint in get_type_hints(record, include_extras=True).items():
        kind, meaning = get_args(hint)
        types = [option for option in get_args(kind) if option is not NoneType] if type(kind) is UnionType else [kind]
        found[name] = (_COLUMN_TYPES[get_origin(types[0]) or types[0]], meaning)
    return found
