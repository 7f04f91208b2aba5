"""The datasets that a study file can name: facts alone, readable without importing torch.

To add one, write a module with the two functions of `Reader` and an entry of `DATASETS`; messages, help texts,
`kdctl doctor` and `kdctl init` follow from that. A user's own images need neither, see `folder` and
`own_code.datasets`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from orchestrator import codec
from orchestrator.dataset import Dataset

if TYPE_CHECKING:
    from orchestrator.data.order import Splits
    from orchestrator.records import TrialConfig


@dataclass(frozen=True, slots=True)
class Example:
    """What `kdctl init` writes about a dataset: a comment, and a recipe and a teacher that suit it.

    `{file}` stands for the study file. `trial_settings` shorten a first launch where the full recipe takes long;
    `duration` describes how long that launch takes.
    """

    intro: str
    recipe: str
    duration: str
    teacher: str
    trial_settings: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedDataset(Dataset):
    """A dataset of the table. `title` is its name in published tables, `name` its name in sentences.

    `reader` is the module that finds and reads the images, see `Reader`. `from_data_folder` is true if they are in the
    folder that `--data` names.
    """

    title: str
    name: str
    reader: str
    from_data_folder: bool
    example: Example

    def load_reader(self) -> Reader:
        """Imports the module of its reader."""
        return cast(Reader, import_module(self.reader))


class Reader(Protocol):
    """The functions of a reader's module. Importing it loads neither torch nor libraries that only reading needs."""

    def read(self, dataset: str, folder: Path | None) -> Splits:
        """Reads all images and labels, in canonical order, checked against the digest; `folder` is the data folder.

        Raises DataError that states which file is missing or damaged and how to get it.
        """

    def locate(self, dataset: str, folder: Path) -> tuple[str, str]:
        """Where the images are, and what to do if they are missing (empty if they are not). Reads no image.

        Raises DataError where reading could not work.
        """


_CIFAR_RECIPE = """
recipe: # what every experiment shares; an experiment may override any of it
  epochs: 200
  batch_size: 128
  lr: 0.1 # a tenth of it after half of the epochs, and again after three quarters; or set milestones: [100, 150]
  weight_decay: 1e-4
  crop_padding: 4
  flip: true
  # limit_train: 5000 # train on 5,000 images only, for a quick look
"""
_CIFAR_TEACHER = "resnet_32_20 # or {model: resnet_32_20, seed: 1}, with settings of its own"
_CIFAR_TRIAL = " --set recipe.epochs=2 --set recipe.limit_train=1000 --set recipe.limit_test=500"


def _cifar_example(name: str, dataset: str) -> Example:
    intro = (
        f"{name}, the usual recipe: for a GPU. A small try on a laptop, some minutes:\n"
        f"#   kdctl launch {{file}}{_CIFAR_TRIAL}\n"
        "# The images are read from the folder that --data names (./data), in torchvision's layout or as Parquet\n"
        f"# ({dataset}/train-*.parquet, {dataset}/test-*.parquet); a launch downloads what is missing."
    )
    duration = "a small try, some minutes; without --set: all of it"
    return Example(intro, _CIFAR_RECIPE, duration, _CIFAR_TEACHER, _CIFAR_TRIAL)


_DIGITS_EXAMPLE = Example(
    "scikit-learn's digits (8x8 scans, nothing to download): about a minute on a laptop. The students see 180 images,\n"
    "# their teacher sees all 1,297, and passes on some of what it learned from the others.",
    """
recipe: # what every experiment shares; an experiment may override any of it, and so may a teacher
  epochs: 30
  batch_size: 16
  lr: 0.05 # a tenth of it after half of the epochs, and again after three quarters; or set milestones: [15, 22]
  crop_padding: 2
  flip: false # a mirrored 2 is no 2
  limit_train: 180 # the images that the students see

# For CIFAR-10 write `dataset: cifar10` (or cifar100) in both experiments, `teacher: resnet_32_20`, and this recipe:
#   {epochs: 200, batch_size: 128, lr: 0.1, crop_padding: 4, flip: true}
# Its images come from the folder that --data names (./data), into which a launch downloads what is missing.
# `kdctl init cifar.yaml --dataset cifar10` writes such a file.
""",
    "about a minute",
    "{model: resnet_32_20, limit_train: 1297, epochs: 20, batch_size: 32, crop_padding: 1} # its own settings",
)

DATASETS: Mapping[str, NamedDataset] = {
    "digits": NamedDataset(
        classes=10,
        train=1297,
        test=500,
        side=8,
        mean=(0.3052,) * 3,
        std=(0.3758,) * 3,
        digest="69c80b255e16",
        title="Digits",
        name="digits",
        reader="orchestrator.data.digits",
        from_data_folder=False,
        example=_DIGITS_EXAMPLE,
    ),
    "cifar10": NamedDataset(
        classes=10,
        train=50_000,
        test=10_000,
        side=32,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        digest="aaa027d53769",
        title="Cifar10",
        name="CIFAR-10",
        reader="orchestrator.data.cifar",
        from_data_folder=True,
        example=_cifar_example("CIFAR-10", "cifar10"),
    ),
    "cifar100": NamedDataset(
        classes=100,
        train=50_000,
        test=10_000,
        side=32,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        digest="e29b20de058e",
        title="Cifar100",
        name="CIFAR-100",
        reader="orchestrator.data.cifar",
        from_data_folder=True,
        example=_cifar_example("CIFAR-100", "cifar100"),
    ),
}


@dataclass(frozen=True, slots=True)
class OwnDataset:
    """A user's own images, as they were measured; `path` is what they are read from.

    `name` is for people: the name of the folder or file, and the first digits of the digest, which distinguish images
    of the same name. The path is not compared: equal images are one dataset, wherever they are.
    """

    path: str = field(compare=False)
    name: str
    facts: Dataset

    def __str__(self) -> str:
        return self.name

    def read(self) -> Splits:
        """Reads the images, in canonical order. Raises DataError, also if they are not those that were measured."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, for programs."""
        return {"path": self.path, "name": self.name, "facts": codec.encode(self.facts)}


def facts_of(dataset: str | OwnDataset) -> Dataset:
    """The facts of a dataset, whether it has a name or is the user's own."""
    return dataset.facts if isinstance(dataset, OwnDataset) else DATASETS[dataset]


def facts_of_trial(config: TrialConfig) -> Dataset:
    """The facts of a trial's dataset."""
    return config.folder or DATASETS[config.dataset]


def stored_facts(dataset: str, recipe: Mapping[str, Any]) -> Dataset:
    """The facts of the dataset of a row of results. Raises KeyError or CodecError where that names no dataset."""
    folder = recipe.get("folder")
    return codec.decode(Dataset, folder) if folder else DATASETS[dataset]


def title_of(dataset: str) -> str:
    """The title of a dataset in a table, given the value of the column `dataset`."""
    return DATASETS[dataset].title if dataset in DATASETS else dataset
