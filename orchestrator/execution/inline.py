"""The executor `inline`: it trains in this process, without Ray."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace

import torch

from orchestrator.execution._resources import Shares, describe_resources, gpus_per_trial
from orchestrator.execution.attempt import Report, run_trial
from orchestrator.execution.controller import TrialController, Workload
from orchestrator.execution.job import Job
from orchestrator.machine import limits
from orchestrator.monitor.events import Event, EventKind, EventListener
from orchestrator.training.graphs import STREAMS, sharing

_POLL = 0.2  # seconds between two checks while nothing can start yet


def run(work: Workload, on_event: EventListener) -> None:
    """Trains as many trials at a time as there are CPU cores, or as share the GPUs of this machine.

    Raises ResourceError if there are too few GPUs, StorageError if the storage fails, Interrupted after a signal.
    """
    cores, found = limits.cores(), torch.cuda.device_count()
    gpus = gpus_per_trial(work.resources, [{"CPU": float(cores), "GPU": float(found)}])
    if gpus:
        shares = Shares([min(sharing(gpus), STREAMS)] * found, 1, work.max_concurrent)
    else:
        shares = Shares([cores], work.resources.cpus_per_trial, work.max_concurrent)
    how = "one after another in this process" if shares.most == 1 else f"up to {shares.most} at a time in this process"
    on_event(Event(EventKind.NOTE, describe_resources(gpus, work.resources, how)))
    on_event(Event(EventKind.PREPARING, "starting the first trial"))
    work.begin()
    controller = TrialController(work, [replace(job, gpus=gpus) for job in work.jobs], on_event, shares)
    if shares.most == 1:
        _run_in_turn(work, controller)
    else:
        _run_concurrently(work, controller, shares.most)
    controller.conclude()


def _run_in_turn(work: Workload, controller: TrialController) -> None:
    while job := controller.start_or_wait():
        for report in run_trial(job, work.stop.is_set):
            controller.note(job, report)


def _run_concurrently(work: Workload, controller: TrialController, limit: int) -> None:
    """Each trial has a thread, and on a GPU a CUDA stream, so that kernels of small models run at the same time."""
    threads = _Threads(work.stop)
    running, failure = 0, None
    while True:
        while running < limit and (job := controller.start() if running else controller.start_or_wait()):
            threads.train(job)
            running += 1
        if not running:
            break
        with suppress(queue.Empty):
            job, report = threads.reports.get(timeout=_POLL)
            running -= report is None or isinstance(report, BaseException)
            failure = failure or _note(controller, job, report)
            if failure:  # the other trials write their checkpoints first
                work.stop.set()
    threads.end()
    if failure:
        raise failure


def _note(controller: TrialController, job: Job, report: Report | BaseException | None) -> BaseException | None:
    """Passes on what a thread reports; returns an error that ends the launch."""
    if isinstance(report, BaseException):
        return report
    try:
        if report is not None:
            controller.note(job, report)
    except Exception as error:
        return error
    return None


class _Threads:
    """Threads that each train one trial after another: libraries keep what they have prepared for each thread.

    `reports` gets what each trial reports, then None, or the error that ended it.
    """

    def __init__(self, stop: threading.Event) -> None:
        self.reports: queue.SimpleQueue[tuple[Job, Report | BaseException | None]] = queue.SimpleQueue()
        self._stop = stop
        self._idle: dict[int, list[queue.SimpleQueue[Job | None]]] = defaultdict(list)  # by the number of the GPU
        self._started: list[tuple[threading.Thread, queue.SimpleQueue[Job | None]]] = []

    def train(self, job: Job) -> None:
        """Trains a trial in a thread that has nothing to do, or in a new one."""
        jobs = self._idle[job.gpu].pop() if self._idle[job.gpu] else self._start()
        jobs.put(job)

    def end(self) -> None:
        """Ends the threads, which have nothing to do any more."""
        for thread, jobs in self._started:
            jobs.put(None)
            thread.join()

    def _start(self) -> queue.SimpleQueue[Job | None]:
        jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        thread = threading.Thread(target=self._work, args=(jobs,), name="kdctl trials", daemon=True)
        thread.start()
        self._started.append((thread, jobs))
        return jobs

    def _work(self, jobs: queue.SimpleQueue[Job | None]) -> None:
        while job := jobs.get():
            last: BaseException | None = None
            try:
                for report in run_trial(job, self._stop.is_set):
                    self.reports.put((job, report))
            except BaseException as error:
                last = error
            self._idle[job.gpu].append(jobs)  # before the last report, after which the next trial may start
            self.reports.put((job, last))
