"""What happens in a launch, as values: whoever shows, counts or exports it is told the same."""

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

    LAUNCH = "launch"  # a launch begins; comes first, once a process
    NOTE = "note"  # something that concerns the launch as a whole
    PREPARING = "preparing"  # what the launch is busy with before a trial can start, like starting Ray
    STARTED = "started"  # a worker took a trial
    NOTICE = "notice"  # a trial has something to say
    EPOCH = "epoch"  # a trial ended an epoch
    RETRY = "retry"  # a worker was lost, and the trial waits for another attempt
    ELSEWHERE = "elsewhere"  # another launch trains the trial
    ENDED = "ended"  # a trial is finished, failed, skipped or stopped
    END = "end"  # the launch is over


@dataclass(frozen=True, slots=True)
class TrialStarted:
    """Where a trial is trained, and how it asks its teacher: `answers` is table, live or None.

    `is_hit` says whether its table was there already; None without a table. `epoch` is the first to train, `acc` the
    best test accuracy of the epochs before it. `arithmetic` is what convolutions are computed in; None where nothing is
    trained.
    """

    host: str
    pid: int
    device: str
    epoch: int
    answers: str | None
    is_hit: bool | None
    acc: float | None = None
    arithmetic: str | None = None


@dataclass(frozen=True, slots=True)
class LaunchStarted:
    """What is to be done: every trial of the study, but the cached ones, and those that are to be left (their ids)."""

    study: str
    executor: str
    members: tuple[Member, ...]
    left: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LaunchTotals:
    """How many trials of the study are in each state, and what the launch took in seconds."""

    states: Mapping[State, int]
    seconds: float


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at `time` (UTC); `text` is one line for a person, and `facts` fit the kind.

    `facts`: LaunchStarted, TrialStarted, EpochRecord, TrialRecord (ended) or LaunchTotals (end). `log` holds the last
    lines of the log of a trial that failed, and `log_name` where the log is.
    """

    kind: EventKind
    text: str
    trial: PlannedTrial | None = None
    facts: LaunchStarted | TrialStarted | EpochRecord | TrialRecord | LaunchTotals | None = None
    log: tuple[str, ...] = ()
    log_name: str | None = None
    time: datetime = field(default_factory=lambda: datetime.now(UTC))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data: flat, with names as in the results."""
        data: dict[str, Any] = {"time": self.time.isoformat(), "event": str(self.kind), "text": masked(self.text)}
        if self.trial:
            config = self.trial.config
            data |= {"trial_id": self.trial.trial_id, "title": self.trial.title(), "setting": labels.of_config(config)}
            data |= {"seed": config.seed, "nepoch": config.epochs}
        data |= _flat(self.facts)
        if self.log_name:
            data |= {"log": list(map(masked, self.log)), "log_name": masked(self.log_name)}
        return data


def _flat(facts: LaunchStarted | TrialStarted | EpochRecord | TrialRecord | LaunchTotals | None) -> dict[str, Any]:
    if facts is None:
        return {}
    if isinstance(facts, LaunchStarted):
        cached = sum(member.is_cached for member in facts.members)
        return {"study": facts.study, "executor": facts.executor, "trials": len(facts.members), "cached": cached}
    if isinstance(facts, LaunchTotals):
        return {"states": {str(state): count for state, count in facts.states.items()}, "seconds": facts.seconds}
    row = facts.to_row() if isinstance(facts, TrialRecord) else asdict(facts)
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such number
    return value.isoformat() if isinstance(value, datetime) else value


def accuracies(acc: float | None, last: float | None) -> str:
    """Both test accuracies in words: `acc` is the best so far in every command, `last` that of the last epoch."""
    parts = [f"{name} {value:.2f} %" for name, value in (("acc", acc), ("last", last)) if value is not None]
    return ", ".join(parts)


EventListener = Callable[[Event], None]  # what is told of every event
