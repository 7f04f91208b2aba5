"""Which trial may start next: teachers before their students, with no barrier between them."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.records import State, TrialRecord
from orchestrator.trial import Job


class Schedule:
    """The trials of one launch that are still to be trained, in the order of the plan.

    `ready` are teachers whose weights the storage already holds.
    """

    def __init__(self, jobs: Iterable[Job], ready: Iterable[str] = (), most: int | None = None) -> None:
        self._waiting = list(jobs)
        self._live: dict[str, Job] = {}
        self._ready = set(ready)
        self._most = most

    @property
    def is_over(self) -> bool:
        """Whether every trial has ended."""
        return not self._waiting and not self._live

    @property
    def waits(self) -> bool:
        """Whether there are trials to come that have not started."""
        return bool(self._waiting)

    def start(self) -> Job | None:
        """The next trial, from now on live; None where all that are left wait for a teacher or for a place."""
        if self._most is not None and len(self._live) >= self._most:
            return None
        for place, job in enumerate(self._waiting):
            if job.trial.teacher_id is None or job.trial.teacher_id in self._ready:
                del self._waiting[place]
                self._live[job.trial.trial_id] = job
                return job
        return None

    def live(self, trial_id: str) -> Job | None:
        """The live trial of that id."""
        return self._live.get(trial_id)

    def end(self, record: TrialRecord) -> list[Job]:
        """Takes note of a trial that ended; returns its dependants where it failed, which are then skipped."""
        self._live.pop(record.trial_id, None)
        if record.state is State.FINISHED:
            self._ready.add(record.trial_id)
            return []
        skipped = [job for job in self._waiting if job.trial.teacher_id == record.trial_id]
        self._waiting = [job for job in self._waiting if job.trial.teacher_id != record.trial_id]
        return skipped
