"""Watches the workers from the launch's process: passes on their reports, and takes note of those that die."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial

from orchestrator import codec
from orchestrator.errors import KdctlError, RayLost, ResourceError
from orchestrator.execution.controller import TrialController, Workload
from orchestrator.execution.job import Job
from orchestrator.execution.ray._failures import explain_loss, plain
from orchestrator.execution.ray._session import find_dead_process
from orchestrator.execution.ray._worker import REPORT_KINDS, make_bundle
from orchestrator.monitor.events import TrialStarted

_CHECK_PERIOD = 1.0  # seconds between two checks of Ray's processes and machines
_LAST_LINES = 50  # lines of a dead worker's standard error that its trial's log keeps
_NO_NODE = 60.0  # seconds to wait for a machine to come back if none is left that fits a trial


class WorkerWatcher(tune.Callback):
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
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        wanted = [_decode_bundle(trial) for trial in trials if trial.status == Trial.PENDING] or [self._bundle]
        if all(any(_fits(bundle, node) for node in nodes) for bundle in wanted):
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
                self._controller.note(job, REPORT_KINDS[kind](**content))

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


def _decode_bundle(trial: Trial) -> Mapping[str, float]:
    job = _decode_job(trial)
    return make_bundle(job.threads, job.gpus)


def _decode_job(trial: Trial) -> Job:
    return codec.decode(Job, trial.config["job"])
