"""Every key of a study file: its type, default and meaning. Checks, JSON Schema and docs all come from here."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator import losses, models
from orchestrator.data.registry import DATASETS
from orchestrator.losses import Option
from orchestrator.machine import paths
from orchestrator.records import PADDINGS
from orchestrator.study.document import Node
from orchestrator.text import nearest, shorten
from orchestrator.training.optimizers import OPTIMIZERS
from orchestrator.training.schedules import SCHEDULES

OWN_PATTERN = r"\.py:[A-Za-z_]\w*$"  # of the name of a user's own code


class ValueType(Protocol):
    """A type of value. `read` raises ValueError that states what was found, what is expected and what to do."""

    def read(self, node: Node) -> Any: ...

    def schema(self) -> dict[str, Any]: ...


def _read_number(node: Node) -> int | float | None:
    """The value of a node that is a finite number, else None; `true` is not the number 1."""
    value = node.value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number; `1e3` is one, `1.5` is not."""

    least: int
    most: int
    optional: bool = False

    def read(self, node: Node) -> int | None:
        if node.value is None and self.optional:
            return None
        value = _read_number(node)
        if value is not None and value == int(value) and self.least <= value <= self.most:
            return int(value)
        raise ValueError(
            f"found {node.describe()}; expected a whole number from {self.least:,} to {self.most:,}; write digits"
        )

    def schema(self) -> dict[str, Any]:
        names = ["integer", "null"] if self.optional else "integer"
        return {"type": names, "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number, from `least` (or above it) to `most`."""

    least: float
    most: float = 1e9
    exclusive: bool = False

    def read(self, node: Node) -> float:
        value = _read_number(node)
        if value is not None and self.least <= value <= self.most and not (self.exclusive and value == self.least):
            return float(value) + 0.0  # -0.0 becomes 0.0, which is the same setting
        start = "above" if self.exclusive else "from"
        raise ValueError(
            f"found {node.describe()}; expected a number {start} {self.least:g} to {self.most:g}; write 0.1 or 1e-3"
        )

    def schema(self) -> dict[str, Any]:
        return {"type": "number", "exclusiveMinimum" if self.exclusive else "minimum": self.least, "maximum": self.most}


@dataclass(frozen=True, slots=True)
class GpuShare:
    """The share of a GPU that one trial gets; a trial trains on one GPU at most."""

    def read(self, node: Node) -> float:
        value = _read_number(node)
        if value is not None and 0 <= value <= 1:
            return float(value)
        raise ValueError(f"found {node.describe()}; expected a number from 0 to 1; write 0.5 for two trials on a GPU")

    def schema(self) -> dict[str, Any]:
        return {"type": "number", "minimum": 0, "maximum": 1}


AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Auto:
    """Another type, or `auto`, which is None: the machine decides."""

    value_type: Integer | GpuShare

    def read(self, node: Node) -> float | None:
        if node.value in (None, AUTO):
            return None
        try:
            return self.value_type.read(node)
        except ValueError as error:
            raise ValueError(f"{error}, or {AUTO}") from None

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [self.value_type.schema(), {"enum": [AUTO, None]}]}


@dataclass(frozen=True, slots=True)
class Boolean:
    """True or false."""

    def read(self, node: Node) -> bool:
        if isinstance(node.value, bool):
            return node.value
        raise ValueError(f"found {node.describe()}; expected true or false; write one of these words")

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]

    def read(self, node: Node) -> str:
        if isinstance(node.value, str) and node.value in self.words:
            return node.value
        raise ValueError(
            f"found {node.describe()}; expected one of {', '.join(self.words)}; {nearest(node.value, self.words)}"
        )

    def schema(self) -> dict[str, Any]:
        return {"enum": list(self.words)}


@dataclass(frozen=True, slots=True)
class Selection:
    """An entry of a table by its name, with the options that the study file gives it."""

    name: str
    options: tuple[tuple[str, float | str | bool], ...] = ()

    def __str__(self) -> str:
        options = ",".join(f"{name}={_option_text(value)}" for name, value in self.options)
        return f"{self.name}:{options}" if options else self.name


