"""Runs the trials of a launch as one Tune experiment: workers train, a searcher picks trials, a callback watches."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from orchestrator import codec
from orchestrator.errors import KdctlError, RayLost, ResourceError
from orchestrator.execution._resources import describe_resources, gpus_per_trial
from orchestrator.execution.attempt import Report, TakenOver, TrialNotice, run_trial
from orchestrator.execution.controller import TrialController, Workload
from orchestrator.execution.job import Job
from orchestrator.execution.ray._errors import explain_loss, plain
from orchestrator.execution.ray._metrics import export_memory, export_metrics
from orchestrator.execution.ray._session import find_dead_process, join_cluster
from orchestrator.machine import folders
from orchestrator.monitor.events import Event, EventKind, EventListener, TrialStarted
from orchestrator.records import EpochRecord, TrialRecord
from orchestrator.study.reader import Resources
from orchestrator.training.graphs import sharing

_PATIENCE = 7.0  # seconds for workers to write a checkpoint after they were told to stop
_CHECK_PERIOD = 1.0  # seconds between two checks of Ray's processes and machines
_GATHER = 0.25  # seconds for which reports of a trial are combined into one result: each costs Tune milliseconds
_LAST_LINES = 50  # lines of a dead worker's standard error that its trial's log keeps
_NO_NODE = 60.0  # seconds to wait for a machine to come back if none is left that fits a trial

_KINDS: Mapping[str, Callable[..., Report]] = {
    kind.__name__: kind for kind in (TrialStarted, EpochRecord, TrialNotice, TrialRecord, TakenOver)
}
_LAST = (TrialRecord.__name__, TakenOver.__name__)  # what a trial ends with


def run(work: Workload, on_event: EventListener, *, address: str | None, dashboard: bool) -> None:
    """Does what `ray_executor.run` does, in an environment that is ready for Ray."""

    def note(text: str) -> None:
        on_event(Event(EventKind.NOTE, text))

    study = next((job.study for job in work.jobs), "")
    with join_cluster(address, study, note, dashboard=dashboard) as nodes:
        work.started.set()
        gpus = gpus_per_trial(work.resources, nodes)
        fitting = _count_fitting(work.resources, gpus, nodes)
        limit = min(work.max_concurrent or fitting, fitting)
        note(describe_resources(gpus, work.resources, f"up to {limit} at a time on Ray"))
        if sharing(gpus) > 1:
            note("trials on one GPU take turns, each in a process of its own; with --inline they run side by side")
        jobs = [replace(job, gpus=gpus, ray_version=ray.__version__) for job in work.jobs]
        with export_metrics(work.launch_event, on_event, note) as on_measured_event:
            on_event(Event(EventKind.PREPARING, "starting the workers"))
            controller = TrialController(work, jobs, on_measured_event, limit)
            _run_experiment(work, controller, gpus, limit)
    controller.conclude()


def _count_fitting(resources: Resources, gpus: float, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many trials fit on the cluster at a time."""
    count = 0
    for node in nodes:
        fit = int(node.get("CPU", 0.0) // resources.cpus_per_trial)
        if gpus:
            fit = min(fit, int(node.get("GPU", 0.0)) * sharing(gpus))
        count += fit
    return max(1, count)


def _run_experiment(work: Workload, controller: TrialController, gpus: float, limit: int) -> None:
    # By default Tune starts the trials of a custom searcher one by one, so N GPUs would fill slowly.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(limit)
    bundle = _make_bundle(work.resources.cpus_per_trial, gpus)
    # Tune's own state, which nobody reads, goes into a temporary folder; ours is in the storage.
    with folders.scratch("kdctl-tune-") as scratch:
        tune.Tuner(
            TrialWorker,
            tune_config=tune.TuneConfig(search_alg=PlanSearcher(controller), num_samples=-1, reuse_actors=True),
            run_config=tune.RunConfig(
                name="kdctl",
                storage_path=str(scratch),
                verbose=0,
                callbacks=[Watcher(work, controller, bundle)],
                stop=LaunchStopper(work, controller),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trials write their own checkpoints
            ),
        ).fit()


def _make_bundle(cpus: int, gpus: float) -> dict[str, float]:
    """The resources of one trial, in the form that Ray expects."""
    return {"CPU": float(cpus), **({"GPU": gpus} if gpus else {})}


class TrialWorker(tune.Trainable):
    """Trains a trial, one or more epochs per step; its process then takes the next trial and keeps the images."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """The resources of its trials; with Tune's `with_resources` the dashboard would show another class name."""
        job = codec.decode(Job, config["job"])
        return tune.PlacementGroupFactory([_make_bundle(job.threads, job.gpus)])

    def setup(self, config: dict[str, Any]) -> None:
        """Prepares a trial."""
        job = codec.decode(Job, config["job"])
        self._study = job.study
        self._reports = run_trial(job)
        self._end_memory = export_memory(job.study, job.trial)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Prepares another trial in the same process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Trains one epoch, or several short ones, and returns their reports; the last step also reports the end."""
        start = time.monotonic()
        reports: list[tuple[str, dict[str, Any]]] = []
        for report in self._reports:
            reports.append((type(report).__name__, asdict(report)))
            if (
                isinstance(report, TrialStarted | TrialNotice | TrialRecord | TakenOver)
                or time.monotonic() - start > _GATHER
            ):
                break
        is_done = reports[-1][0] in _LAST
        if is_done:
            self._end_memory()
        return {"reports": reports, "done": is_done}

    def cleanup(self) -> None:
        """Ends the attempt, which releases its lease."""
        self._reports.close()
        self._end_memory()

    def __repr__(self) -> str:
        # The dashboard keeps the first value, so it must suit all later trials too; see `Watcher.on_trial_start`.
        return f"kdctl worker of study {self._study}"


class PlanSearcher(Searcher):
    """Gives Tune the trials of a plan, each as soon as its teacher is ready."""

    def __init__(self, controller: TrialController) -> None:
        super().__init__()
        self._controller = controller

    def __reduce__(self) -> Any:
        return Searcher, ()  # as for `Watcher`

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
        """Does nothing: `Watcher` records how trials end."""

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
        return tune.stopper.NoopStopper, ()  # as for `Watcher`


class Watcher(tune.Callback):
    """Passes on what the workers report, records how trials end, and checks on workers that report nothing."""

    def __init__(self, work: Workload, controller: TrialController, bundle: Mapping[str, float]) -> None:
        self._work = work
        self._controller = controller
        self._bundle = bundle
        self._checked = self._fitted = time.monotonic()

    def __reduce__(self) -> Any:
        # Tune pickles its callbacks for a restore that we never use; a terminal cannot be pickled.
        return tune.Callback, ()

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Checks the cluster now and then; if the launch is to stop, releases its lease, which stops the workers."""
        if self._work.stop.is_set():
            self._work.lease.release()
        if time.monotonic() - self._checked < _CHECK_PERIOD:
            return
        self._checked = time.monotonic()
        if dead := find_dead_process():
            self._controller.give_up(RayLost(f"Ray's {dead} died"))
            return
        self._controller.end_silent_trials()
        for trial in trials:  # a worker that was given up because it was silent would occupy its resources forever
            is_due = trial.status == Trial.RUNNING and not trial.last_result.get("done")
            if is_due and trial.temporary_state.ray_actor and not self._controller.is_live(_decode_job(trial)):
                ray.kill(trial.temporary_state.ray_actor)
        if any(_fits(self._bundle, node["Resources"]) for node in ray.nodes() if node["Alive"]):
            self._fitted = self._checked
        elif self._checked - self._fitted > _NO_NODE:
            self._controller.give_up(
                ResourceError(
                    "no machine of the cluster is left that can train a trial; start one (`ray start --address …`), "
                    "then continue with the same command"
                )
            )

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Names the worker's task after the trial; the dashboard and `ps` show this name."""
        worker = trial.temporary_state.ray_actor
        vars(worker).pop("train", None)  # named after the previous trial; Ray creates the method again
        planned = _decode_job(trial).trial
        worker.train = worker.train.options(name=f"{planned.trial_id} {planned.title()}")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Records epochs, a notice, or the end of a trial."""
        job = _decode_job(trial)
        with self._give_up_on_error():
            for kind, content in result.get("reports", ()):
                self._controller.note(job, _KINDS[kind](**content))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Records that a worker died."""
        error = _read_error(trial)
        failure, reason = explain_loss(error)
        job = _decode_job(trial)
        with self._give_up_on_error():
            output = _read_stderr(self._controller.find_start(job.trial.trial_id)) if failure.is_retried else error
            self._controller.note_loss(job, failure, reason, output)

    @contextmanager
    def _give_up_on_error(self) -> Iterator[None]:
        """Ends the launch after a KdctlError; Tune would wrap it into an exception of its own."""
        try:
            yield
        except KdctlError as error:
            self._controller.give_up(error)


def _fits(bundle: Mapping[str, float], resources: Mapping[str, float]) -> bool:
    return all(resources.get(name, 0.0) >= amount for name, amount in bundle.items())


def _read_error(trial: Trial) -> str:
    """What Ray writes about the error of a trial: Tune keeps it in a text file."""
    try:
        return plain(Path(trial.error_file).read_text(errors="replace")) if trial.error_file else ""
    except OSError:
        return ""


def _read_stderr(started: TrialStarted | None) -> str:
    """What a dead worker wrote to standard error, like a crash in native code; empty if it ran elsewhere."""
    node = ray._private.worker._global_node
    if started is None or node is None or started.host != socket.gethostname():
        return ""
    lines = []
    for path in sorted(Path(node.get_logs_dir_path()).glob(f"worker-*-{started.pid}.err")):
        with suppress(OSError):
            lines += path.read_text(errors="replace").splitlines()[-_LAST_LINES:]
    return "\n".join(line for line in lines if not line.startswith(":"))  # lines by which Ray marks jobs and actors


def _decode_job(trial: Trial) -> Job:
    return codec.decode(Job, trial.config["job"])
