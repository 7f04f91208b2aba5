"""A study file as checked values, each with its location."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.errors import Fault
from orchestrator.own_code.source import OwnCode
from orchestrator.study import fields
from orchestrator.study.document import Location


@dataclass(frozen=True, slots=True)
class Value:
    """A checked value with its location, for faults that are found only when values are compared."""

    value: Any
    location: Location
    path: str

    def fault(self, message: str) -> Fault:
        """A fault at this value."""
        return self.location.fault(self.path, message)


Axis = tuple[Value, ...]  # one value or several; a single one is an axis of length 1


@dataclass(frozen=True, slots=True)
class Experiment:
    """One entry of `experiments`: its own axes, and its teachers where the method has one."""

    axes: Mapping[str, Axis]
    teachers: tuple[Teacher, ...]
    value: Value
    names_teacher: bool  # even if that teacher has a fault

    def chain(self) -> Iterator[tuple[Experiment, Teacher]]:
        """Each teacher with its student, then the teachers of that teacher.

        The axes of a student that is itself a teacher include those of the images, which it has from its own student.
        """
        images = {name: axis for name, axis in self.axes.items() if name in fields.DATA_KEYS}
        datasets = {name: axis for name, axis in self.axes.items() if name == "dataset"}
        for teacher in self.teachers:
            yield self, teacher
            yield from replace(teacher, axes={**images, **teacher.axes, **datasets}).chain()


@dataclass(frozen=True, slots=True)
class Teacher(Experiment):
    """One entry of a `teacher` axis. One that is distilled is an experiment with a method and a student.

    `digests` maps each weights path to the SHA-256 of that file. The members of an ensemble are its `teachers`.
    """

    digests: Mapping[str, str] = field(default_factory=dict)
    is_ensemble: bool = False

    @property
    def is_distilled(self) -> bool:
        """Whether it has a method, and is not just trained."""
        return "method" in self.axes

    @property
    def models(self) -> Axis:
        """The models that teach."""
        return self.axes.get("student" if self.is_distilled else "model", ())


@dataclass(frozen=True, slots=True)
class Resources:
    """What one trial gets, and how often it is tried. None of this changes a result beyond how sums are rounded.

    `gpus_per_trial` is None where the machine decides: 1 if it has a GPU, else 0. `cpus_per_trial` is None where all
    cores are divided among the trials that can train at the same time. `retries` is the number of further attempts
    after a lost worker or too little memory.
    """

    gpus_per_trial: float | None = None
    cpus_per_trial: int | None = None
    retries: int = 2
    checkpoint_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Study:
    """A study file that passed every check. `plan.make_plan` expands it. `text` is the file's text as it was read.

    `own_code` are the user's own losses that it names, by their names. `own_files` are the texts of all their files, by
    paths relative to the study file, or absolute ones where the study file names one.
    """

    name: str
    recipe: Mapping[str, Value]
    experiments: tuple[Experiment, ...]
    resources: Resources
    source: Path
    warnings: tuple[Fault, ...] = ()
    text: str = field(default="", compare=False, repr=False)
    own_code: Mapping[str, OwnCode] = field(default_factory=dict)
    own_files: Mapping[str, str] = field(default_factory=dict, repr=False)