def _option_text(value: float | str | bool) -> str:
    """A value as a study file has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def combine(selections: Sequence[Selection]) -> Selection:
    """Several methods as one, whatever their order; a single one stays as it is."""
    first, *others = sorted(selections, key=lambda selection: selection.name)
    if not others:
        return first
    options = ((f"{each.name}.{option}", value) for each in (first, *others) for option, value in each.options)
    return Selection(losses.JOIN.join(each.name for each in (first, *others)), tuple(options))


class Entry(Protocol):
    """An entry of a table of methods, optimizers or schedules."""

    @property
    def options(self) -> Mapping[str, Option]:
        """Its options by name."""


@dataclass(frozen=True, slots=True, eq=False)
class Selected:
    """The name of an entry of `table`, alone or as the only key of a mapping to its options: `{st: {temperature: 2}}`.

    Options may be axes; `reader` reads them as it reads every axis. Where an entry `combines`, the mapping may have
    several, and a name may be that of a user's own code: `./my_loss.py:MyLoss`.
    """

    table: Mapping[str, Entry]
    combines: bool = False

    def read(self, node: Node) -> Selection:
        if isinstance(node.value, dict):
            count = "names, each with its options" if self.combines else "one name with its options"
            raise ValueError(
                f"found {node.describe()}; expected a name, or {count}; write one of {', '.join(self.table)}"
            )
        return Selection(Choice(tuple(self.table)).read(node))

    def schema(self) -> dict[str, Any]:
        nested = {name: _make_options_schema(entry.options) for name, entry in self.table.items() if entry.options}
        names: dict[str, Any] = {"enum": list(self.table)}
        if not nested:
            return names
        if not self.combines:
            single = {"type": "object", "properties": nested, "minProperties": 1, "maxProperties": 1}
            return {"anyOf": [names, {**single, "additionalProperties": False}]}
        several = {name: {"anyOf": [schema, {"type": "null"}]} for name, schema in nested.items()}
        own = {"type": "string", "pattern": OWN_PATTERN}
        combined = {"type": "object", "properties": several, "minProperties": 1}
        combined |= {"patternProperties": {OWN_PATTERN: {"type": ["object", "null"]}}, "additionalProperties": False}
        return {"anyOf": [names, own, combined]}


def _make_options_schema(options: Mapping[str, Option]) -> dict[str, Any]:
    properties = {name: axis_schema(option_key(option).schema()) for name, option in options.items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def axis_schema(value: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of an axis: a value, a list, or `{grid: [...]}`. A key whose values are lists needs the grid."""
    several = {"type": "array", "items": value, "minItems": 1}
    grid = {"type": "object", "properties": {"grid": several}, "required": ["grid"], "additionalProperties": False}
    choices = [value, grid] if value.get("type") == "array" else [value, several, grid]
    return {"anyOf": choices, **({"description": value["description"]} if "description" in value else {})}


@dataclass(frozen=True, slots=True)
class ModelValue:
    """The name of a model."""

    def read(self, node: Node) -> str:
        if not isinstance(node.value, str):
            raise ValueError(f"found {node.describe()}; expected the name of a model; write it like resnet_32_20")
        if models.is_own(node.value):
            raise ValueError(
                f"found {node.describe()}; expected the file of a model of your own; write ./my_net.py:build"
            )
        models.parse(node.value)
        return node.value

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": f"{models.pattern()}|{OWN_PATTERN}"}


@dataclass(frozen=True, slots=True)
class EpochList:
    """A list of epochs in ascending order. The list is one value, not an axis."""

    def read(self, node: Node) -> tuple[int, ...]:
        if not isinstance(node.value, list):
            raise ValueError(
                f"found {node.describe()}; expected a list of epochs; write it like [100, 150], or [] for none"
            )
        if any(isinstance(entry.value, list) for entry in node.value):
            raise ValueError(
                f"found {node.describe()}; expected one list; for several, write {{grid: [[100, 150], [60, 120]]}}"
            )
        epochs = [Integer(1, 1_000_000).read(entry) for entry in node.value]
        if any(a is None or b is None or a >= b for a, b in itertools.pairwise(epochs)):
            raise ValueError(f"found {node.describe()}; expected epochs in ascending order; sort them and drop repeats")
        return tuple(epoch for epoch in epochs if epoch is not None)

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": Integer(1, 1_000_000).schema(), "uniqueItems": True}


@dataclass(frozen=True, slots=True)
class FilePath:
    """A path, relative to the study file; `kind` is what it leads to, a file or a folder."""

    kind: str = "file"

    def read(self, node: Node) -> str:
        if not isinstance(node.value, str) or not node.value.strip():
            raise ValueError(
                f"found {node.describe()}; expected the path of a {self.kind}; write it relative to the study file"
            )
        try:
            return str(paths.local(node.value, "the path"))
        except paths.PathError as error:
            raise ValueError(str(error)) from None

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1}


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """A folder of a user's own images, as a study file names it. Images are resized to `size` if that is given."""

    path: str
    size: int | None


