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

    def __init__(self, jobs: Iterable[Job], ready: Iterable[str] = ()) -> None:
        self._waiting = list(jobs)
        self._running: dict[str, Job] = {}
        self._ready = set(ready)
        self._not_before: dict[str, float] = {}  # trial id → time on the monotonic clock

    @property
    def is_over(self) -> bool:
        """Whether every trial has ended."""
        return not self._waiting and not self._running

    @property
    def has_running(self) -> bool:
        """Whether any trial is running."""
        return bool(self._running)

    @property
    def has_waiting(self) -> bool:
        """Whether any trial has not started yet, or waits to start again."""
        return bool(self._waiting)

    def start(self) -> Job | None:
        """Starts the next trial; None if all that are left wait for a teacher or for a time."""
        now = time.monotonic()
        for index, job in enumerate(self._waiting):
            if self._ready.issuperset(job.trial.waits_for) and self._not_before.get(job.trial.trial_id, now) <= now:
                del self._waiting[index]
                self._running[job.trial.trial_id] = job
                return job
        return None

    def find_running(self, trial_id: str) -> Job | None:
        """The running trial with this id; None if it is not running."""
        return self._running.get(trial_id)

    def list_running(self) -> list[Job]:
        """All running trials."""
        return list(self._running.values())

    def postpone(self, job: Job, seconds: float) -> None:
        """Makes a running trial wait for some seconds, and then start again as this job, behind the others."""
        self._running.pop(job.trial.trial_id, None)
        self._not_before[job.trial.trial_id] = time.monotonic() + seconds
        self._waiting.append(job)

    def end(self, record: TrialRecord) -> list[Job]:
        """Records that a trial ended; if it did not finish, returns its dependants, which are then to be skipped."""
        self._running.pop(record.trial_id, None)
        if record.state is State.FINISHED:
            self._ready.add(record.trial_id)
            return []
        skipped = [job for job in self._waiting if record.trial_id in job.trial.waits_for]
        self._waiting = [job for job in self._waiting if record.trial_id not in job.trial.waits_for]
        return skipped
