"""The study file that a new user starts with: small and commented. The tests run it as it is written."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.data.registry import DATASETS
from orchestrator.errors import KdctlError
from orchestrator.files import write_file
from orchestrator.machine.paths import word
from orchestrator.study import loss_template
from orchestrator.study.schema import schema_text
from orchestrator.text import printable

SCHEMA = "study.schema.json"  # next to the study file, whose first line refers to it

_HEAD = """\
# yaml-language-server: $schema=study.schema.json
#
# {intro}
#
#   kdctl plan {file}       what will be trained
#   kdctl launch {file}     train it; the same command again resumes where it stopped
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
    student: resnet_32_8 # resnet_32_D (D = 6n+2): 8, 14, 20, 32, 44, 56, 110
    seed: [0, 1, 2] # a list is an axis, and axes multiply: three runs. Add 3, and one more is trained.

  # The same student with a teacher, which is trained first, once for all its students.
  - method: {method}
    dataset: {dataset}
    teacher: {teacher}
    student: resnet_32_8 # another student, or several: [resnet_32_8, resnet_32_14]
    seed: [0, 1, 2]
"""
_METHOD = "logit # match the teacher's logits; or st, its softened logits; or both: [logit, st]"
_WITH_OWN = "[st, {own}] # the usual loss, to compare with, and your own"


def text(file: str, dataset: str, own: str = "") -> str:
    """The text of the study file; `file` is its name in the commands that it mentions, `own` a loss of the user's."""
    example = DATASETS[dataset].example
    head = _HEAD.format(intro=example.intro.format(file=file), file=file, dataset=dataset)
    method = _WITH_OWN.format(own=own) if own else _METHOD
    return head + example.recipe + _EXPERIMENTS.format(dataset=dataset, method=method, teacher=example.teacher)


def write(path: Path, dataset: str, own: str = "") -> list[Path]:
    """Writes the study file, replacing an existing one, and the schema next to it unless it exists.

    `own` is how the study names a loss of the user's. Returns the paths of the files written. Raises KdctlError where
    they cannot be written.
    """
    schema = path.parent / SCHEMA
    with _explain_failure(path):
        written = [path]
        write_file(path, text(_quote_file(path), dataset, own))
        if not schema.exists():
            write_file(schema, schema_text())
            written.append(schema)
    return written


def write_loss(path: Path) -> list[Path]:
    """Writes a loss to begin with, replacing an existing file; the rest is as for `write`."""
    with _explain_failure(path):
        write_file(path, loss_template.text(path.stem))
    return [path]


@contextmanager
def _explain_failure(path: Path) -> Iterator[None]:
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        yield
    except OSError as error:
        raise KdctlError(
            f"{printable(str(path))} cannot be written ({error.strerror or error}); expected the name of a file in a "
            "folder that exists and that you may write to; name another"
        ) from None


def _quote_file(path: Path) -> str:
    """A file name as it is typed in a shell."""
    return printable(shlex.quote(word(str(path))))


def next_steps(path: Path, dataset: str, own: str = "") -> str:
    """The commands to type next, each with what it does."""
    file, example = _quote_file(path), DATASETS[dataset].example
    # Trials that were launched with --set are not those in the file, but the name of the study finds them.
    study = f"my-{dataset}" if example.trial_settings else file
    lines = {f"kdctl check {file}": "tries two training steps of your loss"} if own else {}
    lines |= {
        f"kdctl plan {file}": "what will be trained",
        f"kdctl launch {file}{example.trial_settings}": f"train it ({example.duration})",
        f"kdctl report {study}": "report.html, a page to read and to share",
    }
    width = max(map(len, lines))
    return "\n".join(f"  {line:<{width}}   {meaning}" for line, meaning in lines.items())
