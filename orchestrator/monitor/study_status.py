"""Where a study stands, as a value: what runs, what waits for what, what failed and why, and how long it may take."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from statistics import median
from typing import Any

from orchestrator import models
from orchestrator.monitor.events import Event, EventKind, LaunchStarted, LaunchTotals, TrialStarted, accuracies
from orchestrator.records import EpochRecord, State, TrialRecord
from orchestrator.study.short_names import short_ids
from orchestrator.study.stored_studies import Member
from orchestrator.text import format_duration

_ROUGH = 2.0  # a pace that is taken from other work may be so many times too high or too low


class Stage(StrEnum):
    """Where a trial stands."""

    RUNNING = "running"
    ELSEWHERE = "elsewhere"  # another launch trains it
    RETRYING = "retrying"  # its worker was lost, and it waits for another attempt
    QUEUED = "queued"  # it waits for a place, or for somebody to launch the study
    WAITING = "waiting"  # it waits for its teacher
    STOPPED = "stopped"
    LOST = "lost"  # its row says that it runs, but nobody trains it
    FAILED = "failed"
    SKIPPED = "skipped"
    FINISHED = "finished"


_ENDS = {
    State.FINISHED: Stage.FINISHED,
    State.FAILED: Stage.FAILED,
    State.SKIPPED: Stage.SKIPPED,
    State.STOPPED: Stage.STOPPED,
}
_TO_COME = (Stage.RETRYING, Stage.QUEUED, Stage.WAITING)
_LIVE = (Stage.RUNNING, Stage.ELSEWHERE)


@dataclass(slots=True)
class TrialStatus:
    """Where one trial stands. `epoch` is the last that ended, `last` its test accuracy in %, `speed` its images/s.

    `acc` is the best test accuracy so far. `measured` epochs took `seconds`; `since` is when the trial was last heard
    of, `over` the seconds that it took beside its epochs. `is_hit` says whether its table was there before it asked,
    `is_building` whether it is being built.
    """

    no: int
    member: Member
    stage: Stage
    epoch: int = 0
    acc: float | None = None
    last: float | None = None
    speed: float | None = None
    device: str | None = None
    host: str | None = None
    reason: str | None = None
    is_hit: bool | None = None
    is_building: bool = False
    measured: int = 0
    seconds: float = 0.0
    begun: datetime | None = None
    since: datetime | None = None
    over: float | None = None
    log_name: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, with names as in the results."""
        member = self.member
        return {
            "trial_id": member.trial_id, "title": member.title, "role": member.role, "teacher_id": member.teacher_id,
            "stage": str(self.stage), "epoch": self.epoch, "nepoch": member.epochs, "acc": self.acc,
            "last_acc": self.last, "images_per_second": self.speed, "device": self.device, "host": self.host,
            "reason": self.reason, "cached": member.is_cached,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Eta:
    """Seconds that are left: at least `low`, and at most about `high`; None where nobody can say yet."""

    low: float
    high: float | None


class StudyStatus:
    """A study and where each of its trials stands, in the order of the plan."""

    def __init__(self, study: str, executor: str, members: Iterable[Member], since: datetime) -> None:
        self.study = study
        self.executor = executor
        self.since = since  # when the launch began
        self.ended: datetime | None = None  # when it ended; None while it runs
        self.is_running = True
        self.host: str | None = None  # where it was launched, where that is known
        self.preparing: str | None = None  # what the launch is busy with before its first trial
        self.most = 0  # trials that were seen to run at a time
        self.trials: dict[str, TrialStatus] = {}
        self._students: dict[str, list[TrialStatus]] = defaultdict(list)
        for no, member in enumerate(members, 1):
            standing = TrialStatus(no, member, Stage.FINISHED if member.is_cached else Stage.QUEUED)
            self.trials[member.trial_id] = standing
            if member.teacher_id:
                self._students[member.teacher_id].append(standing)
        self.short_ids = short_ids(self.trials)  # unique within the study
        for standing in self.trials.values():
            if standing.stage is Stage.QUEUED:
                self.await_turn(standing)

    @classmethod
    def launched(cls, event: Event) -> StudyStatus:
        """The board of a launch that begins with this event."""
        assert isinstance(event.facts, LaunchStarted), "a launch begins with a launch"
        board = cls(event.facts.study, event.facts.executor, event.facts.members, event.time)
        board.leave(event.facts.left)
        return board

    # What happens.

    def take(self, event: Event) -> None:
        """Takes note of what happened in the launch."""
        self.preparing = self._preparing(event)
        if event.kind is EventKind.END:
            self.is_running, self.ended = False, event.time
            if isinstance(event.facts, LaunchTotals):
                self._stop_all()
        standing = self.trials.get(event.trial.trial_id) if event.trial else None
        if standing is None:
            return
        standing.log_name = event.log_name or standing.log_name
        facts = event.facts
        if isinstance(facts, TrialStarted):
            self._begin(standing, facts, event.time)
        elif isinstance(facts, EpochRecord):
            self._epoch(standing, facts, event.time)
        elif isinstance(facts, TrialRecord):
            self._end(standing, facts, event.time)
        elif event.kind in (EventKind.RETRY, EventKind.ELSEWHERE):
            standing.stage = Stage.RETRYING if event.kind is EventKind.RETRY else Stage.ELSEWHERE
            standing.reason, standing.since = event.text, event.time

    def _preparing(self, event: Event) -> str | None:
        if event.kind is EventKind.PREPARING:
            return event.text
        return self.preparing if event.trial is None and event.kind is not EventKind.END else None

    def _begin(self, standing: TrialStatus, begun: TrialStarted, time: datetime) -> None:
        standing.stage, standing.reason = Stage.RUNNING, None
        standing.epoch, standing.host, standing.device = begun.epoch - 1, begun.host, begun.device
        standing.is_hit, standing.is_building = begun.is_hit, begun.is_hit is False
        standing.acc, standing.last = begun.acc, None
        standing.begun = standing.since = time
        standing.measured, standing.seconds = 0, 0.0
        self.see_running()

    def _epoch(self, standing: TrialStatus, record: EpochRecord, time: datetime) -> None:
        standing.stage = Stage.RUNNING
        standing.epoch, standing.last, standing.speed = record.epoch, record.test_acc, record.images_per_second
        standing.acc = max(record.test_acc, standing.acc or 0.0)
        standing.is_building = False
        standing.measured += 1
        standing.seconds += record.seconds
        standing.since = time
        self.see_running()

    def _end(self, standing: TrialStatus, row: TrialRecord, time: datetime) -> None:
        if standing.begun and row.state is State.FINISHED:
            standing.over = max(0.0, (time - standing.begun).total_seconds() - standing.seconds)
        self.put(standing, row, _ENDS.get(row.state, Stage.LOST))
        standing.since = time

    def _stop_all(self) -> None:
        for standing in self.trials.values():
            if standing.stage in (Stage.RUNNING, Stage.RETRYING):
                standing.stage = Stage.STOPPED

    # What those who gather a board from a storage tell it.

    def put(self, standing: TrialStatus, row: TrialRecord, stage: Stage) -> None:
        """Notes what a row says of a trial, and where the trial stands."""
        standing.stage, standing.reason, standing.is_building = stage, row.error, False
        standing.device, standing.host = row.device or standing.device, row.host or standing.host
        if row.state is State.FINISHED:
            standing.epoch = standing.member.epochs
            standing.acc, standing.last = row.acc, row.last_acc
            standing.speed = row.images_per_second or standing.speed
            for student in self._students.get(row.trial_id, ()):
                if student.stage is Stage.WAITING:
                    student.stage = Stage.QUEUED

    def leave(self, trial_ids: Collection[str]) -> None:
        """Notes which trials the launch does not try: some failed before, and others wait for one of those."""
        for standing in self.trials.values():
            if standing.member.trial_id in trial_ids:
                waits = standing.member.teacher_id in trial_ids
                standing.stage = Stage.SKIPPED if waits else Stage.FAILED

    def await_turn(self, standing: TrialStatus) -> None:
        """Lets a trial wait: for its teacher where that is not there yet, else for a place."""
        teacher = self.trials.get(standing.member.teacher_id or "")
        standing.stage = Stage.WAITING if teacher and teacher.stage is not Stage.FINISHED else Stage.QUEUED

    def see_running(self, count: int = 0) -> None:
        """Notes how many trials run at a time: so many, or those that do now."""
        self.most = max(self.most, count or len(self.at(Stage.RUNNING)))

    # What a view asks.

    def at(self, *stages: Stage) -> list[TrialStatus]:
        """The trials that stand there, in the order of the plan."""
        return [standing for standing in self.trials.values() if standing.stage in stages]

    def counts(self) -> dict[Stage, int]:
        """How many trials stand where, without zeros."""
        found = Counter(standing.stage for standing in self.trials.values())
        return {stage: found[stage] for stage in Stage if found[stage]}

    def share(self) -> float:
        """What part of the study's epochs is done, from 0 to 1; a trial that ended for good counts as done."""
        done = total = 0
        for standing in self.trials.values():
            epochs = max(1, standing.member.epochs)
            total += epochs
            over = standing.stage in (Stage.FINISHED, Stage.FAILED, Stage.SKIPPED)
            done += epochs if over else min(standing.epoch, epochs)
        return done / total if total else 1.0

    def waits(self) -> list[tuple[TrialStatus, int]]:
        """Each teacher that is waited for, with how many wait for it."""
        found = Counter(standing.member.teacher_id for standing in self.at(Stage.WAITING))
        known = [(self.trials.get(teacher_id or ""), count) for teacher_id, count in found.items()]
        return [(teacher, count) for teacher, count in known if teacher]

    def cached(self) -> int:
        """How many trials were finished before the launch."""
        return sum(standing.member.is_cached for standing in self.trials.values())

    def tables(self) -> tuple[int, int]:
        """How many trials found their teacher's table, and how many had to build it."""
        hits = [standing.is_hit for standing in self.trials.values()]
        return hits.count(True), hits.count(False)

    def eta(self, now: datetime) -> Eta | None:
        """How long the launch will still take; None where nothing is measured, or where nothing runs.

        From the seconds of the epochs so far, of the same work where there is some, and from what has to wait for
        what. Work like which none was measured counts for nothing in `low`, and makes `high` None, as does a table
        that is still to be built.
        """
        left = [standing for standing in self.trials.values() if standing.stage in (*_LIVE, *_TO_COME)]
        if not self.is_running:
            return Eta(0.0, 0.0) if not left and not self.at(Stage.STOPPED, Stage.LOST) else None
        if not left:
            return Eta(0.0, 0.0)
        paces = _Paces(self.trials.values())
        if not paces.any:
            return None
        asked = {standing.member.trial_id: paces.of(standing) for standing in left}
        # Where one could start and does not, all places are taken; else there may be as many as there are trials.
        is_full = any(standing.stage is Stage.QUEUED for standing in left)
        most = max(1, self.most)
        low = self._left(left, {key: pace[0] for key, pace in asked.items()}, now, most if is_full else len(left))
        high = self._left(left, {key: pace[1] for key, pace in asked.items()}, now, most)
        is_open = any(pace[2] for pace in asked.values()) or any(map(self._builds, left))
        return Eta(low, None if is_open else high)

    def _builds(self, standing: TrialStatus) -> bool:
        """Whether a table will have to be built before this trial trains; nobody knows how long that takes."""
        if standing.member.answers != "table" or standing.epoch or standing.is_hit:
            return False
        return not any(
            other.epoch or other.stage is Stage.FINISHED or other.is_hit
            for other in self._students[standing.member.teacher_id or ""]
            if other.member.answers == "table"
        )

    def _left(self, left: Sequence[TrialStatus], paces: Mapping[str, float], now: datetime, places: int) -> float:
        """Plays the rest of the launch: seconds until its last trial ends."""
        over = median([s.over for s in self.trials.values() if s.over is not None] or [0.0])

        def lasts(standing: TrialStatus) -> float:
            pace = paces[standing.member.trial_id]
            seconds = pace * max(0, standing.member.epochs - standing.epoch)
            if standing.stage is not Stage.RUNNING:
                return seconds + over
            since = (now - standing.since).total_seconds() if standing.since else 0.0
            return max(0.0, seconds - min(pace, max(0.0, since)))

        return _played(left, lasts, places)


def _played(left: Sequence[TrialStatus], lasts: Callable[[TrialStatus], float], places: int) -> float:
    """When the last of these trials ends, where so many run at a time, and students wait for their teachers."""
    lives = [(lasts(standing), standing.no, standing) for standing in left if standing.stage in _LIVE]
    heapq.heapify(lives)
    busy = sum(standing.stage is Stage.RUNNING for _, _, standing in lives)
    coming = {standing.member.trial_id for standing in left}
    ready: list[tuple[int, TrialStatus]] = []
    blocked: dict[str, list[TrialStatus]] = defaultdict(list)
    for standing in left:
        if standing.stage in _TO_COME:
            teacher_id = standing.member.teacher_id
            if teacher_id in coming:
                blocked[teacher_id].append(standing)
            else:
                heapq.heappush(ready, (standing.no, standing))
    time = 0.0
    while lives or ready:
        while ready and (busy < places or not lives):
            standing = heapq.heappop(ready)[1]
            heapq.heappush(lives, (time + lasts(standing), standing.no, standing))
            busy += 1
        time, _, ended = heapq.heappop(lives)
        busy -= ended.stage is not Stage.ELSEWHERE
        for student in blocked.pop(ended.member.trial_id, ()):
            heapq.heappush(ready, (student.no, student))
    return time


_UNKNOWN = 1.0


def _kinds(member: Member) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """What a trial's pace depends on, from the most to the least: its work, its model on its data, its data."""
    teacher = member.teacher if member.answers == "live" else None
    work = (member.method, member.dataset, member.student, member.answers or "", teacher or "")
    unit = "unknown" if _cost(member) == _UNKNOWN else "counted"  # the two are never compared
    return work, (unit, member.dataset, member.student), (unit, member.dataset)


def _cost(member: Member) -> float:
    """What training on an image costs, in multiply-adds; `_UNKNOWN` where this version does not know the models.

    The backward pass counts as two forward passes; a live teacher runs forward alone.
    """
    try:
        cost = 3 * models.multiply_adds(member.student)
        return cost + (models.multiply_adds(member.teacher) if member.teacher and member.answers == "live" else 0)
    except ValueError:
        return _UNKNOWN


class _Paces:
    """Seconds an epoch of each kind of work, as far as some was measured."""

    def __init__(self, trials: Iterable[TrialStatus]) -> None:
        self._sums: dict[tuple[str, ...], list[float]] = defaultdict(lambda: [0.0, 0.0])
        for standing in trials:
            if standing.measured:
                work, model, data = _kinds(standing.member)
                scale = _cost(standing.member)
                for kind, seconds in ((work, 1.0), (model, 1 / scale), (data, 1 / scale)):
                    self._sums[kind][0] += standing.seconds * seconds
                    self._sums[kind][1] += standing.measured

    @property
    def any(self) -> bool:
        """Whether anything was measured."""
        return bool(self._sums)

    def of(self, standing: TrialStatus) -> tuple[float, float, bool]:
        """Seconds an epoch, at least and at most, and whether nobody can say."""
        if standing.measured:
            pace = standing.seconds / standing.measured
            return pace, pace, False
        work, model, data = _kinds(standing.member)
        cost = _cost(standing.member)
        for kind, scale, rough in ((work, 1.0, 1.0), (model, cost, _ROUGH), (data, cost, _ROUGH)):
            if kind in self._sums:
                seconds, epochs = self._sums[kind]
                pace = seconds / epochs * scale
                return pace / rough, pace * rough, False
        return 0.0, 0.0, standing.member.epochs > 0


# Words for a person.


def eta_text(eta: Eta | None) -> str:
    """What is left, in words; `-` where nobody can say."""
    if eta is None:
        return "-"
    low = format_duration(eta.low)
    if eta.high is None:
        return f"at least {low}" if eta.low >= 1 else "-"
    high = format_duration(eta.high)
    return f"about {low}" if low == high else f"{low} to {high}"


def said(standing: TrialStatus) -> str:
    """Where a trial stands, in a line."""
    name = f"{standing.member.trial_id} {standing.member.title}: {standing.stage}"
    if standing.stage is Stage.RUNNING and standing.last is not None:
        return f"{name}, epoch {standing.epoch}/{standing.member.epochs}, {accuracies(standing.acc, standing.last)}"
    if standing.stage is Stage.FINISHED and standing.acc is not None:
        return f"{name}, {accuracies(standing.acc, standing.last)}"
    return f"{name}, {standing.reason}" if standing.reason else name


def age(board: StudyStatus, now: datetime | None = None) -> float:
    """Seconds since the launch began, up to its end."""
    return ((board.ended or now or datetime.now(UTC)) - board.since).total_seconds()
