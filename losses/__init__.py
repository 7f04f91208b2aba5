"""The methods that a study file can name. Reading the registry does not import torch; `build` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from orchestrator.losses.base import Loss, Shapes


@dataclass(frozen=True)
class Option:
    """An option of an entry: one of `choices`, or a number from `least` (or above it, if `exclusive`) to `most`.

    It is an integer where its default is one.
    """

    default: float | str
    doc: str
    choices: tuple[str, ...] = ()
    least: float = 0.0
    most: float = 1e9
    exclusive: bool = False


Options = Mapping[str, float | str]


class Widths(Protocol):
    """The channels of a model's maps and of its pooled features."""

    @property
    def maps(self) -> tuple[int, ...]:
        """The stem's, then each stage's."""

    @property
    def pooled(self) -> int:
        """Of the features before the last linear layer."""


def _pooled_mismatch(options: Options, student: Widths, teacher: Widths) -> str:
    if options["match"] != "pooled" or student.pooled == teacher.pooled:
        return ""
    return (
        f"match: pooled compares their pooled features one by one, and there are {student.pooled} of the student's "
        f"and {teacher.pooled} of the teacher's; use match: logits, or a teacher with {student.pooled}"
    )


def _stage_mismatch(options: Options, student: Widths, teacher: Widths) -> str:
    stages = min(len(student.maps), len(teacher.maps)) - 1  # without the stem
    if int(options["stage"]) <= stages:
        return ""
    return f"one of them has no stage {options['stage']}; they share {stages} stages, so use stage: 1 to {stages}"


@dataclass(frozen=True)
class Method:
    """A way to train a student.

    `needs` tells from the options which outputs of the teacher it uses: some of `logits`, `pooled` and `maps`, or none
    where there is no teacher. `builder` is `module:attribute`, called with the options as keywords. One that
    `has_parameters` is an `nn.Module`, and its builder is also given the `Shapes` of student and teacher. `mismatch`
    states why a student of one width cannot learn from a teacher of another, and how to fix it; "" where it can.
    """

    builder: str
    doc: str
    options: Mapping[str, Option]
    needs: Callable[[Options], tuple[str, ...]]
    has_parameters: bool = False
    mismatch: Callable[[Options, Widths, Widths], str] = lambda options, student, teacher: ""

    @property
    def has_teacher(self) -> bool:
        """Whether the method needs a teacher."""
        return bool(self.needs(self.defaults()))

    def defaults(self) -> dict[str, float | str]:
        """Every option at its default."""
        return {name: option.default for name, option in self.options.items()}


METHODS: Mapping[str, Method] = {
    "base": Method("orchestrator.losses.logits:Base", "cross-entropy alone, no teacher", {}, lambda options: ()),
    "logit": Method(
        "orchestrator.losses.logits:Logit",
        "cross-entropy + mean squared difference to the teacher's logits (arXiv 1312.6184)",
        {
            "ce_weight": Option(1.0, "weight of the cross-entropy; 0 is pure regression on the teacher"),
            "match": Option("logits", "what is compared with the teacher's", choices=("logits", "pooled")),
        },
        lambda options: (str(options["match"]),),
        mismatch=_pooled_mismatch,
    ),
    "st": Method(
        "orchestrator.losses.logits:SoftTarget",
        "cross-entropy + T²·KL(teacher ‖ student) at temperature T (arXiv 1503.02531)",
        {"temperature": Option(4.0, "T: what both sets of logits are divided by", exclusive=True)},
        lambda options: ("logits",),
    ),
    "fitnet": Method(
        "orchestrator.losses.fitnet:FitNet",
        "cross-entropy + squared difference of a stage's feature maps, through a trained projection (arXiv 1412.6550)",
        {
            "weight": Option(100.0, "weight of the difference"),
            "stage": Option(2, "the stage whose maps are compared, counted from 1; 0 is the stem", most=100),
        },
        lambda options: ("maps",),
        has_parameters=True,
        mismatch=_stage_mismatch,
    ),
}


def build(method: str, shapes: tuple[Shapes, Shapes] | None = None, /, **options: float | str) -> Loss:
    """The loss of a method; options that are not given are at their defaults.

    `shapes` are those of student and teacher, which a method with parameters needs; these are drawn from torch's global
    generator. Raises ValueError for an unknown method or option, and for shapes that the method cannot compare.
    """
    facts = METHODS.get(method)
    if facts is None:
        raise ValueError(f"unknown method {method!r}; methods are {', '.join(METHODS)}")
    unknown = sorted(set(options) - set(facts.options))
    if unknown:
        raise ValueError(f"method {method!r} has no option {', '.join(unknown)}; it has {', '.join(facts.options)}")
    module, attribute = facts.builder.split(":")
    builder: Callable[..., Loss] = getattr(import_module(module), attribute)
    if facts.has_parameters and shapes is None:
        raise ValueError(f"method {method!r} has parameters; build it with the shapes of student and teacher")
    return builder(*(shapes if facts.has_parameters and shapes else ()), **{**facts.defaults(), **options})
