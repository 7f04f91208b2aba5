"""The part that all executors share: it starts the trials of a launch in turn and records how they end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from orchestrator.errors import DeviceLost, Interrupted, KdctlError, RayLost, StorageError
from orchestrator.execution._resources import Shares
from orchestrator.execution._schedule import Schedule
from orchestrator.execution.attempt import Report, TakenOver, TrialNotice
from orchestrator.execution.job import Job, order_jobs
from orchestrator.monitor.events import Event, EventKind, EventListener, TrialStarted, format_accuracies
from orchestrator.records import EpochRecord, Failure, State, TrialRecord
from orchestrator.results import store
from orchestrator.storage import logs
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Lease, acquire, trial_resource
from orchestrator.study.values import Resources

_PAUSE = 2.0  # seconds between two checks of a trial that another launch is training
_BACK_OFF = 5.0  # seconds before the second attempt, doubled for each further one; more than a worker needs to notice
_POLL = 0.2  # seconds between two checks while nothing can start yet
_LEASE_PERIOD = 5.0  # seconds between two checks of the leases of running trials
_LAST_LINES = 20  # of the log of a trial that failed, which its event holds
_LAUNCH_AGAIN = "launch again: a new process continues every trial from its last checkpoint"
_SILENCE = 60.0  # seconds after its lease has ended for a worker to report how


@dataclass(frozen=True, slots=True)
class Workload:
    """The work of an executor: jobs in the order of the plan, and the ids of teachers that are ready in the storage.

    `lease` is that of the launch: workers train as long as it is held. Setting `stop` ends the launch early. The
    executor calls `begin` before the first trial starts. `launch_event` is the first event of the launch; without it no
    metrics are exported.
    """

    jobs: Sequence[Job]
    ready: frozenset[str]
    storage: Storage
    resources: Resources
    lease: Lease
    max_concurrent: int | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    started: threading.Event = field(default_factory=threading.Event)
    launch_event: Event | None = None
    wait_for_images: Callable[[], None] = lambda: None

    def begin(self) -> None:
        """Waits until the storage has the images; from then on a signal lets trials write their checkpoints.

        Raises DataError and StorageError where they cannot be prepared.
        """
        self.wait_for_images()
        self.started.set()


class TrialController:
    """Starts the trials of a launch and records how they end; every executor uses one."""

    def __init__(
        self,
        work: Workload,
        jobs: Sequence[Job],
        on_event: EventListener,
        shares: Shares,
        *,
        replaces_workers: bool = False,
    ) -> None:
        """`replaces_workers`: a trial that is tried again gets another process if its own can no longer use its GPU."""
        self._work = work
        self._replaces_workers = replaces_workers
        self._schedule = Schedule(order_jobs(jobs), work.ready)
        self._shares = shares
        self._on_event = on_event
        self._attempts: dict[str, int] = {}
        self._elsewhere: set[str] = set()
        self._started: dict[str, TrialStarted] = {}
        self._best: dict[str, float] = {}  # the best test accuracy of each trial so far
        self._left = {job.trial.trial_id for job in jobs}
        self._last_held: dict[str, float] = {}  # when the lease of a running trial was last held, monotonic clock
        self._checked = time.monotonic()
        self._error: KdctlError | None = None

    @property
    def is_stopping(self) -> bool:
        """Whether no trial may start any more and running trials must stop."""
        return self._work.stop.is_set()

    @property
    def is_lost(self) -> bool:
        """Whether Ray's own processes died, so that waiting for a trial is useless."""
        return isinstance(self._error, RayLost)

    @property
    def is_over(self) -> bool:
        """Whether no trial is left to start or to wait for."""
        return self._schedule.is_over or (self.is_stopping and not self._schedule.has_running)

    def start(self) -> Job | None:
        """Starts the next trial; None if no trial can start yet, or if none is left."""
        self._shares.release_others({job.trial.trial_id for job in self._schedule.list_running()})
        if self.is_stopping or not self._shares.has_room:
            return None
        while job := self._schedule.start():
            if job.trial.trial_id not in self._elsewhere or not self._is_trained_elsewhere(job):
                self._last_held.pop(job.trial.trial_id, None)  # by an earlier attempt or another launch
                return self._shares.assign(job)
            self._schedule.postpone(job, _PAUSE)
        return None

    def start_or_wait(self) -> Job | None:
        """Like `start`, but waits if nothing runs; None at the end, or if what is left waits for running trials."""
        while not self.is_over:
            job = self.start()
            if job or self._schedule.has_running:
                return job
            self._work.stop.wait(_POLL)
        return None

    def _is_trained_elsewhere(self, job: Job) -> bool:
        return self._work.lease.find_holder(trial_resource(job.trial.trial_id)) is not None

    def note(self, job: Job, report: Report) -> None:
        """Records a report of a trial, and sends its event."""
        trial = job.trial
        if isinstance(report, TrialNotice):
            self._on_event(Event(EventKind.NOTICE, report.text, trial))
        elif isinstance(report, TrialStarted):
            self._started[trial.trial_id] = report
            self._best[trial.trial_id] = report.acc or 0.0
            self._on_event(Event(EventKind.STARTED, _describe_start(report), trial, report))
        elif isinstance(report, EpochRecord):
            acc = self._best[trial.trial_id] = max(report.test_acc, self._best.get(trial.trial_id, 0.0))
            self._on_event(Event(EventKind.EPOCH, _describe_epoch(report, trial.config.epochs, acc), trial, report))
        elif self.is_live(job):  # else it is a late report of an attempt that was given up
            self._note_end(job, report)

    def _note_end(self, job: Job, report: TakenOver | TrialRecord) -> None:
        if isinstance(report, TakenOver):
            if job.trial.trial_id not in self._elsewhere:
                text = "another launch trains it; waiting for its result"
                self._on_event(Event(EventKind.ELSEWHERE, text, job.trial))
            self._elsewhere.add(job.trial.trial_id)
            self._schedule.postpone(job, _PAUSE)
        elif report.state is State.STOPPED and not self.is_stopping:
            self._schedule.postpone(job, _PAUSE)  # this process was suspended, and its workers took it for dead
        elif report.failure is Failure.DEVICE and not self._replaces_workers:
            self.give_up(DeviceLost(f"{job.trial.title()}: {report.error}; {_LAUNCH_AGAIN}"))
            self._end(job, report)
        elif self._retry(job, report.failure, report.error, report.end_time):
            # Its stored row has the state failed, which a reader of the storage would take for its end.
            self._write(replace(report, state=State.RUNNING, failure=None, end_time=None))
        else:
            self._end(job, report)

    def find_start(self, trial_id: str) -> TrialStarted | None:
        """The start report of the last attempt at a trial; None before the first."""
        return self._started.get(trial_id)

    def note_loss(self, job: Job, failure: Failure, reason: str, output: str = "") -> None:
        """Records that a worker died, in the row and the log of its trial, because the worker itself could not.

        `output` is what it wrote outside the log, such as its standard error.
        """
        if not self.is_live(job):
            return
        # Its process may still exist, cut off from Ray: the next attempt must not wait for its lease.
        self._work.lease.evict(trial_resource(job.trial.trial_id))
        logs.append(self._work.storage, job.trial.trial_id, "\n".join(filter(None, (reason, output))))
        if self.is_stopping:
            self._schedule.end(job.row(State.STOPPED))
        elif not self._retry(job, failure, reason):
            count = self._attempts.get(job.trial.trial_id, 0) + 1
            advice = f", {count} times; launch again to resume from its checkpoint" if failure.is_retried else ""
            row = job.row(State.FAILED, f"{reason}{advice}", failure)
            row = replace(row, end_time=datetime.now(UTC))
            self._write(row)
            self._end(job, row)

    def _retry(self, job: Job, failure: Failure | None, reason: str | None, ended: datetime | None = None) -> bool:
        attempts = self._attempts.get(job.trial.trial_id, 0)
        if failure is None or not failure.is_retried or attempts >= self._work.resources.retries or self.is_stopping:
            return False
        self._attempts[job.trial.trial_id] = attempts + 1
        seconds = _BACK_OFF * 2.0**attempts
        number = f"{attempts + 1} of {self._work.resources.retries}"
        text = f"{reason}; retried in {seconds:g} s from its last checkpoint ({number})"
        self._on_event(Event(EventKind.RETRY, text, job.trial))
        # A new `since` makes it another job, so that a late report of the earlier attempt is not taken for its own.
        since = max(datetime.now(UTC), ended or datetime.now(UTC))  # the worker's clock may be ahead of ours
        self._schedule.postpone(replace(job, since=since.isoformat()), seconds)
        return True

    def end_silent_trials(self) -> None:
        """Treats running trials as lost if their leases ended a while ago and no report says how they ended."""
        now = time.monotonic()
        if now - self._checked < _LEASE_PERIOD:
            return
        self._checked = now
        held = self._work.lease.find_holders(trial_resource(""))
        for job in self._schedule.list_running():
            trial_id = job.trial.trial_id
            if trial_resource(trial_id) in held:
                self._last_held[trial_id] = now
            elif now - self._last_held.get(trial_id, now) > _SILENCE:
                del self._last_held[trial_id]
                self.note_loss(job, Failure.LOST_WORKER, f"its worker has reported nothing for {_SILENCE:g} s")

    def _end(self, job: Job, record: TrialRecord) -> None:
        """Records that a trial ended; if it failed, its dependants are stored as skipped."""
        self._on_event(self._make_end_event(job, record))
        if record.state is not State.STOPPED:
            self._left.discard(record.trial_id)
        if record.failure is Failure.STORAGE:
            self.give_up(StorageError(record.error))
        skipped = self._schedule.end(record)
        if self.is_stopping:
            return
        for dependant in skipped:
            role = "member" if dependant.trial.member_ids else "teacher"
            row = dependant.row(State.SKIPPED, f"its {role} {record.trial_id} {record.state}: {record.error}")
            row = replace(row, end_time=datetime.now(UTC))
            self._write(row)
            self._end(dependant, row)

    def _make_end_event(self, job: Job, record: TrialRecord) -> Event:
        if record.state is not State.FAILED:
            return Event(EventKind.ENDED, _describe_end(record), job.trial, record)
        log = tuple(logs.read(self._work.storage, record.trial_id)[-_LAST_LINES:])
        where = logs.locate(self._work.storage, record.trial_id)
        return Event(EventKind.ENDED, _describe_end(record), job.trial, record, log, where)

    def is_live(self, job: Job) -> bool:
        """Whether this is the current attempt at its trial."""
        running = self._schedule.find_running(job.trial.trial_id)
        return running is not None and running.since == job.since

    def _write(self, row: TrialRecord) -> None:
        lease = acquire(self._work.storage, trial_resource(row.trial_id))
        if lease is None:
            return  # the launch that trains it writes its row
        with lease:
            self._write_unless_finished(row)

    def _write_unless_finished(self, row: TrialRecord) -> None:
        states = store.read_states(self._work.storage, [row.trial_id])
        if states.get(row.trial_id) is not State.FINISHED:  # another launch may have finished it
            store.write_trial(self._work.storage, row)

    def give_up(self, error: KdctlError) -> None:
        """Stops the launch for a reason that affects every trial."""
        self._error = self._error or error
        self._work.stop.set()

    def conclude(self) -> None:
        """Raises the error that stopped the launch early, if any; Interrupted if trials are left without an error."""
        if self._error:
            raise self._error
        if self._left:
            raise Interrupted("stopped; what was trained is kept, and the same command resumes from there")


def _describe_start(started: TrialStarted) -> str:
    hit = {None: "", True: ", the table exists", False: "; building the table first"}[started.is_hit]
    mode = f", teacher outputs: {started.teacher_mode}{hit}" if started.teacher_mode else ""
    return f"started on {started.host}, {started.device}{mode}"


def _describe_epoch(record: EpochRecord, epochs: int, acc: float) -> str:
    speed = f"{record.images_per_second:,.0f} images/s"
    return f"epoch {record.epoch}/{epochs}, {format_accuracies(acc, record.test_acc)}, {speed}"


def _describe_end(record: TrialRecord) -> str:
    if record.state is State.STOPPED:
        return record.error or "stopped"
    if record.state is not State.FINISHED:
        return f"{record.state}: {record.error}"
    best = f" (epoch {record.epoch})" if record.epoch else ""
    return f"finished, {format_accuracies(record.acc, None)}{best}, {format_accuracies(None, record.last_acc)}"