@dataclass(frozen=True, slots=True)
class DatasetValue:
    """The name of a dataset, or `{folder: PATH}`, which may have a `size`. A user's function is read elsewhere."""

    def read(self, node: Node) -> str | ImageFolder:
        if isinstance(node.value, dict):
            return self._folder(node.value)
        try:
            return Choice(tuple(DATASETS)).read(node)
        except ValueError as error:
            own = node.value if isinstance(node.value, str) and "/" in node.value else "PATH"
            raise ValueError(
                f"{error}; for images of your own write {{folder: {shorten(own)}}}, or ./FILE.py:FUNCTION"
            ) from None

    def _folder(self, given: dict[str, Node]) -> ImageFolder:
        if "folder" not in given or not given.keys() <= {"folder", "size"}:
            keys = ", ".join(map(shorten, given)) or "no key"
            raise ValueError(
                f"found a mapping with {keys}; expected folder, and size where images are to be resized; write "
                "{folder: PATH} or {folder: PATH, size: 32}"
            )
        size = _IMAGE_SIZE.read(given["size"]) if "size" in given else None
        return ImageFolder(FilePath("folder").read(given["folder"]), size)

    def schema(self) -> dict[str, Any]:
        folder = {"folder": FilePath("folder").schema(), "size": _IMAGE_SIZE.schema()}
        mapping = {"type": "object", "properties": folder, "required": ["folder"], "additionalProperties": False}
        return {"anyOf": [{"enum": list(DATASETS)}, {"type": "string", "pattern": OWN_PATTERN}, mapping]}


_IMAGE_SIZE = Integer(1, 4096)


