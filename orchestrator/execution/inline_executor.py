"""What every executor shares, and the one that runs trials in this process; its twin is `ray_runner`."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import torch

from orchestrator.errors import Interrupted, KdctlError, RayLost, ResourceError, StorageError
from orchestrator.execution.attempt import Job, Report, TakenOver, TrialNotice, run_trial
from orchestrator.execution.schedule import Schedule
from orchestrator.machine import limits
from orchestrator.monitor.events import Event, EventKind, EventListener, TrialStarted, accuracies
from orchestrator.records import EpochRecord, Failure, State, TrialRecord
from orchestrator.results import store
from orchestrator.storage import logs
from orchestrator.storage.layout import Storage
from orchestrator.storage.leases import Lease, acquire, trial_resource
from orchestrator.study.reader import Resources
from orchestrator.training.graphs import STREAMS, sharing

_PAUSE = 2.0  # seconds before a trial that another launch trains is asked about again
_BACK_OFF = 5.0  # seconds before the second attempt, doubled for each further one; more than a worker needs to notice
_POLL = 0.2  # seconds between two looks where nothing can start yet
_LOOK = 5.0  # seconds between two looks at the leases of what runs
_LAST_LINES = 20  # of the log of a trial that failed, which its event holds
_SILENCE = 60.0  # seconds after its lease has ended for a worker to report how


@dataclass(frozen=True, slots=True)
class Workload:
    """What to run: jobs in the order of the plan, and teachers that the storage already holds.

    `lease` is the launch's own: as long as it is held, workers work. `begun` is set once something may be trained,
    `stop` by who wants the launch to end. `address` is that of a Ray cluster, `dashboard` whether one of our own has
    one. `began` is the event that the launch began with.
    """

    jobs: Sequence[Job]
    ready: frozenset[str]
    storage: Storage
    resources: Resources
    lease: Lease
    stop: threading.Event = field(default_factory=threading.Event)
    max_concurrent: int | None = None
    address: str | None = None
    begun: threading.Event = field(default_factory=threading.Event)
    dashboard: bool = True
    began: Event | None = None


class TrialController:
    """Deals the trials of a run, and takes note of what comes of them: one for every executor."""

    def __init__(self, run: Workload, jobs: Sequence[Job], on_event: EventListener, most: int | None = None) -> None:
        self._run = run
        self._schedule = Schedule(jobs, run.ready, most)
        self._tell = on_event
        self._attempts: dict[str, int] = {}
        self._elsewhere: set[str] = set()
        self._begun: dict[str, TrialStarted] = {}
        self._best: dict[str, float] = {}  # test accuracy of each trial so far
        self._left = {job.trial.trial_id for job in jobs}
        self._seen: dict[str, float] = {}  # when the lease of a live trial was last seen, on the monotonic clock
        self._looked = time.monotonic()
        self._error: KdctlError | None = None

    @property
    def is_stopping(self) -> bool:
        """Whether nothing is to start any more, and what runs is to stop."""
        return self._run.stop.is_set()

    @property
    def is_lost(self) -> bool:
        """Whether Ray's own processes died, and nothing can be waited for."""
        return isinstance(self._error, RayLost)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to start or to wait for."""
        return self._schedule.is_over or (self.is_stopping and not self._schedule.lives)

    def start(self) -> Job | None:
        """The next trial to start; None where nothing can start yet, or any more."""
        if self.is_stopping:
            return None
        while job := self._schedule.start():
            if job.trial.trial_id not in self._elsewhere or not self._is_trained_elsewhere(job):
                self._seen.pop(job.trial.trial_id, None)  # that was an earlier attempt, or another launch
                return job
            self._schedule.again(job, _PAUSE)
        return None

    def start_or_wait(self) -> Job | None:
        """As `start`, but waits where nothing runs; None at the end, or where what is left waits for what runs."""
        while not self.is_over:
            job = self.start()
            if job or self._schedule.lives:
                return job
            self._run.stop.wait(_POLL)
        return None

    def _is_trained_elsewhere(self, job: Job) -> bool:
        return self._run.lease.holder(trial_resource(job.trial.trial_id)) is not None

    def note(self, job: Job, report: Report) -> None:
        """Takes note of what a trial said."""
        trial = job.trial
        if isinstance(report, TrialNotice):
            self._tell(Event(EventKind.NOTICE, report.text, trial))
        elif isinstance(report, TrialStarted):
            self._begun[trial.trial_id] = report
            self._best[trial.trial_id] = report.acc or 0.0
            self._tell(Event(EventKind.STARTED, _where(report), trial, report))
        elif isinstance(report, EpochRecord):
            acc = self._best[trial.trial_id] = max(report.test_acc, self._best.get(trial.trial_id, 0.0))
            self._tell(Event(EventKind.EPOCH, _how_good(report, trial.config.epochs, acc), trial, report))
        elif self.is_live(job):  # and no late word of an attempt that was given up
            self._note_end(job, report)

    def _note_end(self, job: Job, report: TakenOver | TrialRecord) -> None:
        if isinstance(report, TakenOver):
            if job.trial.trial_id not in self._elsewhere:
                text = "another launch trains it; its result is waited for"
                self._tell(Event(EventKind.ELSEWHERE, text, job.trial))
            self._elsewhere.add(job.trial.trial_id)
            self._schedule.again(job, _PAUSE)
        elif report.state is State.STOPPED and not self.is_stopping:
            self._schedule.again(job, _PAUSE)  # this process stood still, and its workers took it for dead
        elif self._retry(job, report.failure, report.error, report.end_time):
            # Its row says that it failed, which whoever looks at the storage meanwhile would take for its end.
            self._write(replace(report, state=State.RUNNING, failure=None, end_time=None))
        else:
            self._end(job, report)

    def begun(self, trial_id: str) -> TrialStarted | None:
        """Where the last attempt at a trial began; None before the first."""
        return self._begun.get(trial_id)

    def lost(self, job: Job, failure: Failure, reason: str, last_words: str = "") -> None:
        """Takes note of a worker that died: its row and its log say so, as it could not.

        `last_words` is what it said outside of the log, as on its standard error.
        """
        if not self.is_live(job):
            return
        # Its process may still be there, cut off from Ray: what it holds is not to keep the next attempt waiting.
        self._run.lease.evict(trial_resource(job.trial.trial_id))
        logs.append(self._run.storage, job.trial.trial_id, "\n".join(filter(None, (reason, last_words))))
        if self.is_stopping:
            self._schedule.end(job.row(State.STOPPED))
        elif not self._retry(job, failure, reason):
            tried = self._attempts.get(job.trial.trial_id, 0) + 1
            again = f", {tried} times; launch again to go on from its checkpoint" if failure.is_retried else ""
            row = job.row(State.FAILED, f"{reason}{again}", failure)
            row = replace(row, end_time=datetime.now(UTC))
            self._write(row)
            self._end(job, row)

    def _retry(self, job: Job, failure: Failure | None, reason: str | None, ended: datetime | None = None) -> bool:
        attempts = self._attempts.get(job.trial.trial_id, 0)
        if failure is None or not failure.is_retried or attempts >= self._run.resources.retries or self.is_stopping:
            return False
        self._attempts[job.trial.trial_id] = attempts + 1
        seconds = _BACK_OFF * 2.0**attempts
        of = f"{attempts + 1} of {self._run.resources.retries}"
        text = f"{reason}; tried again in {seconds:g} s from its last checkpoint ({of})"
        self._tell(Event(EventKind.RETRY, text, job.trial))
        # `since` makes it another job: what the earlier attempt may still say is not taken for its word.
        since = max(datetime.now(UTC), ended or datetime.now(UTC))  # the worker's clock may be ahead of ours
        self._schedule.again(replace(job, since=since.isoformat()), seconds)
        return True

    def look_after_silent(self) -> None:
        """Takes those live trials for lost whose lease has ended a while ago, and that have not said how."""
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        held = self._run.lease.held(trial_resource(""))
        for job in self._schedule.live_jobs():
            trial_id = job.trial.trial_id
            if trial_resource(trial_id) in held:
                self._seen[trial_id] = now
            elif now - self._seen.get(trial_id, now) > _SILENCE:
                del self._seen[trial_id]
                self.lost(job, Failure.LOST_WORKER, f"its worker has not been heard of for {_SILENCE:g} s")

    def _end(self, job: Job, record: TrialRecord) -> None:
        """Takes note of a trial that ended; where it failed, its dependants become rows that say so."""
        self._tell(self._ended(job, record))
        if record.state is not State.STOPPED:
            self._left.discard(record.trial_id)
        if record.failure is Failure.STORAGE:
            self.give_up(StorageError(record.error))
        skipped = self._schedule.end(record)
        if self.is_stopping:
            return
        for dependant in skipped:
            row = dependant.row(State.SKIPPED, f"its teacher {record.trial_id} {record.state}: {record.error}")
            row = replace(row, end_time=datetime.now(UTC))
            self._write(row)
            self._end(dependant, row)

    def _ended(self, job: Job, record: TrialRecord) -> Event:
        if record.state is not State.FAILED:
            return Event(EventKind.ENDED, _outcome(record), job.trial, record)
        log = tuple(logs.read(self._run.storage, record.trial_id)[-_LAST_LINES:])
        where = logs.where(self._run.storage, record.trial_id)
        return Event(EventKind.ENDED, _outcome(record), job.trial, record, log, where)

    def is_live(self, job: Job) -> bool:
        """Whether this attempt at a trial is the one that is waited for."""
        return self._schedule.live(job.trial.trial_id) == job

    def _write(self, row: TrialRecord) -> None:
        lease = acquire(self._run.storage, trial_resource(row.trial_id))
        if lease is None:
            return  # who trains it writes its row
        with lease:
            self._write_unless_finished(row)

    def _write_unless_finished(self, row: TrialRecord) -> None:
        states = store.read_states(self._run.storage, [row.trial_id])
        if states.get(row.trial_id) is not State.FINISHED:  # another launch may have had more luck
            store.write_trial(self._run.storage, row)

    def give_up(self, error: KdctlError) -> None:
        """Stops the launch for a reason that would meet every trial."""
        self._error = self._error or error
        self._run.stop.set()

    def conclude(self) -> None:
        """Raises what made the launch stop before its end."""
        if self._error:
            raise self._error
        if self._left:
            raise Interrupted("stopped; what was trained is kept, and the same command goes on from there")


def _where(begun: TrialStarted) -> str:
    hit = {None: "", True: ", the table is there", False: "; building the table first"}[begun.is_hit]
    asks = f", teacher's answers: {begun.answers}{hit}" if begun.answers else ""
    return f"started on {begun.host}, {begun.device}{asks}"


def _how_good(record: EpochRecord, epochs: int, acc: float) -> str:
    speed = f"{record.images_per_second:,.0f} images/s"
    return f"epoch {record.epoch}/{epochs}, {accuracies(acc, record.test_acc)}, {speed}"


def _outcome(record: TrialRecord) -> str:
    if record.state is State.STOPPED:
        return record.error or "stopped"
    if record.state is not State.FINISHED:
        return f"{record.state}: {record.error}"
    best = f" (epoch {record.epoch})" if record.epoch else ""
    return f"finished, {accuracies(record.acc, None)}{best}, {accuracies(None, record.last_acc)}"


def run_inline(run: Workload, on_event: EventListener) -> None:
    """Runs the trials in this process: one after another, or where each takes a share of a GPU, so many at a time.

    Raises ResourceError where it has too few GPUs, StorageError where the storage fails, Interrupted after a signal.
    """
    found = float(torch.cuda.device_count())
    gpus = gpus_of(run.resources, [{"CPU": float(limits.cores()), "GPU": found}])
    most = min(run.max_concurrent or STREAMS, sharing(gpus), STREAMS)
    how = "one after another in this process" if most == 1 else f"{most} in this process"
    on_event(Event(EventKind.NOTE, described(gpus, run.resources, how)))
    on_event(Event(EventKind.PREPARING, "starting the first trial"))
    run.begun.set()
    conductor = TrialController(run, [replace(job, gpus=gpus) for job in run.jobs], on_event, most)
    if most == 1:
        _run_in_turn(run, conductor)
    else:
        _run_side_by_side(run, conductor, most)
    conductor.conclude()


def _run_in_turn(run: Workload, conductor: TrialController) -> None:
    while job := conductor.start_or_wait():
        for report in run_trial(job, run.stop.is_set):
            conductor.note(job, report)


def _run_side_by_side(run: Workload, conductor: TrialController, most: int) -> None:
    """Each trial has a thread, and on a GPU a CUDA stream: kernels of small models then run beside one another."""
    reports: queue.SimpleQueue[tuple[Job, Report | BaseException | None]] = queue.SimpleQueue()
    lives, failure = 0, None
    while True:
        while lives < most and (job := conductor.start() if lives else conductor.start_or_wait()):
            threading.Thread(target=_train, args=(job, run.stop, reports), daemon=True).start()
            lives += 1
        if not lives:
            break
        with suppress(queue.Empty):
            job, report = reports.get(timeout=_POLL)
            lives -= report is None or isinstance(report, BaseException)
            failure = failure or _noted(conductor, job, report)
            if failure:  # the others write their checkpoints first
                run.stop.set()
    if failure:
        raise failure


def _noted(conductor: TrialController, job: Job, report: Report | BaseException | None) -> BaseException | None:
    """Passes on what a thread reports; gives what ends the launch."""
    if isinstance(report, BaseException):
        return report
    try:
        if report is not None:
            conductor.note(job, report)
    except Exception as error:
        return error
    return None


def _train(
    job: Job, stop: threading.Event, reports: queue.SimpleQueue[tuple[Job, Report | BaseException | None]]
) -> None:
    """Trains a trial, passes on what it reports, and says at last that there is no more."""
    try:
        for report in run_trial(job, stop.is_set):
            reports.put((job, report))
        reports.put((job, None))
    except BaseException as error:
        reports.put((job, error))


def gpus_of(resources: Resources, nodes: Sequence[Mapping[str, float]]) -> float:
    """GPUs of one trial. Raises ResourceError where no node can ever give what a trial needs."""
    most_gpus = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    gpus = resources.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if most_gpus >= 1 else 0.0
    if not any(node.get("GPU", 0.0) >= gpus and node.get("CPU", 0.0) >= resources.cpus_per_trial for node in nodes):
        most_cpus = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
        raise ResourceError(
            f"a trial wants {gpus:g} GPUs and {resources.cpus_per_trial} CPU cores, but no machine here has more than "
            f"{most_gpus:g} GPUs and {most_cpus:g} cores; lower them, for example with "
            "--set resources.gpus_per_trial=0 --set resources.cpus_per_trial=1"
        )
    return gpus


def described(gpus: float, resources: Resources, where: str) -> str:
    """What one trial trains on, said plainly."""
    if gpus:
        return f"each trial trains on {gpus:g} GPU, {where}"
    return f"no GPU is used: each trial trains on {resources.cpus_per_trial} CPU core(s), {where}"
