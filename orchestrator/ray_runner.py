"""The executor that runs trials on Ray, as one Tune experiment: the one door to Ray."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

# Ray reads these when it is imported or when it starts its processes, so they come before its import.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # three files a trial that nobody reads
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from orchestrator import results
from orchestrator.errors import Interrupted, ResourceError
from orchestrator.records import EpochRecord, State, TrialRecord
from orchestrator.runner import Run, Watch, described, end, gpus_of
from orchestrator.schedule import Schedule
from orchestrator.spec import Resources
from orchestrator.storage import Storage
from orchestrator.trial import Job, run_trial


def run_ray(run: Run, watch: Watch, say: Callable[[str], None]) -> None:
    """Runs the trials as one Tune experiment, on a cluster of its own or on the one at `run.address`.

    Raises ResourceError where no machine can ever give what a trial needs, and Interrupted after Ctrl-C.
    """
    with _cluster(run.address) as nodes:
        gpus = gpus_of(run.resources, nodes)
        places = _places(run.resources, gpus, nodes)
        most = min(run.max_concurrent or places, places)
        say(described(gpus, run.resources, f"up to {most} at a time on Ray"))
        jobs = [replace(job, gpus=gpus, ray_version=ray.__version__) for job in run.jobs]
        schedule = Schedule(jobs, run.ready, most)
        _fit(run, schedule, gpus, most, watch)
    if not schedule.is_over:
        raise Interrupted("stopped; what is finished is kept, and the same command goes on with the rest")


@contextmanager
def _cluster(address: str | None) -> Iterator[list[dict[str, float]]]:
    """Joins a cluster, or starts one on this machine for as long as this lasts; gives each node's resources."""
    try:
        if address:
            _reach(address)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a worker that died is a row, see `Watcher`
        ray.init(address=address or "local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        where = f"at {address!r} cannot be joined" if address else "could not be started here"
        raise ResourceError(f"a Ray cluster {where} ({reason}); check `ray status`, or train with --inline") from None
    try:
        _hide_token()
        yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raises OSError where nobody listens at a `host:port`; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _hide_token() -> None:
    """Ray leaves the token of its clusters readable by every user of the machine."""
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if token.is_file() and token.stat().st_uid == os.getuid():
        token.chmod(0o600)


def _places(resources: Resources, gpus: float, nodes: Sequence[Mapping[str, float]]) -> int:
    """How many trials fit at a time."""
    count = 0
    for node in nodes:
        fit = int(node.get("CPU", 0.0) // resources.cpus_per_trial)
        if gpus:
            fit = min(fit, int(node.get("GPU", 0.0)) * int(1 // gpus))
        count += fit
    return max(1, count)


def _fit(run: Run, schedule: Schedule, gpus: float, most: int, watch: Watch) -> None:
    # A custom searcher is otherwise asked for one trial at a time, and N GPUs would fill one actor start after another.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(most)
    bundle = {"CPU": float(run.resources.cpus_per_trial), **({"GPU": gpus} if gpus else {})}
    scratch = tempfile.mkdtemp(prefix="kdctl-tune-")  # for Tune's own state, which nobody reads; ours is in the storage
    try:
        tune.Tuner(
            tune.with_resources(TrialWorker, tune.PlacementGroupFactory([bundle])),
            tune_config=tune.TuneConfig(
                search_alg=PlanSearcher(schedule), num_samples=len(run.jobs), reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name="kdctl",
                storage_path=scratch,
                verbose=0,
                callbacks=[Watcher(schedule, run.storage, watch)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a trial saves its own weights
            ),
        ).fit()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class TrialWorker(tune.Trainable):
    """Trains a trial, an epoch a step; then the same process takes the next one, its images still on the device."""

    def setup(self, config: dict[str, Any]) -> None:
        """Gets ready for a first trial."""
        self._records = run_trial(Job.from_json(config["job"]))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Gets ready for another trial."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One epoch, or the end of the trial."""
        record = next(self._records)
        if isinstance(record, EpochRecord):
            return {"epoch_record": asdict(record)}
        return {"trial_record": {**asdict(record), "start_time": record.start_time.isoformat()}, "done": True}

    def cleanup(self) -> None:
        """Lets go of the trial."""
        self._records.close()


class PlanSearcher(Searcher):
    """Deals the trials of a plan as their teachers become ready."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self._schedule = schedule

    def suggest(self, trial_id: str) -> Any:
        """A job as Tune's config; None while every trial left waits for a live one; FINISHED after the last."""
        job = self._schedule.start()
        if job:
            return {"job": job.to_json()}
        # None with nothing live would make Tune wait ten minutes in one step; the schedule never comes to that, as a
        # trial whose teacher failed does not wait any more.
        return None if self._schedule.waits else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: `Watcher` takes note of what ended."""

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Tells Tune not to count for us: the schedule does."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing: launching again is how a study goes on."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as `save`."""


class Watcher(tune.Callback):
    """Passes on what the workers report, and takes note of what ended."""

    def __init__(self, schedule: Schedule, storage: Storage, watch: Watch) -> None:
        self._schedule = schedule
        self._storage = storage
        self._watch = watch

    def __reduce__(self) -> Any:
        # Tune pickles its callbacks for a restore that we never ask for; a terminal cannot be pickled.
        return tune.Callback, ()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch, or the end of a trial."""
        job = self._job(trial)
        if "epoch_record" in result:
            self._watch(job, EpochRecord(**result["epoch_record"]))
        if "trial_record" in result:
            row = result["trial_record"]
            row = {**row, "start_time": datetime.fromisoformat(row["start_time"]), "state": State(row["state"])}
            self._end(job, TrialRecord(**row))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A worker that died: its row says so, as it could not."""
        job = self._job(trial)
        if self._schedule.live(job.trial.trial_id) is None:
            return
        reason = (str(trial.get_pickled_error() or "").strip().splitlines() or ["no reason given"])[-1]
        row = job.row(State.FAILED, f"its worker process was lost ({reason}); launch again to train it anew")
        results.write_trial(self._storage, row)
        self._end(job, row)

    def _job(self, trial: Trial) -> Job:
        return Job.from_json(trial.config["job"])

    def _end(self, job: Job, record: TrialRecord) -> None:
        self._watch(job, record)
        end(self._schedule, record, self._storage, self._watch)
