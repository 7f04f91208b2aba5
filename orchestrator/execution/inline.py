"""The executor `inline`: it trains in this process, without Ray."""

from __future__ import annotations

import queue
import threading
from contextlib import suppress
from dataclasses import replace

import torch

from orchestrator.execution._resources import describe_resources, gpus_per_trial
from orchestrator.execution.attempt import Report, run_trial
from orchestrator.execution.controller import TrialController, Workload
from orchestrator.execution.job import Job
from orchestrator.machine import limits
from orchestrator.monitor.events import Event, EventKind, EventListener
from orchestrator.training.graphs import STREAMS, sharing

_POLL = 0.2  # seconds between two checks while nothing can start yet


def run(work: Workload, on_event: EventListener) -> None:
    """Trains one trial after another, or up to `STREAMS` at a time if each takes a share of a GPU.

    Raises ResourceError if there are too few GPUs, StorageError if the storage fails, Interrupted after a signal.
    """
    found = float(torch.cuda.device_count())
    gpus = gpus_per_trial(work.resources, [{"CPU": float(limits.cores()), "GPU": found}])
    limit = min(work.max_concurrent or STREAMS, sharing(gpus), STREAMS)
    how = "one after another in this process" if limit == 1 else f"{limit} in this process"
    on_event(Event(EventKind.NOTE, describe_resources(gpus, work.resources, how)))
    on_event(Event(EventKind.PREPARING, "starting the first trial"))
    work.started.set()
    controller = TrialController(work, [replace(job, gpus=gpus) for job in work.jobs], on_event, limit)
    if limit == 1:
        _run_in_turn(work, controller)
    else:
        _run_concurrently(work, controller, limit)
    controller.conclude()


def _run_in_turn(work: Workload, controller: TrialController) -> None:
    while job := controller.start_or_wait():
        for report in run_trial(job, work.stop.is_set):
            controller.note(job, report)


def _run_concurrently(work: Workload, controller: TrialController, limit: int) -> None:
    """Each trial has a thread, and on a GPU a CUDA stream, so that kernels of small models run at the same time."""
    reports: queue.SimpleQueue[tuple[Job, Report | BaseException | None]] = queue.SimpleQueue()
    running, failure = 0, None
    while True:
        while running < limit and (job := controller.start() if running else controller.start_or_wait()):
            threading.Thread(target=_train, args=(job, work.stop, reports), daemon=True).start()
            running += 1
        if not running:
            break
        with suppress(queue.Empty):
            job, report = reports.get(timeout=_POLL)
            running -= report is None or isinstance(report, BaseException)
            failure = failure or _note(controller, job, report)
            if failure:  # the other trials write their checkpoints first
                work.stop.set()
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


def _train(
    job: Job, stop: threading.Event, reports: queue.SimpleQueue[tuple[Job, Report | BaseException | None]]
) -> None:
    """Trains a trial and puts its reports into a queue, then None, or the error that ended it."""
    try:
        for report in run_trial(job, stop.is_set):
            reports.put((job, report))
        reports.put((job, None))
    except BaseException as error:
        reports.put((job, error))
