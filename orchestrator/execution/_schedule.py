"""Which trial may start next: teachers before their students, with no barrier between them."""

from __future__ import annotations

import time
from collections.abc import Iterable

from orchestrator.execution.job import Job
from orchestrator.records import State, TrialRecord


class Schedule:
    """The trials of one launch that are still to be trained, in the order of the plan.

    `ready` are teachers whose weights the storage already holds.
    """

    def __init__(self, jobs: Iterable[Job], ready: Iterable[str] = (), most: int | None = None) -> None:
        self._waiting = list(jobs)
        self._live: dict[str, Job] = {}
        self._ready = set(ready)
        self._most = most
        self._not_before: dict[str, float] = {}  # trial id → on the monotonic clock

    @property
    def is_over(self) -> bool:
        """Whether every trial has ended."""
        return not self.waits and not self.lives

    @property
    def lives(self) -> bool:
        """Whether some trial has started and not ended."""
        return bool(self._live)

    @property
    def waits(self) -> bool:
        """Whether there are trials to come that have not started."""
        return bool(self._waiting)

    def start(self) -> Job | None:
        """The next trial, from now on live; None where all that are left wait for a teacher, a place or a time."""
        if self._most is not None and len(self._live) >= self._most:
            return None
        now = time.monotonic()
        for place, job in enumerate(self._waiting):
            has_teacher = job.trial.teacher_id is None or job.trial.teacher_id in self._ready
            if has_teacher and self._not_before.get(job.trial.trial_id, now) <= now:
                del self._waiting[place]
                self._live[job.trial.trial_id] = job
                return job
        return None

    def live(self, trial_id: str) -> Job | None:
        """The live trial of that id."""
        return self._live.get(trial_id)

    def live_jobs(self) -> list[Job]:
        """Every live trial."""
        return list(self._live.values())

    def again(self, job: Job, seconds: float) -> None:
        """Lets a live trial wait for so long, and then start again as this job; others go before it."""
        self._live.pop(job.trial.trial_id, None)
        self._not_before[job.trial.trial_id] = time.monotonic() + seconds
        self._waiting.append(job)

    def end(self, record: TrialRecord) -> list[Job]:
        """Takes note of a trial that ended; returns its dependants where it failed, which are then skipped."""
        self._live.pop(record.trial_id, None)
        if record.state is State.FINISHED:
            self._ready.add(record.trial_id)
            return []
        skipped = [job for job in self._waiting if job.trial.teacher_id == record.trial_id]
        self._waiting = [job for job in self._waiting if job.trial.teacher_id != record.trial_id]
        return skipped
