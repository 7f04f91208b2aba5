"""What runs in a worker process of Ray: it trains a trial, then the next one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from ray import tune

from orchestrator import codec
from orchestrator.errors import DeviceLost
from orchestrator.execution.attempt import Report, TakenOver, TrialNotice, run_trial
from orchestrator.execution.job import Job
from orchestrator.execution.ray._metrics import export_memory
from orchestrator.monitor.events import TrialStarted
from orchestrator.records import EpochRecord, Failure, TrialRecord

_PATIENCE = 30.0  # seconds for a process that lost its GPU to be ended
_GATHER = 0.25  # seconds for which reports of a trial are combined into one result: each costs Tune milliseconds

REPORT_KINDS: Mapping[str, Callable[..., Report]] = {
    kind.__name__: kind for kind in (TrialStarted, EpochRecord, TrialNotice, TrialRecord, TakenOver)
}
_LAST = (TrialRecord.__name__, TakenOver.__name__)  # what a trial ends with


def make_bundle(cpus: int, gpus: float) -> dict[str, float]:
    """The resources of one trial, in the form that Ray expects."""
    return {"CPU": float(cpus), **({"GPU": gpus} if gpus else {})}


class TrialWorker(tune.Trainable):
    """Trains a trial, one or more epochs per step; its process then takes the next trial and keeps the images."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """The resources of its trials; with Tune's `with_resources` the dashboard would show another class name."""
        job = codec.decode(Job, config["job"])
        return tune.PlacementGroupFactory([make_bundle(job.threads, job.gpus)])

    def setup(self, config: dict[str, Any]) -> None:
        """Prepares a trial."""
        job = codec.decode(Job, config["job"])
        self._study = job.study
        self._reports = run_trial(job)
        self._lost: str | None = None
        self._end_memory = export_memory(job.study, job.trial)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Prepares another trial in the same process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Trains one epoch, or several short ones, and returns their reports; the last step also reports the end."""
        if self._lost:  # no later trial could use the GPU in this process, which `WorkerWatcher` ends
            time.sleep(_PATIENCE)
            raise DeviceLost(self._lost)
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
        self._lost = reports[-1][1]["error"] if reports[-1][1].get("failure") is Failure.DEVICE else None
        return {"reports": reports, "done": is_done and not self._lost}

    def cleanup(self) -> None:
        """Ends the attempt, which releases its lease."""
        self._reports.close()
        self._end_memory()

    def __repr__(self) -> str:
        # The dashboard keeps the first value, so it must suit all later trials too; see `WorkerWatcher.on_trial_start`.
        return f"kdctl worker of study {self._study}"
