"""Runs the trials of a launch as one Tune experiment: workers train, a searcher picks trials, a callback watches."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher

from orchestrator import codec
from orchestrator.execution._resources import Shares, describe_resources, gpus_per_trial
from orchestrator.execution.controller import TrialController, Workload
from orchestrator.execution.ray._metrics import export_metrics
from orchestrator.execution.ray._session import join_cluster
from orchestrator.execution.ray._worker import TrialWorker, make_bundle
from orchestrator.execution.ray._worker_watcher import WorkerWatcher
from orchestrator.machine import folders
from orchestrator.monitor.events import Event, EventKind, EventListener
from orchestrator.training.graphs import sharing

_PATIENCE = 7.0  # seconds for workers to write a checkpoint after they were told to stop


def run(work: Workload, on_event: EventListener, *, address: str | None, dashboard: bool) -> None:
    """Does what `executor.run` does, in an environment that is ready for Ray."""

    def note(text: str) -> None:
        on_event(Event(EventKind.NOTE, text))

    study = next((job.study for job in work.jobs), "")
    with join_cluster(address, study, note, dashboard=dashboard) as nodes:
        work.begin()
        gpus = gpus_per_trial(work.resources, nodes)
        shares = _make_shares(work, gpus, nodes)
        note(describe_resources(gpus, work.resources, f"up to {shares.most} at a time on Ray"))
        if sharing(gpus) > 1:
            note("trials on one GPU take turns, each in a process of its own; with --inline they run side by side")
        jobs = [replace(job, gpus=gpus, ray_version=ray.__version__) for job in work.jobs]
        with export_metrics(work.launch_event, on_event, note) as on_measured_event:
            on_event(Event(EventKind.PREPARING, "starting the workers"))
            controller = TrialController(work, jobs, on_measured_event, shares, replaces_workers=True)
            _run_experiment(work, controller, make_bundle(work.resources.cpus_per_trial or 1, gpus), shares.most)
    controller.conclude()


def _make_shares(work: Workload, gpus: float, nodes: Sequence[Mapping[str, float]]) -> Shares:
    """The cores of each node; with GPUs how many trials fit on the cluster, as Ray itself picks the GPU of each."""
    cpus = work.resources.cpus_per_trial
    cores = [int(node.get("CPU", 0.0)) for node in nodes]
    if not gpus:
        return Shares(cores, cpus, work.max_concurrent)
    places = [int(node.get("GPU", 0.0)) * sharing(gpus) for node in nodes]
    fitting = sum(min(count // (cpus or 1), place) for count, place in zip(cores, places, strict=True))
    return Shares([fitting], 1, work.max_concurrent)


def _run_experiment(work: Workload, controller: TrialController, bundle: Mapping[str, float], limit: int) -> None:
    # By default Tune starts the trials of a custom searcher one by one, so N GPUs would fill slowly.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(limit)
    # Tune's own state, which nobody reads, goes into a temporary folder; ours is in the storage.
    with folders.scratch("kdctl-tune-") as scratch:
        tune.Tuner(
            TrialWorker,
            tune_config=tune.TuneConfig(search_alg=PlanSearcher(controller), num_samples=-1, reuse_actors=True),
            run_config=tune.RunConfig(
                name="kdctl",
                storage_path=str(scratch),
                verbose=0,
                callbacks=[WorkerWatcher(work, controller, bundle)],
                stop=LaunchStopper(work, controller),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trials write their own checkpoints
            ),
        ).fit()


class PlanSearcher(Searcher):
    """Gives Tune the trials of a plan, each as soon as its teacher is ready."""

    def __init__(self, controller: TrialController) -> None:
        super().__init__()
        self._controller = controller

    def __reduce__(self) -> Any:
        return Searcher, ()  # as for `WorkerWatcher`

    def __deepcopy__(self, memo: Any) -> PlanSearcher:
        return self

    def suggest(self, trial_id: str) -> Any:
        """A job as Tune's config; None while all remaining trials wait for running ones; FINISHED after the last."""
        # If nothing runs, None would make Tune wait ten minutes in one step, so the controller waits instead.
        job = self._controller.start_or_wait()
        if job:
            return {"job": codec.encode(job)}
        return Searcher.FINISHED if self._controller.is_over else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Does nothing: `WorkerWatcher` records how trials end."""

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Tells Tune not to limit the running trials: the schedule does."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: a study resumes when it is launched again."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing, like `save`."""


class LaunchStopper(tune.Stopper):
    """Ends the experiment where Tune would wait for workers that do not stop in time or cannot be reached."""

    def __init__(self, work: Workload, controller: TrialController) -> None:
        self._work = work
        self._controller = controller
        self._since: float | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """False: no trial is ended because of what it reports."""
        return False

    def stop_all(self) -> bool:
        """Whether there is nothing left to wait for."""
        if self._controller.is_over or self._controller.is_lost:
            return True
        if not self._work.stop.is_set():
            return False
        self._since = self._since or time.monotonic()
        return time.monotonic() - self._since > _PATIENCE

    def __reduce__(self) -> Any:
        return tune.stopper.NoopStopper, ()  # as for `WorkerWatcher`
