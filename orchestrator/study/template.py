"""The study file that somebody new begins with: small, commented, and run by the tests as it is written."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from orchestrator.errors import KdctlError
from orchestrator.files import write_file
from orchestrator.machine.paths import word
from orchestrator.study.schema import schema_text
from orchestrator.text import printable

SCHEMA = "study.schema.json"  # beside the study file, as its first line says

_HEAD = """\
# yaml-language-server: $schema=study.schema.json
#
# {intro}
#
#   kdctl plan {file}       what will be trained
#   kdctl launch {file}     train it; the same line again goes on where it stopped
#   kdctl report {file}     report.html, a page to read and to share
#
# A trial that is finished is never trained again: add a seed or a student, launch again, and only that is trained.
# `kdctl check {file}` finds every mistake in this file.
study: my-{dataset} # a name of your own
"""

_EXPERIMENTS = """
experiments:
  # The student alone, to compare with.
  - method: base
    dataset: {dataset}
    student: resnet_32_8 # resnet_32_D with D = 6n+2: 8, 14, 20, 32, 44, 56, 110
    seed: [0, 1, 2] # a list is an axis, and axes multiply: three runs. Add 3, and one more is trained.

  # The same student with a teacher, which is trained first, once for all who ask it.
  - method: logit # match the teacher's logits; or st, its softened answers; or both: [logit, st]
    dataset: {dataset}
    teacher: resnet_32_20 # or {{model: resnet_32_20, seed: 1}}, with settings of its own
    student: resnet_32_8 # another student, or several: [resnet_32_8, resnet_32_14]
    seed: [0, 1, 2]
"""

_DIGITS = (
    "scikit-learn's digits (8x8 scans, nothing to download): about a minute on a laptop.",
    """
recipe: # what every experiment shares; an experiment may override any of it
  epochs: 20
  batch_size: 32
  lr: 0.05
  crop_padding: 1
  flip: false # a mirrored 2 is no 2

# For CIFAR-10 write `dataset: cifar10` (or cifar100) in both experiments, and this recipe:
#   {epochs: 200, batch_size: 128, lr: 0.1, crop_padding: 4, flip: true}
# Its images come from the folder that --data names (./data), into which a launch downloads what is missing.
# `kdctl init cifar.yaml --dataset cifar10` writes such a file.
""",
)

_CIFAR = (
    "{title}, the usual recipe: for a GPU. A small try on a laptop, some minutes:\n"
    "#   kdctl launch {file} --set recipe.epochs=2 --set recipe.limit_train=1000 --set recipe.limit_test=500\n"
    "# The images are read from the folder that --data names (./data), in torchvision's layout or as Parquet\n"
    "# ({dataset}/train-*.parquet, {dataset}/test-*.parquet); a launch downloads what is missing.",
    """
recipe: # what every experiment shares; an experiment may override any of it
  epochs: 200
  batch_size: 128
  lr: 0.1 # a tenth of it after half of the epochs, and again after three quarters; milestones: [100, 150] says where
  weight_decay: 1e-4
  crop_padding: 4
  flip: true
  # limit_train: 5000 # so many images only, for a quick look
""",
)

_STARTS: Mapping[str, tuple[str, str]] = {"digits": _DIGITS, "cifar10": _CIFAR, "cifar100": _CIFAR}
_TITLES = {"digits": "Digits", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}


def text(file: str, dataset: str) -> str:
    """The study file; `file` is what commands are to call it."""
    intro, recipe = _STARTS[dataset]
    names = {"file": file, "dataset": dataset, "title": _TITLES[dataset]}
    head = _HEAD.format(intro=intro.format(**names), **names)
    return head + recipe + _EXPERIMENTS.format(**names)


def write(path: Path, dataset: str) -> list[Path]:
    """Writes the study file, in place of what is there, and the schema beside it, unless there is one; says which.

    Raises KdctlError where they cannot be written.
    """
    schema = path.parent / SCHEMA
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        written = [path]
        write_file(path, text(_word(path), dataset))
        if not schema.exists():
            write_file(schema, schema_text())
            written.append(schema)
    except OSError as error:
        raise KdctlError(
            f"{printable(str(path))} cannot be written ({error.strerror or error}); wanted the name of a file in a "
            "folder that is there and that you may write; name another"
        ) from None
    return written


def _word(path: Path) -> str:
    """A file as a person types it in a shell."""
    return printable(shlex.quote(word(str(path))))


def next_steps(path: Path, dataset: str) -> str:
    """The commands to type next, each with what it does."""
    file = _word(path)
    small = " --set recipe.epochs=2 --set recipe.limit_train=1000 --set recipe.limit_test=500"
    launch = f"kdctl launch {file}{'' if dataset == 'digits' else small}"
    takes = "about a minute" if dataset == "digits" else "a small try, some minutes; without --set: all of it"
    # What was launched with --set are other trials than those that the file names; the study's name means them.
    lines = {
        f"kdctl plan {file}": "what will be trained",
        launch: f"train it ({takes})",
        f"kdctl report {file if dataset == 'digits' else f'my-{dataset}'}": "report.html, a page to read and to share",
    }
    width = max(map(len, lines))
    return "\n".join(f"  {line:<{width}}   {meaning}" for line, meaning in lines.items())
