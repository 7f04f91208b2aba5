"""The methods that a study file can name. Reading the registry does not import torch; `build` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.losses.terms import Loss


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


@dataclass(frozen=True)
class Method:
    """A way to train a student.

    `needs` tells from the options what the teacher must be asked for: `logits`, `pooled` or `maps`, or nothing
    where there is no teacher. `builder` is `module:attribute`, called with the options as keywords.
    """

    builder: str
    doc: str
    options: Mapping[str, Option]
    needs: Callable[[Options], tuple[str, ...]]

    @property
    def has_teacher(self) -> bool:
        """Whether the method asks a teacher at all."""
        return bool(self.needs(self.defaults()))

    def defaults(self) -> dict[str, float | str]:
        """Every option at its default."""
        return {name: option.default for name, option in self.options.items()}


METHODS: Mapping[str, Method] = {
    "base": Method("orchestrator.losses.terms:Base", "cross-entropy alone, no teacher", {}, lambda options: ()),
    "logit": Method(
        "orchestrator.losses.terms:Logit",
        "cross-entropy + mean squared difference to the teacher's logits (arXiv 1312.6184)",
        {
            "ce_weight": Option(1.0, "weight of the cross-entropy; 0 is pure regression on the teacher"),
            "match": Option("logits", "what is compared with the teacher's", choices=("logits", "pooled")),
        },
        lambda options: (str(options["match"]),),
    ),
    "st": Method(
        "orchestrator.losses.terms:SoftTarget",
        "cross-entropy + T²·KL(teacher ‖ student) at temperature T (arXiv 1503.02531)",
        {"temperature": Option(4.0, "T: what both sets of logits are divided by", exclusive=True)},
        lambda options: ("logits",),
    ),
}


def build(method: str, **options: float | str) -> Loss:
    """The loss of a method; options that are not given are at their defaults.

    Raises ValueError for an unknown method or option.
    """
    facts = METHODS.get(method)
    if facts is None:
        raise ValueError(f"unknown method {method!r}; methods are {', '.join(METHODS)}")
    unknown = sorted(set(options) - set(facts.options))
    if unknown:
        raise ValueError(f"method {method!r} has no option {', '.join(unknown)}; it has {', '.join(facts.options)}")
    module, attribute = facts.builder.split(":")
    builder: Callable[..., Loss] = getattr(import_module(module), attribute)
    return builder(**{**facts.defaults(), **options})