@dataclass(frozen=True, slots=True)
class Key:
    """A key with its meaning; `default_doc` describes in words what applies where the key is missing."""

    value_type: ValueType
    doc: str
    default: Any = None
    default_doc: str = ""

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of one value, with the default where that is fixed."""
        schema = {**self.value_type.schema(), "description": self.doc}
        if self.default is not None:
            schema["default"] = _to_plain(self.default)
        return schema

    def default_text(self) -> str:
        """The default as a study file would write it."""
        if self.default_doc or self.default is None:
            return self.default_doc or "required"
        return json.dumps(_to_plain(self.default)).strip('"')


def _to_plain(default: Any) -> Any:
    """A default as a study file or JSON represents it."""
    if isinstance(default, Selection):
        return default.name
    if isinstance(default, float) and default.is_integer():
        return int(default)
    return list(default) if isinstance(default, tuple) else default


def default_milestones(epochs: int) -> tuple[int, ...]:
    """Half and three quarters of the epochs, as in the published recipe."""
    return tuple(sorted({epochs // 2, epochs * 3 // 4} - {0}))


def option_key(option: Option) -> Key:
    """The key of an option: its type, meaning and default."""
    if option.choices:
        return Key(Choice(option.choices), option.doc, option.default)
    if isinstance(option.default, bool):
        return Key(Boolean(), option.doc, option.default)
    if isinstance(option.default, int):
        return Key(Integer(int(option.least), int(option.most)), option.doc, option.default)
    return Key(Number(option.least, option.most, exclusive=option.exclusive), option.doc, option.default)


def _describe_optimizer_defaults(name: str) -> str:
    """In words, the default of a setting for which each optimizer has its own."""
    (_, first), *others = ((key, f"{getattr(facts, name):g}") for key, facts in OPTIMIZERS.items())
    return "; ".join([first, *(f"{value} for {key}" for key, value in others)])


_IMAGES = Integer(1, 10_000_000, optional=True)
DATA_KEYS: Mapping[str, Key] = {  # which images are used; a teacher takes these from the experiment
    "limit_train": Key(
        _IMAGES,
        "train on at most N images, an equal share of each class",
        default_doc="all",
    ),
    "limit_test": Key(
        _IMAGES,
        "test on at most N images, an equal share of each class",
        default_doc="all",
    ),
    "holdout": Key(Integer(0, 10_000_000), "how many training images are held out to select an epoch", 0),
}

TRAINING_KEYS: Mapping[str, Key] = {
    "epochs": Key(Integer(1, 100_000), "passes over the training set", 200),
    "batch_size": Key(Integer(1, 1_000_000), "images in a batch", 128),
    "lr": Key(Number(0, 1e6, exclusive=True), "learning rate", 0.1, _describe_optimizer_defaults("lr")),
    "momentum": Key(Number(0, 1), "momentum of SGD", 0.9),
    "weight_decay": Key(Number(0, 1e6), "weight decay", 1e-4, _describe_optimizer_defaults("weight_decay")),
    "milestones": Key(
        EpochList(),
        "epochs after which lr is multiplied by gamma",
        default_doc="at half and three quarters of the epochs",
    ),
    "gamma": Key(Number(0, 1e6, exclusive=True), "what lr is multiplied by at each milestone", 0.1),
    "crop_padding": Key(Integer(0, 1024), "pixels of border before the random crop", 4),
    "padding": Key(
        Choice(PADDINGS), "what the border is: a reflection of the image (reflect), or black (zero)", "reflect"
    ),
    "flip": Key(Boolean(), "flip half of the images left to right", True),
    "precision": Key(
        Choice(("auto", "float32", "bfloat16", "float16")),
        "compute dtype of convolutions in training; auto is bfloat16 if the device supports it, else float32; float16 "
        "needs a GPU, where it has the fewest kernels",
        "auto",
    ),
    "label_smoothing": Key(
        Number(0, 1),
        "share of each label that the cross-entropy spreads evenly over all classes (arXiv 1512.00567)",
        0.0,
    ),
    "clip_norm": Key(
        Number(0),
        "largest norm of the gradient of all trained parameters; a larger one is scaled down to it; 0: no limit",
        0.0,
    ),
    "ema": Key(
        Number(0, 1 - 1e-6),
        "decay per step of a moving average of the weights; the average is then tested, saved and used to teach; 0: no "
        "average",
        0.0,
    ),
    "optimizer": Key(Selected(OPTIMIZERS), "the optimizer: a name, or a name with its options", Selection("sgd")),
    "schedule": Key(
        Selected(SCHEDULES), "how lr changes during training: a name, or a name with its options", Selection("steps")
    ),
}
# Their defaults follow from others: milestones from epochs, these two from the optimizer.
DERIVED = ("milestones", "lr", "weight_decay")

CACHE_KEY = Key(
    Choice(("auto", "table", "live")),
    "compute the teacher outputs of every view once and store them (table), compute them at every step (live), or "
    "whichever is faster (auto)",
    "auto",
)

RECIPE_KEYS: Mapping[str, Key] = {**TRAINING_KEYS, **DATA_KEYS, "teacher_cache": CACHE_KEY}

SEED_KEY = Key(Integer(0, 2**63 - 1), "seed of the weights, the order of the images and their views", 0)

STUDENT_KEYS: Mapping[str, Key] = {
    "method": Key(
        Selected(losses.METHODS, combines=True),
        "how the student is trained: one method or several, each with its options; a loss of your own is written "
        "`./my_loss.py:MyLoss`",
    ),
    "dataset": Key(
        DatasetValue(), f"what it is trained on: {', '.join(DATASETS)}, {{folder: PATH}}, or ./FILE.py:FUNCTION"
    ),
    "student": Key(
        ModelValue(), f"the model to train: {models.describe()}; a model of your own is written `./my_net.py:build`"
    ),
    "seed": SEED_KEY,
}

TEACHER_KEYS: Mapping[str, Key] = {
    "model": Key(ModelValue(), "the teacher's model"),
    "seed": SEED_KEY,
    "dataset": Key(DatasetValue(), "can be stated, but must be that of the student", default_doc="the student's"),
    "weights": Key(
        FilePath(), "a file of trained weights: safetensors or a PyTorch checkpoint", default_doc="train one"
    ),
}


# Options may also be written next to `method`, unless another key has their name. Each is read as its method defines.
OPTION_KEYS: dict[str, Key] = {}
for _method in losses.METHODS.values():
    for _name, _option in _method.options.items():
        if _name not in (*STUDENT_KEYS, *RECIPE_KEYS, "teacher"):
            OPTION_KEYS.setdefault(_name, option_key(_option))


def name_option(method: str, option: str) -> str:
    """What labels call an option: with its method in front, if a key of the recipe has the same name."""
    return f"{method}.{option}" if option in (*STUDENT_KEYS, *RECIPE_KEYS) else option


EXPERIMENT_KEYS: Mapping[str, Key] = {**STUDENT_KEYS, **RECIPE_KEYS, **OPTION_KEYS}

TEACHER_MAPPING_KEYS: Mapping[str, Key] = {**TEACHER_KEYS, **TRAINING_KEYS, **DATA_KEYS}

RESOURCE_KEYS: Mapping[str, Key] = {
    "gpus_per_trial": Key(
        Auto(GpuShare()),
        "share of a GPU that one trial gets; `auto` is 1 where there is a GPU, else 0",
        default_doc=AUTO,
    ),
    "cpus_per_trial": Key(
        Auto(Integer(1, 1024)),
        "CPU cores, and so threads, of one trial; `auto` divides all cores among the trials that can train at the same "
        "time; it is 1 on a GPU",
        default_doc=AUTO,
    ),
    "retries": Key(
        Integer(0, 1000), "further attempts at a trial after a lost worker, a lost machine or too little memory", 2
    ),
    "checkpoint_seconds": Key(
        Number(0, 1e6),
        "write a checkpoint at the end of an epoch if at least this many seconds have passed since the last one",
        30.0,
    ),
}
