"""The status of one trial, and how it changes. Events of a launch and files of a storage change it the same way."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from orchestrator.monitor.events import TrialStarted, format_accuracies
from orchestrator.records import State, TrialRecord
from orchestrator.study.stored_studies import Member


class Stage(StrEnum):
    """Where a trial is on its way from the plan to its end."""

    RUNNING = "running"
    ELSEWHERE = "elsewhere"  # another launch trains it
    RETRYING = "retrying"  # its worker was lost, and it waits for another attempt
    QUEUED = "queued"  # it waits for a free worker, or for a launch of the study
    WAITING = "waiting"  # it waits for its teacher
    STOPPED = "stopped"
    LOST = "lost"  # its row says running, but no launch is training it
    FAILED = "failed"
    SKIPPED = "skipped"
    FINISHED = "finished"


LIVE = (Stage.RUNNING, Stage.ELSEWHERE)
PENDING = (Stage.RETRYING, Stage.QUEUED, Stage.WAITING)
FINAL = (Stage.FINISHED, Stage.FAILED, Stage.SKIPPED)

_END_STAGES = {
    State.FINISHED: Stage.FINISHED,
    State.FAILED: Stage.FAILED,
    State.SKIPPED: Stage.SKIPPED,
    State.STOPPED: Stage.STOPPED,
}


def stage_at_rest(state: State) -> Stage:
    """The stage of a trial with a row of this state, if no launch is training the trial."""
    return _END_STAGES.get(state, Stage.LOST)


@dataclass(frozen=True, slots=True)
class Progress:
    """The epochs of a trial so far. `epoch` is the last that ended, `last` its test accuracy in %, `speed` in images/s.

    `acc` is the best test accuracy so far. Of the epochs so far, `measured` took `seconds` in all.
    """

    epoch: int = 0
    acc: float | None = None
    last: float | None = None
    speed: float | None = None
    measured: int = 0
    seconds: float = 0.0

    def after(self, epoch: int, test_acc: float, seconds: float, speed: float) -> Progress:
        """The progress after one more epoch."""
        acc = max(test_acc, self.acc or 0.0)
        return Progress(epoch, acc, test_acc, speed, self.measured + 1, self.seconds + seconds)

    def finished(self, epochs: int, row: TrialRecord) -> Progress:
        """The progress of a trial that finished all its `epochs`, with the final values of its row."""
        speed = row.images_per_second or self.speed
        found = replace(self, epoch=epochs, acc=row.acc, last=row.last_acc, speed=speed)
        if self.measured or not row.seconds:
            return found
        return replace(found, measured=epochs, seconds=row.seconds)


@dataclass(slots=True)
class TrialStatus:
    """The status of one trial.

    `is_hit` says whether its teacher's table existed when it started, `is_building` whether it is building the table.
    `started` and `updated` are the times of its start and of its last change, if known; `overhead` the seconds that it
    took in addition to its epochs, once it has finished.
    """

    no: int
    member: Member
    stage: Stage
    progress: Progress = field(default_factory=Progress)
    device: str | None = None
    host: str | None = None
    reason: str | None = None
    is_hit: bool | None = None
    is_building: bool = False
    started: datetime | None = None
    updated: datetime | None = None
    overhead: float | None = None
    log_name: str | None = None

    def start(self, facts: TrialStarted, time: datetime | None = None) -> None:
        """A worker has started to train the trial."""
        self.stage, self.reason = Stage.RUNNING, None
        self.host, self.device = facts.host, facts.device or None
        self.is_hit, self.is_building = facts.is_hit, facts.is_hit is False
        self.progress = Progress(facts.epoch - 1, facts.acc)
        self.started = self.updated = time

    def advance(self, progress: Progress, time: datetime | None = None) -> None:
        """An epoch of the trial has ended."""
        self.stage, self.is_building = Stage.RUNNING, False
        self.progress, self.updated = progress, time

    def take_row(self, row: TrialRecord, stage: Stage, time: datetime | None = None) -> None:
        """The trial has a row that describes its end, or its last attempt; `stage` is what follows from it."""
        self.stage, self.reason, self.is_building = stage, row.error, False
        self.device, self.host = row.device or self.device, row.host or self.host
        if row.state is State.FINISHED:
            self.progress = self.progress.finished(self.member.epochs, row)
            self.overhead = self._overhead(row, time)
        self.updated = time

    def _overhead(self, row: TrialRecord, time: datetime | None) -> float | None:
        if self.started and time:
            return max(0.0, (time - self.started).total_seconds() - self.progress.seconds)
        if row.end_time and row.seconds and not row.resumed:
            return max(0.0, (row.end_time - row.start_time).total_seconds() - row.seconds)
        return None

    def wait(self, stage: Stage, reason: str | None = None, time: datetime | None = None) -> None:
        """The trial waits for another attempt, or for another launch that trains it."""
        self.stage, self.reason, self.updated = stage, reason, time

    def describe(self) -> str:
        """The status in one line."""
        name = f"{self.member.trial_id} {self.member.title}: {self.stage}"
        accuracies = format_accuracies(self.progress.acc, self.progress.last)
        if self.stage is Stage.RUNNING and self.progress.last is not None:
            return f"{name}, epoch {self.progress.epoch}/{self.member.epochs}, {accuracies}"
        if self.stage is Stage.FINISHED and self.progress.acc is not None:
            return f"{name}, {accuracies}"
        return f"{name}, {self.reason}" if self.reason else name

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, with the names of the results' columns."""
        member, progress = self.member, self.progress
        return {
            "trial_id": member.trial_id, "title": member.title, "role": member.role, "teacher_id": member.teacher_id,
            "stage": str(self.stage), "epoch": progress.epoch, "nepoch": member.epochs, "acc": progress.acc,
            "last_acc": progress.last, "images_per_second": progress.speed, "device": self.device, "host": self.host,
            "reason": self.reason, "cached": member.is_cached,
        }  # fmt: skip
