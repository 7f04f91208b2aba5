"""The events of a launch, as values. Every listener, whatever it does with events, gets the same ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from orchestrator.records import EpochRecord, State, TrialRecord
from orchestrator.study import labels
from orchestrator.study.plan import PlannedTrial
from orchestrator.study.stored_studies import Member
from orchestrator.text import masked


class EventKind(StrEnum):
    """What happened."""

    LAUNCH = "launch"  # the launch starts; the first event of a process
    NOTE = "note"  # a message about the launch as a whole
    PREPARING = "preparing"  # what the launch does before a trial can start, like starting Ray
    STARTED = "started"  # a worker starts to train a trial
    NOTICE = "notice"  # a message about a trial
    EPOCH = "epoch"  # an epoch of a trial has ended
    RETRY = "retry"  # a worker was lost, and the trial waits for another attempt
    ELSEWHERE = "elsewhere"  # another launch trains the trial
    ENDED = "ended"  # a trial is finished, failed, skipped or stopped
    END = "end"  # the launch is over


@dataclass(frozen=True, slots=True)
class TrialStarted:
    """Where a trial is trained, and how it uses its teacher: `teacher_mode` is table, live or None.

    `is_hit` says whether the table existed already; None without a table. `epoch` is the first epoch to train, `acc`
    the best test accuracy of the epochs before it. `compute_dtype` is that of convolutions; None if nothing is trained.
    """

    host: str
    pid: int
    device: str
    epoch: int
    teacher_mode: str | None
    is_hit: bool | None
    acc: float | None = None
    compute_dtype: str | None = None


@dataclass(frozen=True, slots=True)
class LaunchStarted:
    """A launch of these trials. It does not train the cached ones, nor those whose ids are in `left`."""

    study: str
    executor: str
    members: tuple[Member, ...]
    left: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LaunchTotals:
    """The number of trials of the study in each state, and the seconds that the launch took."""

    states: Mapping[State, int]
    seconds: float


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at `time` (UTC). `text` is one line for a person; the kind decides the type of `facts`.

    `facts`: LaunchStarted, TrialStarted, EpochRecord, TrialRecord (ended) or LaunchTotals (end). For a trial that
    failed, `log` holds the last lines of its log, and `log_name` is the name of the log.
    """

    kind: EventKind
    text: str
    trial: PlannedTrial | None = None
    facts: LaunchStarted | TrialStarted | EpochRecord | TrialRecord | LaunchTotals | None = None
    log: tuple[str, ...] = ()
    log_name: str | None = None
    time: datetime = field(default_factory=lambda: datetime.now(UTC))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data: flat, with the names of the results' columns."""
        data: dict[str, Any] = {"time": self.time.isoformat(), "event": str(self.kind), "text": masked(self.text)}
        if self.trial:
            config = self.trial.config
            data |= {"trial_id": self.trial.trial_id, "title": self.trial.title(), "setting": labels.of_config(config)}
            data |= {"seed": config.seed, "nepoch": config.epochs}
        data |= _flat(self.facts)
        if self.log_name:
            data |= {"log": list(map(masked, self.log)), "log_name": masked(self.log_name)}
        return data


# Programs read these names, which are older than those of the fields.
_JSON_NAMES = {"teacher_mode": "answers", "compute_dtype": "arithmetic"}


def _flat(facts: LaunchStarted | TrialStarted | EpochRecord | TrialRecord | LaunchTotals | None) -> dict[str, Any]:
    if facts is None:
        return {}
    if isinstance(facts, LaunchStarted):
        cached = sum(member.is_cached for member in facts.members)
        return {"study": facts.study, "executor": facts.executor, "trials": len(facts.members), "cached": cached}
    if isinstance(facts, LaunchTotals):
        return {"states": {str(state): count for state, count in facts.states.items()}, "seconds": facts.seconds}
    row = facts.to_row() if isinstance(facts, TrialRecord) else asdict(facts)
    return {_JSON_NAMES.get(name, name): _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such number
    return value.isoformat() if isinstance(value, datetime) else value


def format_accuracies(acc: float | None, last: float | None) -> str:
    """Both test accuracies as text: `acc` is the best so far, `last` that of the last epoch."""
    parts = [f"{name} {value:.2f} %" for name, value in (("acc", acc), ("last", last)) if value is not None]
    return ", ".join(parts)


EventListener = Callable[[Event], None]  # called with every event
