"""The methods that a study file can name. Reading the registry does not import torch; `build` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from orchestrator.losses.base import Loss, Shapes


@dataclass(frozen=True)
class Option:
    """An option of an entry: one of `choices`, or a number from `least` (or above it, if `exclusive`) to `most`.

    It is true or false where its default is, and an integer where its default is one.
    """

    default: float | str | bool
    doc: str
    choices: tuple[str, ...] = ()
    least: float = 0.0
    most: float = 1e9
    exclusive: bool = False


Options = Mapping[str, float | str | bool]


class Widths(Protocol):
    """The channels of a model's maps and of its pooled features."""

    @property
    def maps(self) -> tuple[int, ...]:
        """The stem's, then each stage's."""

    @property
    def pooled(self) -> int:
        """Of the features before the last linear layer."""


def _pooled_mismatch(options: Options, student: Widths, teacher: Widths) -> str:
    if options["match"] != "pooled":
        return ""
    if options["standardize"]:
        return "standardize is for logits, and match: pooled compares other outputs; remove one of the two"
    if student.pooled == teacher.pooled:
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

    The docs print the rest: the `formula` of the loss in plain text, with the names of the options; the `source`, like
    `arXiv 1503.02531`; and where the published code differs from the paper, which of the two this is (`variant`).
    """

    builder: str
    doc: str
    options: Mapping[str, Option]
    needs: Callable[[Options], tuple[str, ...]]
    has_parameters: bool = False
    mismatch: Callable[[Options, Widths, Widths], str] = lambda options, student, teacher: ""
    formula: str = field(kw_only=True)
    source: str = field(kw_only=True)
    variant: str = field(default="", kw_only=True)

    @property
    def has_teacher(self) -> bool:
        """Whether the method needs a teacher."""
        return bool(self.needs(self.defaults()))

    def defaults(self) -> dict[str, float | str | bool]:
        """Every option at its default."""
        return {name: option.default for name, option in self.options.items()}


_CE_WEIGHT = Option(1.0, "weight of the cross-entropy")
_TEMPERATURE = Option(4.0, "T: what both sets of logits are divided by", exclusive=True)
_STANDARDIZE = Option(
    False,
    "compare standardised logits, (z - mean(z)) / (1e-7 + std(z)) over the classes of each image, of both models; the "
    "cross-entropy is that of the logits themselves (arXiv 2403.01427)",
)


def _needs_logits(options: Options) -> tuple[str, ...]:
    return ("logits",)


METHODS: Mapping[str, Method] = {
    "base": Method(
        "orchestrator.losses.logits:Base",
        "cross-entropy alone, no teacher",
        {},
        lambda options: (),
        formula="CE(z, y)",
        source="the usual loss of classification",
    ),
    "logit": Method(
        "orchestrator.losses.logits:Logit",
        "cross-entropy + mean squared difference to the teacher's logits (arXiv 1312.6184)",
        {
            "ce_weight": Option(1.0, "weight of the cross-entropy; 0 is pure regression on the teacher"),
            "match": Option("logits", "what is compared with the teacher's", choices=("logits", "pooled")),
            "standardize": _STANDARDIZE,
        },
        lambda options: (str(options["match"]),),
        mismatch=_pooled_mismatch,
        formula="ce_weight * CE(z, y) + mean over images and classes of (z - v)^2",
        source="arXiv 1312.6184",
        variant="The paper has no cross-entropy, which is ce_weight: 0.",
    ),
    "st": Method(
        "orchestrator.losses.logits:SoftTarget",
        "cross-entropy + T²·KL(teacher ‖ student) at temperature T (arXiv 1503.02531)",
        {
            "temperature": _TEMPERATURE,
            "ce_weight": _CE_WEIGHT,
            "weight": Option(1.0, "weight of the divergence"),
            "standardize": _STANDARDIZE,
        },
        _needs_logits,
        formula="ce_weight * CE(z, y) + weight * T^2 * KL(softmax(v / T) || softmax(z / T))\nT = temperature",
        source="arXiv 1503.02531",
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
        formula="CE(z, y) + weight * mean of (r(student's map) - teacher's map)^2\n"
        "r = ReLU(BatchNorm(1x1 convolution)), of the stage's maps",
        source="arXiv 1412.6550",
        variant="The paper trains the student on the hint first, and then on the labels. The field's code trains on "
        "both at once, and so does kdctl.",
    ),
}


def build(method: str, shapes: tuple[Shapes, Shapes] | None = None, /, **options: float | str | bool) -> Loss:
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
