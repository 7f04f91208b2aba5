"""How long a launch will still take: an estimate from the epochs measured so far, and how to print it."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median

from orchestrator import models
from orchestrator.monitor.study_status import StudyStatus
from orchestrator.monitor.trial_status import LIVE, PENDING, Stage, TrialStatus
from orchestrator.study.stored_studies import Member
from orchestrator.text import format_duration

ROUGH = 2.0  # the factor by which a pace derived from other work may be too high or too low


@dataclass(frozen=True, slots=True)
class Eta:
    """The seconds left: at least `low` and at most about `high`, which is None if it cannot be estimated yet."""

    low: float
    high: float | None


def estimate(status: StudyStatus, now: datetime) -> Eta | None:
    """How long the launch will still take; None if nothing has been measured, or if no launch is running.

    The estimate uses the seconds of the epochs so far, those of the same work where there are any, and the order in
    which trials depend on each other. Work that resembles nothing measured adds nothing to `low` and makes `high` None.
    So does a table that is still to be built.
    """
    left = status.in_stage(*LIVE, *PENDING)
    if not status.is_running:
        return None if left or status.in_stage(Stage.STOPPED, Stage.LOST) else Eta(0.0, 0.0)
    if not left:
        return Eta(0.0, 0.0)
    measured = _Paces(status.trials.values())
    if not measured.any:
        return None
    paces = {trial.member.trial_id: measured.of(trial) for trial in left}
    # If a trial could start and does not, all workers are busy; else there may be as many workers as trials.
    is_full = any(trial.stage is Stage.QUEUED for trial in left)
    most = max(1, status.most_running)
    low = _simulate(status, {key: pace.low for key, pace in paces.items()}, now, most if is_full else len(left))
    high = _simulate(status, {key: pace.high for key, pace in paces.items()}, now, most)
    is_open = any(pace.is_unknown for pace in paces.values()) or any(_builds_table(status, trial) for trial in left)
    return Eta(low, None if is_open else high)


def _builds_table(status: StudyStatus, trial: TrialStatus) -> bool:
    """Whether a table has to be built before this trial trains, which takes an unknown time."""
    if trial.member.teacher_mode != "table" or trial.progress.epoch or trial.is_hit:
        return False
    return not any(
        other.progress.epoch or other.stage is Stage.FINISHED or other.is_hit
        for other in status.students_of(trial.member.teacher_id)
        if other.member.teacher_mode == "table"
    )


def _simulate(status: StudyStatus, paces: Mapping[str, float], now: datetime, workers: int) -> float:
    """Simulates the rest of the launch at these seconds per epoch; returns the seconds until its last trial ends."""
    overhead = median([trial.overhead for trial in status.trials.values() if trial.overhead is not None] or [0.0])

    def duration(trial: TrialStatus) -> float:
        pace = paces[trial.member.trial_id]
        seconds = pace * max(0, trial.member.epochs - trial.progress.epoch)
        if trial.stage is not Stage.RUNNING:
            return seconds + overhead
        passed = (now - trial.updated).total_seconds() if trial.updated else 0.0
        return max(0.0, seconds - min(pace, max(0.0, passed)))

    return _last_end(status.in_stage(*LIVE, *PENDING), duration, workers)


def _last_end(left: Sequence[TrialStatus], duration: Callable[[TrialStatus], float], workers: int) -> float:
    """When the last of these trials ends if `workers` run at the same time and students wait for their teachers."""
    live = [(duration(trial), trial.no, trial) for trial in left if trial.stage in LIVE]
    heapq.heapify(live)
    busy = sum(trial.stage is Stage.RUNNING for _, _, trial in live)
    unfinished = {trial.member.trial_id for trial in left}
    ready: list[tuple[int, TrialStatus]] = []
    blocked: dict[str, list[TrialStatus]] = defaultdict(list)
    awaited: dict[int, set[str]] = {}
    for trial in left:
        if trial.stage in PENDING:
            awaited[trial.no] = unfinished.intersection(trial.member.waits_for)
            for teacher_id in awaited[trial.no]:
                blocked[teacher_id].append(trial)
            if not awaited[trial.no]:
                heapq.heappush(ready, (trial.no, trial))
    time = 0.0
    while live or ready:
        while ready and (busy < workers or not live):
            trial = heapq.heappop(ready)[1]
            heapq.heappush(live, (time + duration(trial), trial.no, trial))
            busy += 1
        time, _, ended = heapq.heappop(live)
        busy -= ended.stage is not Stage.ELSEWHERE
        for student in blocked.pop(ended.member.trial_id, ()):
            awaited[student.no].discard(ended.member.trial_id)
            if not awaited[student.no]:
                heapq.heappush(ready, (student.no, student))
    return time


# Seconds per epoch.

_UNKNOWN_COST = 1.0


def _work_keys(member: Member) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """What the pace of a trial depends on, from most to least specific: its work, its model and data, its data.

    A plan that an older version stored names none of these; then the id stands for them, as nothing is comparable.
    """
    dataset, student = member.dataset or member.trial_id, member.student or member.trial_id
    teacher = member.teacher if member.teacher_mode == "live" else None
    work = (member.method, dataset, student, member.teacher_mode or "", teacher or "")
    unit = "unknown" if _cost(member) == _UNKNOWN_COST else "counted"  # the two are never compared
    return work, (unit, dataset, student), (unit, dataset)


def _cost(member: Member) -> float:
    """What training on an image costs, in multiply-adds; `_UNKNOWN_COST` if this version does not know the models."""
    try:
        return count_training(member.student, member.teacher if member.teacher_mode == "live" else None)
    except ValueError:
        return _UNKNOWN_COST


def count_training(student: str, live_teacher: str | None, *image: int) -> int:
    """The multiply-adds of a training step for each image; `image` is as in `models.multiply_adds`.

    The backward pass counts as two forward passes; a live teacher runs only forward. Raises ValueError for a model
    whose operations are unknown.
    """
    taught = models.multiply_adds(live_teacher, *image) if live_teacher else 0
    return 3 * models.multiply_adds(student, *image) + taught


@dataclass(frozen=True, slots=True)
class _Pace:
    """The seconds per epoch, at least and at most; both are 0 if they are unknown."""

    low: float
    high: float
    is_unknown: bool = False


class _Paces:
    """The seconds per epoch of each kind of work that was measured."""

    def __init__(self, trials: Iterable[TrialStatus]) -> None:
        self._sums: dict[tuple[str, ...], list[float]] = defaultdict(lambda: [0.0, 0.0])
        for trial in trials:
            if trial.progress.measured:
                work, model, data = _work_keys(trial.member)
                scale = 1 / _cost(trial.member)
                for key, factor in ((work, 1.0), (model, scale), (data, scale)):
                    self._sums[key][0] += trial.progress.seconds * factor
                    self._sums[key][1] += trial.progress.measured

    @property
    def any(self) -> bool:
        """Whether anything was measured."""
        return bool(self._sums)

    def of(self, trial: TrialStatus) -> _Pace:
        """The pace of a trial: its own, else that of the most similar work."""
        if trial.progress.measured:
            pace = trial.progress.seconds / trial.progress.measured
            return _Pace(pace, pace)
        work, model, data = _work_keys(trial.member)
        cost = _cost(trial.member)
        for key, scale, rough in ((work, 1.0, 1.0), (model, cost, ROUGH), (data, cost, ROUGH)):
            if key in self._sums:
                seconds, epochs = self._sums[key]
                pace = seconds / epochs * scale
                return _Pace(pace / rough, pace * rough)
        return _Pace(0.0, 0.0, is_unknown=trial.member.epochs > 0)


# Text.


def format_eta(eta: Eta | None) -> str:
    """The time left for a person; `-` if it is unknown."""
    if eta is None:
        return "-"
    low = format_duration(eta.low)
    if eta.high is None:
        return f"at least {low}" if eta.low >= 1 else "-"
    high = format_duration(eta.high)
    return f"about {low}" if low == high else f"{low} to {high}"
