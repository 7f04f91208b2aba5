"""What every executor shares, and the one that runs trials in this process; its twin is `ray_runner`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from orchestrator import results
from orchestrator.errors import ResourceError
from orchestrator.records import EpochRecord, State, TrialRecord
from orchestrator.schedule import Schedule
from orchestrator.spec import Resources
from orchestrator.storage import Storage
from orchestrator.trial import Job, run_trial

Watch = Callable[[Job, EpochRecord | TrialRecord], None]  # told of every epoch, and of every trial that ends


@dataclass(frozen=True, slots=True)
class Run:
    """What to run: jobs in the order of the plan, and teachers that the storage already holds."""

    jobs: Sequence[Job]
    ready: frozenset[str]
    storage: Storage
    resources: Resources
    max_concurrent: int | None = None
    address: str | None = None


def run_inline(run: Run, watch: Watch, say: Callable[[str], None]) -> None:
    """Runs the trials one after another in this process. Raises ResourceError where it has too few GPUs."""
    found = float(torch.cuda.device_count())
    gpus = gpus_of(run.resources, [{"CPU": float(os.cpu_count() or 1), "GPU": found}])
    say(described(gpus, run.resources, "one after another in this process"))
    schedule = Schedule(run.jobs, run.ready)
    while job := schedule.start():
        for record in run_trial(replace(job, gpus=gpus)):
            watch(job, record)
            if isinstance(record, TrialRecord):
                end(schedule, record, run.storage, watch)


def end(schedule: Schedule, record: TrialRecord, storage: Storage, watch: Watch) -> None:
    """Takes note of a trial that ended; where it failed, its dependants become rows that say so."""
    for job in schedule.end(record):
        row = job.row(State.SKIPPED, f"its teacher {record.trial_id} {record.state}: {record.error}")
        results.write_trial(storage, row)
        watch(job, row)
        end(schedule, row, storage, watch)


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
