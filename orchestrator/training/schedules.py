"""The learning-rate schedules that a study file can name. Reading the table does not import their modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from orchestrator.losses import Option
from orchestrator.records import TrialConfig
from orchestrator.training._entries import build_entry

Schedule = Callable[[int, int], float]
"""The factor of the learning rate at a step of the training, given the number of steps before it and the number in an
epoch."""


@dataclass(frozen=True)
class ScheduleFacts:
    """A schedule. `builder` is `module:attribute`, called with the trial's config and, as keywords, the options.

    `has_milestones` is true if it uses the recipe's milestones and gamma.
    """

    builder: str
    doc: str
    has_milestones: bool = False
    options: Mapping[str, Option] = field(default_factory=dict)


_WARMUP = Option(0, "epochs in which the learning rate first rises from 0", most=100_000)

SCHEDULES: Mapping[str, ScheduleFacts] = {
    "steps": ScheduleFacts(
        "orchestrator.training._step_schedule:build",
        "multiplied by gamma at each milestone",
        has_milestones=True,
        options={"warmup": _WARMUP},
    ),
    "cosine": ScheduleFacts(
        "orchestrator.training._cosine_schedule:build",
        "falls to 0 along half a cosine, at every step (arXiv 1608.03983)",
        options={
            "warmup": _WARMUP,
            "floor": Option(0.0, "the share of the learning rate that it falls to", most=1.0),
        },
    ),
    "linear": ScheduleFacts(
        "orchestrator.training._linear_schedule:build",
        "falls to 0 along a straight line, at every step",
        options={"warmup": _WARMUP},
    ),
}


def build(config: TrialConfig) -> Schedule:
    """Builds the schedule of a trial."""
    facts = SCHEDULES[config.schedule]
    schedule: Schedule = build_entry(facts.builder, facts.options, config.schedule_options, config)
    return schedule
